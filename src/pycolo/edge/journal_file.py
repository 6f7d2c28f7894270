"""The journal beside an image; implements Storage of core/disk_journal.

Guarantees: reads end where the file does; writes are whole or raise OSError; closed in good order it takes no room.
"""

from __future__ import annotations

import os
from pathlib import Path

from pycolo.edge.beside import open_beside
from pycolo.edge.whole_io import read_whole, write_whole


class JournalFile:
    """One file, made if it is missing."""

    def __init__(self, path: Path) -> None:
        """Raises EnvironmentFault."""
        self._fd = open_beside(path)
        self.steps = 0  # writes and syncs, for who wants to know whether it gets on

    def read(self, offset: int, length: int) -> bytes:
        """Shorter at the end of the file only."""
        return read_whole(self._fd, offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of it."""
        self.steps += 1
        write_whole(self._fd, offset, data)

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """As `write`, with zeros."""
        del may_trim
        self.write(offset, bytes(length))

    def sync(self) -> None:
        """What was written survives a loss of power."""
        self.steps += 1
        os.fdatasync(self._fd)

    def forget(self) -> None:
        """Nothing in it is needed any more."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)
