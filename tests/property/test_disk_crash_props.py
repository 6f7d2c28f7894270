"""Crash safety of the journal: a fault at every step, and the image is one whole epoch or the other.

Power fails or the process is killed at step k of a batch, again at step j of the replay, and so on until a replay gets
through; then a write past the journal (a survivor that runs solo makes them) and a power loss, which nothing that is
left in the journal may undo; then a next batch. The mutants show that the tests can fail.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core import disk_journal
from pycolo.core.disk_journal import Record, Storage
from sim.storage import Crashed, FaultyStorage, OutOfBounds, Steps

IMAGE_BYTES = 3 * 4096 + 1234
Disks = tuple[FaultyStorage, FaultyStorage]  # journal, image


def batch(dice: random.Random) -> list[Record]:
    """Records that do not overlap, with contents in one or two parts, or zeros."""
    cuts = sorted({0, IMAGE_BYTES, *(dice.randrange(IMAGE_BYTES) for _ in range(dice.randint(1, 6)))})
    records: list[Record] = []
    for start, end in itertools.pairwise(cuts):
        content = dice.randbytes(end - start)
        middle = dice.randint(0, len(content))
        kind = dice.random()
        if kind < 0.6:
            records.append((start, end - start, [content[:middle], memoryview(content)[middle:]]))
        elif kind < 0.8:
            records.append((start, end - start, None))
    return records


def after(image: bytes, records: list[Record]) -> bytes:
    changed = bytearray(image)
    for offset, length, content in records:
        changed[offset : offset + length] = bytes(length) if content is None else b"".join(content)
    return bytes(changed)


def count_steps(disks: Disks, records: list[Record]) -> int:
    steps = Steps()
    for disk in disks:
        disk.steps = steps
    disk_journal.apply(*disks, records)
    return steps.count


def fails_at(step: int, error: Exception, disks: Disks, records: list[Record] | None) -> bool:
    """Apply these records, or replay, with a fault at that step; False when it was over before."""
    steps = Steps(step, error)
    for disk in disks:
        disk.steps = steps
    try:
        if records is None:
            disk_journal.replay(*disks)
        else:
            disk_journal.apply(*disks, records)
    except type(error):
        return True
    finally:
        for disk in disks:
            disk.steps = Steps()
    return False


def restart(disks: Disks, power: bool) -> Disks:
    journal, image = disks
    if power:
        return journal.after_power_loss(), image.after_power_loss()
    return journal.after_kill(), image.after_kill()


class Crash:
    """One story of crashes, drawn from a seed; it says what is wrong with the image, or nothing."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.old = self.dice.randbytes(IMAGE_BYTES)
        self.records = batch(self.dice)
        self.new = after(self.old, self.records)

    def disks(self) -> Disks:
        """A journal that a former batch has used, and the image."""
        journal, image = FaultyStorage(b"", self.dice), FaultyStorage(self.old, self.dice, IMAGE_BYTES)
        former = batch(self.dice)
        disk_journal.apply(journal, image, former)
        disk_journal.apply(journal, image, [(0, IMAGE_BYTES, [self.old])])
        return journal, image

    def steps(self) -> int:
        """How many steps a batch has."""
        return count_steps(self.disks(), self.records)

    def at(self, step: int, power: bool) -> str:
        """A crash there, crashes at every step of the replay after it, and life after that."""
        disks = self.disks()
        assert fails_at(step, Crashed(), disks, self.records)
        disks = restart(disks, power)
        again = 0
        while fails_at(again, Crashed(), disks, None):
            disks = restart(disks, self.dice.random() < 0.5)
            again += 1
        found = disks[1].content
        if found not in (self.old, self.new):
            return f"step {step}, {'power loss' if power else 'kill'}: the image is neither epoch"
        problem = self._then(disks, found)
        return problem and f"step {step}, {'power loss' if power else 'kill'}: {problem}"

    def _then(self, disks: Disks, image: bytes) -> str:
        direct: list[Record] = [(self.dice.randrange(IMAGE_BYTES - 600), 600, [self.dice.randbytes(600)])]
        for offset, _, content in direct:
            for part in content or ():
                disks[1].write(offset, part)
        disks[1].sync()
        disks = restart(disks, power=True)
        disk_journal.replay(*disks)
        if disks[1].content != after(image, direct):
            return "what was written past the journal is undone"
        following = batch(self.dice)
        disk_journal.apply(*disks, following)
        disks = restart(disks, power=True)
        whole = disks[1].content == after(after(image, direct), following)
        return "" if whole else "the next batch is lost"


def found_in(seeds: range) -> Iterator[str]:
    """Whatever is wrong, over all steps of all these stories."""
    for seed in seeds:
        for step in range(Crash(seed).steps()):
            for power in (True, False):
                try:
                    problem = Crash(seed).at(step, power)
                except OutOfBounds as outside:
                    problem = str(outside)
                if problem:
                    yield f"seed {seed}, {problem}"


@given(st.integers(0, 1 << 32))
@settings(max_examples=25)
def test_every_crash_leaves_a_whole_epoch(seed: int) -> None:
    assert list(found_in(range(seed, seed + 1))) == []


@given(st.integers(0, 1 << 32), st.sampled_from([28, 5]), st.booleans())
@settings(max_examples=40)
def test_a_failed_step_is_mended_by_a_repetition_or_a_replay(seed: int, errno: int, repeat: bool) -> None:
    for step in range(Crash(seed).steps()):
        story = Crash(seed)
        disks = story.disks()
        assert fails_at(step, OSError(errno, "scripted"), disks, story.records)
        if repeat:
            disk_journal.apply(*disks, story.records)
            allowed: tuple[bytes, ...] = (story.new,)
        else:
            disk_journal.replay(*disks)
            allowed = (story.old, story.new)
        assert disks[1].content in allowed
        kept = restart(disks, power=True)
        disk_journal.replay(*kept)
        assert kept[1].content == disks[1].content, f"step {step}: what was mended did not last"


@given(st.integers(0, 1 << 32), st.integers(0, 40))
@settings(max_examples=60)
def test_a_crash_while_a_failed_step_is_repeated(seed: int, second: int) -> None:
    for step in range(Crash(seed).steps()):
        story = Crash(seed)
        disks = story.disks()
        assert fails_at(step, OSError(5, "scripted"), disks, story.records)
        fails_at(second, Crashed(), disks, story.records)
        kept = restart(disks, power=True)
        disk_journal.replay(*kept)
        assert kept[1].content in (story.old, story.new), f"steps {step} and {second}"


# ---------------------------------------------------------------- mutants

Patch = Callable[[pytest.MonkeyPatch], None]


class Unsynced:
    """A storage whose sync is forgotten."""

    def __init__(self, storage: Storage) -> None:
        self.read, self.write, self.zero = storage.read, storage.write, storage.zero

    def sync(self) -> None:
        return


def _journal_not_synced(patch: pytest.MonkeyPatch) -> None:
    real = disk_journal._write_journal
    patch.setattr(disk_journal, "_write_journal", lambda journal, records: real(Unsynced(journal), records))


def _image_not_synced(patch: pytest.MonkeyPatch) -> None:
    real = disk_journal._write_image
    patch.setattr(disk_journal, "_write_image", lambda image, records: real(Unsynced(image), records))


def _clear_not_synced(patch: pytest.MonkeyPatch) -> None:
    real = disk_journal._clear
    patch.setattr(disk_journal, "_clear", lambda journal: real(Unsynced(journal)))


def _clear_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(disk_journal, "_clear", lambda journal: None)


def _digest_ignored(patch: pytest.MonkeyPatch) -> None:
    def whole_size(journal: Storage) -> int | None:
        header = journal.read(0, disk_journal.HEADER_BYTES)
        if len(header) < disk_journal.HEADER_BYTES:
            return None
        magic, size, _ = disk_journal._HEADER.unpack_from(header)
        whole = len(journal.read(disk_journal.HEADER_BYTES, size)) == size
        return size if magic == disk_journal._MAGIC and whole else None

    patch.setattr(disk_journal, "_whole_size", whole_size)


class HeaderFirst:
    """Puts the header, with a sync behind it, before the contents."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._later: list[tuple[int, bytes | memoryview]] = []
        self.read, self.zero = storage.read, storage.zero

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset:
            self._later.append((offset, data))
            return
        self._storage.write(0, data)
        self._storage.sync()
        for at, part in self._later:
            self._storage.write(at, part)

    def sync(self) -> None:
        self._storage.sync()


def _header_first_and_trusted(patch: pytest.MonkeyPatch) -> None:
    real = disk_journal._write_journal
    patch.setattr(disk_journal, "_write_journal", lambda journal, records: real(HeaderFirst(journal), records))
    _digest_ignored(patch)


def _replayed_from_a_cache(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(disk_journal, "_write_again", lambda journal, size: None)


def _only_what_is_found_is_cleared(patch: pytest.MonkeyPatch) -> None:
    real = disk_journal.replay

    def replay(journal: Storage, image: Storage) -> bool:
        return disk_journal._whole_size(journal) is not None and real(journal, image)

    patch.setattr(disk_journal, "replay", replay)


def _no_journal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(disk_journal, "_write_journal", lambda journal, records: None)


MUTANTS: dict[str, Patch] = {
    "journal not synced": _journal_not_synced,
    "image not synced": _image_not_synced,
    "clear not synced": _clear_not_synced,
    "clear left out": _clear_left_out,
    "digest ignored": _digest_ignored,
    "header first, and trusted": _header_first_and_trusted,
    "replayed from a cache": _replayed_from_a_cache,
    "only what is found is cleared": _only_what_is_found_is_cleared,
    "no journal": _no_journal,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_no_mutant_survives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        MUTANTS[name](patch)
        problem = next(found_in(range(60)), "")
    assert problem, "no crash brought it out"
    assert list(found_in(range(3))) == []
