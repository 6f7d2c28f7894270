"""What the demo's disk round needs beside the others: a database on a disk, and a look at the disk afterwards.

Guarantees: the survivor's image is judged by e2fsck and by the guest's own words, after the guest has unmounted it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pycolo.edge.namespaces import Namespace
from pycolo.errors import DemoFailed, EnvironmentFault
from pycolo.guest.builder import UNMOUNTED_LINE
from pycolo.guest.console import console_says
from pycolo.guest.control import CONTROL_PORT
from pycolo.guest.disk_image import copy_disk

WORKERS = "database=2,http=1,tcp=1,udp=1"
NAME = "data.img"
POWER_OFF_S_MAX = 60.0
FSCK_S_MAX = 120.0


@dataclass(frozen=True)
class DatabaseDisk:
    """The database's disk of one round; `folders` is where each host keeps its images."""

    template: Path
    folders: dict[str, Path]

    def prepare(self, host: str) -> None:
        """The primary's image is a copy of the template; the secondary's is made by its daemon."""
        for folder in self.folders.values():
            folder.mkdir(parents=True)
        copy_disk(self.template, self.folders[host] / NAME)

    def vm_toml(self) -> str:
        """The table of vm.toml."""
        size_mib = self.template.stat().st_size >> 20
        return f'[[disks]]\nname = "data"\npath = "{NAME}"\nsize_mib = {size_mib}\n'

    def image(self, host: str) -> Path:
        """The image of a host."""
        return self.folders[host] / NAME


async def power_off(clients: Namespace, guest: str, console: Path) -> None:
    """Let the guest stop its database, unmount and end. Raises DemoFailed when it does not say so."""
    command = [*clients.prefix(), sys.executable, "-m", "pycolo.guest.control", guest, str(CONTROL_PORT), "poweroff"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode:
        raise DemoFailed(said.decode(errors="replace").strip())
    deadline = asyncio.get_running_loop().time() + POWER_OFF_S_MAX
    while not console_says(console, UNMOUNTED_LINE):
        if asyncio.get_running_loop().time() > deadline:
            raise DemoFailed(f"the guest did not unmount its disk in {POWER_OFF_S_MAX:.0f} s: see {console}")
        await asyncio.sleep(0.05)


def fsck(image: Path) -> str:
    """What is wrong with the file system of an image, as e2fsck says; empty when nothing is."""
    try:
        done = subprocess.run(
            ["e2fsck", "-fn", str(image)], capture_output=True, text=True, timeout=FSCK_S_MAX, check=False
        )
    except FileNotFoundError:
        raise EnvironmentFault(
            "e2fsck is missing, and the disk can't be judged without it: install e2fsprogs"
        ) from None
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-500:]
