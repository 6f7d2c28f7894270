"""The secondary's side: translation, what is retained, and what clients see after a takeover."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from secondary_engines import secondary_engine, secondary_plane

from pycolo.core.limits import DataplaneLimits
from pycolo.core.secondary import SecondaryDataplane
from tcp_frames import A, Connection, F, R, S, arp, stamps, udp

pytestmark = pytest.mark.usefixtures(secondary_engine.__name__)

PVM, SVM = Connection(isn=1000), Connection(isn=2**32 - 500)
PVM_CLOCK, SVM_CLOCK = 4_000_000_000, 77_000  # the SVM's seems to be 2^31 and more behind
NO_STAMPS = b""


@dataclass(frozen=True)
class Seen:
    """A segment's numbers, relative to the PVM's ISN where the client looks, to the SVM's where the SVM looks."""

    seq: int
    ack: int
    value: int | None
    echo: int | None
    flags: int
    payload: bytes


def look(frame: bytes, connection: Connection, *, inbound: bool = False) -> Seen:
    packet = Ether(frame)[IP]
    rebuilt = packet.copy()
    del rebuilt[TCP].chksum
    assert IP(bytes(rebuilt))[TCP].chksum == packet[TCP].chksum, "wrong checksum"
    found = dict(packet[TCP].options).get("Timestamp", (None, None))
    here, there = (connection.client_isn, connection.isn) if inbound else (connection.isn, connection.client_isn)
    segment = packet[TCP]
    return Seen(
        (segment.seq - here) % 2**32,
        (segment.ack - there) % 2**32,
        found[0],
        found[1],
        int(segment.flags),
        bytes(segment.payload),
    )


def learned(svm: Connection = SVM, pvm: Connection = PVM, **limits: int) -> SecondaryDataplane:
    """A secondary that has seen the SVM's SYN-ACK and the client's acknowledgement of the PVM's."""
    plane = secondary_plane(replace(DataplaneLimits(), **limits))
    plane.svm_frames([svm.syn_ack(stamps(SVM_CLOCK, 1))], 0)
    (frame,) = plane.client_frames([pvm.back(1, 1, options=stamps(2, PVM_CLOCK))])
    assert look(frame, svm, inbound=True) == Seen(1, 1, 2, SVM_CLOCK, A, b"")
    return plane


# ---------------------------------------------------------------- inbound


def test_inbound_acknowledgement_sack_and_echo() -> None:
    plane = learned()
    sack = b"\x05\x0a" + struct.pack(">II", PVM.isn + 200, PVM.isn + 300)
    (frame,) = plane.client_frames([PVM.back(1, 101, A, b"data", stamps(5, PVM_CLOCK + 40) + sack)])
    assert look(frame, SVM, inbound=True) == Seen(1, 101, 5, SVM_CLOCK + 40, A, b"data")
    assert dict(Ether(frame)[TCP].options)["SAck"] == ((SVM.isn + 200) % 2**32, (SVM.isn + 300) % 2**32)


def test_segments_without_ack_and_other_connections_pass_untouched() -> None:
    plane = learned()
    other = replace(PVM, client_port=41_000)
    frames = [PVM.back(9, 9, S), PVM.back(9, 0, R), other.back(1, 1), udp(b"x", inbound=True), arp(), b"", b"\x08"]
    assert plane.client_frames(frames) == frames


def test_no_timestamps_no_problem() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack()], 0)
    assert plane.client_frames([PVM.back(1, 1)]) == [SVM.back(1, 1)]
    assert plane.client_frames([PVM.back(1, 50, A, b"x")]) == [SVM.back(1, 50, A, b"x")]
    plane.take_over()
    assert plane.translator.outbound([SVM.out(50, 2, A, b"y")]) == [PVM.out(50, 2, A, b"y")]


@pytest.mark.parametrize(
    "stray",
    [
        PVM.back(5_000_000, 77, A),
        PVM.back(-5, 77, A),
        PVM.back(1, 77, R | A),
        PVM.back(1, 77, S | A),
        PVM.back(1, 77, A, b"x")[:-1] + b"y",
    ],
    ids=["far", "before", "reset", "syn", "checksum"],
)
def test_a_stray_segment_teaches_nothing(stray: bytes) -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack()], 0)
    assert plane.client_frames([stray]) == [stray]
    assert plane.client_frames([PVM.back(1, 1)]) == [SVM.back(1, 1)]


def test_a_stray_acknowledgement_drops_nothing_that_is_retained() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack()], 0)
    plane.client_frames([SVM.back(5_000_000, 100)])
    assert plane.take_over() == [SVM.syn_ack()]


def test_the_first_acknowledgement_may_be_lost() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack()], 0)
    assert plane.client_frames([PVM.back(1461, 1, A, b"second")]) == [SVM.back(1461, 1, A, b"second")]


def test_guest_opened_connection() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.out(0, -SVM.client_isn, S, options=stamps(SVM_CLOCK, 0))], 0)
    (frame,) = plane.client_frames([PVM.back(0, 1, S | A, options=stamps(3, PVM_CLOCK))])
    assert look(frame, SVM, inbound=True) == Seen(0, 1, 3, SVM_CLOCK, S | A, b"")
    plane.take_over()
    (frame,) = plane.translator.outbound([SVM.out(1, 1, A, b"GET")])
    assert look(frame, PVM).seq == 1


def test_a_repeated_syn_ack_changes_nothing_and_a_new_one_begins_anew() -> None:
    plane = learned()
    plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK + 1000, 1))], 5)
    assert look(plane.client_frames([PVM.back(1, 1)])[0], SVM, inbound=True).ack == 1
    pvm, svm = Connection(isn=5, client_isn=9), Connection(isn=6, client_isn=9)
    plane.svm_frames([svm.syn_ack()], 6)
    assert plane.client_frames([pvm.back(1, 1)]) == [svm.back(1, 1)]


def test_after_a_load_nothing_is_translated_nor_retained() -> None:
    plane = learned()
    plane.svm_frames([SVM.out(1, 1, A, b"x"), udp(b"y")], 1)
    plane.loaded()
    frame = PVM.back(1, 5, A, b"x", stamps(1, PVM_CLOCK))
    assert plane.client_frames([frame]) == [frame]
    assert plane.take_over() == []


# ---------------------------------------------------------------- what is retained


def sent_again(plane: SecondaryDataplane, connection: Connection = PVM) -> list[tuple[int, bytes]]:
    return [(seen.seq, seen.payload) for seen in (look(frame, connection) for frame in plane.take_over())]


def test_unacknowledged_segments_and_the_latest_ack_are_sent_again() -> None:
    plane = learned()
    frames = [SVM.out(1, 1, A, b"one"), SVM.out(4, 1), SVM.out(4, 5), SVM.out(4, 5, A, b"two"), SVM.out(7, 5, A | F)]
    plane.svm_frames(frames, 1)
    plane.client_frames([PVM.back(5, 4)])
    assert sent_again(plane) == [(4, b""), (4, b"two"), (7, b"")]


def test_everything_acknowledged_only_the_ack_remains() -> None:
    plane = learned()
    plane.svm_frames([SVM.out(1, 1, A, b"one"), SVM.out(4, 1, A | F), SVM.out(5, 2)], 1)
    plane.client_frames([PVM.back(1, 5)])
    assert sent_again(plane) == [(5, b"")]


def test_datagrams_are_retained_until_confirmed_and_link_control_never() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([udp(b"a"), arp(), udp(b"b"), udp(b"c")], 10)
    plane.confirm([12, 999])
    assert plane.take_over() == [udp(b"a"), udp(b"c")]
    assert plane.take_over() == []


def test_order_is_that_of_production() -> None:
    plane = learned()
    plane.svm_frames([udp(b"1"), SVM.out(1, 1, A, b"2"), udp(b"3")], 1)
    out = plane.take_over()
    assert [out[0], out[2]] == [udp(b"1"), udp(b"3")]
    assert look(out[1], PVM).payload == b"2"


def test_a_new_connection_on_the_same_ports_replaces_what_was_retained() -> None:
    plane = learned()
    plane.svm_frames([SVM.out(1, 1, A, b"old"), SVM.out(4, 1, R | A)], 1)
    new = Connection(isn=4, client_isn=9)
    plane.svm_frames([new.syn_ack()], 3)
    assert sent_again(plane, new) == [(0, b"")]


def test_retention_is_bounded_and_the_oldest_goes_first() -> None:
    plane = secondary_plane(DataplaneLimits(held_frames_max=2))
    plane.svm_frames([udp(b"1"), udp(b"2"), udp(b"3")], 0)
    assert plane.take_over() == [udp(b"2"), udp(b"3")]
    small = secondary_plane(DataplaneLimits(held_bytes_max=100))
    small.svm_frames([udp(bytes(30)), udp(bytes(31))], 0)
    assert small.take_over() == [udp(bytes(31))]


# ---------------------------------------------------------------- after a takeover


def test_outbound_sequence_and_timestamp() -> None:
    plane = learned()
    plane.take_over()
    (frame,) = plane.translator.outbound([SVM.out(1, 1, A, b"answer", stamps(SVM_CLOCK + 10, 2))])
    seen = look(frame, PVM)
    assert (seen.seq, seen.ack, seen.payload, seen.echo) == (1, 1, b"answer", 2)
    assert seen.value is not None
    assert (seen.value - PVM_CLOCK) % 2**32 == 10 + 5000


@pytest.mark.parametrize("behind_ms", [0, 900, 2000])
def test_timestamps_never_run_backwards_for_the_client(behind_ms: int) -> None:
    plane = learned()
    shown = PVM_CLOCK + 10_000
    plane.take_over()
    (frame,) = plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(SVM_CLOCK + 10_000 - behind_ms, 2))])
    value = look(frame, PVM).value
    assert value is not None
    assert 0 < (value - shown) % 2**32 < 2**31


def test_timestamps_go_beyond_the_newest_echo_even_when_the_clock_is_far_behind() -> None:
    plane = learned()
    plane.client_frames([PVM.back(1, 1, options=stamps(3, PVM_CLOCK + 60_000))])
    plane.take_over()
    (frame,) = plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(SVM_CLOCK, 2))])
    assert look(frame, PVM).value == (PVM_CLOCK + 60_001) % 2**32


def test_a_forged_echo_does_not_wreck_the_clock() -> None:
    plane = learned()
    plane.client_frames([PVM.back(1, 1, options=stamps(3, PVM_CLOCK + 2**31 - 1))])
    plane.take_over()
    (frame,) = plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(SVM_CLOCK, 2))])
    assert look(frame, PVM).value == (PVM_CLOCK + 5000) % 2**32


def test_echoes_are_mapped_back_exactly() -> None:
    plane = learned()
    plane.take_over()
    sent = [SVM_CLOCK + 100, SVM_CLOCK + 101, SVM_CLOCK + 5000]
    shown = [look(plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(each, 2))])[0], PVM).value for each in sent]
    for value, original in zip(shown, sent, strict=True):
        assert value is not None
        (frame,) = plane.translator.inbound([PVM.back(1, 1, options=stamps(3, value))])
        assert look(frame, SVM, inbound=True).echo == original
    (frame,) = plane.translator.inbound([PVM.back(1, 1, options=stamps(3, PVM_CLOCK + 99))])
    assert look(frame, SVM, inbound=True).echo == SVM_CLOCK + 99, "an echo of the PVM's, still on its way"


def test_a_connection_older_than_the_checkpoint_only_steps_forward() -> None:
    for seen_before in (True, False):
        plane = secondary_plane(DataplaneLimits())
        if seen_before:
            plane.svm_frames([PVM.out(90, 1, A, b"a", stamps(100, 1))], 0)
            plane.client_frames([PVM.back(1, 91, options=stamps(1, 100))])
        plane.take_over()
        (frame,) = plane.translator.outbound([PVM.out(91, 1, A, b"b", stamps(200, 1))])
        assert look(frame, PVM) == Seen(91, 1, 5200, 1, A, b"b")
        (back,) = plane.translator.inbound([PVM.back(1, 92, options=stamps(1, 5200))])
        assert look(back, PVM, inbound=True).echo == 200


def test_connections_that_begin_after_the_takeover_are_never_touched() -> None:
    plane = learned()
    plane.take_over()
    new = Connection(isn=123, client_isn=456)  # even on the same ports
    out = [new.syn_ack(stamps(10, 1)), new.out(1, 1, A, b"x", stamps(11, 2))]
    assert plane.translator.outbound(out) == out
    back = [new.back(0, 0, S), new.back(1, 1, options=stamps(2, 10))]
    assert plane.translator.inbound(back) == back
    refusal = Connection(isn=0, client_port=9).out(0, 1, R | A)
    assert plane.translator.outbound([refusal]) == [refusal]


def test_a_stray_syn_does_not_end_the_translation() -> None:
    plane = learned()
    plane.take_over()
    plane.translator.inbound([PVM.back(4711, 0, S)])
    assert look(plane.translator.outbound([SVM.out(1, 1, A, b"x")])[0], PVM).seq == 1
    assert look(plane.translator.inbound([PVM.back(1, 2)])[0], SVM, inbound=True).ack == 2


def test_takeover_in_the_middle_of_the_handshake_the_client_has_the_pvms() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK, 1))], 0)
    assert len(plane.take_over()) == 1  # the SVM's SYN-ACK: the client answers with an ACK of what it knows
    (frame,) = plane.translator.inbound([PVM.back(1, 1, options=stamps(2, PVM_CLOCK))])
    assert look(frame, SVM, inbound=True) == Seen(1, 1, 2, SVM_CLOCK, A, b"")
    seen = look(plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(SVM_CLOCK + 1, 2))])[0], PVM)
    assert seen.seq == 1
    assert seen.value is not None
    assert (seen.value - PVM_CLOCK) % 2**32 == 5001


def test_takeover_in_the_middle_of_the_handshake_the_client_has_nothing() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK, 1))], 0)
    (frame,) = plane.take_over()
    assert look(frame, SVM).value == SVM_CLOCK + 5000
    (back,) = plane.translator.inbound([SVM.back(1, 1, options=stamps(2, SVM_CLOCK + 5000))])
    assert look(back, SVM, inbound=True) == Seen(1, 1, 2, SVM_CLOCK, A, b"")
    assert (
        look(plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(SVM_CLOCK + 7, 2))])[0], SVM).value
        == SVM_CLOCK + 5007
    )


# ---------------------------------------------------------------- bounds, and a second protection


def test_connections_are_bounded_and_offsets_are_kept() -> None:
    plane = learned(flows_max=3)
    for port in range(20):
        plane.svm_frames([Connection(client_port=port).out(1, 1, A, b"x")], 10 + port)
    assert len(plane.translator.connections) <= 3
    assert look(plane.client_frames([PVM.back(1, 7)])[0], SVM, inbound=True).ack == 7


@pytest.mark.parametrize("client_first", [True, False])
def test_ended_connections_make_room(client_first: bool) -> None:
    plane = secondary_plane(DataplaneLimits(flows_max=2))
    for port in range(10):
        pvm, svm = Connection(isn=1, client_port=port), Connection(isn=9, client_port=port)
        plane.svm_frames([svm.syn_ack()], 10 * port)
        assert plane.client_frames([pvm.back(1, 1)]) == [svm.back(1, 1)]
        if client_first:
            plane.client_frames([pvm.back(1, 1, A | F)])
        plane.svm_frames([svm.out(1, 2 if client_first else 1, A | F)], 10 * port + 1)
        last = pvm.back(2, 2) if client_first else pvm.back(1, 2, A | F)
        assert plane.client_frames([last]) == [svm.back(2, 2) if client_first else svm.back(1, 2, A | F)]
    assert len(plane.translator.connections) <= 2
