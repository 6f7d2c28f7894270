"""The transmission phase of the NBD protocol: requests out of bytes, replies into bytes.

Guarantees: whatever bytes come and however they are cut, they are whole requests or an NbdViolation, never anything
else; a request that `refusal` lets pass keeps the size of the export and the limits below; a RequestBuffer holds at
most BUFFER_BYTES or one request, whichever is more.

Source: doc/proto.md of NetworkBlockDevice/nbd, "Transmission phase", "Structured reply chunk message", "Values".
"""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Iterable
from typing import NamedTuple

PAYLOAD_BYTES_MAX = 32 << 20  # what qemu, nbdkit and libnbd take as well
PREFERRED_BYTES = 4096
BUFFER_BYTES = 1 << 20

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF
CHUNK_IS_LAST = 1
ALLOCATION_CONTEXT_ID = 1

REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_READ_CHUNK = struct.Struct(">IHHQIQ")
_ERROR = struct.Struct(">IH")
_EXTENT = struct.Struct(">II")


class NbdViolation(Exception):
    """The client sent what the protocol forbids; its connection ends, and nobody else's."""


class Feature(enum.IntFlag):
    """Transmission flags: what an export offers."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128


# Plain numbers: looking up a member of an enum costs as much as handling it.
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH = 0, 1, 2, 3
CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 4, 6, 7
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE = 1, 2, 4, 8
_OFFSET_DATA, _BLOCK_STATUS, _ERROR_CHUNK = 1, 5, 0x8001

_ERRORS_KNOWN = frozenset(
    (errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW, errno.ENOTSUP, errno.ESHUTDOWN)
)
_ERRORS_LIKE = {
    errno.EROFS: errno.EPERM,
    errno.EACCES: errno.EPERM,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
}


class Session(NamedTuple):
    """What handshake and export settle for every request of a connection."""

    export: str
    size_bytes: int
    read_only: bool
    structured: bool  # structured replies were negotiated
    allocation: bool  # base:allocation was, so BLOCK_STATUS may be asked


class Request(NamedTuple):
    """One request; `payload` belongs to the buffer and is good until the next call of it."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    payload: memoryview


def features(read_only: bool, structured: bool) -> Feature:
    """The transmission flags of an export; CAN_MULTI_CONN and CACHE are not offered."""
    offered = Feature.HAS_FLAGS | Feature.SEND_FLUSH | Feature.SEND_FUA
    offered |= Feature.READ_ONLY if read_only else Feature.SEND_TRIM | Feature.SEND_WRITE_ZEROES
    return offered | Feature.SEND_DF if structured else offered


def flags_allowed(session: Session) -> dict[int, int]:
    """The commands of a session, each with the flags that it may carry; FUA is harmless on any command."""
    allowed = {
        CMD_READ: FLAG_FUA | FLAG_DF if session.structured else FLAG_FUA,
        CMD_WRITE: FLAG_FUA,
        CMD_FLUSH: FLAG_FUA,
        CMD_TRIM: FLAG_FUA,
        CMD_WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE,
    }
    if session.allocation:
        allowed[CMD_BLOCK_STATUS] = FLAG_FUA | FLAG_REQ_ONE
    return allowed


def refusal(session: Session, allowed: dict[int, int], request: Request) -> int:
    """The NBD error with which a request must be refused; 0 lets it pass. `allowed` is `flags_allowed(session)`."""
    flags, command, _, offset, length, _ = request
    flags_known = allowed.get(command)
    if flags_known is None or flags & ~flags_known:
        return errno.EINVAL
    if command == CMD_FLUSH:
        return errno.EINVAL if offset or length else 0
    if session.read_only and command in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES):
        return errno.EPERM
    if offset + length > session.size_bytes:
        return errno.ENOSPC if command in (CMD_WRITE, CMD_WRITE_ZEROES) else errno.EINVAL
    if not length or (command == CMD_READ and length > PAYLOAD_BYTES_MAX):
        return errno.EINVAL
    return 0


class RequestBuffer:
    """Takes bytes as they come and gives whole requests, whose payloads are views of it."""

    def __init__(self) -> None:
        self._standard = memoryview(bytearray(BUFFER_BYTES))
        self._view = self._standard
        self._at = self._end = 0  # what has come and was not given out yet
        self._needed = REQUEST.size  # bytes from _at on that make the next request whole, as far as known

    def space(self) -> memoryview:
        """Where the next bytes go; never empty once `take` has returned None. Payloads given out become invalid."""
        if self._at == self._end:
            self._at = self._end = 0
            self._view = self._standard
        if self._at + self._needed > len(self._view):
            self._make_room()
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """`count` bytes have been put into `space()`."""
        self._end += count

    def feed(self, data: bytes | memoryview) -> None:
        """As `space` and `filled`, for at most REQUEST.size bytes or what is known to be free."""
        self.space()[: len(data)] = data
        self.filled(len(data))

    def take(self) -> Request | None:
        """The next whole request, or None when more bytes are needed. Raises NbdViolation: what follows is lost."""
        at, have = self._at, self._end - self._at
        if have < REQUEST.size:
            self._needed = REQUEST.size
            return None
        magic, flags, command, cookie, offset, length = REQUEST.unpack_from(self._view, at)
        if magic != REQUEST_MAGIC:
            raise NbdViolation(f"a request began with {magic:#010x}")
        body = at + REQUEST.size
        end = body + length if command == CMD_WRITE else body
        if end > self._end:
            if length > PAYLOAD_BYTES_MAX:
                raise NbdViolation(f"a write of {length} bytes was announced; the limit is {PAYLOAD_BYTES_MAX}")
            self._needed = end - at
            return None
        self._at = end
        return Request(flags, command, cookie, offset, length, self._view[body:end])

    def _make_room(self) -> None:
        """Move the rest to the front, of a buffer made for the one request if it is larger than the standard."""
        rest = self._end - self._at
        source = self._view[self._at : self._end]
        if self._needed > BUFFER_BYTES:
            self._view = memoryview(bytearray(self._needed))
        else:
            self._view = self._standard
        self._view[:rest] = source
        self._at, self._end = 0, rest


def nbd_error(number: int) -> int:
    """An errno value as one of the few errors that the protocol knows."""
    number = _ERRORS_LIKE.get(number, number)
    return number if number in _ERRORS_KNOWN else errno.EIO


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """A reply without data; the data of a simple READ reply follow it."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def read_chunk_head(cookie: int, offset: int, length: int) -> bytes:
    """The one and only chunk of a structured READ reply, without its data."""
    return _READ_CHUNK.pack(CHUNK_MAGIC, CHUNK_IS_LAST, _OFFSET_DATA, cookie, 8 + length, offset)


def error_chunk(cookie: int, error: int) -> bytes:
    """A structured reply that says that a request has failed."""
    return _CHUNK.pack(CHUNK_MAGIC, CHUNK_IS_LAST, _ERROR_CHUNK, cookie, _ERROR.size) + _ERROR.pack(error, 0)


def status_chunk(cookie: int, extents: Iterable[tuple[int, int]]) -> bytes:
    """The one chunk of a BLOCK_STATUS reply: (length, flags) in order, for base:allocation."""
    body = ALLOCATION_CONTEXT_ID.to_bytes(4) + b"".join(_EXTENT.pack(length, flags) for length, flags in extents)
    return _CHUNK.pack(CHUNK_MAGIC, CHUNK_IS_LAST, _BLOCK_STATUS, cookie, len(body)) + body


def clipped(extents: Iterable[tuple[int, int]], length: int, only_one: bool) -> list[tuple[int, int]]:
    """The extents within `length`, neighbours of one kind made one; `only_one` is what REQ_ONE asks for."""
    kept: list[tuple[int, int]] = []
    left = length
    for size, flags in extents:
        size = min(size, left)
        if kept and kept[-1][1] == flags:
            kept[-1] = (kept[-1][0] + size, flags)
        elif size:
            kept.append((size, flags))
        left -= size
    return kept[:1] if only_one else kept
