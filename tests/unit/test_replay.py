"""The replay log: every client frame from the boundary on exactly once, or a plain "incomplete"."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.packed import Batch, batch_of, unpack
from pycolo.core.replay import BATCH_OVERHEAD_BYTES, BOUNDARIES_MAX, Replay, ReplayLog
from pycolo.errors import PeerViolation


def frame(number: int) -> bytes:
    return b"%06d" % number


def frames(start: int, end: int) -> Batch:
    return batch_of([frame(number) for number in range(start, end)])


def cost_bytes(count: int) -> int:
    """What a batch of so many frames costs."""
    return BATCH_OVERHEAD_BYTES + len(frames(0, count).packed)


def fed(start: int, end: int) -> list[tuple[int, bytes]]:
    return [(0, frame(number)) for number in range(start, end)]


def one_by_one(replay: Replay) -> list[tuple[int, bytes]]:
    """Cards and frames."""
    assert all(len(unpack(batch.packed)) == batch.count for _, batch in replay.batches)
    found = [(nic, one) for nic, batch in replay.batches for one in unpack(batch.packed)]
    assert len(found) == replay.count
    return found


def test_frames_go_back_to_their_cards_in_the_order_of_all() -> None:
    log = ReplayLog(10_000)
    log.mark(4)
    log.add(1, 4, frames(4, 6))
    log.add(0, 6, frames(6, 7))
    log.add(1, 7, frames(7, 8))
    assert one_by_one(log.replay(4)) == [(1, frame(4)), (1, frame(5)), (0, frame(6)), (1, frame(7))]


def test_nothing_is_kept_while_no_boundary_is_open() -> None:
    log = ReplayLog(100)
    log.add(0, 0, frames(0, 1000))
    log.mark(1000)
    assert one_by_one(log.replay(1000)) == []


def test_frames_on_both_sides_of_a_boundary() -> None:
    log = ReplayLog(10_000)
    log.mark(3)
    log.add(0, 3, frames(3, 6))
    log.mark(6)
    log.add(0, 6, frames(6, 8))
    first, second = log.replay(3), log.replay(6)
    assert (one_by_one(first), first.complete) == (fed(3, 8), True)
    assert (one_by_one(second), second.complete) == (fed(6, 8), True)


def test_a_boundary_that_was_passed_over_is_forgotten() -> None:
    log = ReplayLog(10_000)
    log.mark(0)
    log.add(0, 0, frames(0, 4))
    log.mark(4)
    log.add(0, 4, frames(4, 5))
    assert one_by_one(log.replay(4)) == fed(4, 5)
    assert not log.replay(0).complete


def test_a_boundary_that_nobody_marked_is_incomplete() -> None:
    log = ReplayLog(10_000)
    log.mark(5)
    log.add(0, 5, frames(5, 7))
    assert not log.replay(6).complete


def test_what_was_dropped_at_the_limit_is_said() -> None:
    log = ReplayLog(2 * cost_bytes(2))
    log.mark(0)
    log.add(0, 0, frames(0, 2))
    log.add(0, 2, frames(2, 4))
    assert log.replay(0).complete
    log.mark(4)
    for first_no in (4, 6, 8):
        log.add(0, first_no, frames(first_no, first_no + 2))
    replay = log.replay(4)
    assert not replay.complete
    assert one_by_one(replay) == fed(6, 10)


def test_a_boundary_within_a_batch() -> None:
    log = ReplayLog(10_000)
    log.mark(4)
    log.mark(7)
    log.add(0, 3, frames(3, 9))
    log.add(0, 9, frames(9, 10))
    first, second = log.replay(4), log.replay(7)
    assert (one_by_one(first), first.complete) == (fed(4, 10), True)
    assert (one_by_one(second), second.complete) == (fed(7, 10), True)


@given(
    st.lists(st.tuples(st.sampled_from(["add", "mark", "replay"]), st.integers(0, 5)), max_size=60),
    st.integers(0, 20),
)
def test_complete_means_every_frame_once_and_in_order(steps: list[tuple[str, int]], frames_max: int) -> None:
    log = ReplayLog(frames_max * cost_bytes(1))
    next_no = 0
    added: list[int] = []  # first numbers
    marked: list[int] = []
    for what, number in steps:
        if what == "add":
            log.add(0, next_no, frames(next_no, next_no + number))
            added += [next_no] if number else []
            next_no += number
        elif what == "mark":
            log.mark(next_no)
            marked.append(next_no)
        elif marked:
            boundary = marked[min(number, len(marked) - 1)]
            marked = [mark for mark in marked if mark > boundary]
            replay = log.replay(boundary)
            if replay.complete:
                assert one_by_one(replay) == fed(boundary, next_no)
            elif sum(first_no >= boundary for first_no in added) * cost_bytes(5) <= frames_max * cost_bytes(1):
                raise AssertionError("nothing had to be dropped")


def test_boundaries_without_end_break_the_protocol() -> None:
    log = ReplayLog(10_000)
    for boundary in range(BOUNDARIES_MAX):
        log.mark(boundary)
    with pytest.raises(PeerViolation, match="boundaries"):
        log.mark(BOUNDARIES_MAX)


def test_empty_frames_are_bounded_too() -> None:
    log = ReplayLog(10 * BATCH_OVERHEAD_BYTES)
    log.mark(0)
    for number in range(10):
        log.add(0, number, batch_of([b""]))
    assert not log.replay(0).complete
