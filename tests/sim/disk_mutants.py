"""Mutants of what the core does with disks; see mutants.py."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import pytest

from pycolo.core import checkpoint, disk_journal
from pycolo.core.block_store import BlockStore
from pycolo.core.changed_chunks import ChangedChunks
from pycolo.core.checkpoint import PrimaryLink, SecondaryDisks, SecondaryFeed, SecondaryVm
from pycolo.core.disk_epochs import SecondaryDisk
from pycolo.core.disk_journal import Record, Storage
from pycolo.core.memory_cache import MemoryCache, Stage
from pycolo.core.pages import Contents, Indices

from .checkers import client_history, committed_state, disks
from .disks import PvmDisk
from .links import DiskMark, DiskWrite
from .mutant import Apply, Mutant


def _overlay_kept(patch: pytest.MonkeyPatch) -> None:
    def commit(self: SecondaryDisk, epoch: int) -> None:
        while self._marked and self._marked[0][0] <= epoch:
            self._committed.absorb(self._marked.popleft()[1])

    patch.setattr(SecondaryDisk, "commit", commit)


def _only_the_very_epoch(*, drop: bool) -> Apply:
    """What an epoch that was never committed has staged is dropped, or stays behind."""

    def commit(self: SecondaryDisk, epoch: int) -> None:
        for marked, layer in [entry for entry in self._marked if entry[0] <= epoch]:
            if marked == epoch:
                self._committed.absorb(layer)
            elif drop:
                layer.clear()
        self._overlay.clear()

    return lambda patch: patch.setattr(SecondaryDisk, "commit", commit)


def _staged_kept_at_takeover(patch: pytest.MonkeyPatch) -> None:
    def take_over(self: SecondaryDisk) -> None:
        for _, layer in self._marked:
            self._committed.absorb(layer)
        self._marked.clear()
        self._committed.absorb(self._open)
        self.fold()

    patch.setattr(SecondaryDisk, "take_over", take_over)


def _overlay_dropped_at_takeover(patch: pytest.MonkeyPatch) -> None:
    real = SecondaryDisk.take_over

    def take_over(self: SecondaryDisk) -> None:
        self._overlay.clear()
        real(self)

    patch.setattr(SecondaryDisk, "take_over", take_over)


class _Hasty:
    """Does not wait until the writes of the epoch have arrived."""

    def __init__(self, disks: SecondaryDisks) -> None:
        self.expect_pause, self.commit = disks.expect_pause, disks.commit

    async def staged(self, epoch: int) -> None:
        return


def _committed_before_staged(patch: pytest.MonkeyPatch) -> None:
    real = checkpoint.receive_checkpoint

    async def mutated(
        link: PrimaryLink, vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache
    ) -> bool:
        return await real(link, vm, feed, _Hasty(disks), cache)

    patch.setattr(checkpoint, "receive_checkpoint", mutated)


class _ResumesFirst:
    """An SVM that is resumed before its disk is the committed one, and that disk, in one."""

    def __init__(self, vm: SecondaryVm, disks: SecondaryDisks) -> None:
        self._vm, self._disks, self._epoch = vm, disks, 0

    async def breathe(self) -> None:
        await self._vm.breathe()

    async def stop_for_load(self) -> None:
        await self._vm.stop_for_load()

    async def take_dirty_pages(self) -> Indices:
        return await self._vm.take_dirty_pages()

    def looks_ahead(self) -> bool:
        return self._vm.looks_ahead()

    async def alike(self, indices: Indices, image: Contents) -> Indices:
        return await self._vm.alike(indices, image)

    async def write_pages(self, indices: Indices, image: Contents) -> None:
        await self._vm.write_pages(indices, image)

    async def load_device_state(self, device_state: bytes) -> None:
        await self._vm.load_device_state(device_state)

    async def resume(self) -> bool:
        ran = await self._vm.resume()
        await self._disks.commit(self._epoch)
        return ran

    async def staged(self, epoch: int) -> None:
        await self._disks.staged(epoch)

    async def expect_pause(self) -> None:
        await self._disks.expect_pause()

    async def commit(self, epoch: int) -> None:
        self._epoch = epoch


def _disk_after_resume(patch: pytest.MonkeyPatch) -> None:
    real = checkpoint._load

    async def mutated(
        vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache, stage: Stage
    ) -> None:
        both = _ResumesFirst(vm, disks)
        await real(both, feed, both, cache, stage)

    patch.setattr(checkpoint, "_load", mutated)


def _mark_late(patch: pytest.MonkeyPatch) -> None:
    """The mark comes behind the next write."""
    real = PvmDisk.stream
    waiting: dict[PvmDisk, DiskMark] = {}

    def stream(self: PvmDisk, message: DiskWrite | DiskMark) -> None:
        if isinstance(message, DiskMark):
            waiting[self] = message
            return
        real(self, message)
        mark = waiting.pop(self, None)
        if mark:
            real(self, mark)

    patch.setattr(PvmDisk, "stream", stream)


def _mark_early(patch: pytest.MonkeyPatch) -> None:
    """The mark comes before the last write."""
    real = PvmDisk.stream
    kept: dict[PvmDisk, DiskWrite] = {}

    def stream(self: PvmDisk, message: DiskWrite | DiskMark) -> None:
        last = kept.pop(self, None)
        if isinstance(message, DiskWrite):
            kept[self] = message
        else:
            real(self, message)
        if last:
            real(self, last)

    patch.setattr(PvmDisk, "stream", stream)


def _no_journal(patch: pytest.MonkeyPatch) -> None:
    def apply(journal: Storage, image: Storage, records: list[Record]) -> None:
        disk_journal._write_image(image, records)

    patch.setattr(disk_journal, "apply", apply)


def _applying_not_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SecondaryDisk, "_committed_view", lambda self: [self._committed])


def _written_since_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The mark of a chunk goes with an epoch, though a later one has written it again."""
    real = ChangedChunks.applied

    def applied(self: ChangedChunks, epoch: int) -> None:
        running, self._running = self._running, set()
        later = [(sealed, chunks) for sealed, chunks in self._sealed if sealed > epoch]
        self._sealed = deque((sealed, chunks) for sealed, chunks in self._sealed if sealed <= epoch)
        real(self, epoch)
        self._running, self._sealed = running, deque(later)

    patch.setattr(ChangedChunks, "applied", applied)


def _failed_writes_ignored(patch: pytest.MonkeyPatch) -> None:
    real = BlockStore._write

    def write(self: BlockStore, first: int, data: memoryview) -> None:
        with suppress(OSError):
            real(self, first, data)

    patch.setattr(BlockStore, "_write", write)


def _marks_gone_with_the_partner(patch: pytest.MonkeyPatch) -> None:
    def lost(self: ChangedChunks) -> None:
        self._bits[:] = 0

    patch.setattr(ChangedChunks, "lost", lost)


DISK_MUTANTS = (
    Mutant("overlay not emptied at the commit", committed_state.NAME, _overlay_kept, 0),
    Mutant("committed before the disk's writes are staged", committed_state.NAME, _committed_before_staged, 3),
    Mutant("takeover keeps staged writes", disks.NAME, _staged_kept_at_takeover, 0),
    Mutant("takeover drops the overlay", client_history.NAME, _overlay_dropped_at_takeover, 0),
    Mutant("disk committed after the SVM is resumed", committed_state.NAME, _disk_after_resume, 0),
    Mutant("mark one write late", committed_state.NAME, _mark_late, 0),
    Mutant("mark one write early", committed_state.NAME, _mark_early, 0),
    Mutant("writes of a failed checkpoint dropped", committed_state.NAME, _only_the_very_epoch(drop=True), 4),
    Mutant("writes of a failed checkpoint stay behind", committed_state.NAME, _only_the_very_epoch(drop=False), 4),
    Mutant("image written without a journal", disks.NAME, _no_journal, 49, only=True),
    Mutant("marks of what was written since forgotten", disks.NAME, _written_since_forgotten, 0),
    Mutant("marks gone with the partner", disks.NAME, _marks_gone_with_the_partner, 1),
    Mutant("failed writes to the spill file ignored", committed_state.NAME, _failed_writes_ignored, 8),
    Mutant("what is being applied is not read", committed_state.NAME, _applying_not_read, 0),
)
