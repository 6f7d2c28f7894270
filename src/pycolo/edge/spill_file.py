"""The file behind the memory of a BlockStore: without a name, so that nothing stays behind however we end."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pycolo.edge.whole_io import read_whole, write_whole


class SpillFile:
    """Implements Spill of core/block_store in a folder of a real file system."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder's file system has no nameless files or can't be written."""
        self._fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Raises OSError, ENOSPC among others."""
        write_whole(self._fd, offset_bytes, data)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Exactly `length_bytes`. Raises OSError."""
        data = read_whole(self._fd, offset_bytes, length_bytes)
        if len(data) < length_bytes:
            raise OSError(errno.EIO, "the spill file is shorter than what was written to it")
        return data

    def reset(self) -> None:
        """Give the room back."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """The file vanishes."""
        os.close(self._fd)
