"""The model disks: the primary's streams its writes at once, the secondary's is the production core over model files.

The secondary brings committed writes to its image in the background, by the production journal, a few steps of it at a
time; when its host dies the files lose what was not synced, and the journal is replayed. When one of its files
fails it is lost, and its VM with it.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pycolo.core import disk_journal
from pycolo.core.block_store import BlockStore
from pycolo.core.changed_chunks import ChangedChunks, bitmap_bytes_of, ranges_of
from pycolo.core.disk_epochs import OnImage, SecondaryDisk
from pycolo.errors import PeerLost, VmLost

from .guest import DISK_BYTES
from .history import DiskSeen, History
from .links import DiskApplied, DiskMark, DiskMessage, DiskWrite, LinkEnd
from .scheduler import Host, Scheduler
from .storage import FaultyStorage, MemorySpill

MEMORY_BLOCKS, SPILL_BLOCKS, ZERO_BLOCKS_MAX = 4, 600, 600
APPLY_US = (100, 4_000)
APPLY_STEP_US = (20, 1_200)
APPLY_STEPS = (1, 3)
FOLD_US = 6_000
FAILS_US = 20_000
STEPS_UNTIL_FAILED = 4
SCALE = 64  # a byte of the model stands for so many, so that the disk has several chunks
FIRST_DISK = random.Random("disk").randbytes(DISK_BYTES)


class PvmDisk:
    """The PVM's disk: a plain array of bytes, the stream to the secondary, and what may differ from its image."""

    def __init__(self, link: LinkEnd | None, content: bytes = FIRST_DISK) -> None:
        self._link = link
        self._bytes = bytearray(content)
        self._bits = np.zeros(bitmap_bytes_of(DISK_BYTES * SCALE), np.uint8)
        self._chunks = ChangedChunks(DISK_BYTES * SCALE, self._bits)
        self._chunks.begin()
        self._chunks.clear()  # both images begin alike
        if link is not None:
            self._tie(link)

    def _tie(self, link: LinkEnd) -> None:
        self._link = link
        link.on_disk, link.on_lost = self._on_disk, self._chunks.lost

    def follow_again(self, link: LinkEnd) -> None:
        """The partner that was lost is back, behind `link`: it gets what may be different there."""
        self._chunks.begin()
        self._tie(link)
        for offset, length in self.marked:
            self.stream(DiskWrite(offset, length, self.read(offset, length)))

    def _on_disk(self, message: DiskMessage) -> None:
        if isinstance(message, DiskApplied):
            self._chunks.applied(message.epoch)

    @property
    def marked(self) -> list[tuple[int, int]]:
        """(offset, length) of what may be different from the secondary's image."""
        return [(at // SCALE, length // SCALE) for at, length in ranges_of(self._bits, DISK_BYTES * SCALE)]

    @property
    def content(self) -> bytes:
        """All of it."""
        return bytes(self._bytes)

    def read(self, offset: int, length: int) -> bytes:
        """See Disk."""
        return bytes(self._bytes[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """See Disk."""
        self._chunks.note(offset * SCALE, len(data) * SCALE)
        self._bytes[offset : offset + len(data)] = data
        self.stream(DiskWrite(offset, len(data), data))

    def write_zeros(self, offset: int, length: int) -> None:
        """See Disk."""
        self._chunks.note(offset * SCALE, length * SCALE)
        self._bytes[offset : offset + length] = bytes(length)
        self.stream(DiskWrite(offset, length, None))

    def seal(self, epoch: int) -> None:
        """See PrimaryDisks."""
        self._chunks.seal(epoch)
        self.stream(DiskMark(epoch))

    def stream(self, message: DiskWrite | DiskMark) -> None:
        """Send in the order of the guest's writes."""
        if self._link is not None:
            self._link.send("disk", message)


@dataclass(frozen=True, slots=True)
class Whole:
    """A state that the image may be in."""

    name: str
    content: bytes
    epoch: int = 0


class SvmDisk:
    """The SVM's disk: layers over an image behind a cache that a crash empties."""

    def __init__(
        self, scheduler: Scheduler, host: Host, link: LinkEnd, history: History, content: bytes, seed: str
    ) -> None:
        """`content`: that of both disks as they begin."""
        self._scheduler, self._host, self._link, self._history = scheduler, host, link, history
        self._dice = random.Random(seed)
        self._journal = FaultyStorage(b"", self._dice)
        self._image = FaultyStorage(content, self._dice, DISK_BYTES)
        self._spill = MemorySpill()
        store = BlockStore(MEMORY_BLOCKS, SPILL_BLOCKS, self._spill)
        self.core = SecondaryDisk(DISK_BYTES, store, lambda *place: self._image.read(*place), ZERO_BLOCKS_MAX)
        self._marked_epoch = 0
        self.written = bytearray(content)  # what the guest has to find, by what it wrote and what was loaded
        self.taken_over = False
        self.last_image: bytes | None = None  # as the host left it, before any takeover
        self._on_image = self._committed = Whole("the first", content)
        self._retired = False
        self._applying: Whole | None = None
        self._steps: deque[Callable[[], None]] = deque()
        self.failing = self._failed = False
        self.on_failed: Callable[[], None] = lambda: None
        link.on_disk = self._on_disk

    # ---- the stream

    def follow_again(self, link: LinkEnd) -> None:
        """The primary that was lost is back."""
        self._link = link
        link.on_disk = self._on_disk

    def _on_disk(self, message: DiskMessage) -> None:
        with self._ends_it():
            match message:
                case DiskMark(epoch):
                    self._marked_epoch = epoch
                    self.core.mark(epoch)
                case DiskWrite(offset, length, None):
                    self.core.stage_zeros(offset, length)
                case DiskWrite(offset, _, bytes() as data):
                    self.core.stage(offset, memoryview(data))

    async def staged(self, epoch: int) -> None:
        """See SecondaryDisks."""
        while self._marked_epoch < epoch and not self._link.lost:
            await self._link.arrival()
        if self._marked_epoch < epoch:
            raise PeerLost("the disk's writes will not come any more")
        if self._failed:
            raise VmLost("the disk has failed")

    # ---- checkpoint and takeover

    def commit(self, epoch: int) -> None:
        """See SecondaryDisks."""
        self.core.commit(epoch)
        cut = self._history.cuts.get(epoch)
        self._committed = Whole(f"epoch {epoch}", cut.disk if cut else b"", epoch)
        self.written[:] = self._committed.content
        self._apply_soon()

    def would_commit(self, epoch: int) -> bytes | None:
        """What a roll-forward to `epoch` would make of the disk; None once the SVM goes its own way, or none."""
        if self.taken_over or self._failed:
            return None
        twin = copy.deepcopy(self.core)
        twin.commit(epoch)
        return twin.committed_content(0, DISK_BYTES)

    def take_over(self) -> None:
        """The command TAKE_OVER, after the roll-forward."""
        self.core.take_over()
        self.taken_over = True
        self._folded()

    def retire(self) -> bytes:
        """The guest goes on with a disk of a primary, which begins as this one is."""
        self._retired = True
        content = self.content
        whole = (bytes(self.written),)
        self._history.disks_seen.append(DiskSeen("handed on", "what the guest wrote", content, whole))
        return content

    def _fold(self) -> None:
        if self._retired or self._failed:
            return
        self.core.fold()
        self._folded()

    def _folded(self) -> None:
        self._committed = Whole(f"what was written up to {self._scheduler.now_us}", bytes(self.written))
        self._apply_soon()
        self._scheduler.call_later(FOLD_US, self._host, self._fold)

    # ---- the guest

    @property
    def content(self) -> bytes:
        """All that the SVM would read."""
        return self.read(0, DISK_BYTES)

    def read(self, offset: int, length: int) -> bytes:
        """See Disk."""
        parts = self.core.read(offset, length)
        return b"".join(
            self._image.read(part.offset, part.length) if isinstance(part, OnImage) else part for part in parts
        )

    def write(self, offset: int, data: bytes) -> None:
        """See Disk."""
        with self._ends_it():
            self.core.write(offset, memoryview(data))
            self.written[offset : offset + len(data)] = data

    def write_zeros(self, offset: int, length: int) -> None:
        """See Disk."""
        with self._ends_it():
            self.core.write_zeros(offset, length)
            self.written[offset : offset + length] = bytes(length)

    # ---- failures

    def fails_for_a_while(self) -> bool:
        """The journal or the image fails at a step to come, or the spill file is full; whether the disk is in use."""
        if self._retired or self._failed:
            return False
        self.failing = True
        steps, error = self._dice.randrange(STEPS_UNTIL_FAILED), OSError(5, "scripted")
        match self._dice.choice(("journal", "image", "spill")):
            case "journal":
                self._journal.steps.fail_soon(steps, error)
            case "image":
                self._image.steps.fail_soon(steps, error)
            case _:
                self._spill.full = True
        self._scheduler.call_later(FAILS_US, self._host, self._works_again)
        return True

    def _works_again(self) -> None:
        self._journal.steps.fail_at = self._image.steps.fail_at = None
        self._spill.full = self.failing = False

    @contextmanager
    def _ends_it(self) -> Iterator[None]:
        """A write that fails here is the end of this disk, and of the VM on it."""
        try:
            yield
        except OSError:
            self._failed = True
            self._steps.clear()
            self.on_failed()

    # ---- the image

    def _apply_soon(self) -> None:
        if self._applying is None and self.core.unapplied and not self._failed:
            self._applying = self._on_image  # until it begins
            self._scheduler.call_later(self._dice.randint(*APPLY_US), self._host, self._begin)

    def _begin(self) -> None:
        if self._failed:
            return
        self._applying = self._committed
        journal, image = _Recorder(self._journal, self._steps), _Recorder(self._image, self._steps)
        with self._ends_it():
            disk_journal.apply(journal, image, list(self.core.begin_applying()))
        self._go_on()

    def _go_on(self) -> None:
        with self._ends_it():
            for _ in range(min(len(self._steps), self._dice.randint(*APPLY_STEPS))):
                self._steps.popleft()()
        if self._failed:
            return
        if self._steps:
            self._scheduler.call_later(self._dice.randint(*APPLY_STEP_US), self._host, self._go_on)
        else:
            self._applied()

    def _applied(self) -> None:
        assert self._applying is not None
        self.core.applied()
        self._on_image, self._applying = self._applying, None
        self._see("applied", self._image)
        if not self.taken_over:
            self._link.send("control", DiskApplied(self._on_image.epoch))
        self._apply_soon()

    def host_dies(self) -> None:
        """Power fails, or only our process ends; then the journal is replayed."""
        if self._dice.random() < 0.7:
            journal, image = self._journal.after_power_loss(), self._image.after_power_loss()
        else:
            journal, image = self._journal.after_kill(), self._image.after_kill()
        disk_journal.replay(journal, image)
        self.last_image = None if self.taken_over else image.content
        self._see("after a crash", image)

    def _see(self, moment: str, image: FaultyStorage) -> None:
        whole = [state for state in (self._on_image, self._applying) if state is not None]
        allowed = tuple(state.content for state in whole)
        names = " or ".join(state.name for state in whole)
        self._history.disks_seen.append(DiskSeen(moment, names, image.content, allowed))


class _Recorder:
    """Storage that writes down what is to be done, for later."""

    def __init__(self, storage: FaultyStorage, steps: deque[Callable[[], None]]) -> None:
        self._storage, self._steps = storage, steps

    def read(self, offset: int, length: int) -> bytes:
        """See Storage."""
        return self._storage.read(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Storage."""
        self._steps.append(lambda: self._storage.write(offset, data))

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """See Storage."""
        self._steps.append(lambda: self._storage.zero(offset, length, may_trim=may_trim))

    def sync(self) -> None:
        """See Storage."""
        self._steps.append(self._storage.sync)
