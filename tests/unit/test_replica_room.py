"""The secondary's room as the primary counts it: whose answers wait, how long, and when a checkpoint is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from primary_script import MIB, ROOM_BLOCKS, STALL_S, Primary

from disk_tools import Answer
from pycolo.agent.protocol import Wanted
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES
from pycolo.core.disk_room import GIVE_UP_FACTOR, TURN_S_MAX
from pycolo.disk import protocol
from pycolo.disk.local import LocalExport
from pycolo.errors import PeerLost


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    primary = Primary(tmp_path)
    yield primary
    primary.close()


def test_an_answer_waits_at_the_share_until_the_secondary_has_applied(primary: Primary) -> None:
    primary.following()
    room = 80  # of ROOM_BLOCKS
    assert [primary.write().said for _ in range(room)] == ["done"] * room
    late = [primary.write() for _ in range(3)]
    primary.side.seal(2)
    primary.turn()
    assert [answer.said for answer in late] == [None] * 3
    assert primary.side.stats().withheld == 3
    assert primary.side.stats().backlog_bytes == (room + 3) * BLOCK_BYTES
    primary.say(wire.Applied(2))
    primary.turn()
    assert [answer.said for answer in late] == ["done"] * 3
    stats = primary.side.stats()
    assert (stats.withheld, stats.backlog_bytes, stats.backlog_bytes_max) == (0, 0, (room + 3) * BLOCK_BYTES)


def test_only_what_an_applied_epoch_held_gives_room(primary: Primary) -> None:
    primary.following()
    for epoch in (2, 3):
        for _ in range(50):
            primary.write()
        primary.side.seal(epoch)
    primary.say(wire.Applied(2))
    assert primary.side.stats().backlog_bytes == 50 * BLOCK_BYTES
    primary.say(wire.Applied(3))
    assert primary.side.stats().backlog_bytes == 0


def test_a_write_costs_every_block_it_touches(primary: Primary) -> None:
    primary.following()
    before = primary.side.stats().backlog_bytes
    primary.disks[0].write(Answer(), 4095, memoryview(b"ab"), fua=False)
    assert primary.side.stats().backlog_bytes - before == 2 * BLOCK_BYTES


def test_zeros_cost_the_places_that_they_take_at_the_secondary(primary: Primary) -> None:
    """A secondary has as many places for zeros as for contents: a guest that trims its disk must wait as well."""
    primary.following()
    answers = [Answer() for _ in range(16)]
    for number, answer in enumerate(answers):
        primary.disks[0].trim(answer, number * 16 * BLOCK_BYTES, 16 * BLOCK_BYTES, fua=False)
    assert sum(answer.said == "done" for answer in answers) == 5  # the next one begins beyond 80 of 100 blocks
    assert primary.notices == [Wanted("disk_backlog")]


def test_the_copy_takes_no_room(primary: Primary) -> None:
    primary.copied()
    for _ in range(3 * ROOM_BLOCKS):
        assert primary.write().said == "done"
    assert primary.side.stats().backlog_bytes == 0
    assert primary.notices == []


def test_a_checkpoint_is_asked_for_once_per_epoch(primary: Primary) -> None:
    primary.following()
    asked = Wanted("disk_backlog")
    for _ in range(25):
        primary.write()
    assert primary.notices == []
    for _ in range(20):
        primary.write()
    assert primary.notices == [asked]
    primary.side.seal(2)
    for _ in range(26):
        primary.write()
    assert primary.notices == [asked, asked]


def test_a_hurried_primary_answers_everything_at_once(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    primary.following()
    answers = [primary.write() for _ in range(90)]
    assert answers[-1].said is None
    under_way, waiting = Answer(), Answer()
    LocalExport._finish(primary.disks[0], under_way, True)  # it came when there was room
    assert len(primary.workers) == 1
    primary.disks[0].flush(waiting)
    primary.side.expect_pause()
    assert [answer.said for answer in answers] == ["done"] * 90
    assert (under_way.said, waiting.said) == ("done", "done")
    flush = Answer()
    primary.disks[0].flush(flush)
    assert (primary.write().said, flush.said) == ("done", "done")
    primary.side.expect_requests()
    assert primary.write().said is None
    synced: list[int] = []
    for number, disk in enumerate(primary.disks):
        monkeypatch.setattr(disk.image, "sync", partial(synced.append, number))
    primary.workers.run_all()
    assert synced == [0]  # after the one under way just one more, for all who were answered before it


def test_a_queue_that_nobody_takes_makes_the_guest_wait(tmp_path: Path) -> None:
    primary = Primary(tmp_path, queue_bytes_max=MIB)
    try:
        primary.copied()  # without a mark: the room of the secondary does not count yet
        replica = primary.side.replica
        assert replica is not None
        replica.stream.queue(bytes(64 * MIB))
        primary.turn(0.0)
        answer = primary.write()
        assert answer.said is None
        assert primary.turn(10.0) == pytest.approx(TURN_S_MAX)
    finally:
        primary.close()
    assert answer.said == "done"


def turns(primary: Primary, from_s: float, seconds: float) -> float:
    """The loop turns every 0.1 s; returns when that ended."""
    for number in range(1, round(seconds * 10) + 1):
        primary.turn(from_s + number / 10)
    return from_s + seconds


def test_a_secondary_that_gets_nowhere_is_given_up_at_the_limit(primary: Primary) -> None:
    primary.following()
    primary.turn(100.0)
    answers = [primary.write() for _ in range(90)]
    now_s = turns(primary, 100.0, STALL_S - 0.3)
    with pytest.raises(PeerLost, match="give no room in 2000 ms"):
        turns(primary, now_s, 0.6)
    primary.side.leave()
    assert [answer.said for answer in answers] == ["done"] * 90


def test_a_secondary_that_works_is_waited_for_longer(primary: Primary) -> None:
    primary.following()
    primary.turn(100.0)
    for _ in range(90):
        primary.write()
    now_s = 100.0
    for _ in range(3):
        now_s = turns(primary, now_s, STALL_S - 0.3)
        primary.say(wire.Working())
    for _ in range(2):
        now_s = turns(primary, now_s, STALL_S - 0.3)
        primary.say(wire.Working())
    with pytest.raises(PeerLost):  # it has worked for long, and given no room
        turns(primary, now_s, STALL_S * GIVE_UP_FACTOR - 5 * (STALL_S - 0.3) + 0.1)


def test_a_stall_of_our_own_is_not_held_against_the_secondary(primary: Primary) -> None:
    primary.following()
    primary.turn(0.0)
    answers = [primary.write() for _ in range(90)]
    for now_s in (50.0, 100.0, 150.0):
        assert primary.turn(now_s) == pytest.approx(TURN_S_MAX)
    primary.side.seal(2)
    primary.say(wire.Applied(2))
    primary.turn(151.0)
    assert answers[-1].said == "done"


def test_pauses_do_not_set_the_clock_back(primary: Primary) -> None:
    """Checkpoints for other reasons come all the time, each lets the guest write more, and nothing is applied."""
    primary.following()
    primary.turn(0.0)
    for _ in range(90):
        primary.write()

    def pause(number: int) -> None:
        primary.side.expect_pause()
        primary.side.seal(number + 1)
        primary.side.expect_requests()
        for _ in range(4):
            primary.write()
        primary.turn(number / 10)

    lasted = round(STALL_S * 10) - 1
    for number in range(1, lasted):
        pause(number)
    with pytest.raises(PeerLost):
        pause_until_given_up(pause, lasted)
    assert primary.notices.count(Wanted("disk_backlog")) == 1  # before the first pause; later ones could not help


def pause_until_given_up(pause: Callable[[int], None], number: int) -> None:
    for more in range(3):
        pause(number + more)


def test_a_checkpoint_waits_for_what_is_committed_and_hears_when_there_is_room(primary: Primary) -> None:
    primary.following()
    for _ in range(90):
        primary.write()
    primary.side.seal(2)
    assert primary.side.has_room(1)  # epoch 2 is not committed: only a checkpoint helps
    primary.notices.clear()
    assert not primary.side.has_room(2)
    primary.turn()
    assert primary.notices == []
    primary.say(wire.Applied(2))
    primary.turn()
    primary.turn()
    assert primary.notices == [protocol.RoomFree()]
    assert primary.side.has_room(2)


def test_a_checkpoint_waits_no_longer_than_a_write(primary: Primary) -> None:
    primary.following()
    primary.turn(100.0)
    for _ in range(90):
        primary.write()
    primary.side.expect_pause()
    primary.side.seal(2)
    primary.side.expect_requests()
    assert primary.side.stats().withheld == 0
    assert not primary.side.has_room(2)
    now_s = turns(primary, 100.0, STALL_S - 0.3)
    with pytest.raises(PeerLost, match="give no room in 2000 ms"):
        turns(primary, now_s, 0.6)
    primary.side.leave()
    with pytest.raises(PeerLost, match="no disk channel"):
        primary.side.has_room(2)


def test_writes_with_fua_wait_like_others(primary: Primary) -> None:
    primary.following()
    answers = [Answer() for _ in range(200)]
    for number, answer in enumerate(answers):
        primary.disks[0].write(answer, number % 50 * BLOCK_BYTES, memoryview(bytes(BLOCK_BYTES)), fua=True)
    primary.workers.run_all()
    assert answers[10].said == "done"
    assert answers[-1].said is None
    primary.side.leave()
    primary.workers.run_all()
    assert answers[-1].said == "done"
