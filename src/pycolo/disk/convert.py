"""Makes a raw image of one in another format, with `qemu-img convert`.

Guarantees: IMAGE appears as a whole or not at all, sparse where the source has zeros, and is never overwritten; a
source that is damaged or empty is refused; qemu-img ends with us, however we end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from pycolo.errors import EnvironmentFault

QEMU_IMG = "qemu-img"
CANNOT_BE_CHECKED = 63  # qemu-img check: the format has no consistency to check, as raw has none


def import_image(source: Path, image: Path) -> None:
    """Shows its progress on stdout. Raises EnvironmentFault."""
    if not source.is_file() and not source.is_block_device():
        what = "is no file" if source.exists() else "does not exist"
        raise EnvironmentFault(f"{source} {what}: check the name of the image to convert")
    if image.exists() or image.is_symlink():
        raise EnvironmentFault(f"{image} exists already, and nothing is overwritten: remove it or choose another name")
    if not image.parent.is_dir():
        raise EnvironmentFault(f"the folder {image.absolute().parent} does not exist: make it first")
    part = image.with_name(f".{image.name}.{os.getpid()}.part")
    try:
        _check(source)
        _convert(source, part)
        _publish(part, image)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _check(source: Path) -> None:
    status, said = _run("check", "-q", os.fspath(source.absolute()))
    if status not in (0, CANNOT_BE_CHECKED):
        raise EnvironmentFault(f"{source} is damaged ({said}): repair it with `qemu-img check -r all {source}`")


def _convert(source: Path, part: Path) -> None:
    # Absolute, as qemu-img would take `a:b` for a protocol.
    status, said = _run("convert", "-p", "-O", "raw", os.fspath(source.absolute()), os.fspath(part.absolute()))
    if status:
        raise EnvironmentFault(f"{source} can't be converted ({said}): check the image and the space at {part.parent}")
    if not part.stat().st_size:
        raise EnvironmentFault(f"{source} is empty: check the name of the image to convert")


def _run(*arguments: str) -> tuple[int, str]:
    """Exit status and last words."""
    if shutil.which(QEMU_IMG) is None:
        raise EnvironmentFault(f"{QEMU_IMG} is missing: install the Debian package qemu-utils")
    command = ["setpriv", "--pdeathsig", "KILL", QEMU_IMG, *arguments]
    try:
        outcome = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False, umask=0o077)
    except FileNotFoundError:
        raise EnvironmentFault("setpriv is missing: install the Debian package util-linux") from None
    said = outcome.stderr.strip().splitlines() or [f"exit status {outcome.returncode}"]
    return outcome.returncode, said[-1]


def _publish(part: Path, image: Path) -> None:
    """Under its name once its content would survive a loss of power; a link, unlike a rename, never replaces a file."""
    try:
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.link(part, image)
    except FileExistsError:
        raise EnvironmentFault(f"{image} has appeared meanwhile: choose another name") from None
    except OSError as error:
        raise EnvironmentFault(f"{image} can't be made ({error.strerror}): check its folder") from None
