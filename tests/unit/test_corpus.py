"""The corpus is what it says: right checksums by scapy's reckoning, and edits change what they should."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

import corpus
from corpus import captures, flipped, payload_span, resegmented

GOOD = [name for name in captures() if not name.startswith("malformed")]
WITH_STREAMS = [name for name in GOOD if name.startswith("tcp") or name == "jumbo"]
FRAGMENTED = [name for name in GOOD if "fragments" in name and "atomic" not in name]
CHECKSUMS = ("chksum", "cksum")


def wrong_checksums(packet: Any) -> list[str]:
    """Layers whose checksum is not what scapy makes it when it was not told; what errors quote is not looked at."""
    fresh = packet.copy()
    mine = [(layer, name) for layer in packet.layers() for name in CHECKSUMS if has_checksum(packet, layer, name)]
    for layer, name in mine:
        delattr(fresh[layer], name)
    fresh = type(packet)(bytes(fresh))
    return [layer.__name__ for layer, name in mine if getattr(packet[layer], name) != getattr(fresh[layer], name)]


def has_checksum(packet: Any, layer: Any, name: str) -> bool:
    names = (field.name for field in layer.fields_desc)
    return name in names and "error" not in layer.__name__ and not (layer is UDP and not packet[UDP].chksum)


def check(name: str, frames: Sequence[bytes]) -> None:
    """Every checksum of the capture is right."""
    packets: list[Any] = [Ether(frame) for frame in frames]
    if name in FRAGMENTED:
        packets = [whole_datagram(packets, of) for of in dict.fromkeys(map(fragment_of, packets))]
    for number, packet in enumerate(packets, 1):
        assert wrong_checksums(packet) == [], f"frame {number} of {name}"


def fragment_of(packet: Any) -> int:
    return int(packet[IP].id if IP in packet else packet[IPv6ExtHdrFragment].id)


def whole_datagram(packets: list[Any], of: int) -> Any:
    mine = [packet for packet in packets if fragment_of(packet) == of]
    joined: Any
    if IP in mine[0]:
        join4: Callable[..., Any] = defragment
        (joined,) = join4(sorted(mine, key=lambda packet: packet[IP].frag))
        return Ether(bytes(joined))
    join6: Callable[..., Any] = defragment6
    return IPv6(bytes(join6(mine)))


def streams(frames: Sequence[bytes]) -> dict[tuple[str, int, str, int], bytes]:
    """The payload of every direction of every connection, in order of its sequence numbers from the first one on."""
    found: dict[tuple[str, int, str, int], dict[int, int]] = defaultdict(dict)
    first: dict[tuple[str, int, str, int], int] = {}
    for frame in frames:
        packet = Ether(frame)
        if TCP not in packet or Raw not in packet:
            continue
        ip: Any = packet[IP] if IP in packet else packet[IPv6]
        key = (ip.src, packet[TCP].sport, ip.dst, packet[TCP].dport)
        first.setdefault(key, packet[TCP].seq)
        for n, value in enumerate(packet[Raw].load):
            found[key][(packet[TCP].seq + n - first[key] + 2**31) % 2**32] = value
    return {key: bytes([at[n] for n in sorted(at)]) for key, at in found.items()}


@pytest.mark.parametrize("name", GOOD)
def test_checksums(name: str) -> None:
    check(name, captures()[name])


def test_the_same_each_time() -> None:
    assert corpus._cached.__wrapped__() == corpus._cached()
    captures()["udp"].clear()
    assert len(captures()["udp"]) == 6


def test_what_scapy_sees() -> None:
    """A look into a few, so that a name is no empty promise."""
    made = captures()
    assert [Ether(frame)[TCP].seq for frame in made["tcp-seq-wrap"] if Raw in Ether(frame)][-1] < 1000
    assert {Ether(frame).sprintf("%TCP.flags%") for frame in made["tcp-refused"]} == {"S", "RA"}
    assert all(ICMP in Ether(frame) for frame in made["icmp-echo"])
    assert len(made["jumbo"][3]) == 8954
    assert all(len(frame) >= 60 for frame in made["tcp-padded"])
    for name in FRAGMENTED:
        assert len({fragment_of(Ether(frame)) for frame in made[name]}) == 2


@pytest.mark.parametrize("name", WITH_STREAMS)
@pytest.mark.parametrize("sizes", [[97, 1], [1460], [9000]], ids=str)
def test_resegmented(name: str, sizes: list[int]) -> None:
    frames = captures()[name]
    changed = resegmented(frames, sizes)
    check(name, changed)
    assert streams(changed) == streams(frames)
    payloads = [
        len(packet[Raw])
        for packet in map(Ether, changed)
        if Raw in packet and TCP in packet and str(packet[TCP].flags) == "A"
    ]
    assert all(length <= max(sizes) for length in payloads)


def test_resegmented_makes_more_and_fewer_segments() -> None:
    frames = captures()["tcp-client-opened"]
    assert len(resegmented(frames, [9000])) == len(frames) - 2
    assert len(resegmented(frames, [100])) == len(frames) + 22
    assert resegmented(captures()["udp"], [10]) == captures()["udp"]


@pytest.mark.parametrize("name", GOOD)
def test_flipped(name: str) -> None:
    frames = captures()[name]
    for number, frame in enumerate(frames, 1):
        span = payload_span(frame)
        if span is None:
            continue
        for byte in {0, (span.end - span.start) // 2, span.end - span.start - 1}:
            changed = flipped(frames, number, byte)
            check(name, changed if name in FRAGMENTED else changed[number - 1 : number])
            assert changed[number - 1][span.start + byte] == frame[span.start + byte] ^ 0xFF
            others = [n for n, (old, new) in enumerate(zip(frames, changed, strict=True), 1) if old != new]
            assert number in others
            assert len(others) == (1 if span.checksum is not None else 2)


def test_payloads_are_found() -> None:
    """Where `payload_span` says there is one, scapy says the same."""
    for name in ("udp", "udp-ipv6", "tcp-qinq", "tcp-padded", "ipv6-destination-options", "vlan"):
        for frame in captures()[name]:
            packet, span = Ether(frame), payload_span(frame)
            raw = bytes(packet[Raw]) if Raw in packet else b""
            assert (frame[span.start : span.end] if span else b"") == raw
