"""Rules 1 and 2 for one TCP connection: what may leave when, seen from outside through the data plane."""

from __future__ import annotations

import pytest
from flow_pair import PVM, Pair

from tcp_frames import A, Connection, F, P, R, S, U, stamps

MSS, OTHER_MSS = b"\x02\x04\x05\xb4", b"\x02\x04\x02\x00"
ONE, TWO = b"Mon, 01 Jun 2026 10:59:59 GMT", b"Mon, 01 Jun 2026 11:00:00 GMT"


# ---------------------------------------------------------------- payload and acknowledgements


def test_payload_waits_for_the_same_bytes() -> None:
    pair = Pair()
    assert pair.p(1, 1, A, b"hello") == 0
    assert pair.s(1, 1, A, b"hell") == 0
    assert pair.s(5, 1, A, b"o world") == 1
    assert pair.p(6, 1, A, b" world") == 1


def test_other_segmentation_and_overlaps_are_equal() -> None:
    pair = Pair()
    for at, text in ((1, b"ab"), (3, b"cdef"), (1, b"abcd")):
        pair.p(at, 1, A, text)
    assert pair.s(1, 1, A, b"abcde") == 1
    assert pair.s(3, 1, A, b"cdefgh") == 2


def test_different_bytes_diverge_and_block_the_flow() -> None:
    pair = Pair()
    assert pair.p(1, 1, A, b"hello") == 0
    assert pair.s(1, 1, A, b"hallo") == 0
    assert pair.diverged
    assert pair.s(1, 1, A, b"hello") == 0
    assert pair.p(6, 1) == 0
    assert pair.checkpoint() == 2
    assert pair.p(6, 1, A, b"x") == 0
    assert pair.s(6, 1, A, b"x") == 1


def test_the_same_bytes_at_another_place_do_not_count() -> None:
    pair = Pair(PVM, Connection(isn=1004))
    pair.p(1, 1, A, b"\0" * 4)
    assert pair.s(5, 1, A, b"\0" * 100) == 0  # a gap: bytes 1 to 4 of the SVM never came
    assert pair.s(1, 1, A, b"\0" * 3) == 0
    assert pair.s(4, 1, A, b"\0") == 1


def test_acknowledgements_wait_for_the_svm() -> None:
    pair = Pair()
    pair.c(1, 1, A, b"request")
    assert pair.p(1, 8) == 0
    assert pair.s(1, 5) == 0
    assert pair.s(1, 8) == 1
    assert pair.p(1, 8, A | P) == 1
    assert pair.p(1, 9) == 0


def test_payload_is_equal_but_the_acknowledgement_is_not_yet() -> None:
    pair = Pair()
    pair.p(1, 8, A, b"answer")
    assert pair.s(1, 1, A, b"answer") == 0
    assert pair.s(7, 8) == 1


def test_order_within_the_flow_is_kept() -> None:
    pair = Pair()
    pair.p(1, 1, A, b"first")
    pair.p(6, 1)
    assert pair.s(6, 1) == 0
    assert pair.s(1, 1, A, b"first") == 2


def test_retransmission_and_keep_alive_leave() -> None:
    pair = Pair()
    pair.s(1, 1, A, b"hello")
    assert pair.p(1, 1, A, b"hello") == 1
    assert pair.p(1, 1, A, b"hello") == 1
    pair.c(1, 6)
    assert pair.p(5, 1) == 1
    assert pair.p(5, 1, A, b"\0") == 1  # some stacks send a byte of garbage below the window (RFC 1122, 4.2.3.6)
    assert not pair.diverged


def test_a_forged_acknowledgement_of_unreleased_bytes_is_ignored() -> None:
    pair = Pair()
    pair.c(1, 100_000)
    assert pair.p(1, 1, A, b"secret") == 0
    assert pair.s(1, 1, A, b"sacred") == 0
    assert pair.diverged


def test_timestamps_window_and_ip_id_do_not_count() -> None:
    pair = Pair()
    pair.p(1, 1, A | P, b"same", stamps(1, 2))
    assert pair.s(1, 1, A, b"same", stamps(900_000, 3)) == 1


@pytest.mark.parametrize(("flags", "options"), [(A | U, b""), (A, b"\x1e\x08" + bytes(6)), (A | F | U, b"")])
def test_urgent_data_and_unknown_options_are_compared_as_they_are(flags: int, options: bytes) -> None:
    pair = Pair()
    pair.s(1, 1, flags, b"x", options)
    assert pair.p(1, 1, flags, b"x", options) == 1
    for other_flags, other_options in ((flags & ~U, b""), (flags, b"\x1e\x08" + bytes(5) + b"\x01")):
        pair = Pair()
        pair.s(1, 1, other_flags, b"x", other_options)
        assert pair.p(1, 1, flags, b"x", options) == 0
        found = pair.plane.take_divergences()
        assert [each.what for each in found] == ["options"] * bool(other_options), "else it may still come"
        assert pair.diverged is bool(other_options)


def test_a_segment_behind_a_gap_is_compared_and_the_gap_filled_later() -> None:
    pair = Pair()
    for at, text in ((7, b"world"), (1, b"hello "), (12, b"!")):
        pair.s(at, 1, A, text)
    assert pair.p(7, 1, A, b"world") == 1
    assert pair.p(1, 1, A, b"hello world!") == 1


def test_an_svm_that_contradicts_itself_has_diverged() -> None:
    pair = Pair()
    pair.s(1, 1, A, b"hello")
    pair.s(1, 1, A, b"hallo")
    assert pair.diverged
    (found,) = pair.plane.take_divergences()
    assert (found.what, found.offset, found.pvm, found.svm) == ("contradiction", 1, b"ello", b"allo")


def test_a_keep_alive_of_the_svm_contradicts_nothing() -> None:
    pair = Pair()
    pair.s(1, 1, A, b"hello")
    assert pair.p(1, 1, A, b"hello") == 1
    pair.c(1, 6)
    pair.s(5, 1, A, b"\0")
    assert not pair.diverged


def test_a_divergence_says_where_and_what() -> None:
    pair = Pair()
    pair.p(1, 1, A, b"hello ")
    pair.p(7, 1, A, b"world")
    pair.s(1, 1, A, b"hello would")
    (found,) = pair.plane.take_divergences()
    assert found.sentence() == (
        "tcp 10.0.0.2:8080 to 10.0.0.1:40000: payload at byte 8: primary 72 6c 64 |rld|, secondary 75 6c 64 |uld|"
    )
    assert found.pvm_frame == 3
    assert pair.plane.take_divergences() == []


def test_trimmed_streams_give_the_room_back() -> None:
    pair = Pair()
    chunk = bytes(1000)
    for i in range(100):
        pair.s(1 + 1000 * i, 1, A, chunk)
        assert pair.p(1 + 1000 * i, 1, A, chunk) == 1
        pair.c(1, 1001 + 1000 * i)
    assert pair.plane._budget.used_bytes <= 5096


# ---------------------------------------------------------------- opening


def test_syn_ack_needs_equal_terms() -> None:
    pair = Pair(opened=False)
    pair.p(0, 1, S | A, options=MSS + stamps(1, 2))
    assert pair.s(0, 1, S | A, options=MSS + stamps(7, 2)) == 1
    other = Pair(opened=False)
    other.p(0, 1, S | A, options=MSS)
    assert other.s(0, 1, S | A, options=OTHER_MSS) == 0
    assert other.diverged


def test_the_svm_may_be_ahead() -> None:
    pair = Pair(opened=False)
    pair.s(0, 1, S | A)
    pair.s(1, 8, A, b"banner")
    assert pair.p(0, 1, S | A) == 1
    assert pair.p(1, 8, A, b"banner") == 1


def test_guest_opened_connection() -> None:
    pair = Pair(opened=False)
    assert pair.p(0, -70_000, S) == 0
    assert pair.s(0, -70_000, S) == 1
    pair.c(0, 1, S | A)
    assert pair.p(1, 1) == 0
    assert pair.s(1, 1) == 1
    pair.s(1, 1, A, b"GET")
    assert pair.p(1, 1, A, b"GET") == 1


def test_refused_connection() -> None:
    pair = Pair(opened=False)
    assert pair.p(-1000, 1, R | A) == 0
    svm = Connection(isn=0)
    assert len(pair.plane.svm_frames(1, 0, [svm.out(0, 1, R | A)], 0)) == 1


def test_a_second_refusal_needs_its_own_twin() -> None:
    pair = Pair(opened=False)
    first, second = Connection(isn=0), Connection(isn=0, client_isn=50_000)
    assert pair.plane.pvm_frames([first.out(0, 1, R | A)], 0) == []
    assert len(pair.plane.svm_frames(1, 0, [first.out(0, 1, R | A)], 0)) == 1
    assert pair.plane.pvm_frames([second.out(0, 1, R | A)], 0) == []
    accepted = Connection(isn=5, client_isn=50_000)
    assert pair.plane.svm_frames(1, 1, [accepted.syn_ack()], 0) == []


def test_accepted_here_refused_there_diverges() -> None:
    pair = Pair(opened=False)
    pair.p(0, 1, S | A)
    assert pair.plane.svm_frames(1, 0, [Connection(isn=0).out(0, 1, R | A)], 0) == []
    assert pair.diverged


# ---------------------------------------------------------------- the same ports again


def test_new_connection_on_the_same_ports() -> None:
    pair = Pair()
    pair.p(1, 1, A, b"never said by the SVM")
    pair.pvm, pair.svm = Connection(isn=500_000, client_isn=90_000), Connection(isn=600_000, client_isn=90_000)
    assert pair.s(0, 1, S | A) == 0  # the SVM first
    assert pair.p(0, 1, S | A) == 1
    assert pair.diverged  # for what the old connection held
    assert pair.s(1, 1, A, b"new") == 0
    assert pair.p(1, 1, A, b"new") == 1
    assert pair.plane.stats.held_frames == 1
    assert pair.checkpoint() == 1


def test_the_svm_still_speaks_of_the_old_connection() -> None:
    pair = Pair()
    old = pair.svm
    pair.pvm, pair.svm = Connection(isn=500_000, client_isn=90_000), Connection(isn=600_000, client_isn=90_000)
    assert pair.p(0, 1, S | A) == 0
    late_words = old.out(1, 2**31 - 100, A | F, b"x" * 2000)
    assert pair.plane.svm_frames(1, 0, [late_words], 0) == []
    assert pair.plane._budget.used_bytes == 0
    assert pair.p(1, 1, A, b"x") == 0
    assert pair.s(0, 1, S | A) == 1
    assert pair.s(1, 1, A, b"x") == 1


def test_words_of_an_old_connection_are_not_compared_with_the_new_one() -> None:
    pair = Pair(opened=False)
    old = Connection(isn=600_000, client_isn=5)
    assert pair.s(0, 1, S | A) == 0
    assert pair.plane.pvm_frames([old.out(3, 1, A, b"x")], 0) == []
    assert pair.p(0, 1, S | A) == 1
    assert pair.diverged
    assert pair.plane.stats.held_frames == 1


def test_acknowledgements_of_an_old_connection_do_not_count_for_the_new_one() -> None:
    pair = Pair(opened=False)
    old_svm, old_pvm = Connection(isn=600_000, client_isn=2**31), Connection(isn=700_000, client_isn=60_000)
    assert pair.plane.svm_frames(1, 0, [old_svm.out(9, 2)], 0) == []
    assert pair.s(0, 1, S | A) == 0
    assert pair.plane.pvm_frames([old_pvm.out(3, 1), old_pvm.out(3, 1, R)], 0) == []
    assert pair.p(0, 1, S | A) == 1
    assert pair.p(1, 2) == 0
    assert pair.s(1, 2) == 1
    assert pair.checkpoint() == 2


def test_the_svm_is_a_whole_connection_ahead() -> None:
    pair = Pair()
    pair.pvm, pair.svm = Connection(isn=500_000, client_isn=90_000), Connection(isn=600_000, client_isn=90_000)
    pair.s(0, 1, S | A)
    pair.s(1, 1, A, b"new")
    assert pair.p(0, 1, S | A) == 1
    assert pair.p(1, 1, A, b"new") == 1
    assert not pair.diverged


def test_a_repeated_syn_ack_changes_nothing() -> None:
    pair = Pair()
    pair.s(1, 1, A, b"abc")
    assert pair.p(0, 1, S | A) == 1
    assert pair.s(0, 1, S | A) == 0
    assert pair.p(1, 1, A, b"abc") == 1


def test_a_client_syn_with_another_isn_does_not_disturb_a_living_connection() -> None:
    pair = Pair()
    pair.c(12_345, 0, S)
    pair.p(1, 1)
    pair.s(1, 1, A, b"go on")
    assert pair.p(1, 1, A, b"go on") == 1
    assert not pair.diverged


# ---------------------------------------------------------------- checkpoints


def test_after_a_checkpoint_places_are_absolute() -> None:
    pair = Pair()
    pair.p(1, 1, A, b"held by the checkpoint")
    assert pair.checkpoint() == 1
    assert pair.p(1, 1, A, b"held by the checkpoint") == 1  # a retransmission: the committed SVM has the same bytes
    assert pair.p(1, 1, A, b"HELD") == 0
    assert pair.diverged


def test_a_checkpoint_in_the_middle_of_a_response() -> None:
    pair = Pair()
    pair.s(1, 1, A, b"0123456789")  # the SVM is ahead, and what it said is void
    assert pair.p(1, 1, A, b"0123") == 1
    pair.checkpoint()
    assert pair.p(1, 1, A, b"0123") == 1
    assert pair.p(5, 1, A, b"4567") == 0
    assert pair.s(5, 1, A, b"45") == 0
    assert pair.s(7, 1, A, b"67") == 1


def test_acknowledgements_known_to_the_checkpoint_leave() -> None:
    pair = Pair()
    pair.c(1, 1, A, b"data")
    pair.p(1, 5)
    assert pair.checkpoint() == 1
    assert pair.p(1, 5) == 1
    assert pair.p(1, 6) == 0


def test_fin_and_syn_before_a_checkpoint_count_after_it() -> None:
    pair = Pair(opened=False)
    pair.p(0, 1, S | A, options=MSS)
    assert pair.checkpoint() == 1
    assert pair.p(0, 1, S | A, options=MSS) == 1
    pair.p(1, 1, A | F, b"bye")
    assert pair.checkpoint() == 1
    assert pair.p(1, 1, A | F, b"bye") == 1
    assert pair.p(4, 1, A | F) == 1


def test_two_seals_and_the_stream_is_whole() -> None:
    pair = Pair()
    pair.s(1, 1, A, b"aaa")
    pair.p(1, 1, A, b"aaa")
    pair.p(4, 1, A, b"bbb")
    pair.plane.seal(2)
    assert pair.p(7, 1, A, b"ccc") == 0
    pair.plane.seal(3)
    assert pair.p(1, 1, A, b"aaabbbccc") == 0
    pair.svm = pair.pvm
    assert len(pair.plane.commit(3)) == 3
    assert pair.p(1, 1, A, b"aaabbbccc") == 1


def test_connection_older_than_the_protection() -> None:
    pair = Pair(PVM, PVM, opened=False)
    assert pair.p(500, 1, A, b"abc") == 0
    assert pair.s(500, 1, A, b"ab") == 0
    assert pair.s(502, 1, A, b"c") == 1
    assert pair.p(300, 1, A, b"older") == 0  # can't be compared: a checkpoint by lateness
    assert pair.plane.due(2000) == "late"
    assert pair.checkpoint() == 1


def test_connection_older_than_the_protection_begins_with_a_keep_alive() -> None:
    pair = Pair(PVM, PVM, opened=False)
    pair.s(499, 1)
    pair.s(500, 1, A, b"abc")
    assert pair.p(499, 1) == 1
    assert pair.p(500, 1, A, b"abc") == 1


# ---------------------------------------------------------------- tolerance


def response(date: bytes, body: bytes = b"hi") -> bytes:
    return b"HTTP/1.1 200 OK\r\nDate: " + date + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


WEB = Connection(isn=1000, guest_port=80), Connection(isn=99, guest_port=80)


def test_http_date_at_port_80_only() -> None:
    web, other = Pair(*WEB), Pair()
    for pair in (web, other):
        pair.p(1, 1, A, response(ONE))
        pair.s(1, 1, A, response(TWO))
    assert web.plane.stats.released_equal == 2
    assert other.plane.stats.released_equal == 1
    assert other.diverged


def test_tolerated_bytes_are_the_pvms_after_a_checkpoint() -> None:
    pair = Pair(*WEB)
    pair.s(1, 1, A, response(TWO))
    assert pair.p(1, 1, A, response(ONE)) == 1
    pair.checkpoint()
    for at in range(0, len(response(ONE)), 10):  # cut in pieces nothing is tolerated, so these are equal
        assert pair.p(1 + at, 1, A, response(ONE)[at : at + 10]) == 1


def test_a_tolerated_date_repeated_in_pieces_diverges() -> None:
    pair = Pair(*WEB)
    pair.s(1, 1, A, response(TWO))
    assert pair.p(1, 1, A, response(ONE)) == 1
    assert pair.p(1, 1, A, response(ONE)[:42]) == 0
    assert pair.diverged


def test_a_body_must_be_equal() -> None:
    pair = Pair(*WEB)
    pair.s(1, 1, A, response(TWO, b"ho"))
    assert pair.p(1, 1, A, response(ONE, b"hi")) == 0
    assert pair.diverged


@pytest.mark.parametrize("responses", [3, 30])
def test_keep_alive_connection_with_many_responses(responses: int) -> None:
    pair = Pair(*WEB)
    at = 1
    for _ in range(responses):
        pair.s(at, 1, A, response(TWO, b"x" * 700))
        assert pair.p(at, 1, A, response(ONE, b"x" * 700)) == 1
        at += len(response(ONE, b"x" * 700))
        pair.c(1, at)
    pair.checkpoint()
    assert pair.p(at, 1) == 1
