"""VLAN tags, IPv4 and IPv6 headers: what lies where, checked against scapy."""

from __future__ import annotations

import struct

import pytest
from ip_frames import CLIENT6, DESTINATION, GUEST6, HOP_BY_HOP, ROUTING, cut4, cut6, ipv6, tagged, tcp6
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from pycolo.core.layers import Fragment, ethertype, locate
from pycolo.core.messages import message
from pycolo.core.packet import ODD, checksum_is_right, odd_terms, opposite, parse_tcp, rewrite, source_port
from tcp_frames import CLIENT, GUEST, A, Connection, ipv4, stamps, udp

SEGMENT4 = Connection().out(5, 9, A, b"hello", stamps(77, 88))
BODY6 = tcp6(GUEST6, CLIENT6, (80, 999), 5, 9, A, b"hello", stamps(77, 88))
SEGMENT6 = ipv6(GUEST6, CLIENT6, 6, BODY6)
PADDING_HEADER = bytes([6, 0, 1, 4, 0, 0, 0, 0])
ROUTER_ALERT = bytes([6, 0, 5, 2, 0, 0, 1, 0])


@pytest.mark.parametrize("vids", [(), (5,), (100, 200)])
@pytest.mark.parametrize("plain", [SEGMENT4, SEGMENT6], ids=["ipv4", "ipv6"])
def test_segments_are_found_behind_tags(plain: bytes, vids: tuple[int, ...]) -> None:
    frame = tagged(plain, *vids) + bytes(9)
    parsed = parse_tcp(frame)
    assert parsed is not None
    key, seq, ack, flags, at, start, end = parsed
    packet = Ether(frame)
    assert (seq, ack, flags) == (packet[TCP].seq, packet[TCP].ack, int(packet[TCP].flags))
    assert frame[start:end] == b"hello"
    size = 8 if plain is SEGMENT4 else 32
    assert key[size : size + 4] == frame[at : at + 4]
    assert key[size + 4 :] == b"".join(vid.to_bytes(2) for vid in vids)
    assert opposite(opposite(key)) == key
    assert opposite(key)[size : size + 4] == frame[at + 2 : at + 4] + frame[at : at + 2]
    assert opposite(key)[size + 4 :] == key[size + 4 :]
    assert source_port(key) == packet[TCP].sport
    assert len(vids) == sum(isinstance(layer, Dot1Q) for layer in (packet.getlayer(i) for i in range(4)))


def test_the_same_ports_in_another_vlan_are_another_connection() -> None:
    keys = {parse_tcp(tagged(SEGMENT4, *vids))[0] for vids in ((), (1,), (2,), (1, 2), (2, 1))}  # type: ignore[index]
    assert len(keys) == 5


def test_more_tags_than_two_are_not_looked_behind() -> None:
    assert locate(tagged(SEGMENT4, 1, 2, 3)) is None
    assert ethertype(tagged(SEGMENT4, 1, 2, 3))[0] == 0x8100


def scapy_checksum(frame: bytes) -> int:
    packet = Ether(frame)
    del packet[TCP].chksum
    return int(Ether(bytes(packet))[TCP].chksum)


@pytest.mark.parametrize("vids", [(), (5,), (100, 200)])
@pytest.mark.parametrize("plain", [SEGMENT4, SEGMENT6], ids=["ipv4", "ipv6"])
def test_rewritten_segments_have_right_checksums(plain: bytes, vids: tuple[int, ...]) -> None:
    frame = tagged(plain, *vids)
    parsed = parse_tcp(frame)
    assert parsed is not None
    place = parsed[4:]
    assert checksum_is_right(frame, place[0], place[2])
    changed = rewrite(frame, *place, seq_add=0x12345678, ack_add=-7, value_add=99, echo_add=-99)
    assert changed != frame
    assert Ether(changed)[TCP].chksum == scapy_checksum(changed)
    assert rewrite(changed, *place, seq_add=-0x12345678, ack_add=7, value_add=-99, echo_add=99) == frame


@pytest.mark.parametrize("plain", [SEGMENT4, SEGMENT6], ids=["ipv4", "ipv6"])
def test_a_partial_checksum_stays_partial(plain: bytes) -> None:
    """Only the pseudo header is in it, which a rewriting does not change."""
    parsed = parse_tcp(plain)
    assert parsed is not None
    at, start, end = parsed[4:]
    addresses = plain[26:34] if plain is SEGMENT4 else plain[22:54]
    partial = sum(struct.unpack(f">{len(addresses) // 2}H", addresses)) + 6 + end - at
    partial = (partial & 0xFFFF) + (partial >> 16)
    frame = plain[: at + 16] + struct.pack(">H", partial) + plain[at + 18 :]
    changed = rewrite(frame, at, start, end, seq_add=5, ack_add=6)
    assert changed != frame
    assert changed[at + 16 : at + 18] == frame[at + 16 : at + 18]


@pytest.mark.parametrize(
    ("kind", "header", "odd"),
    [
        (HOP_BY_HOP, PADDING_HEADER, False),
        (DESTINATION, PADDING_HEADER, False),
        (HOP_BY_HOP, ROUTER_ALERT, True),
        (DESTINATION, bytes([6, 1, 0x1E]) + bytes(13), True),
        (DESTINATION, bytes([60, 0, 1, 4, 0, 0, 0, 0]) + ROUTER_ALERT, True),
        (ROUTING, bytes([6, 2, 4, 0]) + bytes(20), True),
        (44, bytes([6, 0, 0, 0, 1, 2, 3, 4]), False),  # a whole packet behind a fragment header (RFC 6946)
    ],
)
def test_extension_headers_are_passed(kind: int, header: bytes, odd: bool) -> None:
    frame = ipv6(GUEST6, CLIENT6, 6, BODY6, header, kind)
    parsed = parse_tcp(frame)
    assert parsed is not None
    assert bool(parsed[3] & ODD) is odd
    assert frame[parsed[5] : parsed[6]] == b"hello"
    assert (header[2:] in odd_terms(frame, *parsed[3:6])) is odd
    assert checksum_is_right(frame, parsed[4], parsed[6])


@pytest.mark.parametrize(
    "frame",
    [
        ipv6(GUEST6, CLIENT6, 6, b"", bytes([6, 200]) + bytes(6), HOP_BY_HOP),
        ipv6(GUEST6, CLIENT6, 6, BODY6, bytes([60, 0, 1, 4, 0, 0, 0, 0]) * 9 + PADDING_HEADER, DESTINATION),
        SEGMENT6[:18] + b"\x00\x00\x00" + SEGMENT6[21:],  # a jumbogram
        SEGMENT6[:-1],
        SEGMENT6[:50],
        SEGMENT4[:14] + b"\x44" + SEGMENT4[15:],
        SEGMENT4[:14] + b"\x65" + SEGMENT4[15:],
    ],
    ids=["cut-header", "too-many", "jumbogram", "cut", "cut-ip", "ihl", "version"],
)
def test_what_is_not_understood_is_no_segment(frame: bytes) -> None:
    assert parse_tcp(frame) is None
    assert message(frame, locate(frame)) is not None, "it is compared all the same"


def test_ipv4_options_are_passed_and_remembered() -> None:
    for options, odd in ((b"\x01\x01\x01\x00", False), (b"\x94\x04\x00\x00", True)):
        plain = SEGMENT4
        head = bytes([0x46]) + plain[15:16] + (len(plain) - 14 + 4).to_bytes(2) + plain[18:34]
        frame = plain[:14] + head + options + plain[34:]
        parsed = parse_tcp(frame)
        assert parsed is not None
        assert bool(parsed[3] & ODD) is odd
        assert frame[parsed[5] : parsed[6]] == b"hello"
        assert (options in odd_terms(frame, *parsed[3:6])) is odd


def test_fragments_are_located_as_such() -> None:
    found = [locate(piece) for piece in cut4(udp(bytes(100)), 77, 24, 32)]
    assert [each and each.fragment for each in found] == [
        Fragment(77, 0, True),
        Fragment(77, 24, True),
        Fragment(77, 56, False),
    ]
    found = [locate(piece) for piece in cut6(SEGMENT6, 1 << 31, 16)]
    assert [each and each.fragment for each in found] == [Fragment(1 << 31, 0, True), Fragment(1 << 31, 16, False)]
    assert all(parse_tcp(piece) is None for piece in cut6(SEGMENT6, 5, 24))


def quoting(error: bytes, quoted: bytes) -> tuple[bytes, bytes]:
    frame = ipv4(GUEST, CLIENT, 1, error + quoted)
    said = message(frame, locate(frame))
    assert said is not None
    return said[0], said[1]


def test_icmp_errors_go_by_what_they_quote() -> None:
    unreachable = b"\x03\x03\xab\xcd" + bytes(4)
    one, other = udp(b"question", inbound=True)[14:], udp(b"question", inbound=True, port=5001)[14:]
    assert quoting(unreachable, one)[0] != quoting(unreachable, other)[0]
    assert quoting(unreachable, one) == quoting(b"\x03\x03\x00\x00" + bytes(4), one), "the checksum follows"
    assert quoting(unreachable, one)[1] != quoting(unreachable, one[:-1] + b"X")[1]
    assert quoting(b"\x03\x04\x00\x00\x00\x00\x05\xdc", one)[1] != quoting(b"\x03\x04\x00\x00\x00\x00\x05\xdd", one)[1]


def test_in_a_quoted_segment_the_translated_numbers_do_not_count() -> None:
    unreachable = b"\x03\x03\xab\xcd" + bytes(4)
    of_pvm = Connection(isn=1000).back(5, 9, A, b"data", stamps(1, 2))[14:]
    of_svm = Connection(isn=900_000).back(5, 9, A, b"data", stamps(1, 800_000))[14:]
    assert of_pvm != of_svm
    for length in (28, 30, 33, 40, 45, len(of_pvm)):
        assert quoting(unreachable, of_pvm[:length]) == quoting(unreachable, of_svm[:length]), length
    other_seq = Connection(isn=1000).back(6, 9, A, b"data", stamps(1, 2))[14:]
    assert quoting(unreachable, of_pvm) != quoting(unreachable, other_seq)


def test_flow_labels_and_hop_limits_do_not_count_but_the_traffic_class_does() -> None:
    body = struct.pack(">HHHH", 53, 999, 12, 0) + b"data"
    frame = ipv6(GUEST6, CLIENT6, 17, body)
    other_label = frame[:15] + b"\x0f\xff\xff" + frame[18:20] + b"\x11\x01" + frame[22:]
    other_class = b"".join((frame[:14], b"\x61", frame[15:]))
    assert Ether(other_label)[IPv6].fl != Ether(frame)[IPv6].fl
    assert message(frame, locate(frame)) == message(other_label, locate(other_label))
    assert message(frame, locate(frame)) != message(other_class, locate(other_class))


def test_scapy_agrees_with_our_builder() -> None:
    assert Ether(SEGMENT6)[TCP].chksum == scapy_checksum(SEGMENT6)
    assert Ether(tagged(SEGMENT4, 7))[Dot1Q].vlan == 7
    assert bytes(Ether(cut4(udp(b"x" * 50), 9, 32)[0])[IP].payload)[:4] == struct.pack(">HH", 53, 5000)
