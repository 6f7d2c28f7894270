"""Frames in, numbers out: what the comparison and the translation need to know of an Ethernet II frame.

Guarantees
* No byte string makes a function here raise; what is not plain IPv4 without options or fragments is simply not parsed.
* Padding behind the IP total length never counts as payload.
* A rewritten segment has a checksum that is right exactly when it was right before (RFC 1624).
"""

from __future__ import annotations

import struct

MASK = 0xFFFFFFFF
HALF = 1 << 31

FIN, SYN, RST, ACK, URG, ECE, CWR = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40, 0x80
ODD = 0x100
"""Our own flag: the segment carries an option beyond NOP, timestamp and SACK, whose meaning we can't compare."""

Segment = tuple[bytes, int, int, int, int, int]
"""Key (source and destination ip, source and destination port: 12 bytes), seq, ack, flags, payload start and end."""

_TCP = struct.Struct(">HBxHxxHxB14xIIBB")
_IPV4 = struct.Struct(">HBxHxxHxB")
_U32 = struct.Struct(">I")
_U32_PAIR = struct.Struct(">II")

_TCP_AT = 34  # Ethernet 14, IPv4 without options 20
_OPTIONS_AT = _TCP_AT + 20
_SEQ_AT, _ACK_AT, _CHECKSUM_AT = _TCP_AT + 4, _TCP_AT + 8, _TCP_AT + 16
_NOP_NOP_TS = b"\x01\x01\x08\x0a"
_FRAGMENT_BITS = 0xBFFF  # all but "don't fragment": more fragments, offset, and the reserved bit
_END, _NOP, _SACK, _TIMESTAMP = 0, 1, 5, 8


def distance(a: int, b: int) -> int:
    """How far sequence number `a` is ahead of `b`, from -2^31 to 2^31 - 1 (RFC 9293, 3.4)."""
    return ((a - b + HALF) & MASK) - HALF


# ---------------------------------------------------------------- parsing


def parse_tcp(frame: bytes) -> Segment | None:
    """The segment in `frame`, or None when it is not a whole TCP segment over plain IPv4."""
    if len(frame) < _OPTIONS_AT:
        return None
    ethertype, version, total, fragment, protocol, seq, ack, offset, flags = _TCP.unpack_from(frame, 12)
    if protocol != 6 or ethertype != 0x0800 or version != 0x45 or fragment & _FRAGMENT_BITS:
        return None
    start, end = _TCP_AT + (offset >> 4) * 4, 14 + total
    if start < _OPTIONS_AT or start > end or end > len(frame):
        return None
    if start != _OPTIONS_AT and (start != 66 or frame[54:58] != _NOP_NOP_TS) and _has_odd_option(frame, start):
        flags |= ODD
    return frame[26:38], seq, ack, flags, start, end


def opposite(key: bytes) -> bytes:
    """The key of the same connection in the other direction."""
    return key[4:8] + key[:4] + key[10:12] + key[8:10]


def _has_odd_option(frame: bytes, end: int) -> bool:
    found, whole = _options(frame, end)
    return not whole or any(kind not in (_SACK, _TIMESTAMP) for kind, _, _ in found)


def _options(frame: bytes, end: int) -> tuple[list[tuple[int, int, int]], bool]:
    """Options of the TCP header that ends at `end`: (kind, where its value starts, where it ends); False: malformed."""
    found: list[tuple[int, int, int]] = []
    at = _OPTIONS_AT
    while at < end:
        kind = frame[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        if at + 1 >= end or frame[at + 1] < 2 or at + frame[at + 1] > end:
            return found, False
        length = frame[at + 1]
        found.append((kind, at + 2, at + length))
        at += length
    return found, True


def timestamps_at(frame: bytes, start: int) -> int | None:
    """Where TSval and TSecr stand (8 bytes together) in the segment whose payload begins at `start`; None without."""
    if start >= 66 and frame[54:58] == _NOP_NOP_TS:
        return 58
    if start == _OPTIONS_AT:
        return None
    for kind, value, end in _options(frame, start)[0]:
        if kind == _TIMESTAMP and end - value == 8:
            return value
    return None


def timestamps(frame: bytes, start: int) -> tuple[int, int] | None:
    """TSval and TSecr (RFC 7323), None without the option."""
    at = timestamps_at(frame, start)
    if at is None:
        return None
    value, echo = _U32_PAIR.unpack_from(frame, at)
    return value, echo


def syn_terms(frame: bytes, flags: int, start: int) -> bytes:
    """What a SYN negotiates: flags and options, timestamp values blanked out; equal terms, equal connection."""
    options = bytearray(frame[_OPTIONS_AT:start])
    at = timestamps_at(frame, start)
    if at is not None:
        options[at - _OPTIONS_AT : at - _OPTIONS_AT + 8] = bytes(8)
    return bytes([flags & (SYN | ACK | ECE | CWR)]) + bytes(options)


# ---------------------------------------------------------------- what is not TCP


def is_link_control(frame: bytes) -> bool:
    """ARP, RARP (QEMU's announce-self), LLDP, STP, IGMP, ND, MLD: no application state (design, section 6)."""
    ethertype = frame[12:14]
    if ethertype == b"\x08\x00":
        return frame[14:15] in (b"\x45", b"\x46") and frame[23:24] == b"\x02" and not _is_fragment(frame)
    if ethertype == b"\x86\xdd":
        return _is_neighbour_or_listener(frame)
    return ethertype in (b"\x08\x06", b"\x80\x35", b"\x88\xcc") or (
        frame[:6] == b"\x01\x80\xc2\x00\x00\x00" and frame[14:16] == b"\x42\x42"
    )


def _is_fragment(frame: bytes) -> bool:
    return bool(int.from_bytes(frame[20:22]) & _FRAGMENT_BITS)


def _is_neighbour_or_listener(frame: bytes) -> bool:
    """ICMPv6 of ND (RFC 4861) or MLD (RFC 3810, behind an 8-byte hop-by-hop header)."""
    if frame[20:21] == b"\x3a":
        kind = frame[54:55]
    elif frame[20:21] == b"\x00" and frame[54:56] == b"\x3a\x00":
        kind = frame[62:63]
    else:
        return False
    return bool(kind) and kind[0] in (130, 131, 132, 133, 134, 135, 136, 137, 143)


def datagram(frame: bytes) -> tuple[bytes, bytes]:
    """Flow key and comparable bytes of a frame that is not TCP.

    UDP: a flow per addresses and ports. ICMP: per addresses, type and (echo) id. Their IP id, TTL, IP checksum and
    padding don't count. Everything else: a flow per ethertype and destination, the whole frame counts.
    """
    if len(frame) >= 42:
        ethertype, version, total, fragment, protocol = _IPV4.unpack_from(frame, 12)
        end = 14 + total
        if ethertype == 0x0800 and version == 0x45 and not fragment & _FRAGMENT_BITS and 42 <= end <= len(frame):
            if protocol == 17:
                return b"U" + frame[26:38], _comparable(frame, end)
            if protocol == 1:
                echo_id = frame[38:40] if frame[34] in (0, 8) else b""
                return b"I" + frame[26:35] + echo_id, _comparable(frame, end)
    return whole_frame(frame)


def whole_frame(frame: bytes) -> tuple[bytes, bytes]:
    """Key and comparable bytes of a frame about which nothing is assumed."""
    return b"W" + frame[12:14] + frame[:6], frame


def _comparable(frame: bytes, end: int) -> bytes:
    return frame[:18] + frame[20:22] + frame[23:24] + frame[26:end]


# ---------------------------------------------------------------- rewriting


def checksum_is_right(frame: bytes, end: int) -> bool:
    """Whether the TCP checksum of the segment that ends at `end` fits (RFC 9293, 3.1); one's complement: mod 65535."""
    body = frame[26:end] + (b"\0" if end & 1 else b"")
    return (int.from_bytes(body) + 6 + end - _TCP_AT) % 0xFFFF == 0


def rewrite(
    frame: bytes,
    start: int,
    *,
    seq_add: int = 0,
    ack_add: int = 0,
    value_add: int = 0,
    echo_add: int = 0,
) -> bytes:
    """The segment with these added (mod 2^32) to sequence number, acknowledgement and SACK edges, TSval, TSecr."""
    fields = _fields(frame, start, seq_add, ack_add, value_add, echo_add)
    if not fields:
        return frame
    changed = bytearray(frame)
    total = 0
    for at, add in fields:
        old = _U32.unpack_from(frame, at)[0]
        new = (old + add) & MASK
        _U32.pack_into(changed, at, new)
        total += (new - old) << 8 if at & 1 else new - old  # at an odd place the halves lie swapped
    # A sum of real data is never 0, as the protocol number is in it: of its two zeros the checksum's is 0x0000.
    complement = (0xFFFF - int.from_bytes(frame[_CHECKSUM_AT : _CHECKSUM_AT + 2]) + total) % 0xFFFF or 0xFFFF
    changed[_CHECKSUM_AT : _CHECKSUM_AT + 2] = (0xFFFF - complement).to_bytes(2)
    return bytes(changed)


def _fields(
    frame: bytes, start: int, seq_add: int, ack_add: int, value_add: int, echo_add: int
) -> list[tuple[int, int]]:
    """Where to add what."""
    fields = [(_SEQ_AT, seq_add), (_ACK_AT, ack_add)]
    if start == 66 and frame[54:58] == _NOP_NOP_TS:
        fields += (58, value_add), (62, echo_add)
    elif start != _OPTIONS_AT:
        for kind, value, end in _options(frame, start)[0]:
            if kind == _TIMESTAMP and end - value == 8:
                fields += (value, value_add), (value + 4, echo_add)
            elif kind == _SACK:
                fields += [(at, ack_add) for at in range(value, end - 3, 4)]
    return [(at, add) for at, add in fields if add & MASK]
