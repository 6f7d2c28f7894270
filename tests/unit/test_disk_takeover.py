"""From the claim to a disk that serves its image: nothing is lost, nobody hangs, every flush is true."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from secondary_script import IMAGES, SESSION, Secondary, changed

from disk_tools import Answer
from pycolo.core.block_store import BLOCK_BYTES
from pycolo.disk.folding import LAST_ROUND_BLOCKS_MAX, FoldingDisk
from pycolo.edge.disk_meta import Kind


@pytest.fixture
def secondary(tmp_path: Path) -> Iterator[Secondary]:
    secondary = Secondary(tmp_path)
    yield secondary
    secondary.close()


def folded(secondary: Secondary) -> bool:
    """Whether the guest talks to the image itself."""
    return secondary.exports[0] is secondary.sources[0]


def test_a_takeover_keeps_the_svms_writes_and_forgets_what_is_not_committed(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.svm_write(2)
    secondary.write(3)
    secondary.mark(3)
    secondary.write(4)
    secondary.take_over()
    expected = changed(IMAGES[0], (1, b"P"), (2, b"S"))
    assert secondary.svm_reads() == expected
    secondary.workers.run_all()
    assert folded(secondary)
    assert secondary.image() == expected
    assert (secondary.disk.meta.kind, secondary.disk.meta.session) == (Kind.SOURCE, SESSION)
    assert secondary.disk.meta.bits.any()
    assert not secondary.side.unfinished


def test_a_takeover_while_a_job_runs_waits_for_it(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    secondary.svm_write(1)
    secondary.take_over()
    assert len(secondary.workers) == 1  # the batch under way; nothing else begins before it has ended
    secondary.workers.run()
    assert secondary.image() == changed(IMAGES[0], (1, b"P"))
    assert {disk.meta.kind for disk in secondary.disks} == {Kind.TARGET}
    secondary.workers.run_all()
    assert secondary.image() == changed(IMAGES[0], (1, b"S"))
    assert folded(secondary)


def test_the_image_is_a_sources_before_anything_of_the_svm_reaches_it(secondary: Secondary) -> None:
    secondary.following()
    secondary.svm_write(1)
    secondary.take_over()
    assert secondary.disk.meta.bits.any()  # marked before it is written
    kinds = [{disk.meta.kind for disk in secondary.disks}]
    secondary.workers.run()
    kinds.append({disk.meta.kind for disk in secondary.disks})
    assert kinds == [{Kind.TARGET}, {Kind.SOURCE}]
    assert secondary.image() == IMAGES[0]


def test_a_flush_is_answered_when_everything_before_it_is_durable(secondary: Secondary) -> None:
    secondary.following()
    secondary.svm_write(1)
    secondary.take_over()
    secondary.svm_write(2, b"T")
    flush, fua = secondary.svm_flush(), Answer()
    secondary.exports[0].write(fua, 3 * BLOCK_BYTES, memoryview(b"F" * BLOCK_BYTES), fua=True)
    expected = changed(IMAGES[0], (1, b"S"), (2, b"T"), (3, b"F"))
    while flush.said is None:
        assert len(secondary.workers)
        secondary.workers.run()
    assert secondary.image() == expected
    secondary.workers.run_all()
    assert (flush.said, fua.said) == ("done", "done")


def test_a_flush_waits_for_its_round_and_not_for_the_end(secondary: Secondary) -> None:
    """The guest goes on writing: what came before the flush is durable a round later."""
    secondary.following()
    many = LAST_ROUND_BLOCKS_MAX + 10
    secondary.svm_write(0, b"0", many)
    secondary.take_over()
    secondary.workers.run()  # the images are a source's
    secondary.svm_write(1000, b"1")
    flush = secondary.svm_flush()
    secondary.svm_write(0, b"2", many)
    secondary.workers.run()  # the first round; the flush belongs to the second
    assert flush.said is None
    secondary.svm_write(0, b"3", many)
    secondary.workers.run()
    assert flush.said == "done"
    assert secondary.image()[1000 * BLOCK_BYTES :][:BLOCK_BYTES] == b"1" * BLOCK_BYTES
    assert not folded(secondary)


def test_a_flush_of_one_disk_and_a_write_with_fua_wait_for_the_same_rounds(secondary: Secondary) -> None:
    secondary.following()
    many = LAST_ROUND_BLOCKS_MAX + 10
    secondary.svm_write(0, b"0", many)
    secondary.take_over()
    secondary.workers.run()
    waiting = [secondary.svm_flush(1), secondary.svm_write(1999, b"F", fua=True)]
    secondary.svm_write(0, b"2", many)
    secondary.workers.run()
    assert secondary.image() == changed(IMAGES[0], *((block, b"0") for block in range(many)))
    assert [answer.said for answer in waiting] == [None] * 2
    secondary.svm_write(0, b"3", many)
    late = secondary.svm_flush()
    secondary.workers.run()
    assert secondary.image() == changed(IMAGES[0], *((block, b"2") for block in range(many)), (1999, b"F"))
    assert [answer.said for answer in waiting] == ["done"] * 2
    assert late.said is None
    secondary.workers.run()
    assert late.said == "done"


def test_all_disks_end_together(secondary: Secondary) -> None:
    """The small one has nothing left, but a batch for all is under way."""
    secondary.following()
    many = LAST_ROUND_BLOCKS_MAX + 10
    secondary.svm_write(0, b"0", many)
    secondary.take_over()
    secondary.workers.run()
    secondary.svm_write(0, b"1", many)
    while not folded(secondary):
        assert isinstance(secondary.exports[1], FoldingDisk)
        secondary.workers.run()
    assert secondary.exports == dict(enumerate(secondary.sources))
    flush = secondary.svm_flush(1)
    assert flush.said is None  # its own fdatasync is under way
    secondary.workers.run_all()
    assert flush.said == "done"


def test_writes_go_on_in_rounds_and_those_of_the_last_one_wait_and_are_not_lost(secondary: Secondary) -> None:
    secondary.following()
    model = bytearray(IMAGES[0])
    many = LAST_ROUND_BLOCKS_MAX + 10

    def write(block: int, fill: bytes, count: int = 1) -> Answer:
        model[block * BLOCK_BYTES : (block + count) * BLOCK_BYTES] = fill * (count * BLOCK_BYTES)
        return secondary.svm_write(block, fill, count)

    write(0, b"0", many)
    secondary.take_over()
    rounds, waited = 0, []
    while not folded(secondary):
        rounds += 1
        assert rounds < 40, "the guest puts off the end for ever"
        answer = write(rounds, bytes([rounds]), many)
        if answer.said is None:
            waited.append(answer)
            assert secondary.svm_reads(rounds, 1) != bytes([rounds]) * BLOCK_BYTES
        secondary.workers.run()
    secondary.workers.run_all()
    assert waited
    assert {answer.said for answer in waited} == {"done"}
    assert secondary.image() == model
    assert secondary.svm_reads() == model


def test_without_room_a_write_waits_for_the_end(tmp_path: Path) -> None:
    secondary = Secondary(tmp_path, room_blocks=20)
    try:
        secondary.following()
        for block in range(10):
            assert secondary.svm_write(block).said == "done"
        waiting = secondary.svm_write(10)
        secondary.take_over()
        assert waiting.said == "done"  # the room that was kept for the PVM
        later = [secondary.svm_write(block) for block in range(11, 25)]
        assert (later[0].said, later[-1].said) == ("done", None)
        flush = secondary.svm_flush()
        secondary.workers.run_all()
        assert {answer.said for answer in [*later, flush]} == {"done"}
        assert secondary.image() == changed(IMAGES[0], *((block, b"S") for block in range(25)))
    finally:
        secondary.close()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_image_that_fails_in_a_takeover_gives_errors_and_never_hangs(secondary: Secondary, failing: int) -> None:
    """Job 0 is the last batch of the pair, then the image becomes a source, then the first round."""
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    secondary.svm_write(2)
    secondary.take_over()
    before = [secondary.svm_flush(disk) for disk in range(2)]
    secondary.workers.run(failing)
    secondary.workers.fail()
    assert [answer.said for answer in before] == [errno.EIO] * 2  # no batch reaches one without the other
    for disk in range(2):
        assert secondary.svm_flush(disk).said == errno.EIO
        assert secondary.svm_write(0, disk=disk).said == errno.EIO
    assert len(secondary.troubles()) == 1
    assert secondary.svm_reads(1, 2) == b"P" * BLOCK_BYTES + b"S" * BLOCK_BYTES
    assert len(secondary.workers) == 0


def full(offset: int, data: memoryview) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_spill_file_that_fails_in_a_takeover_fails_its_own_disk_alone(
    secondary: Secondary, monkeypatch: pytest.MonkeyPatch
) -> None:
    secondary.following()
    secondary.svm_write(2)
    secondary.svm_write(0, b"T", disk=1)
    secondary.take_over()
    before = [secondary.svm_flush(disk) for disk in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(secondary.disks[0].core, "write", full)
        assert secondary.svm_write(5).said == errno.EIO
    assert ["spill file can't be written" in why for why in secondary.troubles()] == [True]
    assert [answer.said for answer in before] == [errno.EIO, None]
    assert secondary.svm_flush().said == errno.EIO
    later = secondary.svm_write(0, b"U", disk=1, fua=True)
    secondary.workers.run_all()
    assert (before[1].said, later.said) == ("done", "done")
    assert secondary.image(1) == b"U" * len(IMAGES[1])
    assert secondary.image(0) == changed(IMAGES[0], (2, b"S"))  # what was answered before is there


def test_an_image_that_failed_before_a_takeover_gives_errors_and_never_hangs(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    secondary.workers.fail()
    secondary.take_over()
    assert isinstance(secondary.exports[0], FoldingDisk)
    assert secondary.svm_flush().said == errno.EIO
    assert secondary.svm_write(5).said == errno.EIO
    secondary.workers.run_all()
    assert secondary.svm_reads(1, 1) == b"P" * BLOCK_BYTES
