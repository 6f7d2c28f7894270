"""How a connection ends: what leaves of it though the SVM has not said just the same, seen through the data plane."""

from __future__ import annotations

import pytest
from flow_pair import PVM, Pair

from tcp_frames import A, Connection, F, R, S


def test_fin_needs_a_fin_at_the_same_place() -> None:
    pair = Pair()
    assert pair.p(1, 1, A | F, b"bye") == 0
    assert pair.s(1, 1, A, b"bye") == 0
    assert pair.s(4, 1, A | F) == 1
    later = Pair()
    later.p(1, 1, A | F)
    assert later.s(1, 1, A, b"more") == 0
    assert later.diverged
    earlier = Pair()
    earlier.s(1, 1, A | F)
    assert earlier.p(1, 1, A, b"more") == 0
    assert earlier.diverged


def test_fin_before_the_end_of_the_svms_stream() -> None:
    pair = Pair()
    pair.s(1, 1, A | F, b"more")
    assert pair.p(1, 1, A | F) == 0
    assert pair.diverged


def test_a_fin_is_no_match_for_a_reset() -> None:
    pair = Pair()
    pair.c(1, 1, A, b"data")
    pair.s(1, 5, R | A)
    assert pair.p(1, 5, A | F) == 0
    assert pair.diverged


def test_reset_needs_a_reset() -> None:
    pair = Pair()
    assert pair.p(1, 1, R | A) == 0
    assert pair.s(1, 1, A) == 0
    assert pair.s(1, 1, R | A) == 1


def test_reset_may_leave_once_the_svm_has_ended_and_has_all_data() -> None:
    pair = Pair()
    pair.c(1, 1, A, b"data")
    pair.s(1, 1, A | F)
    pair.p(1, 5, A | F)
    assert pair.p(2, 5, R | A) == 0
    assert pair.s(2, 5, A) == 2


def test_reset_does_not_leave_while_the_svm_lacks_data() -> None:
    pair = Pair()
    pair.c(1, 1, A, b"data")
    pair.s(1, 4, A | F)
    assert pair.p(2, 5, R | A) == 0
    assert pair.plane.stats.released_equal == 1


def test_the_last_ack_leaves_when_the_svm_has_reset() -> None:
    pair = Pair()
    pair.c(1, 1, A, b"data")
    pair.s(1, 5, A | F)
    assert pair.p(1, 5, A | F) == 1
    pair.c(5, 2, A | F)
    assert pair.p(2, 6) == 0  # the client's FIN is an event too: perhaps somebody at the SVM waits for it
    assert pair.s(2, 0, R) == 1


def test_a_reset_of_the_svm_that_lacks_data_frees_no_acknowledgement() -> None:
    pair = Pair()
    pair.c(1, 1, A, b"data")
    pair.s(1, 3, R | A)
    assert pair.p(1, 5) == 0


# ---------------------------------------------------------------- a client that has gone


def ends_otherwise() -> Pair:
    """All have closed, the PVM before the client has said its last, the SVM after that: so it resets."""
    pair = Pair()
    pair.p(1, 1, A, b"bye")
    pair.s(1, 1, A, b"bye")
    pair.c(1, 1, A, b"bye")
    pair.c(4, 1, A | F)
    pair.p(4, 5, A | F)
    assert pair.s(4, 5, R | A) == 0
    return pair


def test_the_ways_to_a_reset_are_timing() -> None:
    assert ends_otherwise().p(4, 0, R) == 2
    later = Pair()
    later.c(1, 1, A | F, b"bye")
    later.p(1, 1, A | F)
    later.p(1, 0, R)
    assert later.s(1, 5, R | A) == 2


@pytest.mark.parametrize(
    ("client", "pvm", "reset_at", "svm_ack"),
    [
        ((A, b"bye"), (1, 1, A | F, b""), 1, 4),
        ((A | F, b""), (101, 2, A | F, b""), 101, 2),
        ((A | F, b"bye"), (1, 5, A, b"bye"), 4, 5),
    ],
    ids=["an end that a client may take for an answer, as it has not closed", "an end behind a gap", "payload"],
)
def test_what_a_reset_does_not_stand_for(
    client: tuple[int, bytes], pvm: tuple[int, int, int, bytes], reset_at: int, svm_ack: int
) -> None:
    pair = Pair()
    pair.c(1, 1, *client)
    pair.p(*pvm)
    pair.p(reset_at, 0, R)
    assert pair.s(1, svm_ack, R | A) == 0
    assert pair.diverged


def test_what_both_have_reset_nobody_reads() -> None:
    pair = Pair()
    pair.s(1, 1, A | F, b"bye")
    pair.c(1, 1, A, b"bye")
    assert pair.p(1, 4, A, b"bye") == 0, "the SVM lacks data"
    assert pair.p(4, 4, R | A) == 0
    assert pair.s(5, 0, R) == 2


def test_what_the_svm_has_said_before_its_reset_was_said() -> None:
    pair = Pair()
    pair.c(1, 1, A | F, b"bye")
    pair.p(1, 5, A | F)
    pair.p(1, 0, R)
    assert pair.s(1, 5, A, b"more") == 0
    assert pair.s(5, 5, R | A) == 0
    assert pair.diverged


def test_a_fin_beside_a_reset_waits_for_the_client_to_show_that_it_is_gone() -> None:
    pair = ends_otherwise()
    assert not pair.diverged
    assert pair.gone(5) == 1
    assert pair.p(4, 0, R) == 1, "and all that comes"
    assert not pair.diverged


def test_a_client_that_has_gone_answers_with_what_it_was_told_last() -> None:
    assert ends_otherwise().gone(1) == 1


@pytest.mark.parametrize("seq", [0, 2, 3, 4, 6, 7])
def test_a_reset_with_another_number_is_nobodys(seq: int) -> None:
    assert ends_otherwise().gone(seq) == 0


def test_even_what_differs_leaves_when_nobody_is_there() -> None:
    pair = Pair()
    pair.c(1, 1, A)
    pair.p(1, 1, A, b"one thing")
    assert pair.gone(1) == 1
    pair.s(1, 1, A, b"another")
    assert not pair.diverged


def test_what_is_found_to_differ_before_waits_for_its_checkpoint() -> None:
    pair = Pair()
    pair.c(1, 1, A)
    pair.p(1, 1, A, b"one thing")
    pair.s(1, 1, A, b"another")
    assert pair.gone(1) == 0
    assert pair.checkpoint() == 1


def test_the_next_client_on_the_same_ports_is_another_one() -> None:
    pair = Pair()
    pair.c(1, 1, A)
    pair.p(1, 1, A)
    pair.gone(1)
    later = Connection(isn=5000, client_isn=77_000)
    pair.plane.client_frames([later.back(0, 0, S)], 0)
    assert pair.plane.pvm_frames([later.syn_ack()], 0) == []
    assert pair.plane.pvm_frames([later.out(1, 1, A, b"data")], 0) == []


def test_the_next_client_is_another_one_though_the_svm_opens_first() -> None:
    """And the connection before it is older than what we have seen."""
    pair = Pair(opened=False)
    pair.s(50, 9, A, b"of before")
    pair.c(9, 50, A, b"data")
    pair.plane.pvm_frames([PVM.out(59, 13, A)], 0)
    pair.gone(13)
    later, other = Connection(isn=5000, client_isn=77_000), Connection(isn=9000, client_isn=77_000)
    pair.plane.client_frames([later.back(0, 0, S)], 0)
    pair.plane.svm_frames(1, 0, [other.syn_ack()], 0)
    assert pair.plane.pvm_frames([later.syn_ack()], 0) == [later.syn_ack()]
    assert pair.plane.pvm_frames([later.out(1, 1, A, b"not said")], 0) == []


def test_who_says_anything_anywhere_has_not_said_where_the_client_is() -> None:
    """Data out of every window, which the guests ignore, and a reset behind them."""
    pair = Pair()
    pair.c(1, 1, A, b"hello")
    pair.p(1, 6, A, b"secret")
    for seq in range(0, 2**32, 2**30):
        pair.c(1000 + seq, 1, A, b"x")
        assert pair.gone(1001 + seq) == 0
    pair.s(1, 6, A, b"sacred")
    assert pair.diverged


def test_a_client_that_speaks_again_was_not_gone() -> None:
    pair = Pair()
    pair.c(1, 1, A)
    pair.p(1, 1, A, b"one thing")
    assert pair.gone(1) == 1, "a router has forgotten the connection"
    pair.c(1, 1, A)
    assert pair.diverged, "it has got what the SVM has not said"
    assert pair.p(10, 1, A, b"more") == 0
    assert pair.checkpoint() == 1
    pair.p(14, 1, A, b"again")
    assert pair.s(14, 1, A, b"again") == 1


def test_a_client_that_speaks_again_and_has_got_nothing_unsaid_goes_on() -> None:
    pair = Pair()
    pair.c(1, 1, A)
    pair.p(1, 1, A, b"hello")
    pair.s(1, 1, A, b"hello")
    assert pair.gone(1) == 0
    pair.c(1, 1, A)
    assert not pair.diverged
    assert pair.p(6, 1, A, b"more") == 0
