"""Reads pcapng (draft-ietf-opsawg-pcapng): sections in either byte order, each with interfaces of its own.

Blocks of unknown kinds are passed over. Frames of interfaces that are not Ethernet are counted and passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pycolo.edge.capture_source import ETHERNET, FRAME_BYTES_MAX, CaptureRecord, CaptureSource, Direction

SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET = 0x0A0D0D0A, 1, 2, 3, 6
BYTE_ORDER_MAGIC = 0x1A2B3C4D
BLOCK_BYTES_MAX = 16 << 20
INTERFACES_MAX = 256

OPTION_END, OPTION_COMMENT = 0, 1
INTERFACE_NAME, INTERFACE_TS_RESOLUTION, INTERFACE_TS_OFFSET = 2, 9, 14
PACKET_FLAGS = 2
DIRECTIONS: dict[int, Direction] = {1: "in", 2: "out"}
"""The lowest two bits of a packet's flags."""

_VERSION = 1
_FIXED_BYTES = {INTERFACE: 8, OLD_PACKET: 20, SIMPLE_PACKET: 4, PACKET: 20}
_MICROSECONDS = 6
_BINARY_RESOLUTION = 0x80


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    snap_bytes: int
    ticks_per_s: int
    offset_s: int

    def ns(self, ticks: int) -> int:
        return self.offset_s * 1_000_000_000 + ticks * 1_000_000_000 // self.ticks_per_s


class PcapngReader:
    """The records of one file, whose first four bytes have been read; `skipped` counts frames that are not Ethernet."""

    def __init__(self, source: CaptureSource) -> None:
        self._source = source
        self._order = "<"
        self._interfaces: list[_Interface] = []
        self._number = 0
        self._ts_ns = 0
        self.skipped = 0
        self.skipped_link_type = ETHERNET
        self._read_section(0)

    def records(self) -> Iterator[CaptureRecord]:
        """Frame by frame. Raises CaptureDamaged, EnvironmentFault."""
        source = self._source
        while True:
            at = source.offset
            head = source.read(4)
            if not head:
                return
            if len(head) < 4:
                raise source.damage(at, "the file ends inside the block that begins there")
            if head == SECTION_MAGIC:
                self._read_section(at)
                continue
            record = self._read_block(at, *self._unpack("I", head))
            if record is not None:
                yield record

    # ---------------------------------------------------------------- blocks

    def _read_section(self, at: int) -> None:
        """The header of a section, whose type has been read: byte order and interfaces begin anew."""
        source = self._source
        head = source.take(8, at, "section header")
        order = next((order for order in "<>" if struct.unpack_from(order + "I", head, 4)[0] == BYTE_ORDER_MAGIC), None)
        if order is None:
            raise source.damage(at, "a section header without byte-order magic")
        self._order = order
        length = self._checked_length(at, head[:4], 28)
        (major,) = self._unpack("H", source.take(2, at, "section header"))
        if major != _VERSION:
            raise source.damage(at, f"version {major} of pcapng is unknown")
        source.skip(length - 18, at, "section header")
        self._read_trailer(at, length)
        self._interfaces = []

    def _read_block(self, at: int, kind: int) -> CaptureRecord | None:
        fixed_bytes = _FIXED_BYTES.get(kind)
        length = self._checked_length(at, self._source.take(4, at, "block"), 12 + (fixed_bytes or 0))
        if fixed_bytes is None:
            self._source.skip(length - 12, at, "block")
            self._read_trailer(at, length)
            return None
        body = self._source.take(length - 12, at, "block")
        self._read_trailer(at, length)
        if kind == INTERFACE:
            self._add_interface(at, body)
            return None
        if kind == SIMPLE_PACKET:
            return self._simple_packet(at, body)
        return self._packet(at, kind, body)

    def _checked_length(self, at: int, field: bytes, bytes_min: int) -> int:
        (length,) = self._unpack("I", field)
        if length % 4 or not bytes_min <= length <= BLOCK_BYTES_MAX:
            raise self._source.damage(at, f"a block can't be {length} bytes long")
        return int(length)

    def _read_trailer(self, at: int, length: int) -> None:
        """A block says its length at both ends."""
        (again,) = self._unpack("I", self._source.take(4, at, "block"))
        if again != length:
            raise self._source.damage(at, f"a block says that it has {length} bytes, and at its end {again}")

    def _add_interface(self, at: int, body: bytes) -> None:
        if len(self._interfaces) >= INTERFACES_MAX:
            raise self._source.damage(at, f"a section has more than {INTERFACES_MAX} interfaces")
        link_type, snap_bytes = self._unpack("H2xI", body[:8])
        options = self._options(at, body, 8)
        resolution = options.get(INTERFACE_TS_RESOLUTION, b"")
        offset = options.get(INTERFACE_TS_OFFSET, b"")
        power = resolution[0] if resolution else _MICROSECONDS
        ticks_per_s = 1 << (power & ~_BINARY_RESOLUTION) if power & _BINARY_RESOLUTION else 10**power
        (offset_s,) = self._unpack("q", offset) if len(offset) == 8 else (0,)
        self._interfaces.append(_Interface(link_type, snap_bytes, ticks_per_s, offset_s))

    # ---------------------------------------------------------------- frames

    def _packet(self, at: int, kind: int, body: bytes) -> CaptureRecord | None:
        """Enhanced, or its predecessor, in which half of the interface's number counts drops."""
        fields = "IIIII" if kind == PACKET else "H2xIIII"
        number, high, low, length, original = self._unpack(fields, body[:20])
        if number >= len(self._interfaces):
            raise self._source.damage(at, f"a frame of interface {number}, which was not described")
        self._check_frame(at, length, len(body) - 20)
        interface = self._interfaces[number]
        flags = self._options(at, body, 20 + length + -length % 4).get(PACKET_FLAGS, b"")
        direction = DIRECTIONS.get(self._unpack("I", flags)[0] & 3) if len(flags) == 4 else None
        self._ts_ns = interface.ns(high << 32 | low)
        return self._record(number, body[20 : 20 + length], direction, original)

    def _simple_packet(self, at: int, body: bytes) -> CaptureRecord | None:
        """It has neither a time, so the last frame's is taken, nor a captured length: the snap length tells."""
        if not self._interfaces:
            raise self._source.damage(at, "a frame of interface 0, which was not described")
        (original,) = self._unpack("I", body[:4])
        snap_bytes = self._interfaces[0].snap_bytes
        length = min(original, snap_bytes) if snap_bytes else original
        self._check_frame(at, length, len(body) - 4)
        return self._record(0, body[4 : 4 + length], None, original)

    def _check_frame(self, at: int, length: int, room: int) -> None:
        if length > min(room, FRAME_BYTES_MAX):
            raise self._source.damage(
                at, f"a frame of {length} bytes in a block with room for {min(room, FRAME_BYTES_MAX)}"
            )

    def _record(self, number: int, frame: bytes, direction: Direction | None, original: int) -> CaptureRecord | None:
        self._number += 1
        link_type = self._interfaces[number].link_type
        if link_type != ETHERNET:
            self.skipped += 1
            self.skipped_link_type = link_type
            return None
        return CaptureRecord(self._number, self._ts_ns, frame, number, direction, max(original, len(frame)))

    # ---------------------------------------------------------------- fields

    def _options(self, at: int, body: bytes, start: int) -> dict[int, bytes]:
        """The last one of each code; they end with the block."""
        found: dict[int, bytes] = {}
        while start + 4 <= len(body):
            code, length = self._unpack("HH", body[start : start + 4])
            if code == OPTION_END:
                break
            if start + 4 + length > len(body):
                raise self._source.damage(at, "an option reaches beyond its block")
            found[code] = body[start + 4 : start + 4 + length]
            start += 4 + length + -length % 4
        return found

    def _unpack(self, fields: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack(self._order + fields, data)
