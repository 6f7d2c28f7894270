"""Reads and writes of a file at an offset that are whole, whatever single calls make of them. All may raise OSError."""

from __future__ import annotations

import os


def read_whole(fd: int, offset: int, length: int) -> bytes:
    """Shorter than `length` only at the end of the file."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    parts, have = [data], len(data)
    while have < length and (part := os.pread(fd, length - have, offset + have)):
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def write_whole(fd: int, offset: int, data: bytes | memoryview) -> None:
    """All of `data`."""
    count = os.pwrite(fd, data, offset)
    while count < len(data):
        count += os.pwrite(fd, memoryview(data)[count:], offset + count)
