"""The headers of a frame in words, and those of two frames side by side.

Guarantee: no byte string makes it raise, or go on for long; of a header that is cut what is there is shown.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

_TAGS_MAX, _HEADERS_MAX, _SHOWN_BYTES_MAX = 8, 16, 40
_VLAN_TYPES = (0x8100, 0x88A8, 0x9100)
_ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x8035: "RARP", 0x86DD: "IPv6", 0x88CC: "LLDP"} | dict.fromkeys(
    _VLAN_TYPES, "VLAN"
)
_PROTOCOLS = {ICMP: "ICMP", 2: "IGMP", TCP: "TCP", UDP: "UDP", 47: "GRE", ICMPV6: "ICMPv6", 132: "SCTP"}
_EXTENSIONS = {0: "hop-by-hop", 43: "routing", 44: "fragment", 60: "destination options"}
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_TCP_OPTIONS = {
    2: "MSS",
    3: "window scale",
    4: "SACK permitted",
    5: "SACK",
    8: "timestamps",
    19: "MD5",
    28: "user timeout",
    29: "TCP-AO",
    30: "MPTCP",
    34: "fast open",
}
_ICMP_TYPES = {
    0: "echo reply",
    3: "unreachable",
    5: "redirect",
    8: "echo request",
    11: "time exceeded",
    12: "parameter problem",
}
_ICMPV6_TYPES = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    130: "listener query",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    143: "listener report",
}
_ECHOES = {ICMP: (0, 8), ICMPV6: (128, 129)}


class Row(NamedTuple):
    """One field of two frames; None where a frame has none."""

    layer: str
    name: str
    primary: str | None
    secondary: str | None

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.primary != self.secondary


def side_by_side(primary: bytes | None, secondary: bytes | None) -> list[Row]:
    """The fields of both frames, layer by layer; None where a side has no such frame."""
    ours, theirs = ({} if frame is None else fields(frame) for frame in (primary, secondary))
    layers = dict.fromkeys(layer for layer, _ in (*ours, *theirs))
    keys = dict.fromkeys((*ours, *theirs))
    return [Row(*key, ours.get(key), theirs.get(key)) for layer in layers for key in keys if key[0] == layer]


def fields(frame: bytes) -> dict[tuple[str, str], str]:
    """Value by layer and name, in the order of the frame."""
    view = _View(frame)
    view.ethernet()
    return view.found


class _View:
    """Walks through one frame; each layer is given where it begins, and where at the latest it ends."""

    def __init__(self, frame: bytes) -> None:
        self.found: dict[tuple[str, str], str] = {}
        self._frame = frame
        self._pseudo = b""  # addresses that a checksum covers; empty: it can't be checked

    # ---------------------------------------------------------------- the link

    def ethernet(self) -> None:
        head = self._header("Ethernet", 0, len(self._frame), 14)
        if head is None:
            return
        self._add("Ethernet", "destination", head[:6].hex(":"))
        self._add("Ethernet", "source", head[6:12].hex(":"))
        at = 14
        for level in range(_TAGS_MAX):
            kind = int.from_bytes(self._frame[at - 2 : at])
            if kind not in _VLAN_TYPES:
                break
            tag = self._header(f"VLAN {level + 1}" if level else "VLAN", at, len(self._frame), 4)
            if tag is None:
                return
            self._tag(f"VLAN {level + 1}" if level else "VLAN", kind, int.from_bytes(tag[:2]))
            at += 4
        kind = int.from_bytes(self._frame[at - 2 : at])
        self._add("Ethernet", "type" if kind >= 0x600 else "length", _named(kind, _ETHERTYPES, f"0x{kind:04x}"))
        self._network(kind, at)

    def _tag(self, layer: str, kind: int, control: int) -> None:
        self._add(layer, "type", f"0x{kind:04x}")
        self._add(layer, "id", str(control & 0xFFF))
        self._add(layer, "priority", str(control >> 13))
        self._add(layer, "may be dropped", "yes" if control & 0x1000 else "no")

    def _network(self, kind: int, at: int) -> None:
        if kind == 0x0800:
            self._ipv4(at)
        elif kind == 0x86DD:
            self._ipv6(at)
        elif kind in (0x0806, 0x8035):
            self._arp(at)
        else:
            self._payload(at, len(self._frame))

    def _arp(self, at: int) -> None:
        head = self._header("ARP", at, len(self._frame), 28)
        if head is None:
            return
        self._add("ARP", "operation", _named(int.from_bytes(head[6:8]), {1: "request", 2: "reply"}))
        self._add("ARP", "sender", f"{head[8:14].hex(':')} {IPv4Address(head[14:18])}")
        self._add("ARP", "target", f"{head[18:24].hex(':')} {IPv4Address(head[24:28])}")
        self._payload(at + 28, len(self._frame), "padding")

    # ---------------------------------------------------------------- IP

    def _ipv4(self, at: int) -> None:
        head = self._header("IPv4", at, len(self._frame), 20)
        if head is None:
            return
        first, service, total, ip_id, bits, ttl, protocol, checksum = struct.unpack_from(">BBHHHBBH", head)
        length, offset = (first & 15) * 4, (bits & 0x1FFF) * 8
        flags = [
            name for bit, name in ((0x8000, "reserved"), (0x4000, "don't fragment"), (0x2000, "more")) if bits & bit
        ]
        self._add("IPv4", "version", str(first >> 4))
        self._add("IPv4", "header bytes", str(length))
        self._add("IPv4", "service", f"0x{service:02x}")
        self._add("IPv4", "total bytes", str(total))
        self._add("IPv4", "id", str(ip_id))
        self._add("IPv4", "fragment flags", ", ".join(flags) or "none")
        self._add("IPv4", "fragment offset", str(offset))
        self._add("IPv4", "TTL", str(ttl))
        self._add("IPv4", "protocol", _named(protocol, _PROTOCOLS))
        self._add("IPv4", "checksum", _checked(checksum, self._frame[at : at + length]))
        self._add("IPv4", "source", str(IPv4Address(head[12:16])))
        self._add("IPv4", "destination", str(IPv4Address(head[16:20])))
        if length > 20:
            self._add("IPv4", "options", _hex(self._frame[at + 20 : at + length]))
        is_whole = not bits & 0x3FFF and at + total <= len(self._frame)
        self._pseudo = head[12:20] if is_whole else b""
        self._transport(protocol, at + max(length, 20), at + total, is_later=offset > 0)

    def _ipv6(self, at: int) -> None:
        head = self._header("IPv6", at, len(self._frame), 40)
        if head is None:
            return
        first, length, protocol, hops = struct.unpack_from(">IHBB", head)
        self._add("IPv6", "version", str(first >> 28))
        self._add("IPv6", "traffic class", f"0x{first >> 20 & 0xFF:02x}")
        self._add("IPv6", "flow label", f"0x{first & 0xFFFFF:05x}")
        self._add("IPv6", "payload bytes", str(length))
        self._add("IPv6", "hop limit", str(hops))
        self._add("IPv6", "source", str(IPv6Address(head[8:24])))
        self._add("IPv6", "destination", str(IPv6Address(head[24:40])))
        end = at + 40 + length
        self._pseudo = head[8:40] if end <= len(self._frame) else b""
        self._extensions(protocol, at + 40, end)

    def _extensions(self, protocol: int, at: int, end: int) -> None:
        is_later = False
        for _ in range(_HEADERS_MAX):
            if protocol not in _EXTENSIONS:
                break
            layer = f"IPv6 {_EXTENSIONS[protocol]}"
            head = self._header(layer, at, end, 8)
            if head is None:
                return
            if protocol == 44:
                is_later = self._fragment(layer, head)
                length = 8
            else:
                length = (head[1] + 1) * 8
                self._add(layer, "content", _hex(self._frame[at + 2 : at + length]))
                if protocol == 43 and head[3]:
                    self._pseudo = b""  # the checksum is that for the last address of the route
            protocol, at = head[0], at + length
        self._add("IPv6", "protocol", _named(protocol, _PROTOCOLS))
        self._transport(protocol, at, end, is_later=is_later)

    def _fragment(self, layer: str, head: bytes) -> bool:
        bits = int.from_bytes(head[2:4])
        self._add(layer, "offset", str(bits & 0xFFF8))
        self._add(layer, "more", "yes" if bits & 1 else "no")
        self._add(layer, "id", f"0x{head[4:8].hex()}")
        if bits & 0xFFF9:
            self._pseudo = b""
        return bits >= 8

    # ---------------------------------------------------------------- transport

    def _transport(self, protocol: int, at: int, end: int, *, is_later: bool) -> None:
        end = min(end, len(self._frame))
        if is_later or protocol not in (ICMP, TCP, UDP, ICMPV6):
            self._payload(at, end)
        elif protocol == TCP:
            self._tcp(at, end)
        elif protocol == UDP:
            self._udp(at, end)
        else:
            self._icmp(protocol, at, end)
        self._payload(max(end, at), len(self._frame), "padding")

    def _tcp(self, at: int, end: int) -> None:
        head = self._header("TCP", at, end, 20)
        if head is None:
            return
        source, target, seq, ack, offset, flags, window, checksum, urgent = struct.unpack(">HHIIBBHHH", head)
        length = max(offset >> 4, 5) * 4
        self._ports("TCP", source, target)
        self._add("TCP", "sequence", str(seq))
        self._add("TCP", "acknowledgement", str(ack))
        self._add("TCP", "header bytes", str((offset >> 4) * 4))
        self._add("TCP", "flags", " ".join(name for n, name in enumerate(_TCP_FLAGS) if flags >> n & 1) or "none")
        self._add("TCP", "window", str(window))
        self._add("TCP", "checksum", self._covered(TCP, checksum, at, end))
        self._add("TCP", "urgent", str(urgent))
        self._tcp_options(self._frame[at + 20 : min(at + length, end)])
        self._payload(at + length, end)

    def _tcp_options(self, options: bytes) -> None:
        at = 0
        while at < len(options) and options[at]:
            if options[at] == 1:
                at += 1
                continue
            length = options[at + 1] if at + 1 < len(options) else 0
            if length < 2:
                self._add("TCP", "option that is cut", _hex(options[at:]))
                return
            name = _TCP_OPTIONS.get(options[at], str(options[at]))
            self._add("TCP", f"option {name}", _option_value(options[at], options[at + 2 : at + length]))
            at += length

    def _udp(self, at: int, end: int) -> None:
        head = self._header("UDP", at, end, 8)
        if head is None:
            return
        source, target, length, checksum = struct.unpack(">HHHH", head)
        self._ports("UDP", source, target)
        self._add("UDP", "bytes", str(length))
        self._add("UDP", "checksum", self._covered(UDP, checksum, at, end) if checksum else "none")
        self._payload(at + 8, end)

    def _icmp(self, protocol: int, at: int, end: int) -> None:
        layer, types = ("ICMP", _ICMP_TYPES) if protocol == ICMP else ("ICMPv6", _ICMPV6_TYPES)
        head = self._header(layer, at, end, 4)
        if head is None:
            return
        kind, code, checksum = struct.unpack(">BBH", head)
        self._add(layer, "type", _named(kind, types))
        self._add(layer, "code", str(code))
        if protocol == ICMP:
            self._add(
                layer, "checksum", _checked(checksum, self._frame[at:end]) if self._pseudo else f"0x{checksum:04x}"
            )
        else:
            self._add(layer, "checksum", self._covered(ICMPV6, checksum, at, end))
        rest = self._header(layer, at + 4, end, 4)
        if rest is None:
            return
        if kind in _ECHOES[protocol]:
            self._add(layer, "id", str(int.from_bytes(rest[:2])))
            self._add(layer, "sequence", str(int.from_bytes(rest[2:])))
        else:
            self._add(layer, "rest", _hex(rest))
        self._payload(at + 8, end)

    def _ports(self, layer: str, source: int, target: int) -> None:
        self._add(layer, "source port", str(source))
        self._add(layer, "destination port", str(target))

    def _covered(self, protocol: int, checksum: int, at: int, end: int) -> str:
        """A checksum that covers addresses as well, with whether it is right where that can be told."""
        if not self._pseudo:
            return f"0x{checksum:04x}"
        pseudo = self._pseudo + struct.pack(">II", end - at, protocol)
        return _checked(checksum, pseudo + self._frame[at:end])

    # ---------------------------------------------------------------- pieces

    def _payload(self, at: int, end: int, name: str = "payload") -> None:
        if at < end:
            self._add(name, "bytes", str(end - at))

    def _header(self, layer: str, at: int, end: int, length: int) -> bytes | None:
        """The bytes of a header; None, and what is there of it is shown, when it is cut."""
        head = self._frame[at : min(at + length, max(end, at))]
        if len(head) == length:
            return head
        self._add(layer, "cut", f"{len(head)} of {length} bytes: {_hex(head)}" if head else f"0 of {length} bytes")
        return None

    def _add(self, layer: str, name: str, value: str) -> None:
        copy = 1
        key = layer, name
        while key in self.found:
            copy += 1
            key = layer, f"{name} {copy}"
        self.found[key] = value


def _named(number: int, names: dict[int, str], shown: str | None = None) -> str:
    text = shown or str(number)
    return f"{text} {names[number]}" if number in names else text


def _hex(data: bytes) -> str:
    more = " ..." if len(data) > _SHOWN_BYTES_MAX else ""
    return data[:_SHOWN_BYTES_MAX].hex(" ") + more


def _checked(checksum: int, covered: bytes) -> str:
    """One's complement (RFC 1071): the sum of all with the checksum is a multiple of 65535."""
    total = int.from_bytes(covered + b"\0" * (len(covered) & 1))
    return f"0x{checksum:04x} {'wrong' if total % 0xFFFF else 'right'}"


def _option_value(kind: int, value: bytes) -> str:
    if kind in (2, 3):
        return str(int.from_bytes(value))
    if kind in (5, 8) and value and len(value) % 4 == 0:
        return " ".join(str(number) for (number,) in struct.iter_unpack(">I", value))
    return _hex(value) or "yes"
