"""Where things stand in an Ethernet frame: VLAN tags, IPv4 or IPv6 with all its headers, and what lies above.

Guarantees
* No byte string makes a function here raise; what is not whole IP is not located.
* Padding behind the length that IP gives never counts.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

TCP, UDP, ICMP, ICMPV6, IGMP = 6, 17, 1, 58, 2
PROTOCOLS = {"icmp": ICMP, "tcp": TCP, "udp": UDP, "icmpv6": ICMPV6}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

TAGS_MAX = 2  # 802.1Q, or QinQ (802.1ad)
EXTENSION_HEADERS_MAX = 8
ETHERNET_BYTES = 14  # untagged
_VLAN_TYPES = (0x8100, 0x88A8, 0x9100)
_IPV4, _IPV6 = 0x0800, 0x86DD
_VID = 0x0FFF
_MORE, _RESERVED = 0x2000, 0x8000
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_U16 = struct.Struct(">H")
_U16_PAIR = struct.Struct(">HH")
_IPV4_HEAD = struct.Struct(">BxHHHxB")
_IPV6_HEAD = struct.Struct(">HB")
_IPV6_FRAGMENT = struct.Struct(">BxHI")


class Fragment(NamedTuple):
    """One piece of an IP packet (RFC 791; RFC 8200, 4.5)."""

    ident: int
    offset: int  # bytes
    more: bool


class Layers(NamedTuple):
    """Offsets in a frame."""

    tags: bytes  # VLAN ids, 2 bytes each, the outer one first
    ip: int  # where the IP header begins
    version: int  # 4 or 6
    protocol: int  # of what lies above IP
    upper: int  # where that begins
    end: int  # behind the last byte that IP counts
    odd: bool  # IP options or extension headers with a meaning of their own
    fragment: Fragment | None

    def addresses(self, frame: bytes) -> bytes:
        """Source and destination: 8 or 32 bytes."""
        return frame[self.ip + 12 : self.ip + 20] if self.version == 4 else frame[self.ip + 8 : self.ip + 40]


def ethertype(frame: bytes) -> tuple[int, int, bytes]:
    """(type or length field, where what it describes begins, VLAN ids) behind at most TAGS_MAX tags."""
    at, tags = 12, b""
    if len(frame) < 14:
        return -1, len(frame), tags
    (kind,) = _U16.unpack_from(frame, at)
    while kind in _VLAN_TYPES and len(tags) < 2 * TAGS_MAX and len(frame) >= at + 6:
        tci, kind = _U16_PAIR.unpack_from(frame, at + 2)
        tags += (tci & _VID).to_bytes(2)
        at += 4
    return kind, at + 2, tags


def locate(frame: bytes) -> Layers | None:
    """The layers of a frame with a whole IP packet (or one whole fragment); None for everything else."""
    kind, at, tags = ethertype(frame)
    if kind == _IPV4:
        return _ipv4(frame, at, tags)
    if kind == _IPV6:
        return _ipv6(frame, at, tags)
    return None


def locate_quoted(quoted: bytes) -> Layers | None:
    """The layers of a bare IP packet whose end may be missing, as ICMP errors quote one.

    The offsets are those of a frame: less ETHERNET_BYTES they count from the packet's first byte.
    """
    is_ipv4 = bool(quoted[:1]) and quoted[0] >> 4 == 4
    at, kind, header = (2, _IPV4, 0) if is_ipv4 else (4, _IPV6, 40)
    length = max(0, len(quoted) - header).to_bytes(4)[2:]
    return locate(bytes(12) + kind.to_bytes(2) + quoted[:at] + length + quoted[at + 2 :])


def _ipv4(frame: bytes, at: int, tags: bytes) -> Layers | None:
    if len(frame) < at + 20:
        return None
    version, total, ident, place, protocol = _IPV4_HEAD.unpack_from(frame, at)
    header = (version & 0x0F) * 4
    if version >> 4 != 4 or header < 20 or total < header or at + total > len(frame) or place & _RESERVED:
        return None
    more, offset = bool(place & _MORE), (place & 0x1FFF) * 8
    fragment = Fragment(ident, offset, more) if more or offset else None
    odd = header > 20 and any(frame[at + 20 : at + header].translate(None, b"\x01\x00"))
    return Layers(tags, at, 4, protocol, at + header, at + total, odd, fragment)


def _ipv6(frame: bytes, at: int, tags: bytes) -> Layers | None:
    if len(frame) < at + 40 or frame[at] >> 4 != 6:
        return None
    length, following = _IPV6_HEAD.unpack_from(frame, at + 4)
    upper, end = at + 40, at + 40 + length
    if end > len(frame) or (length == 0 and following == _HOP_BY_HOP):  # the latter: a jumbogram (RFC 2675)
        return None
    odd = False
    for _ in range(EXTENSION_HEADERS_MAX):
        if following not in (_HOP_BY_HOP, _DESTINATION, _FRAGMENT, _ROUTING):
            break
        if upper + 8 > end:
            return None
        if following == _FRAGMENT:
            following, place, ident = _IPV6_FRAGMENT.unpack_from(frame, upper)
            upper += 8
            if place & 0xFFF9:  # else the packet is whole (RFC 6946)
                return Layers(tags, at, 6, following, upper, end, odd, Fragment(ident, place & 0xFFF8, bool(place & 1)))
            continue
        kind, following, size = following, frame[upper], frame[upper + 1] * 8 + 8
        if upper + size > end:
            return None
        odd = odd or kind == _ROUTING or not _only_padding(frame, upper + 2, upper + size)
        upper += size
    return Layers(tags, at, 6, following, upper, end, odd, None)


def _only_padding(frame: bytes, at: int, end: int) -> bool:
    """Whether an options header holds nothing but Pad1 and PadN (RFC 8200, 4.2)."""
    while at < end:
        if frame[at] == 0:
            at += 1
        elif frame[at] == 1 and at + 1 < end:
            at += 2 + frame[at + 1]
        else:
            return False
    return True


def unfragmented(frame: bytes, layers: Layers, payload: bytes) -> bytes:
    """The packet of which `frame` holds the first fragment, as one frame, with all of the `payload` behind its headers.

    The IPv4 checksum is left as it was: nothing here looks at it. An IPv6 fragment header stays as one of a whole
    packet. Longer than an IP packet can be: the result is not located, and so compared as it is.
    """
    ip, upper = layers.ip, layers.upper
    whole = bytearray(frame[:upper] + payload)
    if layers.version == 4:
        length = min(upper - ip + len(payload), 0xFFFF)
        _U16.pack_into(whole, ip + 2, length)
        _U16.pack_into(whole, ip + 6, 0)
    else:
        _U16.pack_into(whole, ip + 4, min(upper - ip - 40 + len(payload), 0xFFFF))
        _U16.pack_into(whole, upper - 6, 0)
    return bytes(whole)
