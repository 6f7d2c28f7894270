"""A wall clock for each host, which a fault can step: all processes of its daemon see it, the guest's QEMU does not.

QEMU loads a library of ours in its own way, and the guest reads its clock at its boot only.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("wall_clock.c")
_OFFSET_NS = struct.Struct("<q")


class WallClock:
    """`environment` is what a process has to be started with."""

    def __init__(self, library: Path, path: Path) -> None:
        self._path = path
        self.step_to(0)
        self.environment = {"LD_PRELOAD": str(library), "COLO_TEST_CLOCK": str(path)}

    def step_to(self, ahead_s: float) -> None:
        """It is ahead of the machine's by so much from now on."""
        content = _OFFSET_NS.pack(round(ahead_s * 1e9))
        if not self._path.exists():
            self._path.write_bytes(content)
        with self._path.open("r+b", buffering=0) as file:  # in place: it is mapped
            file.write(content)


def build_library(folder: Path) -> Path:
    """Compile it there."""
    library = folder / "wall_clock.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]
    subprocess.run([*command, str(library), str(SOURCE), "-ldl"], check=True, timeout=60)
    return library
