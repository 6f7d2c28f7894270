"""Files that stand beside an image and have to outlive a loss of power: made durably, and not in memory."""

from __future__ import annotations

import os
from pathlib import Path

from pycolo.edge.replace_file import replace_file
from pycolo.errors import EnvironmentFault

MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def open_beside(path: Path, content: bytes = b"") -> int:
    """A descriptor of the file; a missing one is made whole, with this content and its name durable.

    Raises EnvironmentFault.
    """
    try:
        if not path.exists():
            _make(path, content)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        raise unusable(path, problem) from problem


def unusable(path: Path, problem: OSError) -> EnvironmentFault:
    """The sentence for a file beside an image that fails us at the start."""
    return EnvironmentFault(f"{path} can't be used ({problem.strerror}): it has to be writable, beside its image")


def _make(path: Path, content: bytes) -> None:
    """So that whoever finds the file finds all of it."""
    replace_file(path, content)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_lasts(folder: Path) -> None:
    """Raises EnvironmentFault when the folder is gone after a loss of power, with what it says of a block device."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, kind = line.partition(" - ")
        if fields.split()[2] == number and kind.split()[0] in _IN_MEMORY:
            raise EnvironmentFault(
                f"{folder} is in memory, and what is known of a block device has to outlive a loss of power: "
                "choose a `state_dir` on a disk in host.toml"
            )
