"""Messages between the disk processes of two hosts: what the primary's disks get, in the order they got it.

Guarantees: every decoder takes any bytes and either returns a message that keeps the limits below or raises
PeerViolation; between two marks nothing of the stream can be lost, changed or moved unnoticed (digest in the mark).

A message is `be32 length | u8 kind | body`, as in `wire`. Kind DATA is `u8 disk, be64 offset, bytes`, kind ZEROS is
`u8 disk, be64 offset, be64 length`, kind CONTROL a msgpack map (msgspec).
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated

import msgspec
import xxhash

from pycolo.core.changed_chunks import CHUNKS_MAX
from pycolo.core.wire import HEADER
from pycolo.errors import PeerViolation

DISKS_MAX = 16
DATA_BYTES_MAX = 1 << 20
DISK_BYTES_MAX = 1 << 46  # 64 TiB, and far from where arithmetic on offsets could fail
CHECKS_MAX = 1 << 17
MESSAGE_BYTES_MAX = DISKS_MAX * (CHUNKS_MAX // 8 + 256) + (1 << 20)

_DATA = struct.Struct(">BQ")
_ZEROS = struct.Struct(">BQQ")

_Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Disk = Annotated[int, msgspec.Meta(ge=0, lt=DISKS_MAX)]
_Session = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{0,32}\Z")]
_Digest = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Kind(enum.IntEnum):
    """What the body of a message is."""

    CONTROL = 1
    DATA = 2
    ZEROS = 3


class Greeting(msgspec.Struct, frozen=True, tag="greeting", forbid_unknown_fields=True):
    """First message of the primary: the token that the Welcome of the daemons' session gave."""

    token: str


class ImageState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One image of the secondary: the session it belongs to (empty: none), and the chunks it changed by itself."""

    session: _Session
    changed: Annotated[bytes, msgspec.Meta(max_length=CHUNKS_MAX // 8)]


class Images(msgspec.Struct, frozen=True, tag="images", forbid_unknown_fields=True):
    """The secondary's answer to the greeting; `room_blocks` of 4 KiB is what the primary may have under way at most."""

    images: Annotated[list[ImageState], msgspec.Meta(max_length=DISKS_MAX)]
    room_blocks: _Whole


class Begin(msgspec.Struct, frozen=True, tag="begin", forbid_unknown_fields=True):
    """The copy of all disks begins; for each: all of it, or only what either side has changed since they were equal."""

    whole: Annotated[list[bool], msgspec.Meta(max_length=DISKS_MAX)]


class Copied(msgspec.Struct, frozen=True, tag="copied", forbid_unknown_fields=True):
    """The copy has been sent: from here on the images equal the primary's disks. They are of `session` now."""

    session: _Session


class Following(msgspec.Struct, frozen=True, tag="following", forbid_unknown_fields=True):
    """The secondary's answer to Copied: it has all of it, and a first checkpoint may be taken."""


class Working(msgspec.Struct, frozen=True, tag="working", forbid_unknown_fields=True):
    """The secondary is writing to its images and gets on."""


class Adopted(msgspec.Struct, frozen=True, tag="adopted", forbid_unknown_fields=True):
    """The secondary's images safely are what the primary's disks were at the first mark."""


class Mark(msgspec.Struct, frozen=True, tag="mark", forbid_unknown_fields=True):
    """All before this belongs to the checkpoint that starts `epoch`.

    `digest` is XXH3-128 over the DATA and ZEROS messages since the last mark; `checks` holds, in a self-check, the
    XXH3-64 of each MiB of all disks, 8 bytes each.
    """

    epoch: _Whole
    digest: _Digest
    checks: Annotated[bytes, msgspec.Meta(max_length=8 * CHECKS_MAX)] = b""


class Applied(msgspec.Struct, frozen=True, tag="applied", forbid_unknown_fields=True):
    """The secondary's images safely have everything up to the checkpoint that starts `epoch`."""

    epoch: _Whole


Control = Greeting | Images | Begin | Copied | Following | Working | Adopted | Mark | Applied


class Data(msgspec.Struct, frozen=True):
    """The primary wrote `content` at `offset`, or it is a piece of the copy."""

    disk: int
    offset: int
    content: memoryview


class Zeros(msgspec.Struct, frozen=True):
    """As Data, but `length` zeros."""

    disk: int
    offset: int
    length: int


Message = Control | Data | Zeros

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)


class StreamDigest:
    """Running digest over the DATA and ZEROS messages between two marks, headers included; both sides keep one."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def add(self, *parts: bytes | memoryview) -> None:
        """Account for (a part of) one message."""
        for part in parts:
            self._hash.update(part)

    def add_received(self, kind: int, body: bytes) -> None:
        """Account for one message that came in."""
        self.add(HEADER.pack(len(body), kind), body)

    def take(self) -> bytes:
        """The digest (16 bytes) up to here; a new one begins."""
        digest = self._hash.digest()
        self._hash.reset()
        return digest


def encode_control(message: Control) -> bytes:
    """A whole message, header included."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body), Kind.CONTROL) + body


def data_body(disk: int, offset: int) -> bytes:
    """What stands before the content in the body of a DATA message."""
    return _DATA.pack(disk, offset)


def data_header(length: int) -> bytes:
    """The header of a DATA message with `length` bytes of content, at most DATA_BYTES_MAX."""
    return HEADER.pack(_DATA.size + length, Kind.DATA)


def zeros_body(disk: int, offset: int, length: int) -> bytes:
    """The body of a ZEROS message."""
    return _ZEROS.pack(disk, offset, length)


def zeros_header() -> bytes:
    """The header of a ZEROS message."""
    return HEADER.pack(_ZEROS.size, Kind.ZEROS)


def decode_header(header: bytes) -> tuple[int, int]:
    """(body length, kind) of a message. Raises PeerViolation."""
    length, kind = HEADER.unpack(header)
    limit = {Kind.CONTROL: MESSAGE_BYTES_MAX, Kind.DATA: _DATA.size + DATA_BYTES_MAX, Kind.ZEROS: _ZEROS.size}
    if length > limit.get(kind, -1):
        raise PeerViolation(f"the peer's disk process announced {length} bytes of kind {kind}")
    return length, kind


def decode(kind: int, body: bytes) -> Message:
    """One message. Raises PeerViolation."""
    try:
        if kind == Kind.DATA:
            disk, offset = _DATA.unpack_from(body)
            return _bounded(Data(disk, offset, memoryview(body)[_DATA.size :]), len(body) - _DATA.size)
        if kind == Kind.ZEROS:
            disk, offset, length = _ZEROS.unpack(body)
            return _bounded(Zeros(disk, offset, length), length)
        return _decoder.decode(body)
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerViolation(f"the peer's disk process sent what can't be read: {error}") from None


def _bounded(message: Data | Zeros, length: int) -> Data | Zeros:
    if message.disk >= DISKS_MAX or not 0 < length <= DISK_BYTES_MAX or message.offset > DISK_BYTES_MAX:
        raise PeerViolation(f"the peer's disk process sent {length} bytes for offset {message.offset}")
    return message
