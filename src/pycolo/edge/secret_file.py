"""Secrets in files that only their owner reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pycolo.errors import EnvironmentFault

SECRET_BYTES_MAX = 4096


def read_secret(path: Path) -> str:
    """The content of `path` without the line end. Raises EnvironmentFault, which never quotes the content."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(SECRET_BYTES_MAX + 1) if stat.S_ISREG(mode) else b""
    except OSError as problem:
        raise EnvironmentFault(
            f"the secret file {path} can't be read ({problem.strerror}): name one that can"
        ) from None
    if not stat.S_ISREG(mode):
        raise EnvironmentFault(f"the secret {path} is not a file: name one")
    if mode & 0o077:
        raise EnvironmentFault(
            f"the secret file {path} has mode {stat.S_IMODE(mode):04o}, so others can get at it: chmod 600 {path}"
        )
    return _text(path, content)


def _text(path: Path, content: bytes) -> str:
    try:
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise EnvironmentFault(f"the secret file {path} is not text: write the secret into it") from None
    if not secret or len(content) > SECRET_BYTES_MAX:
        raise EnvironmentFault(
            f"the secret file {path} has {len(content)} bytes, at most {SECRET_BYTES_MAX} and not empty is expected: "
            "write the secret into it"
        )
    return secret


def _without_waiting(path: str, flags: int) -> int:
    """A pipe that nobody writes to must not stop us."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
