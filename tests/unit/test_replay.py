"""The replay log: every client frame from the boundary on exactly once, or a plain "incomplete"."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.replay import BOUNDARIES_MAX, FRAME_OVERHEAD_BYTES, ReplayLog
from pycolo.errors import PeerViolation


def frame(number: int) -> bytes:
    return b"%06d" % number


def frames(start: int, end: int) -> list[bytes]:
    return [frame(number) for number in range(start, end)]


def fed(start: int, end: int) -> list[tuple[int, bytes]]:
    return [(0, one) for one in frames(start, end)]


def test_frames_go_back_to_their_cards_in_the_order_of_all() -> None:
    log = ReplayLog(1000)
    log.mark(4)
    log.add(1, 4, frames(4, 6))
    log.add(0, 6, frames(6, 7))
    log.add(1, 7, frames(7, 8))
    assert log.replay(4).frames == [(1, frame(4)), (1, frame(5)), (0, frame(6)), (1, frame(7))]


def test_nothing_is_kept_while_no_boundary_is_open() -> None:
    log = ReplayLog(100)
    log.add(0, 0, frames(0, 1000))
    log.mark(1000)
    assert log.replay(1000).frames == []


def test_frames_on_both_sides_of_a_boundary() -> None:
    log = ReplayLog(1000)
    log.mark(3)
    log.add(0, 3, frames(3, 6))
    log.mark(6)
    log.add(0, 6, frames(6, 8))
    first, second = log.replay(3), log.replay(6)
    assert (first.frames, first.complete) == (fed(3, 8), True)
    assert (second.frames, second.complete) == (fed(6, 8), True)


def test_a_boundary_that_was_passed_over_is_forgotten() -> None:
    log = ReplayLog(1000)
    log.mark(0)
    log.add(0, 0, frames(0, 4))
    log.mark(4)
    log.add(0, 4, frames(4, 5))
    assert log.replay(4).frames == fed(4, 5)
    assert not log.replay(0).complete


def test_a_boundary_that_nobody_marked_is_incomplete() -> None:
    log = ReplayLog(1000)
    log.mark(5)
    log.add(0, 5, frames(5, 7))
    assert not log.replay(6).complete


def test_what_was_dropped_at_the_limit_is_said() -> None:
    log = ReplayLog(2 * (6 + FRAME_OVERHEAD_BYTES))  # two frames
    log.mark(0)
    log.add(0, 0, frames(0, 2))
    assert log.replay(0).complete
    log.mark(2)
    log.add(0, 2, frames(2, 5))
    replay = log.replay(2)
    assert not replay.complete
    assert len(b"".join(frame for _, frame in replay.frames)) <= 12


@given(
    st.lists(st.tuples(st.sampled_from(["add", "mark", "replay"]), st.integers(0, 5)), max_size=60),
    st.integers(0, 20),
)
def test_complete_means_every_frame_once_and_in_order(steps: list[tuple[str, int]], frames_max: int) -> None:
    log = ReplayLog(frames_max * (6 + FRAME_OVERHEAD_BYTES))
    next_no = 0
    marked: list[int] = []
    for what, number in steps:
        if what == "add":
            log.add(0, next_no, frames(next_no, next_no + number))
            next_no += number
        elif what == "mark":
            log.mark(next_no)
            marked.append(next_no)
        elif marked:
            boundary = marked[min(number, len(marked) - 1)]
            marked = [mark for mark in marked if mark > boundary]
            replay = log.replay(boundary)
            if replay.complete:
                assert replay.frames == fed(boundary, next_no)
            elif next_no - boundary <= frames_max:
                raise AssertionError("nothing had to be dropped")


def test_boundaries_without_end_break_the_protocol() -> None:
    log = ReplayLog(1000)
    for boundary in range(BOUNDARIES_MAX):
        log.mark(boundary)
    with pytest.raises(PeerViolation, match="boundaries"):
        log.mark(BOUNDARIES_MAX)


def test_empty_frames_are_bounded_too() -> None:
    log = ReplayLog(10 * FRAME_OVERHEAD_BYTES)
    log.mark(0)
    log.add(0, 0, [b""] * 1000)
    assert not log.replay(0).complete
