"""Reads the classic capture format, pcap: either byte order, micro- or nanoseconds."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pycolo.edge.capture_source import ETHERNET, FRAME_BYTES_MAX, CaptureRecord, CaptureSource

_NS_PER_TICK = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
_LINK_TYPE_MASK = 0xFFFF  # above it: whether, and how long, a frame check sequence follows each frame
_VERSION = 2


def byte_order(magic: bytes) -> str | None:
    """`<` or `>` for struct, None when these four bytes begin no pcap file."""
    return next((order for order in "<>" if _number(order, magic) in _NS_PER_TICK), None)


def read_pcap(source: CaptureSource, magic: bytes) -> Iterator[CaptureRecord]:
    """The records behind `magic`, which has been read; the header is judged before the first one is asked for."""
    order = byte_order(magic)
    assert order is not None, "the caller looked at the magic"
    major, _, _, _, snap_bytes, link = struct.unpack(order + "HHiIII", source.take(20, 0, "header"))
    if major != _VERSION:
        raise source.damage(4, f"version {major} of pcap is unknown")
    if link & _LINK_TYPE_MASK != ETHERNET:
        raise source.wrong_link_type(link & _LINK_TYPE_MASK)
    return _records(source, struct.Struct(order + "IIII"), _NS_PER_TICK[_number(order, magic)], snap_bytes)


def _records(
    source: CaptureSource, header: struct.Struct, ns_per_tick: int, snap_bytes: int
) -> Iterator[CaptureRecord]:
    number = 0
    while True:
        at = source.offset
        head = source.read(header.size)
        if not head:
            return
        if len(head) < header.size:
            raise source.damage(at, "the file ends inside the record that begins there")
        seconds, ticks, length, original = header.unpack(head)
        if length > FRAME_BYTES_MAX:
            raise source.damage(at, f"a frame of {length} bytes (snap length {snap_bytes}), at most {FRAME_BYTES_MAX}")
        frame = source.take(length, at, "record")
        number += 1
        ts_ns = seconds * 1_000_000_000 + ticks * ns_per_tick
        yield CaptureRecord(number, ts_ns, frame, 0, None, max(original, length))


def _number(order: str, magic: bytes) -> int:
    return int.from_bytes(magic, "little" if order == "<" else "big")
