"""Changes to captures that keep checksums right: other segments for the same streams, and one byte that differs.

By hand and not with scapy, which is the judge of it in `test_corpus`, and 50 times slower.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

_TCP = 6
_CHECKSUM_AT = {_TCP: 16, 17: 6, 1: 2, 58: 2}
"""In the headers of TCP, UDP, ICMP and ICMPv6."""
_PUSH, _CUT_FLAGS = 0x08, 0x18  # what a segment that may be cut in pieces has: ACK, perhaps PSH


# ---------------------------------------------------------------- other segments


def resegmented(frames: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
    """The same streams in segments of `sizes` bytes, over and over; other frames stay as they are, in their places.

    Neighbours of one stream with the same headers are one piece before the cut, so that segments grow as well. Segments
    with SYN, FIN, RST or URG are not touched. The well-formed frames of `captures()` are expected.
    """
    lengths = cycle(sizes)
    out: list[bytes] = []
    piece: _Piece | None = None
    for frame in frames:
        span = _data_segment(frame)
        if span is not None and piece is not None and piece.take(frame, span):
            continue
        if piece is not None:
            out += piece.cut(lengths)
        piece = None if span is None else _Piece(frame, span)
        if piece is None:
            out.append(frame)
    return out if piece is None else out + list(piece.cut(lengths))


def _data_segment(frame: bytes) -> Span | None:
    """Where the payload is in a segment that may be cut."""
    span = payload_span(frame)
    if span is None or span.protocol != _TCP or span.fragment_of is not None:
        return None
    return None if frame[span.transport + 13] & ~_CUT_FLAGS else span


class _Piece:
    """A run of one stream's bytes under the headers of its first segment."""

    def __init__(self, frame: bytes, span: Span) -> None:
        self._span = span
        self._head = frame[: span.start]
        self._payload = frame[span.start : span.end]
        self._seq = _seq(frame, span)
        self._pushed = frame[span.transport + 13] & _PUSH

    def take(self, frame: bytes, span: Span) -> bool:
        """Whether this segment goes on where the piece ends, under the same headers."""
        goes_on = (self._seq + len(self._payload)) % 2**32 == _seq(frame, span)
        if not goes_on or _comparable(frame[: span.start], span) != _comparable(self._head, self._span):
            return False
        self._payload += frame[span.start : span.end]
        self._pushed = frame[span.transport + 13] & _PUSH
        return True

    def cut(self, lengths: Iterator[int]) -> Iterator[bytes]:
        at = 0
        while at < len(self._payload):
            part = self._payload[at : at + next(lengths)]
            is_last = at + len(part) == len(self._payload)
            yield _segment(self._head, self._span, self._seq + at, self._pushed if is_last else 0, part)
            at += len(part)


def _seq(frame: bytes, span: Span) -> int:
    return int.from_bytes(frame[span.transport + 4 : span.transport + 8])


def _comparable(head: bytes, span: Span) -> bytes:
    """All that has to be the same: addresses, tags, ports, acknowledgement, options."""
    return _segment(head, span, 0, 0, b"")


def _segment(head: bytes, span: Span, seq: int, push: int, payload: bytes) -> bytes:
    """A segment under these headers, lengths and checksums mended."""
    out = bytearray(head + payload)
    ip, tcp = span.ip, span.transport
    struct.pack_into(">I", out, tcp + 4, seq % 2**32)
    out[tcp + 13] = out[tcp + 13] & ~_PUSH | push
    out[tcp + 16 : tcp + 18] = b"\0\0"
    if out[ip] >> 4 == 4:
        struct.pack_into(">H", out, ip + 2, len(out) - ip)
        out[ip + 10 : ip + 12] = b"\0\0"
        struct.pack_into(">H", out, ip + 10, _checksum(out[ip:tcp]))
        addresses = out[ip + 12 : ip + 20]
    else:
        struct.pack_into(">H", out, ip + 4, len(out) - ip - 40)
        addresses = out[ip + 8 : ip + 40]
    pseudo = addresses + struct.pack(">HH", _TCP, len(out) - tcp)
    struct.pack_into(">H", out, tcp + 16, _checksum(pseudo + out[tcp:]))
    return bytes(out)


def _checksum(data: bytes | bytearray) -> int:
    """RFC 1071; a sum of 16-bit words is the number itself, mod 65535."""
    return 0xFFFF - (int.from_bytes(data + b"\0" * (len(data) & 1)) % 0xFFFF or 0xFFFF)


# ---------------------------------------------------------------- one byte that differs


@dataclass(frozen=True, slots=True)
class Span:
    """Where a payload is in its frame, and what goes with it."""

    start: int
    end: int
    ip: int
    """Where the IP header begins."""
    protocol: int
    transport: int
    """Where the header before it begins; in a later fragment, where the fragment's bytes do."""
    checksum: int | None
    """Where the checksum over it stands; None in a later fragment."""
    fragment_of: bytes | None
    """What the fragments of one datagram have in common."""


def payload_span(frame: bytes) -> Span | None:
    """The payload of TCP, UDP or ICMP in a well-formed frame; None when there is none, or something else."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if frame[at : at + 2] == b"\x08\x00":
        return _span4(frame, at + 2)
    return _span6(frame, at + 2) if frame[at : at + 2] == b"\x86\xdd" else None


def _span4(frame: bytes, ip: int) -> Span | None:
    end = ip + int.from_bytes(frame[ip + 2 : ip + 4])
    bits = int.from_bytes(frame[ip + 6 : ip + 8]) & 0x3FFF
    fragment_of = frame[ip + 4 : ip + 6] + frame[ip + 12 : ip + 20] if bits else None
    transport = ip + (frame[ip] & 15) * 4
    return _span(frame, ip, frame[ip + 9], transport, end, bits & 0x1FFF, fragment_of)


def _span6(frame: bytes, ip: int) -> Span | None:
    end = ip + 40 + int.from_bytes(frame[ip + 4 : ip + 6])
    protocol, at, offset, fragment_of = frame[ip + 6], ip + 40, 0, None
    while protocol in (0, 43, 44, 60):
        if protocol == 44:
            offset = int.from_bytes(frame[at + 2 : at + 4]) >> 3
            fragment_of = frame[at + 4 : at + 8] + frame[ip + 8 : ip + 40]
        protocol, at = frame[at], at + (8 if protocol == 44 else (frame[at + 1] + 1) * 8)
    return _span(frame, ip, protocol, at, end, offset, fragment_of)


def _span(
    frame: bytes, ip: int, protocol: int, at: int, end: int, offset: int, fragment_of: bytes | None
) -> Span | None:
    """The payload behind the transport header at `at`."""
    if offset:
        return Span(at, end, ip, protocol, at, None, fragment_of)
    if protocol not in _CHECKSUM_AT:
        return None
    start = at + ((frame[at + 12] >> 4) * 4 if protocol == _TCP else 8)
    return Span(start, end, ip, protocol, at, at + _CHECKSUM_AT[protocol], fragment_of) if start < end else None


def flipped(frames: Sequence[bytes], number: int, byte: int) -> list[bytes]:
    """The same but for one byte: number `byte` (from 0) of the payload of frame `number` (from 1), all bits of it.

    The checksum over it is right again, also where it stands in another fragment; UDP without one gets none.
    """
    out = list(frames)
    frame = bytearray(out[number - 1])
    span = payload_span(bytes(frame))
    assert span is not None, "a frame with a payload"
    at = span.start + byte
    assert at < span.end, "a byte of the payload"
    old = frame[at]
    frame[at] = old ^ 0xFF
    out[number - 1] = bytes(frame)
    delta = (frame[at] - old) << (0 if (at - span.transport) & 1 else 8)
    holder = number - 1 if span.checksum is not None else _first_fragment(frames, span.fragment_of)
    out[holder] = _mended(out[holder], delta)
    return out


def _mended(frame: bytes, delta: int) -> bytes:
    """The frame with a checksum for 16-bit words whose sum grew by `delta` (RFC 1624)."""
    span = payload_span(frame)
    assert span is not None
    assert span.checksum is not None
    at = span.checksum
    old = int.from_bytes(frame[at : at + 2])
    is_udp = span.protocol == 17
    if is_udp and not old:
        return frame
    new = 0xFFFF - ((0xFFFF - old + delta) % 0xFFFF or 0xFFFF)
    return frame[:at] + (new or 0xFFFF * is_udp).to_bytes(2) + frame[at + 2 :]


def _first_fragment(frames: Sequence[bytes], fragment_of: bytes | None) -> int:
    """Where the fragment is that holds the checksum."""
    for index, frame in enumerate(frames):
        span = payload_span(frame)
        if span is not None and span.fragment_of == fragment_of and span.checksum is not None:
            return index
    raise AssertionError("the first fragment is not in the capture")
