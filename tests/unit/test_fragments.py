"""Packets in pieces: put together for the comparison, released as they came, bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ip_frames import CLIENT6, GUEST6, cut4, cut6, ipv6, tcp6

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.fragments import FRAGMENTS_MAX, PACKETS_MAX, Reassembly
from pycolo.core.layers import Layers, locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.messages import message
from pycolo.core.packet import parse_tcp
from tcp_frames import A, udp

PACKET = udp(bytes(range(200)))
SEGMENT6 = ipv6(GUEST6, CLIENT6, 6, tcp6(GUEST6, CLIENT6, (80, 999), 5, 9, A, bytes(range(100)), b""))


def layers(frame: bytes) -> Layers:
    found = locate(frame)
    assert found is not None
    return found


def plane() -> PrimaryDataplane:
    return PrimaryDataplane(DataplaneLimits(), 1)


@given(st.lists(st.integers(1, 12), max_size=6), st.booleans(), st.randoms(use_true_random=False))
def test_any_cut_in_any_order_is_the_packet_again(sizes: list[int], six: bool, chance: random.Random) -> None:
    packet = SEGMENT6 if six else PACKET
    pieces = (cut6 if six else cut4)(packet, 7, *(8 * size for size in sizes))
    chance.shuffle(pieces)
    if len(pieces) == 1:
        return
    reassembly: Reassembly[int] = Reassembly()
    for number, piece in enumerate(pieces):
        whole = reassembly.add(number, piece, layers(piece))
        assert (whole is not None) is (number == len(pieces) - 1)
        assert reassembly.over_limit() is None
    assert whole is not None
    assert whole.tickets == list(range(len(pieces)))
    assert not reassembly
    if six:
        parsed, plain = parse_tcp(whole.frame), parse_tcp(packet)
        assert parsed is not None
        assert plain is not None
        assert parsed[:4] == plain[:4]
        assert whole.frame[parsed[5] : parsed[6]] == packet[plain[5] : plain[6]]
    else:
        assert message(whole.frame, locate(whole.frame)) == message(packet, locate(packet))


def test_copies_that_cut_and_number_differently_are_equal() -> None:
    dataplane = plane()
    ours, theirs = cut4(PACKET, 1, 64), cut4(PACKET, 99, 32, 104)
    assert dataplane.pvm_frames(ours[1:] + ours[:1], 0) == []
    assert dataplane.stats.held_frames == 2
    assert dataplane.svm_frames(1, 10, theirs[:2], 0) == []
    assert dataplane.svm_frames(1, 12, theirs[2:], 0) == ours[1:] + ours[:1]
    assert dataplane.stats.held_frames == dataplane.stats.held_bytes == 0
    assert sorted(dataplane.take_confirmations()) == [10, 11, 12]
    assert dataplane.next_due_ms(0) is None


def test_a_segment_in_pieces_is_part_of_its_stream() -> None:
    dataplane = plane()
    assert dataplane.svm_frames(1, 0, [SEGMENT6], 0) == []
    pieces = cut6(SEGMENT6, 3, 48)
    assert dataplane.pvm_frames(pieces, 0) == pieces


def test_one_byte_in_one_piece_is_a_divergence() -> None:
    dataplane = plane()
    ours, theirs = cut4(PACKET, 1, 64), cut4(PACKET[:-1] + b"X", 1, 64)
    dataplane.pvm_frames(ours, 0)
    assert dataplane.svm_frames(1, 0, theirs, 0) == []
    assert dataplane.due(0) == "divergence"
    (found,) = dataplane.take_divergences()
    assert (found.protocol, found.offset, found.svm) == ("udp", 199, b"X")
    dataplane.seal(2)
    assert dataplane.commit(2) == ours


def test_an_unfinished_packet_waits_for_a_checkpoint() -> None:
    dataplane = plane()
    pieces = cut4(PACKET, 1, 64)
    dataplane.pvm_frames(pieces[:1], 0)
    assert dataplane.due(5000) == "late"
    dataplane.seal(2)
    assert dataplane.commit(2) == pieces[:1]
    assert dataplane.pvm_frames(pieces[1:], 0) == []
    dataplane.seal(3)
    assert dataplane.commit(3) == pieces[1:]


@pytest.mark.parametrize("overlap", [True, False])
def test_pieces_that_make_no_packet_are_compared_as_they_are(overlap: bool) -> None:
    dataplane = plane()
    one, two = cut4(PACKET, 1, 64)
    other = cut4(udp(bytes(200)), 1, 32)[1]  # begins within `one`
    frames = [one, other] if overlap else [one, cut4(udp(bytes(300)), 1, 128)[1], two]
    assert dataplane.pvm_frames(frames, 0) == []
    out = dataplane.svm_frames(1, 0, frames, 0)
    assert sorted(out) == sorted(frames)
    assert dataplane.stats.held_frames == 0


def test_what_waits_is_bounded() -> None:
    reassembly: Reassembly[int] = Reassembly()
    given_up = 0
    for number in range(3 * PACKETS_MAX):
        piece = cut4(PACKET, number, 64)[0]
        assert reassembly.add(number, piece, layers(piece)) is None
        while (pieces := reassembly.over_limit()) is not None:
            given_up += len(pieces.tickets)
    assert given_up == 2 * PACKETS_MAX
    large = cut4(udp(bytes(60_000)), 5000, *(8 for _ in range(FRAGMENTS_MAX + 5)))
    for number, piece in enumerate(large[: FRAGMENTS_MAX + 1]):
        reassembly.add(number, piece, layers(piece))
        found = reassembly.over_limit()
        if number == FRAGMENTS_MAX:
            assert found is not None
            assert len(found.tickets) == FRAGMENTS_MAX + 1


def test_pieces_of_other_hosts_do_not_mix() -> None:
    dataplane = plane()
    one, two = cut4(PACKET, 1, 64)
    elsewhere = two[:30] + bytes([10, 0, 0, 99]) + two[34:]
    assert dataplane.pvm_frames([one, elsewhere], 0) == []
    assert dataplane.stats.held_frames == 2
    assert dataplane.svm_frames(1, 0, [one, two], 0) == []
