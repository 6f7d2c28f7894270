"""The headers in words, with scapy as the second opinion; anything goes in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from corpus import captures, flipped
from pycolo.capture.protocol_view import fields, side_by_side

WELL_FORMED = [name for name in captures() if not name.startswith("malformed")]
ALL_FRAMES = [frame for frames in captures().values() for frame in frames]


@pytest.mark.parametrize("name", WELL_FORMED)
def test_fields_are_what_scapy_reads(name: str) -> None:
    for frame in captures()[name]:
        packet: Any = Ether(frame)
        seen = fields(frame)
        if "Ethernet" in packet:
            assert seen["Ethernet", "source"] == packet[Ether].src
            assert seen["Ethernet", "destination"] == packet[Ether].dst
        if IP in packet:
            expected = [packet[IP].src, packet[IP].dst, str(packet[IP].id), str(packet[IP].ttl)]
            assert [seen["IPv4", name] for name in ("source", "destination", "id", "TTL")] == expected
        if IPv6 in packet:
            expected = [packet[IPv6].src, packet[IPv6].dst, str(packet[IPv6].hlim)]
            assert [seen["IPv6", name] for name in ("source", "destination", "hop limit")] == expected
        if TCP in packet:
            expected = [str(getattr(packet[TCP], name)) for name in ("sport", "dport", "seq", "ack", "window")]
            names = ("source port", "destination port", "sequence", "acknowledgement", "window")
            assert [seen["TCP", name] for name in names] == expected
        if UDP in packet and not fragmented(seen):
            assert (seen["UDP", "source port"], seen["UDP", "bytes"]) == (str(packet[UDP].sport), str(packet[UDP].len))


def fragmented(seen: dict[tuple[str, str], str]) -> bool:
    return seen.get(("IPv4", "fragment flags")) == "more" or ("IPv6 fragment", "offset") in seen


@pytest.mark.parametrize("name", WELL_FORMED)
def test_good_checksums_are_right_and_others_wrong(name: str) -> None:
    for number, frame in enumerate(captures()[name], 1):
        checksums = {key: value for key, value in fields(frame).items() if key[1] == "checksum"}
        assert not any(value.endswith("wrong") for value in checksums.values()), (number, checksums)
        assert len(checksums) >= ("IPv4" in str(checksums))
    wrong = bytearray(captures()["tcp-ipv6"][5])
    wrong[-1] ^= 1
    assert fields(bytes(wrong))["TCP", "checksum"].endswith("wrong")


def test_options_of_tcp() -> None:
    seen = fields(captures()["tcp-client-opened"][0])
    names = ("option MSS", "option SACK permitted", "option timestamps", "option window scale")
    assert [seen["TCP", name] for name in names] == ["1460", "yes", "1000 0", "7"]
    assert fields(captures()["tcp-mptcp"][0])["TCP", "option MPTCP"] == "01 81 00 00 00 00 00 00 00 00"
    assert fields(captures()["tcp-sack"][5])["TCP", "option SACK"] == "70201 70301"


def test_only_what_differs_is_marked() -> None:
    frames = captures()["tcp-qinq"]
    rows = side_by_side(frames[5], flipped(frames, 6, 0)[5])
    assert [(row.layer, row.name) for row in rows if row.differs] == [("TCP", "checksum")]
    rows = side_by_side(captures()["vlan"][0], captures()["vlan"][1])
    assert [(row.name, row.primary, row.secondary) for row in rows if row.differs] == [("id", "5", "6")]


def test_layers_that_one_side_lacks_stand_together() -> None:
    rows = side_by_side(captures()["vlan"][0], captures()["udp-ipv6"][0])
    layers = [row.layer for row in rows]
    assert len(list(dict.fromkeys(layers))) == sum(
        1 for n, layer in enumerate(layers) if n == 0 or layers[n - 1] != layer
    )
    assert {row.secondary for row in rows if row.layer == "IPv4"} == {None}
    assert side_by_side(None, None) == []
    assert all(row.primary is None for row in side_by_side(None, captures()["udp"][0]))


@pytest.mark.parametrize("name", [name for name in captures() if name.startswith("malformed")])
def test_malformed_frames(name: str) -> None:
    for frame in captures()[name]:
        assert all(isinstance(value, str) and len(value) < 200 for value in fields(frame).values())


def test_cut_headers_say_so() -> None:
    frame = captures()["udp"][0]
    assert fields(b"") == {("Ethernet", "cut"): "0 of 14 bytes"}
    assert fields(frame[:13])["Ethernet", "cut"].startswith("13 of 14 bytes: 52 54")
    assert fields(frame[:20])["IPv4", "cut"].startswith("6 of 20 bytes: 45 00")
    assert fields(frame[:38])["UDP", "cut"] == "4 of 8 bytes: cf 08 00 35"


@given(st.sampled_from(ALL_FRAMES), st.data())
def test_any_bytes_have_a_view(frame: bytes, data: st.DataObject) -> None:
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            changed[data.draw(st.integers(0, min(len(changed), 90) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(changed[: data.draw(st.integers(0, len(changed)))]) + data.draw(st.binary(max_size=40))
    assert len(fields(cut)) < 150
