"""How connections are opened, and what of that teaches the offsets; most of all those that the guest opens."""

from __future__ import annotations

import pytest
from secondary_engines import secondary_engine, secondary_plane
from test_translation import PVM, PVM_CLOCK, SVM, SVM_CLOCK, Seen, look

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.limits import DataplaneLimits
from pycolo.core.secondary import SecondaryDataplane
from tcp_frames import A, Connection, F, R, S, stamps

pytestmark = pytest.mark.usefixtures(secondary_engine.__name__)

MD5 = b"\x13\x12"


def guest_opens(clock: int = SVM_CLOCK, connection: Connection = SVM, payload: bytes = b"") -> bytes:
    return connection.out(0, -connection.client_isn, S, payload, stamps(clock, 0))


def opening() -> SecondaryDataplane:
    """The SVM has sent a SYN."""
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([guest_opens()], 0)
    return plane


def seen_by_svm(plane: SecondaryDataplane, frame: bytes) -> Seen:
    (translated,) = plane.client_frames([frame])
    return look(translated, SVM, inbound=True)


# ---------------------------------------------------------------- the guest opens


def test_a_repeated_syn_is_answered_whichever_reached_the_client() -> None:
    """Linux resets a connection whose SYN-ACK echoes what is not between its first SYN and now."""
    for echoed in (PVM_CLOCK, PVM_CLOCK + 1000):
        plane = opening()
        plane.svm_frames([guest_opens(SVM_CLOCK + 1000)], 1)
        seen = seen_by_svm(plane, PVM.back(0, 1, S | A, options=stamps(3, echoed)))
        assert (seen.ack, seen.echo) == (1, SVM_CLOCK)
        plane.take_over()
        (frame,) = plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(SVM_CLOCK + 3000, 3))])
        value = look(frame, PVM).value
        assert value is not None
        assert (value - PVM_CLOCK) % 2**32 >= 3000, "never older than what the PVM may have shown"


@pytest.mark.parametrize("by_guest", [True, False])
def test_a_syn_repeated_after_a_load_is_the_pvms_own(by_guest: bool) -> None:
    """The SVM was copied while the connection was being opened; its next SYN is newer than the one that is answered."""
    plane = secondary_plane(DataplaneLimits())
    plane.loaded()
    flags = S if by_guest else S | A
    answer = PVM.back(0, 1, S | A, options=stamps(3, 500)) if by_guest else PVM.back(1, 1, options=stamps(3, 500))
    plane.svm_frames([PVM.out(0, 1 if flags & A else -PVM.client_isn, flags, options=stamps(1500, 0))], 0)
    assert plane.client_frames([answer]) == [answer]
    later = PVM.back(1, 1, A, b"x", stamps(9, 1700))
    assert plane.client_frames([later]) == [later]


def test_a_syn_ack_repeated_after_a_load_teaches_nothing_once_data_have_gone_out() -> None:
    """It crosses the client's acknowledgement; what comes next acknowledges more than the opening."""
    plane = secondary_plane(DataplaneLimits())
    plane.loaded()
    acknowledged = PVM.back(1, 1, options=stamps(2, 500))
    assert plane.client_frames([acknowledged]) == [acknowledged]
    plane.svm_frames([PVM.syn_ack(stamps(1500, 1)), PVM.out(1, 1, A, b"hello", stamps(1510, 2))], 0)
    frame = PVM.back(1, 6, A, b"x", stamps(3, 510))
    assert plane.client_frames([frame]) == [frame]
    plane.take_over()
    assert look(plane.translator.outbound([PVM.out(6, 2, A, b"y")])[0], PVM).seq == 6


def test_a_refused_connection_is_refused_to_both_copies() -> None:
    plane = opening()
    assert seen_by_svm(plane, PVM.back(-PVM.client_isn, 1, R | A)).ack == 1
    plane.svm_frames([guest_opens(SVM_CLOCK + 9)], 1)
    assert seen_by_svm(plane, PVM.back(0, 1, S | A)).ack == 1, "one who forges a refusal teaches nothing"
    unanswering = PVM.back(7, 0, R)
    assert opening().client_frames([unanswering]) == [unanswering]


def test_both_sides_open() -> None:
    for answer in (PVM.back(0, 1, S | A, options=stamps(4, PVM_CLOCK)), PVM.back(1, 1, options=stamps(4, PVM_CLOCK))):
        plane = opening()
        theirs = PVM.back(0, -PVM.isn, S, options=stamps(3, 0))
        assert plane.client_frames([theirs]) == [theirs]
        plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK + 2, 3))], 1)
        seen = seen_by_svm(plane, answer)
        assert (seen.ack, seen.echo) == (1, SVM_CLOCK)


def test_the_answer_to_a_syn_that_carries_data_is_not_understood() -> None:
    """It acknowledges the data or not (RFC 7413); a wrong guess would shift the stream after a takeover."""
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([guest_opens(payload=b"early"), guest_opens(SVM_CLOCK + 1000)], 0)
    answer = PVM.back(0, 6, S | A, options=stamps(3, PVM_CLOCK))
    assert plane.client_frames([answer]) == [answer]


def test_data_before_the_first_acknowledgement_teach_nothing() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK, 1)), SVM.out(1, 1, A, b"early", stamps(SVM_CLOCK, 1))], 0)
    answer = PVM.back(1, 6, options=stamps(3, PVM_CLOCK))
    assert plane.client_frames([answer]) == [answer]


def test_a_zero_echo_teaches_no_timestamp_but_the_next_one_does() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK, 1))], 0)
    assert seen_by_svm(plane, PVM.back(1, 1, options=stamps(2, 0))) == Seen(1, 1, 2, 0, A, b"")
    assert seen_by_svm(plane, PVM.back(1, 1, A, b"x", stamps(2, PVM_CLOCK))).echo == SVM_CLOCK
    assert seen_by_svm(plane, PVM.back(2, 1, A, b"x", stamps(2, PVM_CLOCK + 7))).echo == SVM_CLOCK + 7
    plane.take_over()
    (frame,) = plane.translator.outbound([SVM.out(1, 1, A, b"x", stamps(SVM_CLOCK + 10, 2))])
    assert look(frame, PVM).value == (PVM_CLOCK + 5010) % 2**32


def test_timestamps_that_the_client_does_not_use_are_not_waited_for() -> None:
    plane = secondary_plane(DataplaneLimits())
    plane.svm_frames([SVM.syn_ack(stamps(SVM_CLOCK, 1))], 0)
    plane.client_frames([PVM.back(1, 1)])
    assert not plane.translator.connections[SVM.syn_ack()[26:38]].unsettled


# ---------------------------------------------------------------- the order of SYN and answer


def test_a_syn_leaves_after_the_secondary_knows_the_svms() -> None:
    primary = PrimaryDataplane(DataplaneLimits(), 1)
    plane = secondary_plane(DataplaneLimits())
    assert primary.pvm_frames([guest_opens(PVM_CLOCK, PVM)], 0) == []
    plane.svm_frames([guest_opens()], 0)
    assert primary.svm_frames(1, 0, [guest_opens()], 1) == [guest_opens(PVM_CLOCK, PVM)]
    assert seen_by_svm(plane, PVM.back(0, 1, S | A, options=stamps(3, PVM_CLOCK))).ack == 1


def test_a_syn_that_leaves_by_a_commit_is_the_loaded_svms_own() -> None:
    primary = PrimaryDataplane(DataplaneLimits(), 1)
    assert primary.pvm_frames([guest_opens(PVM_CLOCK, PVM)], 0) == []
    primary.seal(2)
    assert primary.commit(2, 1) == [guest_opens(PVM_CLOCK, PVM)]
    plane = opening()  # the copy before the load: what it makes of the answer is of an old epoch
    answer = PVM.back(0, 1, S | A, options=stamps(3, PVM_CLOCK))
    plane.client_frames([answer])
    assert primary.svm_frames(1, 0, [SVM.out(1, 0, R)], 2) == []
    assert primary.due(3) is None
    plane.loaded()
    assert plane.client_frames([answer]) == [answer]


@pytest.mark.parametrize("by_guest", [True, False])
def test_signed_openings_with_other_numbers_leave_by_a_checkpoint_only(by_guest: bool) -> None:
    primary = PrimaryDataplane(DataplaneLimits(), 1)
    flags, ack = (S, -PVM.client_isn) if by_guest else (S | A, 1)
    mine = PVM.out(0, ack, flags, options=MD5 + bytes(range(16)))
    twin = SVM.out(0, ack, flags, options=MD5 + bytes(range(1, 17)))
    assert primary.pvm_frames([mine], 0) + primary.svm_frames(1, 0, [twin], 1) == []
    assert primary.due(2) == "divergence"
    primary.seal(2)
    assert primary.commit(2, 3) == [mine]


# ---------------------------------------------------------------- after a takeover


def test_what_covers_timestamps_by_a_signature_is_left_alone() -> None:
    for option, advances in ((b"\x1d\x10" + bytes(14), False), (MD5 + bytes(16), True)):
        plane = secondary_plane(DataplaneLimits())
        plane.take_over()
        frame = PVM.out(1, 1, A, b"x", stamps(100, 1) + option)
        assert (plane.translator.outbound([frame]) != [frame]) is advances
        back = PVM.back(1, 2, A, b"y", stamps(100, 101) + option)
        assert plane.translator.inbound([back]) == [back]


def test_takeover_before_the_answer_to_a_syn() -> None:
    """The client got the PVM's, and then the SVM's: it answers the one that it took first."""
    plane = opening()
    (again,) = plane.take_over()
    assert look(again, SVM).value == SVM_CLOCK + 5000
    (back,) = plane.translator.inbound([PVM.back(0, 1, S | A, options=stamps(3, PVM_CLOCK))])
    assert look(back, SVM, inbound=True) == Seen(0, 1, 3, SVM_CLOCK, S | A, b"")
    assert look(plane.translator.outbound([SVM.out(1, 1)])[0], PVM).seq == 1
    plane = opening()
    plane.take_over()
    (back,) = plane.translator.inbound([SVM.back(0, 1, S | A, options=stamps(3, SVM_CLOCK + 5000))])
    assert look(back, SVM, inbound=True) == Seen(0, 1, 3, SVM_CLOCK, S | A, b"")


@pytest.mark.parametrize("flags", [R, R | A])
def test_a_forged_reset_does_not_make_a_living_connection_forgotten(flags: int) -> None:
    plane = opening()
    plane.client_frames([PVM.back(0, 1, S | A), PVM.back(500_000, 9, flags)])
    plane.svm_frames([SVM.out(1, 1, A, b"alive")], 1)
    plane.take_over()
    assert plane.translator.needed


def test_resets_are_in_the_window_of_who_gets_them() -> None:
    plane = opening()
    plane.client_frames([PVM.back(0, 1, S | A)])
    assert seen_by_svm(plane, PVM.back(5, 7, R | A)) == Seen(5, 7, None, None, R | A, b"")
    bare = PVM.back(5, -PVM.isn, R)
    assert plane.client_frames([bare]) == [bare], "its place is the client's own number"
    plane.take_over()
    for frame, seq in ((SVM.out(9, 5, R | A), 9), (SVM.out(9, -SVM.client_isn, R), 9), (SVM.out(9, 5, A | F), 9)):
        assert look(plane.translator.outbound([frame])[0], PVM).seq == seq
