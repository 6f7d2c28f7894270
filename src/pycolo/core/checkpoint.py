"""The story of a checkpoint, both sides, top to bottom.

The procedures are plain coroutines over narrow ports: the daemon drives them with real QEMUs and sockets, the simulator
in virtual time with a failure at every await. Nothing here knows of asyncio.

Guarantees
* The PVM is paused only for the cut (rule of the asynchronous flow); it never waits for the SVM to load.
* Whatever await fails, the PVM is resumed, the feed goes on, and no page is forgotten (rules 6 and 7).
* The first checkpoint's pages reach the SVM's RAM as they arrive: it has never run, and nothing is committed to spoil.
* Of later ones the SVM, which runs on, has most pages already, as it does the same: where dirty pages are found fast,
  those are found while they arrive, but for the last ones, so that few are left for a load, for which clients may wait.
* Memory, device state and disks move together: the disks' writes of an epoch have arrived before it is committed, and
  become the SVM's disk between its stop and its load (rule 4).
* The secondary has one commit point. Before it everything staged is discarded, after it `roll_forward` can be repeated
  until it succeeds and always ends at the committed epoch (rule 3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pycolo.core.epochs import EpochLedger
from pycolo.core.memory_cache import MemoryCache, Stage, StageDigest
from pycolo.core.pages import Contents, Indices, PageBatch, PageDebt
from pycolo.errors import PeerLost, VmLost

LOADS_MAX = 3  # the guest may end just after the first
AHEAD_SHARE = 128  # of RAM, so that to ask the tracker, which looks at all of it, is not more than to look at them


@dataclass(frozen=True, slots=True)
class CheckpointLimits:
    """Bounds of one checkpoint."""

    precopy_rounds_min: int = 2  # further ones only when there are half as many pages as in the one before
    precopy_rounds_max: int = 4
    precopy_pages_min: int = 256  # fewer dirty pages are copied faster inside the pause than before it
    catch_up_pages_min: int = 2048  # so many that the secondary may be behind; fewer are taken sooner than it answers
    first_sync_rounds_max: int = 5
    batch_pages_max: int = 256  # heartbeats wait for no more than one batch, which takes some ms of a slow host


class PrimaryVm(Protocol):
    """The PVM. Every method may raise VmLost."""

    async def pause(self) -> None: ...

    async def resume(self) -> None:
        """Let it run, once nothing is being saved any more."""

    async def take_dirty_pages(self) -> Indices: ...

    async def expect_pages(self, count: int) -> None:
        """About so many pages will be read in the coming pause: what copies of them need is made ready before it."""

    async def read_pages(self, indices: Indices) -> Contents: ...

    def begin_save(self) -> None:
        """The paused VM's device state is being saved from here on, while other things are done."""

    async def save_device_state(self) -> bytes:
        """What `begin_save` has begun to save."""


class PrimaryOutput(Protocol):
    """The agent beside the PVM: it feeds client frames and holds output."""

    async def pause_feed(self) -> int:
        """Stop feeding; returns, once QEMU has taken every frame, the number of the next one: the boundary."""

    async def resume_feed(self) -> None: ...

    async def seal(self, epoch: int) -> None:
        """Drain the paused PVM's output: it belongs to the old epoch, what comes after it to `epoch`."""

    async def commit(self, epoch: int) -> None:
        """Release everything that was sealed by the checkpoint that starts `epoch`, and before it."""


class PrimaryDisks(Protocol):
    """The PVM's disks. Every method may raise VmLost."""

    async def room(self, committed: int) -> None:
        """Returns once the secondary's disks can take what a pause lets through. Raises PeerLost.

        No write waits for room while the PVM is paused, so a checkpoint would follow the other until there is none:
        what is `committed` has to reach the secondary's images first.
        """

    async def expect_pause(self) -> None:
        """The PVM is about to be paused, which waits for its requests: from here on each is answered at once."""

    async def seal(self, epoch: int) -> None:
        """The PVM is paused: what it wrote up to here belongs to the checkpoint that starts `epoch`."""

    async def expect_requests(self) -> None:
        """The PVM runs again."""


class SecondaryLink(Protocol):
    """The way to the secondary. Every method may raise PeerLost, and from then on every method does."""

    async def send_pages(self, epoch: int, batch: PageBatch) -> None: ...
    async def send_stage(self, stage: Stage) -> None: ...

    async def caught_up(self) -> None:
        """Returns when the secondary has taken all the pages that were sent."""

    async def committed(self, epoch: int) -> None:
        """Returns when the secondary has committed `epoch`; raises CheckpointFailed when it has discarded it."""


class SecondaryVm(Protocol):
    """The SVM. Every method may raise VmLost."""

    async def breathe(self) -> None:
        """Let heartbeats and packets have their turn between two pieces of long work."""

    async def stop_for_load(self) -> None: ...
    async def take_dirty_pages(self) -> Indices: ...

    def looks_ahead(self) -> bool:
        """Whether dirty pages are found so fast that they may be asked for at any time."""

    async def alike(self, indices: Indices, image: Contents) -> Indices:
        """Those of the pages that its RAM holds as they are in `image`."""

    async def write_pages(self, indices: Indices, image: Contents) -> None: ...
    async def load_device_state(self, device_state: bytes) -> None: ...

    async def resume(self) -> bool:
        """Let it run; False when it may not be what was loaded, and has to be loaded once more."""


class SecondaryFeed(Protocol):
    """The agent beside the SVM."""

    async def stop_feed(self) -> None:
        """Stop feeding client frames to the SVM; none may reach it any more once it is loaded, but by a replay."""

    async def drop_output(self) -> None:
        """Drop what the stopped SVM still put out: it belongs to a past that is being replaced.

        What the SVM puts out from here until `start_feed` is kept back: its epoch is not known before.
        """

    async def start_feed(self, epoch: int, boundary: int) -> None:
        """The SVM is at the start of `epoch`: replay client frames from the boundary on, compare its output again.

        A second call for the same epoch changes nothing (the answer to the first may have been lost).
        """


class SecondaryDisks(Protocol):
    """The SVM's disks. Every method may raise VmLost."""

    async def staged(self, epoch: int) -> None:
        """Returns when all that the PVM wrote before the start of `epoch` has arrived. Raises PeerLost."""

    async def expect_pause(self) -> None:
        """The SVM is about to be stopped, which waits for its requests: from here on each is answered at once."""

    async def commit(self, epoch: int) -> None:
        """The SVM is stopped: its disks become what the PVM's were at the start of `epoch`, its own writes are dropped.

        A repetition for the same epoch drops the SVM's own writes again.
        """


class PrimaryLink(Protocol):
    """The way to the primary. Every method may raise PeerLost, and from then on every method does."""

    async def receive(self) -> tuple[int, PageBatch] | Stage: ...
    async def send_committed(self, epoch: int) -> None: ...
    async def send_discarded(self, epoch: int, why: str) -> None: ...
    async def send_loaded(self, epoch: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one checkpoint sent: of so many dirty pages so many bytes, device state included."""

    epoch: int
    pages: int
    bytes: int


# ---------------------------------------------------------------- primary


async def take_checkpoint(
    vm: PrimaryVm,
    output: PrimaryOutput,
    disks: PrimaryDisks,
    link: SecondaryLink,
    ledger: EpochLedger,
    limits: CheckpointLimits,
    sealed: Callable[[], None] = lambda: None,
) -> Transfer:
    """Take one checkpoint and release what it frees; returns when the secondary has committed it.

    `sealed` is called once the PVM's output is held and before it runs again: from then on the secondary may hold a
    state that it could take over with. Raises VmLost, PeerLost (whether it was committed is unknown), CheckpointFailed.
    """
    epoch = ledger.begin()
    stream = _Stream(vm, link, ledger, epoch, limits)
    committed = False
    try:
        await disks.room(ledger.committed)
        await _precopy(vm, link, ledger, stream, limits)
        cut = await _cut(vm, output, disks, ledger, epoch, sealed)
        await stream.send(cut.pages, cut.contents)
        await link.send_stage(stream.stage(cut.boundary, cut.device_state))
        await link.committed(epoch)
        committed = True
    finally:
        if committed:
            ledger.commit(epoch)
        else:
            ledger.fail()
    await output.commit(epoch)
    return Transfer(epoch, stream.pages, stream.bytes + len(cut.device_state))


async def _precopy(
    vm: PrimaryVm, link: SecondaryLink, ledger: EpochLedger, stream: _Stream, limits: CheckpointLimits
) -> None:
    """Send pages dirtied so far while the PVM runs, so that few are left for the pause.

    After many of them the secondary is waited for: what it has not taken yet would keep it from committing, while
    clients wait for what the PVM says.
    """
    first_sync, owed, owed_before = ledger.committed == 0, 0, 0
    for turn in range(limits.first_sync_rounds_max if first_sync else limits.precopy_rounds_max):
        await _collect_dirty(vm.take_dirty_pages, ledger.debt)
        owed = ledger.debt.owed_count
        hardly_fewer = turn >= limits.precopy_rounds_min and not first_sync and owed > owed_before // 2
        if owed < limits.precopy_pages_min or hardly_fewer:
            break
        owed_before = owed
        await stream.send_owed()
        if owed >= limits.catch_up_pages_min:
            await link.caught_up()
    else:
        owed //= 2  # these have been sent; while they were, fewer came, as they do from round to round
    await vm.expect_pages(owed)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What was copied while the PVM stood still: its last pages (n,), their contents (n, 4096), its device state."""

    boundary: int
    pages: Indices
    contents: Contents
    device_state: bytes


async def _cut(
    vm: PrimaryVm,
    output: PrimaryOutput,
    disks: PrimaryDisks,
    ledger: EpochLedger,
    epoch: int,
    sealed: Callable[[], None],
) -> _Cut:
    """Pause the PVM at one point of its input and output, and copy what makes up its state there."""
    try:
        boundary = await output.pause_feed()
        try:
            await disks.expect_pause()
            await vm.pause()
            vm.begin_save()
            await output.seal(epoch)
            await disks.seal(epoch)
            ledger.sealed(epoch)
            sealed()
            await _collect_dirty(vm.take_dirty_pages, ledger.debt)
            dirty = ledger.debt.take()
            contents = await vm.read_pages(dirty)
            device_state = await vm.save_device_state()
        finally:
            await vm.resume()
            await disks.expect_requests()
    finally:
        await output.resume_feed()
    return _Cut(boundary, dirty, contents, device_state)


class _Stream:
    """The page stream of one checkpoint: batches, and the digest over them."""

    def __init__(
        self, vm: PrimaryVm, link: SecondaryLink, ledger: EpochLedger, epoch: int, limits: CheckpointLimits
    ) -> None:
        self._vm, self._link, self._ledger, self._epoch = vm, link, ledger, epoch
        self._batch_pages_max = limits.batch_pages_max
        self._digest = StageDigest(epoch)
        self.pages = 0
        self.bytes = 0

    async def send_owed(self) -> None:
        """Send what is owed now, in batches small enough that nothing else waits long."""
        owed = self._ledger.debt.take()
        for start in range(0, len(owed), self._batch_pages_max):
            indices = owed[start : start + self._batch_pages_max]
            await self.send(indices, await self._vm.read_pages(indices))

    async def send(self, indices: Indices, contents: Contents) -> None:
        """Send pages already copied, a batch at a time: however many there are, none takes long."""
        for start in range(0, len(indices), self._batch_pages_max):
            part = slice(start, start + self._batch_pages_max)
            batch = PageBatch.of(indices[part], contents[part])
            self.pages += batch.page_count
            less = self._ledger.reduced(batch)
            if less.page_count:
                self._digest.add(less)
                self.bytes += less.nbytes
                await self._link.send_pages(self._epoch, less)

    def stage(self, boundary: int, device_state: bytes) -> Stage:
        """The end of the stream."""
        digest = self._digest.finish(boundary, device_state)
        return Stage(self._epoch, boundary, device_state, self._digest.batch_count, digest)


# ---------------------------------------------------------------- secondary


async def receive_checkpoint(
    link: PrimaryLink, vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache
) -> bool:
    """Receive one checkpoint, commit it when it is whole, and bring the SVM to it; False when it was discarded.

    Raises PeerLost before the commit point with nothing staged any more; VmLost when the SVM can't follow.
    """
    try:
        stage = await _receive_stage(link, vm, cache)
        problem = cache.problem(stage)
        if problem is None:
            await disks.staged(stage.epoch)
    except PeerLost:
        cache.discard()
        raise
    if problem is not None:
        cache.discard()
        await link.send_discarded(stage.epoch, problem)
        return False
    cache.commit(stage)  # ---- commit point: from here on, always forward ----
    await _tell(link.send_committed(stage.epoch))
    await roll_forward(vm, feed, disks, cache)
    await _tell(link.send_loaded(stage.epoch))
    return True


async def roll_forward(vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache) -> None:
    """Bring the SVM to the committed checkpoint; can be repeated after a failure at any point. Raises VmLost.

    The SVM is never set back once its feed may have started: what it has put out since may have been released.
    """
    stage = cache.committed
    if stage is None or cache.fed_epoch == stage.epoch:
        return
    if cache.loaded_epoch != stage.epoch:
        await _load(vm, feed, disks, cache, stage)
    await feed.start_feed(stage.epoch, stage.boundary)
    cache.fed_epoch = stage.epoch
    cache.forget_spent()


async def _load(vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache, stage: Stage) -> None:
    """Make the SVM the committed state and let it run, its output kept back until the feed starts."""
    await _restore(vm, cache)
    for _ in range(LOADS_MAX):
        if await _load_once(vm, feed, disks, cache, stage):
            break
    else:
        raise VmLost(f"the SVM is not what was loaded, {LOADS_MAX} times in a row")
    cache.debt.take()
    cache.debt.settle()
    cache.loaded_epoch = stage.epoch


async def _load_once(
    vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache, stage: Stage
) -> bool:
    await feed.stop_feed()
    await disks.expect_pause()
    await vm.stop_for_load()
    await feed.drop_output()
    await disks.commit(stage.epoch)
    await _collect_dirty(vm.take_dirty_pages, cache.debt)
    await vm.write_pages(cache.debt.owed(), cache.image)
    await vm.load_device_state(stage.device_state)
    await vm.write_pages(await _dirtied_by_load(vm, cache), cache.image)
    return await vm.resume()


async def _dirtied_by_load(vm: SecondaryVm, cache: MemoryCache) -> Indices:
    """The pages that the load itself wrote; in the debt too, in case this roll-forward has to be repeated."""
    by_load = PageDebt(len(cache.image), all_owed=False)
    try:
        await _collect_dirty(vm.take_dirty_pages, by_load)
    finally:
        cache.debt.add(by_load.owed())
    return by_load.owed()


async def _receive_stage(link: PrimaryLink, vm: SecondaryVm, cache: MemoryCache) -> Stage:
    """The SVM that has never run gets its RAM while it arrives: clients would wait for a load of it all."""
    first = cache.committed is None
    if first:  # from here on the tracker tells what QEMU writes there by itself
        await _collect_dirty(vm.take_dirty_pages, cache.debt)
    await _restore(vm, cache)
    looks_ahead = vm.looks_ahead()
    unlooked: list[Indices] = []
    unlooked_pages = 0
    while True:
        message = await link.receive()
        if isinstance(message, Stage):
            return message
        pages = cache.stage(*message)
        if first:
            await vm.write_pages(pages, cache.image)
            cache.debt.paid(pages)
            continue
        await vm.breathe()
        if not looks_ahead:
            continue
        unlooked.append(pages)
        unlooked_pages += len(pages)
        if unlooked_pages * AHEAD_SHARE >= len(cache.image):
            await _find_alike(vm, cache, np.unique(np.concatenate(unlooked)))
            unlooked, unlooked_pages = [], 0


async def _find_alike(vm: SecondaryVm, cache: MemoryCache, staged: Indices) -> None:
    """What the SVM holds of these pages need not be loaded; what it writes from here on the tracker tells once more."""
    await _collect_dirty(vm.take_dirty_pages, cache.debt)
    cache.debt.paid(await vm.alike(staged, cache.image))


async def _restore(vm: SecondaryVm, cache: MemoryCache) -> None:
    """Undo what a discarded checkpoint did to the image."""
    while cache.restore_next():
        await vm.breathe()


async def _tell(sending: Awaitable[None]) -> None:
    """After the commit point the primary's death changes nothing here; the failure detector learns of it by itself."""
    try:
        await sending
    except PeerLost:
        return


# ---------------------------------------------------------------- both


async def _collect_dirty(take_dirty_pages: Callable[[], Awaitable[Indices]], debt: PageDebt) -> None:
    """Ask the tracker; an answer that gets lost leaves every page owed, as it may have re-armed the tracking."""
    debt.expect_answer()
    debt.answered(await take_dirty_pages())
