"""Captures that come through a pipe, kept so that they can be read more than once.

Guarantee: nothing of it is left behind, however the process ends; it takes no more than SPOOL_BYTES_MAX of the disk.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pycolo.errors import EnvironmentFault

STANDARD_INPUT = Path("-")
SPOOL_BYTES_MAX = 4 << 30

_PIECE_BYTES = 1 << 20


@contextmanager
def rereadable(path: Path) -> Iterator[Path]:
    """`path`, if it is a file; else the path of a copy of what comes out of it. Raises EnvironmentFault."""
    if not _is_pipe(path):
        yield path
        return
    with tempfile.TemporaryFile() as copy:
        try:
            _fill(path, copy)
        except OSError as problem:
            raise EnvironmentFault(
                f"what comes from {spoken(path)} can't be kept ({problem.strerror}): save it to a file and name that"
            ) from None
        yield Path(f"/proc/self/fd/{copy.fileno()}")


def spoken(path: Path) -> str:
    """What sentences call it; a name that is no text is made one."""
    return "standard input" if path == STANDARD_INPUT else os.fsencode(path).decode(errors="replace")


def _is_pipe(path: Path) -> bool:
    if path == STANDARD_INPUT:
        return True
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False  # whoever opens it will say why it can't be read


def _fill(path: Path, copy: BinaryIO) -> None:
    if path == STANDARD_INPUT:
        _copy(sys.stdin.buffer, copy, path)
        return
    with path.open("rb") as source:
        _copy(source, copy, path)


def _copy(source: BinaryIO, copy: BinaryIO, path: Path) -> None:
    copied = 0
    while piece := source.read(_PIECE_BYTES):
        copied += len(piece)
        if copied > SPOOL_BYTES_MAX:
            raise EnvironmentFault(
                f"more than {SPOOL_BYTES_MAX >> 30} GiB come from {spoken(path)}: save it to a file and name that"
            )
        copy.write(piece)
    copy.flush()
