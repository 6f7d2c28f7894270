"""TCP segments in frames, over IPv4 or IPv6, with VLAN tags or without: what comparison and translation need of them.

Guarantees
* No byte string makes a function here raise; what is not a whole TCP segment is simply not parsed.
* Padding behind the IP length never counts as payload.
* A rewritten segment has a checksum that is right exactly when it was right before (RFC 1624); a partial one (only of
  the pseudo header, for a network card to complete) stays partial.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pycolo.core.layers import TCP, Layers, locate

MASK = 0xFFFFFFFF
HALF = 1 << 31

FIN, SYN, RST, ACK, URG, ECE, CWR = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40, 0x80
ODD = 0x100
"""Our own flag: the segment carries something besides payload whose meaning we don't know: `odd_terms`."""

Segment = tuple[bytes, int, int, int, int, int, int]
"""Key, seq, ack, flags, where the TCP header begins, payload start and end.

The key: source and destination address (4 or 16 bytes each), source and destination port, VLAN ids (2 bytes each)."""

TCP_FLOW = b"T"  # what a connection's key begins with where keys of other flows are meant as well

_TCP_OVER_IPV4 = struct.Struct(">HBxHxxHxB14xIIBB")
_TCP = struct.Struct(">4xIIBB")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U32_PAIR = struct.Struct(">II")

_PLAIN_AT = 34  # Ethernet 14, IPv4 without options 20
_PLAIN_START = _PLAIN_AT + 20
_IPV4_KEY_MAX = 12 + 4  # longer keys are of IPv6
_NOP_NOP_TS = b"\x01\x01\x08\x0a"
_FRAGMENT_BITS = 0xBFFF  # all but "don't fragment": more fragments, offset, and the reserved bit
_END, _NOP, _WINDOW_SCALE, _SACK, _TIMESTAMP, _AUTHENTICATION = 0, 1, 3, 5, 8, 29


def distance(a: int, b: int) -> int:
    """How far sequence number `a` is ahead of `b`, from -2^31 to 2^31 - 1 (RFC 9293, 3.4)."""
    return ((a - b + HALF) & MASK) - HALF


def opens(seq: int, flags: int) -> bool:
    """SYN, SYN-ACK, or the RST that refuses a SYN (RFC 9293, 3.10.7.1: sequence number 0, with ACK)."""
    return bool(flags & SYN) or (seq == 0 and flags & (RST | ACK) == RST | ACK)


# ---------------------------------------------------------------- parsing


def parse_tcp(frame: bytes) -> Segment | None:
    """The segment in `frame`, or None when it is not a whole TCP segment."""
    if len(frame) < _PLAIN_START:
        return None
    ethertype, version, total, fragment, protocol, seq, ack, offset, flags = _TCP_OVER_IPV4.unpack_from(frame, 12)
    if protocol != 6 or ethertype != 0x0800 or version != 0x45 or fragment & _FRAGMENT_BITS:
        return None if ethertype == 0x0800 and version == 0x45 else _parse_anywhere(frame)
    start, end = _PLAIN_AT + (offset >> 4) * 4, 14 + total
    if start < _PLAIN_START or start > end or end > len(frame):
        return None
    if start != _PLAIN_START and (start != 66 or frame[54:58] != _NOP_NOP_TS) and _odd_options(frame, _PLAIN_AT, start):
        flags |= ODD
    return frame[26:38], seq, ack, flags, _PLAIN_AT, start, end


def _parse_anywhere(frame: bytes) -> Segment | None:
    layers = locate(frame)
    if layers is None or layers.protocol != TCP or layers.fragment is not None:
        return None
    return segment_in(frame, layers)


def segment_in(frame: bytes, layers: Layers) -> Segment | None:
    """The segment in a frame whose layers are known to be those of TCP."""
    at, end = layers.upper, layers.end
    if at + 20 > end:
        return None
    seq, ack, offset, flags = _TCP.unpack_from(frame, at)
    start = at + (offset >> 4) * 4
    if not at + 20 <= start <= end:
        return None
    if layers.odd or _odd_options(frame, at, start):
        flags |= ODD
    return layers.addresses(frame) + frame[at : at + 4] + layers.tags, seq, ack, flags, at, start, end


def parse_first_piece(frame: bytes, layers: Layers) -> Segment | None:
    """The segment that begins in a fragment with these layers; None when its header is not whole in there.

    Its `end` is the fragment's, and nothing tells whether its checksum is right.
    """
    if layers.protocol != TCP or layers.fragment is None or layers.fragment.offset:
        return None
    return segment_in(frame, layers)


def opposite(key: bytes) -> bytes:
    """The key of the same connection in the other direction."""
    if len(key) == 12:
        return key[4:8] + key[:4] + key[10:12] + key[8:10]
    size = address_bytes(key)
    ports = 2 * size
    return key[size:ports] + key[:size] + key[ports + 2 : ports + 4] + key[ports : ports + 2] + key[ports + 4 :]


def address_bytes(key: bytes) -> int:
    """How long each of a connection's two addresses is."""
    return 4 if len(key) <= _IPV4_KEY_MAX else 16


def source_port(key: bytes) -> int:
    """The port of the side that is the source."""
    at = 2 * address_bytes(key)
    return int.from_bytes(key[at : at + 2])


def _odd_options(frame: bytes, at: int, start: int) -> bool:
    if start == at + 20:
        return False
    found, whole = _options(frame, at, start)
    return not whole or any(kind not in (_SACK, _TIMESTAMP) for kind, _, _ in found)


def _options(frame: bytes, at: int, end: int) -> tuple[list[tuple[int, int, int]], bool]:
    """Options of the TCP header from `at` to `end`: (kind, where its value starts, where it ends); False: malformed."""
    found: list[tuple[int, int, int]] = []
    at += 20
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


def timestamps_at(frame: bytes, at: int, start: int) -> int | None:
    """Where TSval and TSecr stand (8 bytes together) in the segment with that header; None without."""
    if start == at + 20:
        return None
    if start >= at + 32 and frame[at + 20 : at + 24] == _NOP_NOP_TS:
        return at + 24
    for kind, value, end in _options(frame, at, start)[0]:
        if kind == _TIMESTAMP and end - value == 8:
            return value
    return None


def timestamps(frame: bytes, at: int, start: int) -> tuple[int, int] | None:
    """TSval and TSecr (RFC 7323), None without the option."""
    place = timestamps_at(frame, at, start)
    if place is None:
        return None
    value, echo = _U32_PAIR.unpack_from(frame, place)
    return value, echo


def window_field(frame: bytes, at: int) -> int:
    """The window as it stands there: to be scaled, except in a SYN (RFC 7323, 2.2)."""
    return int.from_bytes(frame[at + 14 : at + 16])


def window_scale(frame: bytes, at: int, start: int) -> int | None:
    """By how many bits windows are shifted (RFC 7323, 2.2), as a SYN or SYN-ACK says; None when it says nothing."""
    for kind, value, end in _options(frame, at, start)[0]:
        if kind == _WINDOW_SCALE and end - value == 1:
            return frame[value]
    return None


def is_signed_with_options(frame: bytes, at: int, start: int) -> bool:
    """Whether it carries TCP-AO (RFC 5925), whose signature covers timestamps too; that of MD5 (RFC 2385) does not."""
    return any(kind == _AUTHENTICATION for kind, _, _ in _options(frame, at, start)[0])


def syn_terms(frame: bytes, flags: int, at: int, start: int) -> bytes:
    """What a SYN negotiates: flags and options, timestamp values blanked out; equal terms, equal connection."""
    options = bytearray(frame[at + 20 : start])
    place = timestamps_at(frame, at, start)
    if place is not None:
        options[place - at - 20 : place - at - 12] = bytes(8)
    return bytes([flags & (SYN | ACK | ECE | CWR)]) + bytes(options)


def odd_terms(frame: bytes, flags: int, at: int, start: int) -> bytes:
    """What a segment says besides its payload that we can only compare as it is: urgent pointer (RFC 9293, 3.8.5), IP
    options and extension headers, and every TCP option but NOP, timestamp and SACK (MPTCP, MD5, AO ...).
    """
    terms = frame[at + 18 : at + 20] if flags & URG else b""
    layers = locate(frame) if flags & ODD else None
    if layers is not None and layers.odd:
        header = 20 if layers.version == 4 else 40
        terms += b"I" + frame[layers.ip + header : at]
    if flags & ODD:
        found, whole = _options(frame, at, start)
        if not whole:
            return terms + b"M" + frame[at + 20 : start]
        for kind, value, end in found:
            if kind not in (_SACK, _TIMESTAMP):
                terms += bytes([kind]) + frame[value - 1 : end]
    return terms


# ---------------------------------------------------------------- rewriting


def sum_of(data: bytes) -> int:
    """The one's complement sum before it is folded to 16 bits: mod 65535."""
    return int.from_bytes(data + b"\0" if len(data) & 1 else data) % 0xFFFF


def _pseudo_header_sum(frame: bytes, at: int, end: int) -> int:
    """Of addresses, protocol and length (RFC 9293, 3.1; RFC 8200, 8.1); not more than plain arithmetic mod 65535."""
    if at == _PLAIN_AT:
        addresses = frame[26:34]
    else:
        layers = locate(frame)
        addresses = b"" if layers is None else layers.addresses(frame)
    return (sum_of(addresses) + TCP + end - at) % 0xFFFF


def checksum_is_right(frame: bytes, at: int, end: int) -> bool:
    """Whether the checksum fits the segment whose header begins at `at` and which ends at `end` (RFC 9293, 3.1)."""
    return (_pseudo_header_sum(frame, at, end) + sum_of(frame[at:end])) % 0xFFFF == 0


def _is_partial(frame: bytes, at: int, end: int) -> bool:
    """Whether the checksum covers the pseudo header alone: the rest is left to a network card (`CHECKSUM_PARTIAL`).

    A whole checksum looks so in one case of 65,536; then it is right, which a partial one hardly ever is. That of a
    fragmented segment is whole: no card could complete it.
    """
    (found,) = _U16.unpack_from(frame, at + 16)
    if found % 0xFFFF != _pseudo_header_sum(frame, at, end) or checksum_is_right(frame, at, end):
        return False
    layers = locate(frame)
    return layers is None or layers.fragment is None


def rewrite(
    frame: bytes,
    at: int,
    start: int,
    end: int,
    *,
    seq_add: int = 0,
    ack_add: int = 0,
    value_add: int = 0,
    echo_add: int = 0,
) -> bytes:
    """The segment with these added (mod 2^32) to sequence number, acknowledgement and SACK edges, TSval, TSecr."""
    fields = _fields(frame, at, start, seq_add, ack_add, value_add, echo_add)
    if not fields:
        return frame
    changed = bytearray(frame)
    total = add_to_fields(changed, at, fields)
    if not _is_partial(frame, at, end):
        changed[at + 16 : at + 18] = adjusted_checksum(frame[at + 16 : at + 18], total)
    return bytes(changed)


def add_to_fields(changed: bytearray, at: int, fields: Sequence[tuple[int, int]]) -> int:
    """Add to the 32-bit numbers at these places; returns by how much the sum of 16-bit words from `at` on has grown."""
    total = 0
    for place, add in fields:
        old = _U32.unpack_from(changed, place)[0]
        new = (old + add) & MASK
        _U32.pack_into(changed, place, new)
        total += (new - old) << 8 if place - at & 1 else new - old  # at an odd place the halves lie swapped
    return total


def adjusted_checksum(checksum: bytes, added: int) -> bytes:
    """The checksum (2 bytes) of data to whose 16-bit words `added` was added in all (RFC 1624, 3).

    A sum of real data is never 0, as the protocol number is in it: of its two zeros the checksum's is 0x0000.
    """
    complement = (0xFFFF - int.from_bytes(checksum) + added) % 0xFFFF or 0xFFFF
    return (0xFFFF - complement).to_bytes(2)


def _fields(
    frame: bytes, at: int, start: int, seq_add: int, ack_add: int, value_add: int, echo_add: int
) -> list[tuple[int, int]]:
    """Where to add what."""
    fields = [(at + 4, seq_add), (at + 8, ack_add)]
    if start == at + 32 and frame[at + 20 : at + 24] == _NOP_NOP_TS:
        fields += (at + 24, value_add), (at + 28, echo_add)
    elif start != at + 20:
        for kind, value, end in _options(frame, at, start)[0]:
            if kind == _TIMESTAMP and end - value == 8:
                fields += (value, value_add), (value + 4, echo_add)
            elif kind == _SACK:
                fields += [(edge, ack_add) for edge in range(value, end - 3, 4)]
    return [(place, add) for place, add in fields if add & MASK]
