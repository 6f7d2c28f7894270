"""The bytes of a capture file, in order, gzipped or not; what both formats share.

Guarantees
* No more is in memory than what was asked for, whatever stands in the file.
* Where the file can't be decoded any further the failure says at which byte, and nothing before it is lost.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

from pycolo.errors import CaptureDamaged, EnvironmentFault

FRAME_BYTES_MAX = 262_144
GZIP_CONTENT_BYTES_MAX = 64 << 30
ETHERNET = 1

Direction = Literal["in", "out"]

_GZIP_MAGIC = b"\x1f\x8b"
_SKIP_BYTES = 1 << 16
_LINK_TYPES = {
    0: "BSD loopback",
    12: "raw IP",
    14: "raw IP",
    101: "raw IP",
    105: "IEEE 802.11",
    113: "Linux cooked (SLL)",
    127: "IEEE 802.11 with radiotap",
    228: "raw IPv4",
    229: "raw IPv6",
    276: "Linux cooked (SLL2)",
}


class CaptureRecord(NamedTuple):
    """One frame as it was captured."""

    number: int
    """From 1, as other tools count: frames of other link types, which are skipped, have numbers too."""
    ts_ns: int
    frame: bytes
    interface: int
    direction: Direction | None
    original_bytes: int

    @property
    def is_cut(self) -> bool:
        """Only the frame's beginning was captured (snap length)."""
        return self.original_bytes > len(self.frame)


class CaptureSource:
    """An open capture file; `name` is what the sentences call it."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.offset = 0  # of what is read next, in the content
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        except OSError as problem:
            raise _unreadable(name, problem) from None
        try:
            self.size_bytes = os.fstat(self._file.fileno()).st_size
            self._gzip = self._file.peek(2)[:2] == _GZIP_MAGIC
        except OSError as problem:
            self._file.close()
            raise _unreadable(name, problem) from None
        self._content: io.BufferedIOBase = gzip.GzipFile(fileobj=self._file) if self._gzip else self._file

    def close(self) -> None:
        """The file, and what decodes it."""
        self._content.close()
        self._file.close()

    @property
    def position_bytes(self) -> int:
        """How far the file itself has been read, for who shows progress."""
        return self._file.tell()

    def read(self, length: int) -> bytes:
        """Shorter than `length` only at the end of the content. Raises CaptureDamaged, EnvironmentFault."""
        try:
            data = self._content.read(length)
        except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
            raise self.damage(self.offset, f"the gzip data can't be unpacked any further ({problem})") from None
        except OSError as problem:
            raise _unreadable(self.name, problem) from None
        self.offset += len(data)
        if self._gzip and self.offset > GZIP_CONTENT_BYTES_MAX:
            raise EnvironmentFault(
                f"{self.name} unpacks to more than {GZIP_CONTENT_BYTES_MAX >> 30} GiB: cut it into smaller captures"
            )
        return data

    def take(self, length: int, at: int, what: str) -> bytes:
        """Exactly `length` bytes of the `what` that begins at `at`. Raises CaptureDamaged, EnvironmentFault."""
        data = self.read(length)
        if len(data) < length:
            raise self.damage(at, f"the file ends inside the {what} that begins there")
        return data

    def skip(self, length: int, at: int, what: str) -> None:
        """Pass over `length` bytes, which are never all in memory."""
        while length > 0:
            length -= len(self.take(min(length, _SKIP_BYTES), at, what))

    def damage(self, at: int, why: str) -> CaptureDamaged:
        """The failure for what stands at byte `at`."""
        content = "unpacked content" if self._gzip else "file"
        return CaptureDamaged(
            f"{self.name} is damaged at byte {at} of the {content}: {why}; "
            "only what is before it was read, so capture again"
        )

    def wrong_link_type(self, link_type: int) -> EnvironmentFault:
        """The failure for a capture without Ethernet frames."""
        kind = ", ".join([str(link_type), *filter(None, [_LINK_TYPES.get(link_type)])])
        return EnvironmentFault(
            f"{self.name} holds frames of link type {kind}, and only Ethernet (1) can be compared: "
            "capture on the guest's tap or on the bridge itself, not on `any`"
        )


def _unreadable(name: str, problem: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"{name} can't be read ({problem.strerror or problem}): name a capture file that can be read"
    )
