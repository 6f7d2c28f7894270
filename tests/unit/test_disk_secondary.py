"""The secondary's disks: first copy, epochs, the SVM's own writes, what is not due, and trouble."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from secondary_script import BLOCKS, IMAGES, OVERLAY_BLOCKS, ROOM_BLOCKS, SESSION, SIZE, Secondary, changed

from disk_tools import Answer
from pycolo.agent.protocol import Wanted
from pycolo.core import disk_journal
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES
from pycolo.disk import protocol
from pycolo.disk.joined import JoinedImages
from pycolo.disk.secondary import APPLY_EVERY_S, MARKS_MAX
from pycolo.disk.self_check import checks_of
from pycolo.edge.disk_meta import Kind
from pycolo.edge.journal_file import JournalFile
from pycolo.errors import PeerViolation


@pytest.fixture
def secondary(tmp_path: Path) -> Iterator[Secondary]:
    secondary = Secondary(tmp_path)
    yield secondary
    secondary.close()


# ---------------------------------------------------------------- the first copy


def test_it_says_what_it_has_and_then_takes_everything_directly(secondary: Secondary) -> None:
    for number, source in enumerate(secondary.sources):
        source.meta.change((Kind.TARGET, Kind.SOURCE)[number], SESSION)
    secondary.sources[1].changes.note(0, 1)
    secondary.side.leave()
    secondary.other.close()
    secondary.other = secondary.call()
    states = [wire.ImageState(SESSION, b""), wire.ImageState(SESSION, b"\x01")]
    assert secondary.hear(1) == [wire.Images(states, ROOM_BLOCKS // 2)]
    secondary.say(wire.Begin([False, True]))
    assert [(disk.meta.kind, disk.meta.session) for disk in secondary.disks] == [
        (Kind.PARTIAL, SESSION),
        (Kind.PARTIAL, ""),
    ]
    secondary.write(3)
    secondary.zero(0, 100, disk=1)
    assert secondary.image(0) == changed(IMAGES[0], (3, b"P"))
    assert secondary.image(1) == bytes(100) + IMAGES[1][100:]
    assert secondary.side.used_blocks == 0


def watch_syncs(secondary: Secondary, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[Kind]]]:
    """Which image is synced, and what the images are at that time."""
    seen: list[tuple[int, set[Kind]]] = []
    for number, source in enumerate(secondary.sources):

        def sync(number: int = number, real: Callable[[], None] = source.image.sync) -> None:
            seen.append((number, {disk.meta.kind for disk in secondary.disks}))
            real()

        monkeypatch.setattr(source.image, "sync", sync)
    return seen


def test_it_follows_when_both_images_have_been_written_out_once(
    secondary: Secondary, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = watch_syncs(secondary, monkeypatch)
    secondary.copying()
    secondary.say(wire.Copied(SESSION))
    secondary.side.turn(0.0)
    assert secondary.other.hears_nothing()
    secondary.workers.run()
    assert syncs == [(0, {Kind.PARTIAL}), (1, {Kind.PARTIAL})]
    assert secondary.hear(1) == [wire.Following()]
    assert {disk.meta.kind for disk in secondary.disks} == {Kind.PARTIAL}


def test_adopted_comes_before_applied_and_after_both_images(
    secondary: Secondary, monkeypatch: pytest.MonkeyPatch
) -> None:
    secondary.adopting()
    assert protocol.Marked(1) in secondary.notices
    secondary.side.turn(0.0)
    assert secondary.other.hears_nothing()
    assert [disk.meta.kind for disk in secondary.disks] == [Kind.PARTIAL, Kind.PARTIAL]
    syncs = watch_syncs(secondary, monkeypatch)
    secondary.workers.run()
    assert syncs == [(0, {Kind.PARTIAL}), (1, {Kind.PARTIAL})]  # none is a target before both are durable
    assert secondary.hear(2) == [wire.Adopted(), wire.Applied(1)]
    assert {(disk.meta.kind, disk.meta.session) for disk in secondary.disks} == {(Kind.TARGET, SESSION)}


def test_nothing_is_applied_before_the_images_are_adopted(secondary: Secondary) -> None:
    secondary.adopting()
    secondary.write(5)
    assert secondary.image() == IMAGES[0]  # from the first mark on nothing is direct
    secondary.mark(2)
    assert secondary.side.commit(2) is None
    secondary.side.turn(100.0)
    assert len(secondary.workers) == 1  # still the one that adopts
    secondary.workers.run()
    assert secondary.hear(2) == [wire.Adopted(), wire.Applied(1)]
    secondary.side.turn(200.0)
    secondary.workers.run_all()
    assert secondary.image() == changed(IMAGES[0], (5, b"P"))
    assert secondary.hear(1) == [wire.Applied(2)]


def test_marks_of_a_source_end_when_it_is_adopted(secondary: Secondary) -> None:
    secondary.sources[0].changes.note(0, SIZE)
    secondary.copying()
    secondary.say(wire.Copied(SESSION))
    secondary.workers.run()
    assert secondary.disk.meta.bits.any()
    secondary.mark(1)
    secondary.workers.run()
    assert not secondary.disk.meta.bits.any()


def test_after_a_reunion_adopted_waits_for_the_images_and_not_only_for_the_commit(secondary: Secondary) -> None:
    """What was copied came staged: it is on the images when it has been applied, and then the job has to run."""
    secondary.following()
    secondary.write(1)
    secondary.side.leave()
    secondary.other.close()
    secondary.other = secondary.call()
    secondary.begin_again()
    secondary.write(2)
    secondary.say(wire.Copied(SESSION))
    secondary.workers.run()
    assert secondary.hear(2)[1:] == [wire.Following()]
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    secondary.workers.run()  # applied: blocks 1 and 2 are on the image
    assert secondary.image() == changed(IMAGES[0], (1, b"P"), (2, b"P"))
    secondary.side.turn(20.0)
    assert len(secondary.workers) == 1
    assert secondary.other.hears_nothing()
    secondary.workers.run()
    assert secondary.hear(2) == [wire.Adopted(), wire.Applied(2)]
    assert {(disk.meta.kind, disk.meta.session) for disk in secondary.disks} == {(Kind.TARGET, SESSION)}


# ---------------------------------------------------------------- epochs


def test_staged_committed_applied(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(7)
    secondary.zero(8 * BLOCK_BYTES, BLOCK_BYTES)
    assert secondary.svm_reads() == IMAGES[0]
    secondary.mark(2)
    assert secondary.notices == [protocol.Marked(2)]
    assert secondary.svm_reads() == IMAGES[0]
    assert secondary.side.commit(2) is None
    expected = changed(IMAGES[0], (7, b"P"), (8, b"\0"))
    assert secondary.svm_reads() == expected
    secondary.side.turn(10.0)
    assert secondary.side.unfinished
    secondary.workers.run_all()
    assert secondary.image() == expected
    assert secondary.hear(1) == [wire.Applied(2)]
    assert (secondary.side.used_blocks, secondary.side.unfinished) == (0, False)


def test_a_commit_takes_the_discarded_marks_before_it_along(secondary: Secondary) -> None:
    secondary.following()
    for epoch, fill in ((2, b"a"), (3, b"b")):
        secondary.write(epoch, fill)
        secondary.write(9, fill)
        secondary.mark(epoch)
    secondary.write(4, b"c")  # of an epoch that is not over
    assert secondary.side.commit(3) is None
    expected = changed(IMAGES[0], (2, b"a"), (3, b"b"), (9, b"b"))
    assert secondary.svm_reads() == expected
    secondary.side.turn(10.0)
    secondary.workers.run_all()
    assert secondary.hear(1) == [wire.Applied(3)]
    assert secondary.image() == expected


def test_a_commit_may_be_repeated(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.svm_write(1)
    assert secondary.side.commit(2) is None
    assert secondary.svm_reads(1, 1) == b"P" * BLOCK_BYTES


def test_applying_goes_on_in_batches(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    assert len(secondary.workers) == 1
    secondary.write(2)
    secondary.checkpoint(3)
    wait_s = secondary.side.turn(10.1)
    assert wait_s == pytest.approx(APPLY_EVERY_S - 0.1)
    assert len(secondary.workers) == 1
    secondary.workers.run()
    assert len(secondary.workers) == 0
    secondary.side.turn(11.0)
    assert secondary.other.hear(1) == [wire.Applied(2)]
    secondary.workers.run_all()
    assert secondary.hear(1) == [wire.Applied(3)]
    assert secondary.side.turn(12.0) is None


def test_a_full_quarter_is_applied_without_delay(secondary: Secondary) -> None:
    secondary.following()
    secondary.side.turn(10.0)
    for block in range(ROOM_BLOCKS // 8 + 2):
        secondary.write(block)
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    assert len(secondary.workers) == 1


def test_the_self_check_names_the_first_difference(secondary: Secondary) -> None:
    secondary.following()
    pvm = [changed(IMAGES[0], (300, b"P")), IMAGES[1]]
    readers = [lambda at, n, image=image: image[at : at + n] for image in pvm]
    checks = checks_of(readers, [len(image) for image in pvm])
    secondary.write(300)
    secondary.mark(2, checks)
    assert secondary.side.commit(2) is None
    secondary.mark(3, checks)
    secondary.mark(4, b"\xff" * 8 + checks[8:])
    assert secondary.side.commit(3) is None
    assert secondary.side.commit(4) == (
        "self-check: MiB 0 of the disks differs from the primary's (pieces of 1048576 bytes)"
    )


# ---------------------------------------------------------------- the SVM's own writes


def test_the_svms_writes_are_seen_by_it_alone_and_go_at_the_commit(secondary: Secondary) -> None:
    secondary.following()
    assert secondary.svm_write(1).said == "done"
    assert secondary.svm_flush().said == "done"
    assert secondary.svm_reads() == changed(IMAGES[0], (1, b"S"))
    assert secondary.image() == IMAGES[0]
    secondary.checkpoint(2)
    assert secondary.svm_reads() == IMAGES[0]
    assert secondary.side.used_blocks == 0


def test_an_svm_that_writes_too_much_asks_once_and_then_waits(secondary: Secondary) -> None:
    secondary.following()
    for block in range(OVERLAY_BLOCKS):
        assert secondary.svm_write(block).said == "done"
    assert secondary.notices == [Wanted("disk_backlog")]
    late = [secondary.svm_write(block) for block in (0, 1)]
    assert [answer.said for answer in late] == [None, None]
    assert secondary.disk.core.overlay_blocks == OVERLAY_BLOCKS
    secondary.write(0)  # there is still room for the PVM
    secondary.checkpoint(2)
    assert [answer.said for answer in late] == ["done", "done"]
    assert secondary.svm_reads() == changed(IMAGES[0], (0, b"P"))
    assert secondary.svm_write(2).said == "done"


def test_one_large_write_of_the_svm_leaves_the_pvm_its_share(secondary: Secondary) -> None:
    secondary.following()
    assert secondary.svm_write(0, count=OVERLAY_BLOCKS - 1).said == "done"
    late = secondary.svm_write(0, count=OVERLAY_BLOCKS)
    zeros = Answer()
    secondary.disk.zero(zeros, 0, SIZE, fua=False, may_trim=False)
    assert (late.said, zeros.said) == (None, None)
    for block in range(OVERLAY_BLOCKS):
        secondary.write(block)
    assert secondary.troubles() == []


def test_a_pause_is_not_held_up_and_what_is_written_in_it_is_dropped(secondary: Secondary) -> None:
    secondary.following()
    for block in range(OVERLAY_BLOCKS):
        secondary.svm_write(block)
    late = secondary.svm_write(1)
    secondary.mark(2)
    secondary.side.expect_pause()
    assert late.said == "done"
    assert secondary.svm_write(2).said == "done"
    assert secondary.side.commit(2) is None
    assert secondary.svm_reads() == IMAGES[0]


# ---------------------------------------------------------------- what is not due, and trouble

NOT_DUE: dict[str, tuple[Callable[[Secondary], None], ...]] = {  # the last step is the one
    "a second greeting": (lambda s: s.say(wire.Greeting("token")),),
    "data before begin": (lambda s: s.send(s.written(0, b"x")),),
    "one disk": (lambda s: s.say(wire.Begin([True])),),
    "three disks": (lambda s: s.say(wire.Begin([True] * 3)),),
    "begin twice": (Secondary.copying, lambda s: s.say(wire.Begin([True, True]))),
    "copied before begin": (lambda s: s.say(wire.Copied(SESSION)),),
    "copied twice": (Secondary.copying, lambda s: s.say(wire.Copied(SESSION), wire.Copied(SESSION))),
    "copied without a session": (Secondary.copying, lambda s: s.say(wire.Copied(""))),
    "a mark before copied": (Secondary.copying, lambda s: s.mark(1)),
    "a mark again": (Secondary.following, lambda s: s.mark(1)),
    "an earlier mark": (Secondary.following, lambda s: s.mark(3), lambda s: s.mark(2)),
    "a wrong digest": (Secondary.following, lambda s: s.say(wire.Mark(2, bytes(16)))),
    "a third disk": (Secondary.copying, lambda s: s.write(0, disk=2)),
    "across the end": (Secondary.copying, lambda s: s.send(s.written(SIZE - 1, b"xy"))),
    "beyond the end": (Secondary.copying, lambda s: s.write(BLOCKS)),
    "zeros beyond the end": (Secondary.copying, lambda s: s.zero(SIZE - 1, 2)),
    "zeros beyond the end of the small one": (Secondary.following, lambda s: s.zero(0, 501, disk=1)),
    "the other's words": (Secondary.copying, lambda s: s.say(wire.Following())),
}


@pytest.mark.parametrize("steps", NOT_DUE.values(), ids=NOT_DUE)
def test_what_is_not_due_ends_the_session(secondary: Secondary, steps: tuple[Callable[[Secondary], None], ...]) -> None:
    for step in steps[:-1]:
        step(secondary)
    with pytest.raises(PeerViolation):
        steps[-1](secondary)
    assert protocol.Marked(2) not in secondary.notices
    assert secondary.troubles() == []
    assert secondary.image() == IMAGES[0]


def test_a_lost_write_is_noticed_at_the_mark_and_nothing_of_it_counts(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.written(2 * BLOCK_BYTES, b"lost")
    with pytest.raises(PeerViolation, match="digest of what was written before epoch 2"):
        secondary.mark(2)
    secondary.take_over()
    assert secondary.svm_reads() == IMAGES[0]


def fail_staging(secondary: Secondary, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(offset: int, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(secondary.disk.core, "stage", full)


def test_trouble_is_said_once_and_nothing_is_read_after_it(
    secondary: Secondary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write that was lost, a good one and the mark arrive together: the mark must not count."""
    secondary.following()
    fail_staging(secondary, monkeypatch)
    lost, good = secondary.written(0, b"x" * 512), secondary.written(4096, b"y" * 512)
    secondary.send(lost + good + secondary.marked(2))
    assert len(secondary.troubles()) == 1
    assert "No space left on device" in secondary.troubles()[0]
    assert protocol.Marked(2) not in secondary.notices
    secondary.write(0)
    secondary.mark(3)
    assert len(secondary.notices) == 1


def test_no_room_for_the_pvm_is_our_trouble(secondary: Secondary) -> None:
    secondary.following()
    for block in range(ROOM_BLOCKS):
        secondary.write(block)
    assert secondary.troubles() == []
    secondary.write(ROOM_BLOCKS)
    assert ["there is no room" in why for why in secondary.troubles()] == [True]


def test_an_image_that_can_not_be_written_is_trouble_and_no_epoch_is_applied(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    secondary.workers.fail()
    assert ["can't be written (No space left on device)" in why for why in secondary.troubles()] == [True]
    assert secondary.side.turn(20.0) is None
    assert len(secondary.workers) == 0
    assert secondary.other.hears_nothing()
    assert secondary.svm_reads(1, 1) == b"P" * BLOCK_BYTES


def test_an_image_that_can_not_be_adopted_is_trouble(secondary: Secondary) -> None:
    secondary.adopting()
    secondary.workers.fail(errno.EIO)
    assert len(secondary.troubles()) == 1
    assert len(secondary.workers) == 0
    secondary.side.turn(10.0)
    assert secondary.other.hears_nothing()


def test_a_second_image_that_can_not_be_written_keeps_the_first_one_from_counting(
    secondary: Secondary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch for all disks: the journal has all of it, so the next start brings both to the epoch."""
    secondary.following()
    secondary.write(1)
    secondary.send(secondary.written(0, b"Q" * 100, disk=1))
    secondary.checkpoint(2)
    secondary.side.turn(10.0)

    def full(offset: int, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(secondary.sources[1].image, "write", full)
        secondary.workers.run()
    assert len(secondary.troubles()) == 1
    assert all(str(source.image.path) in secondary.troubles()[0] for source in secondary.sources)
    secondary.side.turn(20.0)
    assert secondary.other.hear(1) == [wire.Working()]  # it has written, and there is no more to say
    assert secondary.other.hears_nothing()
    assert (secondary.side.applied_epoch, secondary.image(1)) == (1, IMAGES[1])
    journal = JournalFile(secondary.folder / "journal")
    disk_journal.replay(journal, JoinedImages([source.image for source in secondary.sources]))
    journal.close()
    assert secondary.image(0) == changed(IMAGES[0], (1, b"P"))
    assert secondary.image(1) == b"Q" * 100 + IMAGES[1][100:]


def test_a_secondary_that_is_busy_says_so_while_it_gets_on(secondary: Secondary) -> None:
    secondary.following()
    secondary.write(1)
    secondary.checkpoint(2)
    secondary.side.turn(10.0)
    assert len(secondary.workers) == 1
    secondary.side.turn(11.0)
    assert secondary.other.hears_nothing()  # the job has not got anywhere
    secondary.step()
    secondary.side.turn(11.1)
    assert secondary.other.hear(1) == [wire.Working()]
    secondary.step()
    secondary.side.turn(11.2)
    assert secondary.other.hears_nothing()  # not more often than need be
    secondary.side.turn(12.0)
    assert secondary.other.hear(1) == [wire.Working()]


def test_endless_marks_end_the_session(secondary: Secondary) -> None:
    secondary.following()
    for epoch in range(2, 2 + MARKS_MAX):
        secondary.mark(epoch)
    with pytest.raises(PeerViolation, match="not due"):
        secondary.mark(2 + MARKS_MAX)
    assert secondary.side.commit(1 + MARKS_MAX) is None
