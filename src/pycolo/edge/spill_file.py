"""The file behind the memory of a BlockStore: without a name, so that nothing stays behind however we end."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class SpillFile:
    """Implements Spill of core/block_store in a folder of a real file system."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder's file system has no nameless files or can't be written."""
        self._fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Raises OSError, ENOSPC among others."""
        while data:
            written = os.pwrite(self._fd, data, offset_bytes)
            data, offset_bytes = data[written:], offset_bytes + written

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Exactly `length_bytes`. Raises OSError."""
        parts = []
        while length_bytes:
            part = os.pread(self._fd, length_bytes, offset_bytes)
            if not part:
                raise OSError(errno.EIO, "the spill file is shorter than what was written to it")
            parts.append(part)
            offset_bytes, length_bytes = offset_bytes + len(part), length_bytes - len(part)
        return b"".join(parts)

    def reset(self) -> None:
        """Give the room back."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """The file vanishes."""
        os.close(self._fd)
