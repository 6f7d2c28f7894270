"""One disk of the SVM.

Guarantees: what the SVM writes by itself never reaches the image; the image only gets whole committed epochs, by way of
the journal, or the first copy while it is marked as partial. An SVM that has written too much by itself waits for the
next checkpoint, and is never in the way of its being stopped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Protocol

from pycolo.core.block_store import BLOCK_BYTES, BlockStore
from pycolo.core.disk_epochs import SecondaryDisk
from pycolo.disk.layered import LayeredDisk, Withheld
from pycolo.disk.source import SourceDisk
from pycolo.edge.disk_meta import Kind
from pycolo.edge.nbd_export import Ticket

# QEMU may have 16 requests of 32 MiB of zeros under way when the PVM is paused, and then none is kept waiting.
ZERO_BLOCKS_IN_FLIGHT_MAX = 16 * (32 << 20) // BLOCK_BYTES
OVERLAY_SHARE = 0.5  # of the store; the rest is for what the PVM writes
BACKLOG = "disk_backlog"


class Owner(Protocol):
    """The secondary's side, with all its disks."""

    def trouble(self, why: str) -> None:
        """This side can't keep its disks right any more."""

    def wanted(self, reason: str) -> None:
        """A checkpoint is needed."""


class TargetDisk(LayeredDisk):
    """Implements Export for the SVM. What the PVM wrote comes in by `stage` and raises OSError or StoreFull."""

    def __init__(self, source: SourceDisk, store: BlockStore, owner: Owner) -> None:
        """`source` is the same image as it is served once a takeover has ended."""
        zero_blocks_max = 2 * store.blocks_max + ZERO_BLOCKS_IN_FLIGHT_MAX
        super().__init__(SecondaryDisk(source.size_bytes, store, source.image.read, zero_blocks_max), source)
        self._owner, self._image, self.meta = owner, source.image, source.meta
        self.direct = True  # the image is being copied: it gets everything at once
        self._overlay_blocks_max = int(store.blocks_max * OVERLAY_SHARE)
        self._hurried = self._asked = False
        self.withheld: deque[Withheld] = deque()

    # ---------------------------------------------------------------- the SVM's requests

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        del fua  # what is dropped at the next checkpoint need not be durable before
        self._change(Withheld(ticket, offset, len(data), data))

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        del fua, may_trim
        self._change(Withheld(ticket, offset, length, None))

    def flush(self, ticket: Ticket) -> None:
        """The SVM's own writes need not outlive it."""
        ticket.done()

    def _change(self, write: Withheld) -> None:
        """Write to the overlay; without room there the SVM waits for the next checkpoint, which empties it."""
        used = self.core.overlay_blocks
        full = used + write.blocks > self._overlay_blocks_max  # the rest of the store is the PVM's
        if full or used > self._overlay_blocks_max // 2:
            self.no_room()
        if self._hurried:
            write.ticket.done()  # it is being stopped to become another: what it writes is dropped anyway
        elif self.withheld or full or not self.into_memory(write):
            data = None if write.data is None else memoryview(bytes(write.data))
            self.withheld.append(replace(write, data=data))
        else:
            write.ticket.done()

    def no_room(self) -> None:
        """A checkpoint makes some; it is asked for once."""
        if not self._asked:
            self._asked = True
            self._owner.wanted(BACKLOG)

    def spill_failed(self, why: str) -> None:
        """This side is of no use any more, and the SVM waits for its end."""
        self._owner.trouble(why)

    # ---------------------------------------------------------------- the PVM's writes

    def begin_copy(self, *, whole: bool) -> None:
        """The image is about to change in ways that make it useless until the first mark.

        Not after a reunion: what is copied then is staged, and the image stays what a takeover needs.
        """
        if not self.direct:
            return
        self.meta.change(Kind.PARTIAL, "" if whole else self.meta.session)

    def stage(self, offset: int, content: memoryview) -> None:
        """The PVM wrote, or it is a piece of the copy."""
        if self.direct:
            self._image.write(offset, content)
        else:
            self.core.stage(offset, content)

    def stage_zeros(self, offset: int, length: int) -> None:
        """As `stage`, with zeros."""
        if self.direct:
            self._image.zero(offset, length, may_trim=True)
        else:
            self.core.stage_zeros(offset, length)

    def mark(self, epoch: int) -> None:
        """All the PVM wrote up to here belongs to the checkpoint that starts `epoch`."""
        self.direct = False
        self.core.mark(epoch)

    def expect_pause(self) -> None:
        """The SVM is about to be stopped: what it writes is dropped anyway."""
        self._hurried = True
        while self.withheld:
            self.withheld.popleft().ticket.done()

    def commit(self, epoch: int) -> None:
        """The SVM is stopped and becomes the PVM at the start of `epoch`."""
        self.core.commit(epoch)
        self._hurried = self._asked = False
