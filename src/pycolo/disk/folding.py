"""A disk after the takeover, until all that was in memory is on the image; then `SourceDisk` serves it.

Guarantees: nothing is lost that the guest was told is written; a flush is answered when everything before it is durable
on the image, which gets it by way of the journal, so that a crash meanwhile leaves the disk as of some instant (rule 3).
The guest can't put off the end for ever: the last round makes its writes wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pycolo.core.block_store import StoreFull
from pycolo.disk.source import TRIM_BYTES_MAX
from pycolo.disk.target import TargetDisk, Withheld, read_layers
from pycolo.edge.nbd_export import Ticket

ROUNDS_MAX = 8
LAST_ROUND_BLOCKS_MAX = 512


class FoldingDisk:
    """Implements Export; `folded` is called once, when `target.source` is to serve from then on."""

    def __init__(self, target: TargetDisk, folded: Callable[[], None], failed: Callable[[str], None]) -> None:
        self.size_bytes, self.read_only = target.size_bytes, False
        self._core, self._source, self._applier = target.core, target.source, target.applier
        self._folded, self._failed = folded, failed
        self._rounds = 0
        self._last = False  # the guest's writes wait for the end
        self._writes: list[Callable[[], None]] = []
        self._flushes: list[Ticket] = []
        for offset, length in self._core.own_writes():
            self._note(offset, length)
        self._core.take_over()
        for withheld in target.withheld:
            self._change(withheld, fua=False)
        target.withheld.clear()
        self._applier.idle = self._become_source
        if not self._applier.busy:
            self._become_source()

    # ---------------------------------------------------------------- requests

    def read(self, ticket: Ticket, offset: int, length: int) -> None:
        read_layers(self._core, self._source, ticket, offset, length)

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        self._change(Withheld(ticket, offset, len(data), memoryview(bytes(data))), fua=fua)

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        del may_trim
        self._change(Withheld(ticket, offset, length, None), fua=fua)

    def trim(self, ticket: Ticket, offset: int, length: int, *, fua: bool) -> None:
        if length > TRIM_BYTES_MAX:
            ticket.done()
        else:
            self.zero(ticket, offset, length, fua=fua, may_trim=True)

    def flush(self, ticket: Ticket) -> None:
        self._flushes.append(ticket)

    def block_status(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        return [(length, 0)]

    def _change(self, write: Withheld, *, fua: bool) -> None:
        """Into memory while there is room; else it waits for the end."""
        if not self._last:
            self._note(write.offset, write.length)
            try:
                write.into(self._core)
            except StoreFull:
                self._last = True
            except OSError as problem:
                self._failed(f"the spill file can't be written ({problem.strerror}): make room in `state_dir`")
                return
            else:
                self._answer(write.ticket, fua)
                return
        self._writes.append(lambda: write.to(self._source, fua=fua))

    def _answer(self, ticket: Ticket, fua: bool) -> None:
        if fua:
            self._flushes.append(ticket)
        else:
            ticket.done()

    def _note(self, offset: int, length: int) -> None:
        self._source.changes.note(offset, min(length, self.size_bytes - offset))

    # ---------------------------------------------------------------- rounds

    def _become_source(self) -> None:
        self._applier.idle = self._next
        self._applier.become_source()

    def _next(self) -> None:
        """Everything that was on its way is on the image: send what came meanwhile, or end."""
        self._rounds += 1
        self._core.fold()
        self._last = self._last or self._rounds > ROUNDS_MAX or self._core.used_blocks <= LAST_ROUND_BLOCKS_MAX
        if self._applier.apply(0):
            return
        self._folded()
        for write in self._writes:
            write()
        for ticket in self._flushes:
            self._source.flush(ticket)
