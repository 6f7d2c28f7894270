"""Captures of everything a guest may put on a wire, made with scapy, the same each time; and ways to change them.

`captures()` by name; those whose name begins with `malformed` hold what no stack sends. Frames are counted from 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

from scapy.contrib.lldp import LLDPDU, LLDPDUChassisID, LLDPDUEndOfLLDPDU, LLDPDUPortID, LLDPDUTimeToLive
from scapy.layers.igmp import IGMP
from scapy.layers.inet import ICMP, IP, UDP, IPOption_Router_Alert, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
    fragment6,
)
from scapy.layers.l2 import ARP, GRE, LLC, STP, Dot1AD, Dot1Q, Dot3, Ether

from corpus_edit import flipped, payload_span, resegmented
from corpus_tcp import CLIENT, CLIENT6, CLIENT_MAC, GUEST, GUEST6, GUEST_MAC, TCP_CAPTURES, Talk, text

__all__ = ["captures", "flipped", "payload_span", "resegmented"]

_OUT, _BACK = Ether(src=GUEST_MAC, dst=CLIENT_MAC), Ether(src=CLIENT_MAC, dst=GUEST_MAC)
_OUT4, _BACK4 = IP(src=GUEST, dst=CLIENT, id=7), IP(src=CLIENT, dst=GUEST, id=9)
_OUT6, _BACK6 = IPv6(src=GUEST6, dst=CLIENT6), IPv6(src=CLIENT6, dst=GUEST6)
_GROUP_MAC, _GROUP6_MAC = "01:00:5e:01:02:03", "33:33:00:00:00:16"
_NOISE_SEED, _NOISE_FRAMES = 5, 200


@cache
def _cached() -> dict[str, tuple[bytes, ...]]:
    made = {name: tuple(make()) for name, make in TCP_CAPTURES.items()}
    made |= {name: tuple(bytes(packet) for packet in make()) for name, make in _OTHERS.items()}
    return made | {name: tuple(make(made)) for name, make in _MALFORMED.items()}


def captures() -> dict[str, list[bytes]]:
    """Name and frames of each; made once, yours to change."""
    return {name: list(frames) for name, frames in _cached().items()}


# ---------------------------------------------------------------- datagrams


def _udp() -> list[Any]:
    ask, answer = UDP(sport=53_000, dport=53), UDP(sport=53, dport=53_000)
    turns = [_BACK / _BACK4 / ask / text(30, n) for n in range(3)]
    return turns + [_OUT / _OUT4 / answer / text(200 + n, n) for n in range(3)]


def _udp6() -> list[Any]:
    turns = [_BACK / _BACK6 / UDP(sport=5000, dport=6000) / text(90, n) for n in range(2)]
    return turns + [_OUT / _OUT6 / UDP(sport=6000, dport=5000) / text(95, n) for n in range(2)]


def _udp_empty() -> list[Any]:
    return [_OUT / _OUT4 / UDP(sport=6000, dport=5000), _OUT / _OUT6 / UDP(sport=6000, dport=5000)]


def _udp_without_checksum() -> list[Any]:
    return [_OUT / _OUT4 / UDP(sport=6000, dport=5000, chksum=0) / text(40, n) for n in range(2)]


def _icmp_echo() -> list[Any]:
    pings = [_BACK / _BACK4 / ICMP(type="echo-request", id=77, seq=n) / text(56, n) for n in range(3)]
    return pings + [_OUT / _OUT4 / ICMP(type="echo-reply", id=77, seq=n) / text(56, n) for n in range(3)]


def _icmp_errors() -> list[Any]:
    original = bytes(_BACK4 / UDP(sport=5000, dport=6000) / text(40))[:28]
    kinds = [ICMP(type=3, code=3), ICMP(type=3, code=4, nexthopmtu=1400), ICMP(type=11, code=0), ICMP(type=5, code=1)]
    return [_OUT / _OUT4 / kind / original for kind in kinds]


def _icmp6_echo() -> list[Any]:
    pings = [_BACK / _BACK6 / ICMPv6EchoRequest(id=77, seq=n, data=text(56, n)) for n in range(3)]
    return pings + [_OUT / _OUT6 / ICMPv6EchoReply(id=77, seq=n, data=text(56, n)) for n in range(3)]


def _icmp6_errors() -> list[Any]:
    original = bytes(_BACK6 / UDP(sport=5000, dport=6000) / text(40))
    kinds = [ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280)]
    return [_OUT / _OUT6 / kind / original for kind in kinds]


def _neighbours() -> list[Any]:
    link = IPv6(src="fe80::2", dst="ff02::1:ff00:1", hlim=255)
    return [
        Ether(src=GUEST_MAC, dst="33:33:ff:00:00:01") / link / ICMPv6ND_NS(tgt=CLIENT6) / _lladdr(GUEST_MAC),
        _OUT / IPv6(src=GUEST6, dst=CLIENT6, hlim=255) / ICMPv6ND_NA(tgt=GUEST6, R=0, S=1) / _target_lladdr(),
        Ether(src=GUEST_MAC, dst="33:33:00:00:00:02") / IPv6(src="fe80::2", dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
        _BACK / IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA() / _lladdr(CLIENT_MAC),
    ]


def _lladdr(mac: str) -> Any:
    return ICMPv6NDOptSrcLLAddr(lladdr=mac)


def _target_lladdr() -> Any:
    return ICMPv6NDOptDstLLAddr(lladdr=GUEST_MAC)


def _listeners() -> list[Any]:
    alert = IPv6ExtHdrHopByHop(options=[RouterAlert()])
    group = IPv6(src="fe80::2", dst="ff02::16", hlim=1)
    return [Ether(src=GUEST_MAC, dst=_GROUP6_MAC) / group / alert / ICMPv6MLReport2()]


# ---------------------------------------------------------------- IP beyond the plain header


def _behind(*headers: Any) -> list[Any]:
    """UDP and TCP behind IPv6 extension headers."""
    head = _OUT / _OUT6
    for header in headers:
        head /= header.copy()
    talk = Talk(version=6)
    segment = Ether(talk.say(talk.guest, "PA", text(300)))[IPv6].payload
    del segment.chksum
    return [head / UDP(sport=6000, dport=5000) / text(90), head / segment]


def _hop_by_hop() -> list[Any]:
    return _behind(IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]))


def _destination_options() -> list[Any]:
    return _behind(IPv6ExtHdrHopByHop(options=[RouterAlert()]), IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)]))


def _routing() -> list[Any]:
    return _behind(IPv6ExtHdrRouting(type=0, segleft=0, addresses=["fd00::9"]))


def _atomic_fragments() -> list[Any]:
    return _behind(IPv6ExtHdrFragment(id=99, offset=0, m=0))


_fragment4: Callable[..., Any] = fragment
_fragment6: Callable[..., Any] = fragment6


def _fragments4() -> list[Any]:
    parts: list[Any] = []
    for ip_id in (7, 8):
        whole = IP(src=GUEST, dst=CLIENT, id=ip_id) / UDP(sport=6000, dport=5000) / text(3000, ip_id)
        parts += [_OUT / part for part in _fragment4(whole, fragsize=1480)]
    return parts


def _fragments6() -> list[Any]:
    parts: list[Any] = []
    for ip_id in (7, 8):
        whole = _OUT6 / IPv6ExtHdrFragment(id=ip_id) / UDP(sport=6000, dport=5000) / text(3000, ip_id)
        parts += [_OUT / part for part in _fragment6(whole, 1400)]
    return parts


def _options4() -> list[Any]:
    head = IP(src=GUEST, dst=CLIENT, id=7, options=[IPOption_Router_Alert()])
    return [_OUT / head / UDP(sport=6000, dport=5000) / text(40, n) for n in range(2)]


# ---------------------------------------------------------------- the link


def _tagged() -> list[Any]:
    datagram = _OUT4 / UDP(sport=6000, dport=5000) / text(64)
    stacks = [(Dot1Q(vlan=5),), (Dot1Q(vlan=6),), (Dot1AD(vlan=100), Dot1Q(vlan=5)), (Dot1Q(vlan=7), Dot1Q(vlan=8))]
    frames: list[Any] = []
    for stack in stacks:
        head: Any = _OUT
        for tag in stack:
            head = head / tag
        frames.append(head / datagram)
    return frames


def _arp() -> list[Any]:
    asks = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(
        op="who-has", hwsrc=GUEST_MAC, psrc=GUEST, pdst=CLIENT, hwdst="00:00:00:00:00:00"
    )
    says = _OUT / ARP(op="is-at", hwsrc=GUEST_MAC, psrc=GUEST, pdst=CLIENT, hwdst=CLIENT_MAC)
    return [asks, says]


def _lldp() -> list[Any]:
    port = LLDPDUChassisID(subtype=4, id=GUEST_MAC) / LLDPDUPortID(subtype=5, id=b"eth0") / LLDPDUTimeToLive(ttl=120)
    return [Ether(src=GUEST_MAC, dst="01:80:c2:00:00:0e", type=0x88CC) / LLDPDU() / port / LLDPDUEndOfLLDPDU()]


def _stp() -> list[Any]:
    return [Dot3(src=GUEST_MAC, dst="01:80:c2:00:00:00") / LLC(dsap=0x42, ssap=0x42, ctrl=3) / STP()]


def _igmp() -> list[Any]:
    head = IP(src=GUEST, dst="224.1.2.3", ttl=1, id=7, options=[IPOption_Router_Alert()])
    return [Ether(src=GUEST_MAC, dst=_GROUP_MAC) / head / IGMP(type=0x16, gaddr="224.1.2.3")]


def _to_many() -> list[Any]:
    group = Ether(src=GUEST_MAC, dst=_GROUP_MAC) / IP(src=GUEST, dst="224.1.2.3", ttl=1, id=7)
    everyone = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src=GUEST, dst="255.255.255.255", id=7)
    group6 = Ether(src=GUEST_MAC, dst="33:33:00:00:00:fb") / IPv6(src="fe80::2", dst="ff02::fb")
    heads: list[Any] = [group, everyone, group6]
    return [head / UDP(sport=5353, dport=5353) / text(80, n) for n, head in enumerate(heads)]


def _jumbo() -> list[Any]:
    talk = Talk()
    talk.open()
    talk.say(talk.guest, "PA", text(8900))
    return [*talk.frames, _OUT / _OUT4 / UDP(sport=6000, dport=5000) / text(8900)]


def _padded() -> list[bytes]:
    short = [_OUT / _OUT4 / UDP(sport=6000, dport=5000) / b"x", _OUT / _OUT4 / ICMP(type=0, id=3, seq=4) / b"y"]
    return [bytes(packet).ljust(60, b"\xee") for packet in short]


def _unknown() -> list[Any]:
    other = [_OUT / _OUT4 / GRE() / text(60), _OUT / IP(src=GUEST, dst=CLIENT, id=7, proto=253) / text(60)]
    return [
        *other,
        _OUT / IPv6(src=GUEST6, dst=CLIENT6, nh=253) / text(60),
        Ether(bytes(_OUT)[:12] + b"\x88\xb5") / text(60),
    ]


_OTHERS: dict[str, Callable[[], list[Any]]] = {
    "udp": _udp,
    "udp-ipv6": _udp6,
    "udp-empty": _udp_empty,
    "udp-without-checksum": _udp_without_checksum,
    "icmp-echo": _icmp_echo,
    "icmp-errors": _icmp_errors,
    "icmpv6-echo": _icmp6_echo,
    "icmpv6-errors": _icmp6_errors,
    "icmpv6-neighbours": _neighbours,
    "icmpv6-listeners": _listeners,
    "ipv6-hop-by-hop": _hop_by_hop,
    "ipv6-destination-options": _destination_options,
    "ipv6-routing": _routing,
    "ipv6-atomic-fragments": _atomic_fragments,
    "ipv6-fragments": _fragments6,
    "ipv4-fragments": _fragments4,
    "ipv4-fragments-out-of-order": lambda: _fragments4()[::-1],
    "ipv4-options": _options4,
    "vlan": _tagged,
    "arp": _arp,
    "lldp": _lldp,
    "stp": _stp,
    "igmp": _igmp,
    "to-many": _to_many,
    "jumbo": _jumbo,
    "padded": _padded,
    "unknown": _unknown,
}


# ---------------------------------------------------------------- what no stack sends

Made = dict[str, tuple[bytes, ...]]


def _truncated(made: Made) -> list[bytes]:
    """Every header of every kind, cut at each of its bytes."""
    names = ("tcp-timestamps", "tcp-qinq", "ipv6-destination-options", "ipv6-fragments", "icmp-errors", "vlan", "igmp")
    wholes = [made[name][1 if name.startswith("tcp") else 0] for name in names]
    return [whole[:length] for whole in wholes for length in range(min(len(whole), 110))]


def _wrong_lengths(made: Made) -> list[bytes]:
    """One byte of the headers with each of some telling values."""
    frames = []
    for name in ("tcp-timestamps", "tcp-ipv6", "udp", "ipv6-hop-by-hop", "ipv6-fragments", "vlan"):
        whole = made[name][0]
        for at in range(12, min(len(whole), 80)):
            frames += [whole[:at] + bytes([value]) + whole[at + 1 :] for value in (0, 1, 0x4F, 0x7F, 0xFF)]
    return frames


def _fragments_that_overlap(made: Made) -> list[bytes]:
    first, second, *_ = made["ipv4-fragments"]
    moved = bytes(_OUT / IP(src=GUEST, dst=CLIENT, id=7, proto=17, frag=100, flags="MF") / second[34:])
    beyond = bytes(_OUT / IP(src=GUEST, dst=CLIENT, id=7, proto=17, frag=8191) / text(1400))
    uneven = bytes(_OUT / IP(src=GUEST, dst=CLIENT, id=7, proto=17, flags="MF") / text(61))
    first6, second6, *_ = made["ipv6-fragments"]
    return [first, moved, second, beyond, uneven, first6, first6, second6, second6[:-8]]


def _endless_headers(made: Made) -> list[bytes]:
    """Extension headers that name one another, and tags on tags, to the end of the frame."""
    hops = bytes(_OUT / IPv6(src=GUEST6, dst=CLIENT6, nh=0, plen=1400)) + (b"\0\0\x01\x04\0\0\0\0" * 175)
    tags = bytes(_OUT)[:12] + b"\x81\x00\x00\x05" * 300
    return [hops, hops[:-3], tags, tags[:-1], *made["ipv6-routing"]]


def _noise(made: Made) -> list[bytes]:
    """Random bytes behind the beginnings of real frames."""
    source = random.Random(_NOISE_SEED)
    heads = [made[name][0] for name in sorted(made)]
    cut = [source.choice(heads)[: source.randrange(60)] for _ in range(_NOISE_FRAMES)]
    return [head + source.randbytes(source.randrange(120)) for head in cut]


def _sequences(made: Made) -> list[bytes]:
    """A connection whose numbers jump about."""
    talk = Talk()
    talk.open()
    jumps = (0, 2**31, 2**31 - 1, 2**32 - 1, 1, 2**30, 500)
    for here, there in pairwise(jumps):
        talk.say(talk.guest, "PA", text(50), seq=talk.isn + here, ack=talk.client_isn + there)
        talk.say(talk.client, "A", seq=talk.client_isn + there, ack=talk.isn + here)
    for flags in ("SF", "SR", "", "FSRPAU", "SFA"):
        talk.say(talk.guest, flags, text(9))
    return talk.frames


_MALFORMED: dict[str, Callable[[Made], list[bytes]]] = {
    "malformed-truncated": _truncated,
    "malformed-lengths": _wrong_lengths,
    "malformed-fragments": _fragments_that_overlap,
    "malformed-endless": _endless_headers,
    "malformed-noise": _noise,
    "malformed-sequences": _sequences,
}
