"""Parsing and rewriting, checked against scapy."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from pycolo.core.layers import locate
from pycolo.core.messages import is_link_control, message
from pycolo.core.packet import (
    ODD,
    checksum_is_right,
    distance,
    opposite,
    parse_tcp,
    rewrite,
    syn_terms,
    timestamps,
)
from tcp_frames import CLIENT, GUEST, A, Connection, F, R, S, U, arp, ipv4, stamps, tcp, udp

SEGMENT = Connection().out(5, 9, A, b"hello", stamps(77, 88))


def scapy_checksum(frame: bytes) -> int:
    packet = Ether(frame)[IP]
    del packet[TCP].chksum
    return int(IP(bytes(packet))[TCP].chksum)


def test_parse_agrees_with_scapy() -> None:
    parsed = parse_tcp(SEGMENT + b"\0" * 7)  # Ethernet padding
    packet = Ether(SEGMENT)
    assert parsed is not None
    key, seq, ack, flags, at, start, end = parsed
    assert at == 34
    assert key == GUEST + CLIENT + struct.pack(">HH", packet[TCP].sport, packet[TCP].dport)
    assert (seq, ack, flags) == (packet[TCP].seq, packet[TCP].ack, int(packet[TCP].flags))
    assert SEGMENT[start:end] == bytes(packet[TCP].payload) == b"hello"
    assert opposite(opposite(key)) == key
    assert opposite(key)[:4] == CLIENT


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        SEGMENT[:53],
        SEGMENT[:-1],
        SEGMENT[:20] + b"\x20\x00" + SEGMENT[22:],
        SEGMENT[:20] + b"\x00\x01" + SEGMENT[22:],
        SEGMENT[:46] + b"\x40" + SEGMENT[47:],
        SEGMENT[:46] + b"\xf0" + SEGMENT[47:],
        SEGMENT[:16] + b"\x00\x27" + SEGMENT[18:],
        udp(b"x" * 40),
    ],
    ids=[
        "empty",
        "short",
        "truncated",
        "more-fragments",
        "fragment",
        "offset-4",
        "offset-60",
        "total",
        "udp",
    ],
)
def test_what_is_not_plain_is_not_parsed(frame: bytes) -> None:
    assert parse_tcp(frame) is None


@pytest.mark.parametrize(
    ("options", "odd"),
    [
        (b"", False),
        (stamps(1, 2), False),
        (b"\x01\x01\x05\x0a" + bytes(8), False),
        (b"\x08\x0a" + bytes(8) + b"\x00\x00", False),
        (b"\x1e\x08" + bytes(6), True),  # MPTCP carries acknowledgements of its own
        (b"\x08\x00" + bytes(2), True),
        (b"\x08\x0a\x00\x00", True),
        (b"\x01\x01\x01\x08", True),
    ],
)
def test_options_that_cannot_be_compared_are_marked(options: bytes, odd: bool) -> None:
    parsed = parse_tcp(Connection().out(5, 9, A, b"x", options))
    assert parsed is not None
    assert bool(parsed[3] & ODD) is odd


def test_timestamps_are_found_wherever_they_stand() -> None:
    shifted = b"\x08\x0a" + struct.pack(">II", 5, 6) + b"\x01\x01"
    for options, expected in [(stamps(5, 6), (5, 6)), (shifted, (5, 6)), (b"", None), (b"\x08\x03\x01\x01", None)]:
        frame = Connection().out(1, 1, A, b"abc", options)
        parsed = parse_tcp(frame)
        assert parsed is not None
        assert timestamps(frame, *parsed[4:6]) == expected


def test_syn_terms_ignore_only_timestamp_values() -> None:
    def terms(options: bytes, flags: int = S | A) -> bytes:
        frame = Connection().out(0, 1, flags, options=options)
        parsed = parse_tcp(frame)
        assert parsed is not None
        return syn_terms(frame, *parsed[3:6])

    mss = b"\x02\x04\x05\xb4"
    assert terms(mss + stamps(1, 2)) == terms(mss + stamps(3, 4))
    assert terms(mss + stamps(1, 2)) != terms(b"\x02\x04\x05\xb5" + stamps(1, 2))
    assert terms(mss) != terms(mss + stamps(1, 2))
    assert terms(mss) != terms(mss, S | A | 0x40)


@pytest.mark.parametrize("payload", [b"", b"x", b"odd", b"even"])
@pytest.mark.parametrize(
    "options",
    [
        b"",
        stamps(2**32 - 1, 5),
        b"\x01\x08\x0a" + struct.pack(">II", 7, 2**32 - 3) + b"\x01",
        b"\x01\x01\x05\x12" + struct.pack(">IIII", 1, 2, 2**32 - 5, 9) + stamps(9, 9)[2:],
    ],
)
def test_rewritten_segments_have_right_checksums(payload: bytes, options: bytes) -> None:
    frame = Connection(isn=2**32 - 2).out(1, 1, A, payload, options)
    parsed = parse_tcp(frame)
    assert parsed is not None
    at, start, end = parsed[4:]
    assert checksum_is_right(frame, at, end)
    for add in (1, -1, 0xFFFF, 0x10000, 0x12345678, 2**31):
        changed = rewrite(frame, at, start, end, seq_add=add, ack_add=-add, value_add=3 * add, echo_add=5 * add)
        assert Ether(changed)[TCP].chksum == scapy_checksum(changed)
        assert checksum_is_right(changed, at, end)
        assert (
            rewrite(changed, at, start, end, seq_add=-add, ack_add=add, value_add=-3 * add, echo_add=-5 * add) == frame
        )


def test_of_the_two_zeros_the_checksum_is_the_plain_one() -> None:
    found = {rewrite(SEGMENT, 34, 66, len(SEGMENT), seq_add=add)[50:52] for add in range(0x10000)}
    assert b"\x00\x00" in found
    assert b"\xff\xff" not in found


def test_sack_edges_follow_the_acknowledgement() -> None:
    frame = Connection().back(1, 1, A, options=b"\x01\x01\x05\x0a" + struct.pack(">II", 100, 200))
    changed = rewrite(frame, 34, 66, len(frame), ack_add=1000)
    assert dict(Ether(changed)[TCP].options)["SAck"] == (1100, 1200)
    assert Ether(changed)[TCP].ack == Ether(frame)[TCP].ack + 1000


def test_a_wrong_checksum_stays_wrong() -> None:
    broken = SEGMENT[:-1] + b"\x00"
    assert not checksum_is_right(broken, 34, len(broken))
    changed = rewrite(broken, 34, 66, len(broken), seq_add=12345)
    assert not checksum_is_right(changed, 34, len(changed))


def test_link_control() -> None:
    ipv6 = b"\x33\x33" + bytes(10) + b"\x86\xdd\x60" + bytes(4)
    icmp6 = ipv6 + b"\x04\x3a\xff" + bytes(32)
    mld = ipv6 + b"\x0c\x00\x01" + bytes(32) + b"\x3a\x00" + bytes(6)
    igmp = ipv4(GUEST, bytes([224, 0, 0, 22]), 2, bytes(8))
    for frame in (
        arp(),
        b"\xff" * 12 + b"\x80\x35" + bytes(46),  # QEMU's announce-self
        b"\x01\x80\xc2\x00\x00\x0e" + bytes(6) + b"\x88\xcc" + bytes(46),
        b"\x01\x80\xc2\x00\x00\x00" + bytes(6) + b"\x00\x26\x42\x42\x03" + bytes(40),
        icmp6 + b"\x87" + bytes(3),
        mld + b"\x8f" + bytes(3),
        igmp,
    ):
        assert is_link_control(frame, locate(frame)), frame.hex()
    for frame in (
        SEGMENT,
        udp(b"x"),
        icmp6 + b"\x81" + bytes(3),
        icmp6,
        mld[:62],
        b"",
        b"\x08\x06",
        arp()[:12] + b"\x81\x00",
    ):
        assert not is_link_control(frame, locate(frame)), frame.hex()


def said(frame: bytes) -> tuple[bytes, bytes]:
    """Flow key and comparable bytes."""
    found = message(frame, locate(frame))
    assert found is not None
    return found[0], found[1]


def test_datagrams_ignore_only_what_no_client_sees() -> None:
    same = said(udp(b"answer", ip_id=1))
    assert same == said(udp(b"answer", ip_id=2) + bytes(9))
    assert same[0] == said(udp(b"ANSWER"))[0]
    assert same[1] != said(udp(b"ANSWER"))[1]
    assert same[0] != said(udp(b"answer", port=5001))[0]
    echo = ipv4(GUEST, CLIENT, 1, b"\x00\x00\x00\x00\x12\x34\x00\x01data")
    other_id = ipv4(GUEST, CLIENT, 1, b"\x00\x00\x00\x00\x12\x35\x00\x01data")
    assert said(echo)[0] != said(other_id)[0]
    fragment = ipv4(GUEST, CLIENT, 17, bytes(30), fragment=0x2000)
    assert said(fragment) == (b"W\x08\x00" + fragment[:6], fragment)


def test_scapy_agrees_with_our_builder() -> None:
    frame = udp(b"x")
    assert Ether(frame)[UDP].dport == 5000
    assert scapy_checksum(SEGMENT) == Ether(SEGMENT)[TCP].chksum
    assert tcp(GUEST, CLIENT, (1, 2), 3, 4, F | R | U, b"", b"")[47] == F | R | U


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(5, 3, 2), (3, 5, -2), (1, 2**32 - 1, 2), (2**32 - 1, 1, -2), (2**31, 0, -(2**31))]
)
def test_distance_is_modular(a: int, b: int, expected: int) -> None:
    assert distance(a, b) == expected
