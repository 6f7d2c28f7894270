"""Connections that live through several takeovers: every survivor translates as the one before it did."""

from __future__ import annotations

import pytest
from secondary_engines import secondary_engine, secondary_plane
from test_translation import PVM, PVM_CLOCK, SVM, SVM_CLOCK, Seen, learned, look

from pycolo.core.limits import DataplaneLimits
from pycolo.core.secondary import SecondaryDataplane
from pycolo.core.translation_chain import ENTRIES_PER_MESSAGE_MAX, LAYERS_MAX, TranslatorChain
from pycolo.core.wire import Offsets, Translations
from pycolo.errors import PeerViolation
from tcp_frames import A, Connection, R, S, stamps

pytestmark = pytest.mark.usefixtures(secondary_engine.__name__)

TICKS = 5000
SECOND_CLOCK = 900


def chain() -> TranslatorChain:
    return TranslatorChain(8192, TICKS)


def taken_over(plane: SecondaryDataplane | None = None, now_ms: float = 0.0) -> TranslatorChain:
    """The chain of a host whose SVM, with the connection PVM/SVM, has taken over."""
    plane = plane or learned()
    plane.take_over()
    survivor = chain()
    survivor.push(plane.translator, now_ms)
    return survivor


def told(survivor: TranslatorChain, now_ms: float = 1.0) -> TranslatorChain:
    """The chain of its new secondary."""
    other = chain()
    tell(survivor.whole(now_ms), other)
    return other


def tell(messages: list[Translations], other: TranslatorChain) -> None:
    for message in messages:
        other.adopt(message, 1.0)


def say(survivor: TranslatorChain, value: int) -> int:
    """The guest sends with this timestamp; returns what the client sees."""
    seen = look(survivor.outbound([SVM.out(1, 1, A, b"x", stamps(value, 2))])[0], PVM)
    assert (seen.seq, seen.payload) == (1, b"x")
    assert seen.value is not None
    return seen.value


def test_without_a_takeover_nothing_is_touched() -> None:
    frames = [PVM.out(1, 1, A, b"x", stamps(1, 2))]
    empty = chain()
    assert empty.outbound(frames) == empty.inbound(frames) == frames
    assert empty.whole(0.0) == [Translations(0, [], [], afresh=True)], "the other end may know more from before"
    assert empty.changes() == []


def test_a_new_secondary_translates_as_the_survivor_does() -> None:
    survivor = taken_over()
    shown = say(survivor, SVM_CLOCK + 10)
    other = told(survivor)
    for echo in (shown, PVM_CLOCK + 5):
        back = [PVM.back(1, 2, options=stamps(3, echo))]
        assert other.inbound(back) == survivor.inbound(back)
    assert say(other, SVM_CLOCK + 20) == say(survivor, SVM_CLOCK + 20) == (shown + 10) % 2**32


def test_a_connection_lives_through_two_takeovers() -> None:
    survivor = taken_over()
    say(survivor, SVM_CLOCK + 10)
    other = told(survivor)
    # A checkpoint, so both copies are alike; then the next SVM opens nothing, and takes over in its turn.
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.out(1, 1, A, b"first", stamps(SVM_CLOCK + 30, 2))], 0)
    (again,) = other.outbound(plane.take_over())
    other.push(plane.translator, 2.0)
    assert look(again, PVM).payload == b"first"
    before = say(survivor, SVM_CLOCK + 30)
    after = say(other, SVM_CLOCK + 31)
    assert 0 < (after - before) % 2**32 < 2 * TICKS
    (back,) = other.inbound([PVM.back(1, 7, options=stamps(3, after))])
    assert look(back, SVM, inbound=True) == Seen(1, 7, 3, SVM_CLOCK + 31, A, b"")
    (old,) = other.inbound([PVM.back(1, 7, options=stamps(3, before))])
    assert look(old, SVM, inbound=True).echo == SVM_CLOCK + 30, "an echo from before the second death"


@pytest.mark.parametrize("told_first", [False, True])
def test_an_opening_repeated_after_the_second_takeover(*, told_first: bool) -> None:
    """The client has answered, but the guest waits with the connection, and sends its SYN-ACK once more."""
    other = told(taken_over(), TICKS - 1.0)
    other.push(secondary_plane(DataplaneLimits()).translator, TICKS + 1.0)
    if told_first:
        other.whole(2.0 * TICKS)
    (again,) = other.outbound([SVM.syn_ack(stamps(SVM_CLOCK + TICKS, 1))])
    assert look(again, PVM).seq == 0
    other.whole(2.0 * TICKS)
    assert say(other, SVM_CLOCK + 2 * TICKS) > 0
    assert len(other) == 1


def test_two_takeovers_that_both_translate() -> None:
    """The connection is opened while the first pair runs and again, to another guest's numbers, under the second."""
    survivor = taken_over()
    other = told(survivor)
    second = Connection(isn=5_000_000, client_port=41_000)
    third = Connection(isn=9, client_port=41_000)
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([third.syn_ack(stamps(SECOND_CLOCK, 1))], 0)
    survivor.outbound([second.syn_ack(stamps(SVM_CLOCK, 1))])
    tell(survivor.changes(), other)
    acknowledged = [second.back(1, 1, options=stamps(2, SVM_CLOCK))]
    assert survivor.inbound(acknowledged) == acknowledged
    (frame,) = plane.client_frames(other.inbound(acknowledged))
    assert look(frame, third, inbound=True).echo == SECOND_CLOCK
    assert plane.take_over() == [], "the client has acknowledged all there was"
    other.push(plane.translator, 2.0)
    (frame,) = other.outbound([third.out(1, 1, A, b"x", stamps(SECOND_CLOCK + 1, 2))])
    seen = look(frame, second)
    assert (seen.seq, seen.payload) == (1, b"x")
    assert seen.value is not None
    assert 0 < (seen.value - SVM_CLOCK) % 2**32 <= 2 * TICKS + 1
    (back,) = other.inbound([second.back(1, 2, options=stamps(3, seen.value))])
    assert look(back, third, inbound=True) == Seen(1, 2, 3, SECOND_CLOCK + 1, A, b"")
    assert say(other, SVM_CLOCK + 50) > 0, "the older connection is still translated by both layers"


def test_what_changes_is_told_before_it_is_needed() -> None:
    survivor = taken_over()
    other = told(survivor)
    assert survivor.changes() == []
    shown = say(survivor, SVM_CLOCK + 10)  # fixes by how much the timestamps advance
    tell(survivor.changes(), other)
    back = [PVM.back(1, 2, options=stamps(3, shown))]
    assert look(other.inbound(back)[0], SVM, inbound=True).echo == SVM_CLOCK + 10
    new = Connection(isn=123, client_isn=456)  # the same ports again
    survivor.outbound([new.syn_ack()])
    tell(survivor.changes(), other)
    assert other.inbound([new.back(1, 1)]) == survivor.inbound([new.back(1, 1)]) == [new.back(1, 1)]
    assert survivor.changes() == []


def test_who_is_told_everything_again_forgets_what_it_knew() -> None:
    """A pair that has lost and found itself: a connection may have gone meanwhile."""
    survivor = taken_over()
    say(survivor, SVM_CLOCK + 10)
    other = told(survivor)
    tell([Translations(0, [], [], afresh=True)], other)
    assert len(other) == 0
    tell(survivor.whole(1.0), other)
    assert len(other) == 1
    back = [PVM.back(1, 2, options=stamps(3, PVM_CLOCK + 5))]
    assert other.inbound(back) == survivor.inbound(back)


def test_a_handshake_under_way_at_the_takeover_is_learned_by_both() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK, 1))], 0)
    survivor = taken_over(plane)
    other = told(survivor)
    first = [PVM.back(1, 1, options=stamps(2, PVM_CLOCK))]
    assert other.inbound(first) == survivor.inbound(first)
    assert look(other.inbound(first)[0], SVM, inbound=True).echo == SVM_CLOCK


def test_layers_that_nobody_needs_are_given_up() -> None:
    survivor = taken_over(secondary_plane(DataplaneLimits()))
    other = told(survivor, TICKS - 1.0)
    assert len(other) == len(survivor) == 1, "a connection that has been silent may still need its clock moved"
    tell(survivor.whole(TICKS + 1.0), other)
    assert len(other) == len(survivor) == 0
    survivor = taken_over()
    assert len(told(survivor, TICKS + 1.0)) == 1
    survivor.inbound([PVM.back(1, 1, R | A)])
    assert len(told(survivor, TICKS + 2.0)) == 0


def test_a_large_table_travels_in_pieces() -> None:
    plane = secondary_plane(DataplaneLimits())
    for port in range(ENTRIES_PER_MESSAGE_MAX + 1):
        mine, theirs = Connection(isn=port, client_port=port), Connection(isn=2 * port + 1, client_port=port)
        plane.svm_frames([mine.syn_ack()], port)
        plane.client_frames([theirs.back(1, 1)])
    survivor = taken_over(plane)
    messages = survivor.whole(1.0)
    assert [len(message.known) for message in messages] == [0, 0, ENTRIES_PER_MESSAGE_MAX, 1]
    other = chain()
    tell(messages, other)
    back = [Connection(isn=2 * port + 1, client_port=port).back(5, 6) for port in (0, 77, ENTRIES_PER_MESSAGE_MAX)]
    assert other.inbound(back) == survivor.inbound(back) != back


def test_a_hostile_peer_is_refused() -> None:
    with pytest.raises(PeerViolation):
        chain().adopt(Translations(1, [], []), 0.0)
    other = chain()
    for number in range(LAYERS_MAX):
        other.adopt(Translations(number, [], [b"unknown"]), 0.0)
    with pytest.raises(PeerViolation):
        other.adopt(Translations(LAYERS_MAX, [], []), 0.0)


def test_a_peer_that_ends_and_forgets_connections_leaves_nothing() -> None:
    other = chain()
    other.adopt(Translations(0, [], []), 0.0)
    for number in range(50):
        key = number.to_bytes(12)
        ended = Offsets(key, 7, 9, 5, 4, 3, False, 1000, 5, 70_000, True, True, False)
        other.adopt(Translations(0, [ended], []), 0.0)
        other.adopt(Translations(0, [], [key]), 0.0)
    ((_, layer),) = other._layers
    assert not layer.connections
    assert not layer._ended
    assert not layer._ended_before


def test_the_number_of_layers_is_bounded() -> None:
    survivor = chain()
    for number in range(LAYERS_MAX + 3):
        survivor.push(learned().translator, float(number))
    assert len(survivor) == LAYERS_MAX


def test_a_client_that_opens_on_old_ports_is_not_translated() -> None:
    survivor = taken_over()
    other = told(survivor)
    new = Connection(isn=1, client_isn=3)
    for each in (survivor, other):
        assert each.inbound([new.back(0, 0, S)]) == [new.back(0, 0, S)]
