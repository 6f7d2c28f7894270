"""Makes a raw image of one in another format, with `qemu-img convert`.

Guarantees: IMAGE appears as a whole or not at all, sparse where the source has zeros, and is never overwritten.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from pycolo.errors import EnvironmentFault

QEMU_IMG = "qemu-img"


def import_image(source: Path, image: Path) -> None:
    """Shows its progress on stdout. Raises EnvironmentFault."""
    if not source.exists():
        raise EnvironmentFault(f"{source} does not exist: check the name of the image to convert")
    if image.exists() or image.is_symlink():
        raise EnvironmentFault(f"{image} exists already, and nothing is overwritten: remove it or choose another name")
    part = image.with_name(f".{image.name}.{os.getpid()}.part")
    try:
        _convert(source, part)
        _publish(part, image)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _convert(source: Path, part: Path) -> None:
    paths = [os.fspath(path.absolute()) for path in (source, part)]  # qemu-img would take `a:b` for a protocol
    command = [QEMU_IMG, "convert", "-p", "-O", "raw", *paths]
    try:
        outcome = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise EnvironmentFault(f"{QEMU_IMG} is missing: install the Debian package qemu-utils") from None
    if outcome.returncode:
        said = (outcome.stderr.strip().splitlines() or [f"exit status {outcome.returncode}"])[-1]
        raise EnvironmentFault(f"{source} can't be converted ({said}): check the image and the space at {part.parent}")


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
