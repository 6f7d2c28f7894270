"""When answers wait, when a checkpoint is asked for, and when the secondary is given up; the clock is a number."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.disk_room import GIVE_UP_FACTOR, TURN_S_MAX, DiskRoom

QUEUE, ROOM, STALL_S = 1000, 10_000, 2.0


def a_room(*, counting: bool = True) -> DiskRoom:
    room = DiskRoom(QUEUE, STALL_S)
    room.room_bytes = ROOM
    if counting:
        room.seal(1)
        room.applied(1)
    return room


def wait(room: DiskRoom, seconds: float, now_s: float = 0.0, queued: int = 0) -> float | None:
    """Turns of 0.1 s."""
    left_s: float | None = None
    for number in range(round(seconds * 10) + 1):
        left_s = room.turn(now_s + number / 10, someone_waits=True, queued_bytes=queued)
    return left_s


def test_before_the_first_mark_only_the_queue_counts() -> None:
    room = a_room(counting=False)
    room.count(100 * ROOM)
    assert not room.full(QUEUE)
    assert room.full(QUEUE + 1)
    assert not room.asks(someone_waits=True)


@given(st.lists(st.one_of(st.integers(1, ROOM), st.sampled_from(["seal", "applied", "ask", "ask for who waits"]))))
def test_whatever_happens_the_books_are_right(steps: list[int | str]) -> None:
    room, epoch = a_room(), 1
    sent, marks, applied, asked = 0, [(1, 0)], 0, False
    for step in steps:
        if isinstance(step, int):
            room.count(step)
            sent += step
        elif step == "seal":
            epoch, asked = epoch + 1, False
            room.seal(epoch)
            marks.append((epoch, sent))
        elif step == "applied":
            room.applied(epoch)
            applied = marks[-1][1]
        else:
            waits = step == "ask for who waits"
            due = sent - marks[-1][1] > ROOM * (0.05 if waits else 0.25)
            assert room.asks(someone_waits=waits) is (due and not asked)
            asked |= due
        assert room.backlog_bytes == sent - applied
        assert room.full(0) is (sent - applied > 0.8 * ROOM)
        assert room.full(QUEUE) is room.full(0)
        assert room.full(QUEUE + 1)


def test_one_that_gets_nowhere_is_given_up_after_the_limit() -> None:
    room = a_room()
    room.count(ROOM)
    assert wait(room, STALL_S - 0.5) == pytest.approx(0.5)
    assert wait(room, 0.5, STALL_S - 0.5) == pytest.approx(0.0)


def test_checkpoints_that_bring_no_room_do_not_set_the_clock_back_and_more_are_not_asked_for() -> None:
    """16 requests are always in flight, `Applied` never comes, and a checkpoint for another reason every 100 ms."""
    room = a_room()
    room.count(round(0.8 * ROOM))
    asked = int(room.asks(someone_waits=False))
    room.turn(0.0, someone_waits=False, queued_bytes=0)
    for epoch in itertools.count(2):
        for _ in range(16):  # each is answered at the pause, and the next one waits
            room.count(ROOM // 1000)
            asked += room.asks(someone_waits=room.full(0))
        assert room.full(0)
        room.seal(epoch)
        left_s = room.turn((epoch - 1) / 10, someone_waits=True, queued_bytes=0)
        if left_s == pytest.approx(0.0):
            break
        assert epoch - 1 < STALL_S * 10
    assert epoch - 1 == STALL_S * 10
    assert asked == 1


@given(
    st.lists(st.tuples(st.sampled_from(["write", "checkpoint", "fail", "apply"]), st.integers(1, ROOM // 20))),
)
def test_no_order_of_events_makes_the_secondary_keep_more_than_room_and_one_pause(
    steps: list[tuple[str, int]],
) -> None:
    """Writes wait when it is full, those of a pause never do; a checkpoint begins only when it may.

    One that fails is taken again whatever there is, as only that helps: how often is the manager's limit.
    """
    room, committed, epoch, failed, failed_max = a_room(), 1, 1, 0, 0
    for what, cost in steps:
        if what == "write" and not room.full(0):
            room.count(cost)
        elif what == "apply":
            room.applied(committed)
        elif what in ("checkpoint", "fail"):
            room.committed(committed)
            if room.may_pause:
                room.count(cost)
                epoch += 1
                room.seal(epoch)
                failed = failed + 1 if what == "fail" else 0
                failed_max = max(failed_max, failed)
                committed = committed if failed else epoch
        assert room.backlog_bytes <= 0.8 * ROOM + ROOM // 20 * (2 + failed_max)


def test_what_is_not_committed_keeps_no_checkpoint_waiting() -> None:
    """Only the next one gives room: what a failed checkpoint has sealed belongs to it."""
    room = a_room()
    room.count(2 * ROOM)
    room.seal(2)
    room.committed(1)
    assert room.may_pause
    room.seal(3)
    room.committed(3)
    assert not room.may_pause
    room.applied(3)
    assert room.may_pause


def test_before_the_first_mark_a_checkpoint_may_begin() -> None:
    room = a_room(counting=False)
    room.count(2 * ROOM)
    room.committed(0)
    assert room.may_pause


def test_time_in_which_nobody_waits_does_not_count_and_does_not_set_the_clock_back() -> None:
    room = a_room()
    room.count(ROOM)
    wait(room, 1.0)
    for number in range(100):
        assert room.turn(1.0 + number / 10, someone_waits=False, queued_bytes=0) is None
    assert room.turn(10.9, someone_waits=True, queued_bytes=0) == pytest.approx(STALL_S - 1.0)


def test_an_epoch_that_was_applied_before_is_no_progress() -> None:
    room = a_room()
    room.count(ROOM)
    wait(room, 1.5)
    room.applied(1)
    assert room.turn(1.5, someone_waits=True, queued_bytes=0) == pytest.approx(STALL_S - 1.5)


def test_some_room_that_is_not_enough_is_progress() -> None:
    room = a_room()
    room.count(ROOM // 10)
    room.seal(2)
    room.count(ROOM)
    wait(room, 1.5)
    room.applied(2)
    assert room.full(0)
    assert room.turn(1.5, someone_waits=True, queued_bytes=0) == pytest.approx(STALL_S)


def test_nobody_waits_nobody_is_given_up() -> None:
    room = a_room()
    room.count(ROOM)
    for now_s in range(100):
        assert room.turn(now_s, someone_waits=False, queued_bytes=0) is None


def test_progress_sets_the_clock_back_but_not_for_ever() -> None:
    room = a_room()
    room.count(ROOM)
    now_s, turns = 0.0, 0
    while wait(room, STALL_S / 2, now_s) != pytest.approx(0.0):
        now_s, turns = now_s + STALL_S / 2, turns + 1
        room.progressed()
    assert turns == 2 * GIVE_UP_FACTOR - 1


def test_bytes_that_are_taken_are_progress_only_for_the_queue() -> None:
    room = a_room(counting=False)
    assert wait(room, 1.0, queued=2 * QUEUE) == pytest.approx(STALL_S - 1.0)
    room.taken(2 * QUEUE)
    assert room.turn(1.0, someone_waits=True, queued_bytes=2 * QUEUE) == pytest.approx(STALL_S)
    full = a_room()
    full.count(ROOM)
    wait(full, 1.0)
    full.taken(0)
    assert full.turn(1.0, someone_waits=True, queued_bytes=0) == pytest.approx(STALL_S - 1.0)


def test_room_again_ends_the_wait() -> None:
    room = a_room()
    room.count(ROOM)
    wait(room, 1.5)
    room.seal(2)
    room.applied(2)
    assert room.turn(1.6, someone_waits=True, queued_bytes=0) is None
    room.count(ROOM)
    assert room.turn(1.6, someone_waits=True, queued_bytes=0) == pytest.approx(STALL_S)


def test_a_stall_of_our_own_counts_as_one_turn() -> None:
    room = a_room()
    room.count(ROOM)
    room.turn(0.0, someone_waits=True, queued_bytes=0)
    assert room.turn(500.0, someone_waits=True, queued_bytes=0) == pytest.approx(STALL_S - TURN_S_MAX)
