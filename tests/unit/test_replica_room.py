"""The secondary's room as the primary counts it: whose answers wait, how long, and when a checkpoint is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from primary_script import MIB, ROOM_BLOCKS, STALL_S, Primary

from disk_tools import Answer
from pycolo.agent.protocol import Wanted
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES
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


def test_a_hurried_primary_answers_everything_at_once(primary: Primary) -> None:
    primary.following()
    answers = [primary.write() for _ in range(90)]
    assert answers[-1].said is None
    primary.side.expect_pause()
    assert [answer.said for answer in answers] == ["done"] * 90
    flush = Answer()
    primary.disks[0].flush(flush)
    assert (primary.write().said, flush.said) == ("done", "done")
    primary.side.expect_requests()
    assert primary.write().said is None


def test_a_queue_that_nobody_takes_makes_the_guest_wait(tmp_path: Path) -> None:
    primary = Primary(tmp_path, queue_bytes_max=MIB)
    try:
        primary.copied()  # without a mark: the room of the secondary does not count yet
        replica = primary.side.replica
        assert replica is not None
        replica._stream.queue(bytes(64 * MIB))
        primary.turn(0.0)
        answer = primary.write()
        assert answer.said is None
        assert primary.turn(10.0) == pytest.approx(STALL_S)
    finally:
        primary.close()
    assert answer.said == "done"


def test_a_secondary_that_takes_nothing_is_given_up_at_the_limit(primary: Primary) -> None:
    primary.following()
    answers = [primary.write() for _ in range(90)]
    assert primary.turn(100.0) == pytest.approx(STALL_S)
    assert primary.turn(100.0 + STALL_S - 0.5) == pytest.approx(0.5)
    with pytest.raises(PeerLost, match="have taken no writes for 2000 ms"):
        primary.turn(100.0 + STALL_S)
    primary.side.leave()
    assert [answer.said for answer in answers] == ["done"] * 90


def test_a_quiet_time_before_is_not_held_against_the_secondary(primary: Primary) -> None:
    """The loop sleeps for as long as nothing happens; the first write after that may have to wait."""
    primary.following()
    primary.turn(0.0)
    answers = [primary.write() for _ in range(90)]  # at 50 s, before the loop looks at the clock
    assert primary.turn(50.0) == pytest.approx(STALL_S)
    primary.side.seal(2)
    primary.say(wire.Applied(2))
    primary.turn(51.9)
    assert answers[-1].said == "done"
    for _ in range(90):
        primary.write()
    assert primary.turn(53.0) == pytest.approx(STALL_S)
