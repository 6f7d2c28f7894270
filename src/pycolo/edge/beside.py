"""Files that stand beside an image and have to outlive a loss of power: made durably, and not in memory."""

from __future__ import annotations

import os
from pathlib import Path

from pycolo.errors import EnvironmentFault

MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def open_beside(path: Path) -> int:
    """A descriptor of the file, made if it is missing, its name synced as well. Raises EnvironmentFault."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            os.close(fd)
            raise
    except OSError as problem:
        raise EnvironmentFault(
            f"{path} can't be used ({problem.strerror}): it has to be writable, beside its image"
        ) from problem
    return fd


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
