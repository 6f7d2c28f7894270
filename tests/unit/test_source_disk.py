"""A disk without a partner, or with one who comes and goes: what is answered when, and which marks stay."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from disk_tools import Answer, HandWorkers, make_source
from pycolo.core.changed_chunks import CHUNK_BYTES_MIN
from pycolo.disk.source import SourceDisk
from pycolo.edge.disk_meta import Kind

SIZE = 20 * CHUNK_BYTES_MIN
OLD, FIRST, SECOND = "00" * 16, "11" * 16, "22" * 16


class Withholding:
    """Listeners that give no answer until they are asked to."""

    def __init__(self) -> None:
        self.kept: list[Callable[[], None]] = []
        self.heard: list[str] = []

    def wrote(self, disk: int, offset: int, data: bytes | memoryview) -> None:
        self.heard.append("wrote")

    def zeroed(self, disk: int, offset: int, length: int) -> None:
        self.heard.append("zeroed")

    def give_up(self, why: str) -> None:
        self.heard.append(why)

    def answer(self, give: Callable[[], None]) -> None:
        self.kept.append(give)

    def release(self) -> None:
        while self.kept:
            self.kept.pop(0)()


class Rig:
    """A disk whose fdatasyncs and other jobs the test runs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workers = HandWorkers()
        self.disk = make_source(folder, bytes(SIZE), self.workers)
        self.syncs = 0
        real = self.disk.image.sync

        def sync() -> None:
            self.syncs += 1
            real()

        monkeypatch.setattr(self.disk.image, "sync", sync)

    def flush(self) -> Answer:
        answer = Answer()
        self.disk.flush(answer)
        return answer

    def write(self, chunk: int = 0, *, fua: bool = False) -> Answer:
        answer = Answer()
        self.disk.write(answer, chunk * CHUNK_BYTES_MIN, memoryview(b"w" * 512), fua=fua)
        return answer

    def marked(self) -> list[int]:
        bits = self.disk.meta.bits
        return [chunk for chunk in range(SIZE // CHUNK_BYTES_MIN) if bits[chunk // 8] >> chunk % 8 & 1]

    def begins(self) -> Withholding:
        """Another copy begins."""
        replica = Withholding()
        self.disk.changes.begin()
        self.disk.replica = replica
        return replica


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(tmp_path, monkeypatch)
    yield rig
    rig.disk.give_up()
    rig.workers.close()


def said(*answers: Answer) -> list[object]:
    return [answer.said for answer in answers]


# ---- in a hurry


def test_in_a_hurry_those_who_wait_are_answered_and_exactly_one_sync_follows(rig: Rig) -> None:
    under_way, waiting, fua = rig.flush(), rig.flush(), rig.write(fua=True)
    assert len(rig.workers) == 1
    assert said(under_way, waiting, fua) == [None] * 3
    rig.disk.hurry(True)
    assert said(under_way, waiting, fua) == ["done"] * 3
    rig.workers.run()  # the one under way began before the last two came
    assert (rig.syncs, len(rig.workers)) == (1, 1)
    rig.workers.run()
    assert (rig.syncs, len(rig.workers)) == (2, 0)


def test_one_under_way_is_answered_and_owes_nothing_more(rig: Rig) -> None:
    flush = rig.flush()
    rig.disk.hurry(True)
    assert flush.said == "done"
    rig.workers.run()
    assert (rig.syncs, len(rig.workers)) == (1, 0)


def test_those_who_come_in_a_hurry_share_the_sync_that_follows(rig: Rig) -> None:
    rig.disk.hurry(True)
    assert len(rig.workers) == 0  # nobody waits for one
    assert said(rig.flush(), rig.write(fua=True), rig.flush(), rig.write()) == ["done"] * 4
    assert len(rig.workers) == 1  # the first one's; the others came after it began
    rig.disk.hurry(False)
    later = rig.flush()
    rig.workers.run()
    assert said(later) == [None]
    rig.workers.run()
    assert said(later) == ["done"]
    assert (rig.syncs, len(rig.workers)) == (2, 0)


def test_a_sync_that_fails_after_the_hurry_fails_every_later_flush(rig: Rig) -> None:
    hurried = rig.flush()
    rig.disk.hurry(True)
    rig.workers.fail(errno.EIO)
    rig.disk.hurry(False)
    later = rig.flush()
    rig.workers.run_all()
    assert said(hurried, later) == ["done", errno.EIO]
    assert "can't be synced" in rig.disk.trouble


# ---- with a replica that makes answers wait


def request(disk: SourceDisk, kind: str, answer: Answer) -> None:
    if kind == "write":
        disk.write(answer, 0, memoryview(b"w" * 512), fua=False)
    elif kind == "write with FUA":
        disk.write(answer, 0, memoryview(b"w" * 512), fua=True)
    elif kind == "zeros with FUA":
        disk.zero(answer, 0, 512, fua=True, may_trim=False)
    elif kind == "trim":
        disk.trim(answer, 0, 512, fua=False)
    else:
        disk.flush(answer)


@pytest.mark.parametrize(
    ("kind", "syncs"), [("write", 0), ("write with FUA", 1), ("zeros with FUA", 1), ("trim", 0), ("flush", 1)]
)
def test_every_answer_waits_for_the_replica_and_then_for_the_disk(rig: Rig, kind: str, syncs: int) -> None:
    replica, answer = rig.begins(), Answer()
    request(rig.disk, kind, answer)
    assert said(answer) == [None]
    assert (len(replica.kept), len(rig.workers)) == (1, 0)
    replica.release()
    assert said(answer) == [None if syncs else "done"]
    rig.workers.run_all()
    assert said(answer) == ["done"]
    assert rig.syncs == syncs


def test_what_was_withheld_and_is_released_in_a_hurry_is_synced_all_the_same(rig: Rig) -> None:
    replica = rig.begins()
    fua, flush = rig.write(fua=True), rig.flush()
    rig.disk.hurry(True)
    replica.release()
    assert said(fua, flush) == ["done", "done"]
    rig.workers.run_all()
    assert rig.syncs


# ---- marks


def test_marks_go_when_the_session_is_durable(rig: Rig) -> None:
    rig.disk.meta.change(Kind.SOURCE, OLD)
    rig.write(1)
    rig.begins()
    rig.write(2)
    rig.disk.adopt(FIRST)
    assert (rig.disk.meta.session, rig.marked()) == (OLD, [1, 2])
    rig.write(3)
    rig.workers.run()
    assert (rig.disk.meta.session, rig.marked()) == (FIRST, [2, 3])


def test_marks_stay_when_another_copy_has_begun_before_the_session_is_durable(rig: Rig) -> None:
    """What was written between the two is on our image alone, and the second partner may have no more than that."""
    rig.disk.meta.change(Kind.SOURCE, OLD)
    rig.begins()
    rig.write(1)
    rig.disk.adopt(FIRST)
    rig.disk.replica = None
    rig.disk.changes.lost()
    rig.write(2)
    rig.begins()
    rig.write(3)
    rig.workers.run()
    assert rig.marked() == [1, 2, 3]
    rig.disk.adopt(SECOND)
    rig.workers.run()
    assert (rig.disk.meta.session, rig.marked()) == (SECOND, [3])


def test_marks_stay_when_the_session_can_not_be_written(rig: Rig) -> None:
    rig.begins()
    rig.write(1)
    rig.disk.adopt(FIRST)
    rig.workers.fail()
    assert rig.marked() == [1]
    assert "mend it, or a later copy may be whole" in rig.disk.trouble
