"""Writes pcapng files: one section, interfaces with names, frames with direction and comment, nanoseconds.

Guarantees
* The file is its owner's alone (0600), and never takes the place of another.
* It never grows beyond `bytes_max`, and is whole: the first frame that does not fit, and all later ones, are counted
  instead.
* When the disk is full or fails, what was written so far is left as a whole capture.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pycolo.edge.capture_source import ETHERNET, FRAME_BYTES_MAX, Direction
from pycolo.edge.pcapng import (
    BYTE_ORDER_MAGIC,
    DIRECTIONS,
    INTERFACE,
    INTERFACE_NAME,
    INTERFACE_TS_RESOLUTION,
    INTERFACES_MAX,
    OPTION_COMMENT,
    OPTION_END,
    PACKET,
    PACKET_FLAGS,
    SECTION,
)
from pycolo.edge.whole_io import write_whole
from pycolo.errors import EnvironmentFault

TEXT_BYTES_MAX = 1024  # of a name or a comment

_BUFFER_BYTES = 1 << 16
_USER_APPLICATION = 4
_NANOSECONDS = b"\x09"
_LENGTH_UNKNOWN = -1
_FLAGS = {direction: flags.to_bytes(4, "little") for flags, direction in DIRECTIONS.items()}


class CaptureWriter:
    """One new file, for one writer."""

    def __init__(self, path: Path, interfaces: Sequence[str], bytes_max: int) -> None:
        """Raises EnvironmentFault when there is a file already, or none can be made."""
        assert 1 <= len(interfaces) <= INTERFACES_MAX, "a capture has interfaces, and a bounded number of them"
        self.frames = 0
        self.frames_not_written = 0
        self._path = path
        self._bytes_max = bytes_max
        self._interfaces = len(interfaces)
        self._buffer = bytearray(_section() + b"".join(map(_interface, interfaces)))
        self._written = 0
        self._frames_written = 0
        self._full = False
        if len(self._buffer) > bytes_max:
            raise EnvironmentFault(f"{bytes_max} bytes are not enough for a capture: allow {_BUFFER_BYTES} or more")
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise EnvironmentFault(f"{path} is there already: name a new file for the capture") from None
        except OSError as problem:
            raise self._unwritable(problem) from None

    def write(
        self, frame: bytes, ts_ns: int, interface: int = 0, direction: Direction | None = None, comment: str = ""
    ) -> bool:
        """One frame; False when it was only counted, as the file is full. Raises EnvironmentFault."""
        assert 0 <= interface < self._interfaces, "an interface that was not named"
        block = _packet(frame, ts_ns, interface, direction, comment)
        if self._full or self._written + len(self._buffer) + len(block) > self._bytes_max:
            self._full = True
            self.frames_not_written += 1
            return False
        self._buffer += block
        self.frames += 1
        if len(self._buffer) >= _BUFFER_BYTES:
            self.flush()
        return True

    def flush(self) -> None:
        """What was written so far is in the file. Raises EnvironmentFault."""
        try:
            write_whole(self._fd, self._written, bytes(self._buffer))
        except OSError as problem:
            self._take_back()
            raise self._unwritable(problem) from None
        self._written += len(self._buffer)
        self._frames_written = self.frames
        self._buffer.clear()

    def _take_back(self) -> None:
        """What did not go into the file as a whole is not in it at all."""
        self._full = True
        self._buffer.clear()
        self.frames_not_written += self.frames - self._frames_written
        self.frames = self._frames_written
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._written)

    def close(self) -> None:
        """The rest, then the file. Raises EnvironmentFault."""
        try:
            self.flush()
        finally:
            os.close(self._fd)

    @property
    def shortfall(self) -> str | None:
        """One sentence when frames were not written."""
        if not self.frames_not_written:
            return None
        return (
            f"{self._path} has reached its limit of {self._bytes_max} bytes with {self.frames} frames: "
            f"{self.frames_not_written} more were not written, so allow more bytes or capture for a shorter time"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unwritable(self, problem: OSError) -> EnvironmentFault:
        why = problem.strerror or str(problem)
        return EnvironmentFault(
            f"{self._path} can't be written ({why}): name a file where there is room for the capture"
        )


def _section() -> bytes:
    options = _option(_USER_APPLICATION, b"pycolo") + _option(OPTION_END, b"")
    return _block(SECTION, struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, _LENGTH_UNKNOWN) + options)


def _interface(name: str) -> bytes:
    options = _option(INTERFACE_NAME, _text(name)) + _option(INTERFACE_TS_RESOLUTION, _NANOSECONDS)
    return _block(INTERFACE, struct.pack("<HHI", ETHERNET, 0, FRAME_BYTES_MAX) + options + _option(OPTION_END, b""))


def _packet(frame: bytes, ts_ns: int, interface: int, direction: Direction | None, comment: str) -> bytes:
    options = b""
    if comment:
        options += _option(OPTION_COMMENT, _text(comment))
    if direction:
        options += _option(PACKET_FLAGS, _FLAGS[direction])
    if options:
        options += _option(OPTION_END, b"")
    kept = frame[:FRAME_BYTES_MAX]
    head = struct.pack("<IIIII", interface, ts_ns >> 32, ts_ns & 0xFFFFFFFF, len(kept), len(frame))
    return _block(PACKET, head + _padded(kept) + options)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _text(text: str) -> bytes:
    """UTF-8 within the bound; a character that is cut in two is left out."""
    return text.encode(errors="replace")[:TEXT_BYTES_MAX].decode(errors="ignore").encode()
