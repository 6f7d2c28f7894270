"""A disk after the takeover, until all that was in memory is on the image; then `SourceDisk` serves it.

Guarantees: nothing is lost that the guest was told is written; a flush is answered when everything before it is
durable on the image, which gets it by way of the journal, so that a crash meanwhile leaves the disk as of some instant.
The guest can't put off the end for ever: the last round makes its writes wait.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from pycolo.core.block_store import StoreFull
from pycolo.disk.layered import LayeredDisk, Withheld
from pycolo.disk.target import TargetDisk
from pycolo.edge.nbd_export import Ticket

ROUNDS_MAX = 8
LAST_ROUND_BLOCKS_MAX = 512


class FoldingDisk(LayeredDisk):
    """Implements Export; `folded` is called once, when `target.source` is to serve from then on."""

    def __init__(self, target: TargetDisk, folded: Callable[[], None], failed: Callable[[str], None]) -> None:
        super().__init__(target.core, target.source)
        self._applier = target.applier
        self._folded, self._tell = folded, failed
        self._broken = False
        self._rounds = 0
        self._last = False  # the guest's writes wait for the end
        self._writes: list[tuple[Withheld, bool]] = []
        self._flushes: list[Ticket] = []
        for offset, length in self.core.own_writes():
            self._note(offset, length)
        self.core.take_over()
        for withheld in target.withheld:
            self._change(withheld, fua=False)
        target.withheld.clear()
        self._applier.idle, self._applier.failed = self._become_source, self.failed
        if self._applier.broken:
            self.failed(self._applier.broken)
        elif not self._applier.busy:
            self._become_source()

    # ---------------------------------------------------------------- requests

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        self._change(Withheld(ticket, offset, len(data), memoryview(bytes(data))), fua=fua)

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        del may_trim
        self._change(Withheld(ticket, offset, length, None), fua=fua)

    def flush(self, ticket: Ticket) -> None:
        if self._broken:
            ticket.failed(errno.EIO)
        else:
            self._flushes.append(ticket)

    def _change(self, write: Withheld, *, fua: bool) -> None:
        """Into memory while there is room; else it waits for the end."""
        if self._broken:
            write.ticket.failed(errno.EIO)
            return
        if not self._last:
            self._note(write.offset, write.length)
            try:
                write.into(self.core)
            except StoreFull:
                self._last = True
            except OSError as problem:
                self.failed(f"the spill file can't be written ({problem.strerror}): make room in `state_dir`")
                write.ticket.failed(errno.EIO)
                return
            else:
                self._answer(write.ticket, fua)
                return
        self._writes.append((write, fua))

    def _answer(self, ticket: Ticket, fua: bool) -> None:
        if fua:
            self._flushes.append(ticket)
        else:
            ticket.done()

    def _note(self, offset: int, length: int) -> None:
        self.source.changes.note(offset, min(length, self.size_bytes - offset))

    # ---------------------------------------------------------------- rounds

    def failed(self, why: str) -> None:
        """The image can't be written: the guest gets I/O errors for what would have to be durable."""
        self._broken = True
        self._tell(why)
        waiting = [*(write.ticket for write, _ in self._writes), *self._flushes]
        self._writes.clear()
        self._flushes.clear()
        for ticket in waiting:
            ticket.failed(errno.EIO)

    def _become_source(self) -> None:
        self._applier.idle = self._next
        self._applier.become_source()

    def _next(self) -> None:
        """Everything that was on its way is on the image: send what came meanwhile, or end."""
        self._rounds += 1
        self.core.fold()
        self._last = self._last or self._rounds > ROUNDS_MAX or self.core.used_blocks <= LAST_ROUND_BLOCKS_MAX
        if self._applier.apply(0):
            return
        self._folded()
        for write, fua in self._writes:
            write.to(self.source, fua=fua)
        for ticket in self._flushes:
            self.source.flush(ticket)
