"""Disks after the takeover, until all that was in memory is on the images; then `SourceDisk` serves them.

Guarantees: nothing is lost that the guest was told is written; a flush is answered when everything before it is durable
on the image, which gets it by way of the journal, so that a crash meanwhile leaves the disks as of some instant.
The guest can't put off the end for ever: the last round makes its writes wait.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from pycolo.disk.applier import Applier
from pycolo.disk.layered import LayeredDisk, Withheld
from pycolo.disk.target import TargetDisk
from pycolo.edge.nbd_export import Export, Ticket

ROUNDS_MAX = 8
LAST_ROUND_BLOCKS_MAX = 512


class FoldingDisk(LayeredDisk):
    """One of them. Implements Export."""

    def __init__(self, target: TargetDisk, tell: Callable[[str], None]) -> None:
        super().__init__(target.core, target.source)
        self._tell = tell
        self._broken = False
        self.last = False  # the guest's writes wait for the end
        self._writes: list[tuple[Withheld, bool]] = []
        self._flushes: list[Ticket] = []  # since this round began
        self._in_round: list[Ticket] = []  # before it
        for offset, length in self.core.own_writes():
            self._note(offset, length)
        self.core.take_over()
        for withheld in target.withheld:
            self._change(withheld, fua=False)
        target.withheld.clear()

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
        if not (self._broken or self.last):
            self._note(write.offset, write.length)
            if self.into_memory(write):
                self._answer(write.ticket, fua)
                return
        if self._broken:
            write.ticket.failed(errno.EIO)
        else:
            self._writes.append((write, fua))

    def no_room(self) -> None:
        """This and all later writes wait for the end, which comes the sooner."""
        self.last = True

    def spill_failed(self, why: str) -> None:
        """As if the image had failed."""
        self._tell(why)
        self.fail()

    def _answer(self, ticket: Ticket, fua: bool) -> None:
        if fua:
            self._flushes.append(ticket)
        else:
            ticket.done()

    def _note(self, offset: int, length: int) -> None:
        self.source.changes.note(offset, min(length, self.size_bytes - offset))

    # ---------------------------------------------------------------- rounds

    def next_round(self) -> None:
        """All of the last round is on the image: answer its flushes, and send what came meanwhile on its way."""
        for ticket in self._in_round:
            ticket.done()
        self._in_round, self._flushes = self._flushes, []
        self.core.fold()

    def finish(self) -> None:
        """Nothing is left: what waited for the end goes to the image directly."""
        for write, fua in self._writes:
            write.to(self.source, fua=fua)
        for ticket in (*self._in_round, *self._flushes):
            self.source.flush(ticket)

    def fail(self) -> None:
        """The image can't be written: the guest gets I/O errors for what would have to be durable."""
        self._broken = True
        waiting = [*(write.ticket for write, _ in self._writes), *self._in_round, *self._flushes]
        for tickets in (self._writes, self._in_round, self._flushes):
            tickets.clear()
        for ticket in waiting:
            ticket.failed(errno.EIO)


class Folding:
    """All disks of a VM; `switch(number, export)` changes what the guest talks to."""

    def __init__(
        self,
        targets: Sequence[TargetDisk],
        applier: Applier,
        switch: Callable[[int, Export], None],
        tell: Callable[[str], None],
    ) -> None:
        self._disks = [FoldingDisk(target, tell) for target in targets]
        self._applier, self._switch, self._tell = applier, switch, tell
        self._rounds = 0
        self.done = False
        for number, disk in enumerate(self._disks):
            switch(number, disk)
        applier.idle, applier.failed = self._become_sources, self._failed
        if applier.broken:
            self._failed(applier.broken)
        elif not applier.busy:
            self._become_sources()

    def _become_sources(self) -> None:
        self._applier.idle = self._next
        self._applier.become_sources()

    def _next(self) -> None:
        """Everything that was on its way is on the images: send what came meanwhile, or end."""
        self._rounds += 1
        for disk in self._disks:
            disk.next_round()
        left = sum(disk.core.used_blocks for disk in self._disks)
        if self._rounds > ROUNDS_MAX or left <= LAST_ROUND_BLOCKS_MAX:
            for disk in self._disks:
                disk.last = True
        if not self._applier.apply(0):
            self._end()

    def _end(self) -> None:
        self.done = True
        for number, disk in enumerate(self._disks):
            self._switch(number, disk.source)
            disk.finish()

    def _failed(self, why: str) -> None:
        self._tell(why)
        for disk in self._disks:
            disk.fail()
