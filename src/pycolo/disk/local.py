"""An export over one local image, without a partner.

Guarantees: a write is answered when it is in the page cache; FLUSH and FUA are answered after an fdatasync that began
after they came, and once an fdatasync has failed, all later ones do: what was lost then can't be made to last any more.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial

from pycolo.edge.disk_image import DiskImage
from pycolo.edge.nbd_export import Ticket
from pycolo.edge.workers import Workers


class LocalExport:
    """Serves `image`; what waits for the disk is done by `workers`. See `nbd_export.Export`."""

    def __init__(self, image: DiskImage, workers: Workers) -> None:
        self.size_bytes, self.read_only = image.size_bytes, image.read_only
        self._image, self._workers = image, workers
        self._unsynced: list[Ticket] = []  # wait for the next fdatasync
        self._in_sync: list[Ticket] = []  # wait for the one under way
        self._syncing = self._owed = self._hurried = False
        self._sync_error = 0

    def read(self, ticket: Ticket, offset: int, length: int) -> None:
        try:
            data = self._image.read_now(offset, length)
        except OSError as error:
            self._read_done(ticket, error)
            return
        if data is not None:
            ticket.data((data,))
        else:
            self._workers.submit(partial(self._image.read, offset, length), partial(self._read_done, ticket))

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        try:
            self._image.write(offset, data)
        except OSError as error:
            ticket.failed(_number(error))
            return
        self._finish(ticket, fua)

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        self._change(ticket, partial(self._image.zero, offset, length, may_trim=may_trim), fua)

    def trim(self, ticket: Ticket, offset: int, length: int, *, fua: bool) -> None:
        self._change(ticket, partial(self._image.trim, offset, length), fua)

    def flush(self, ticket: Ticket) -> None:
        self._finish(ticket, True)

    def hurry(self, on: bool) -> None:
        """While it is on, what waits for an fdatasync is answered at once, and the fdatasync follows."""
        self._hurried = on
        if on:
            self._owed |= bool(self._unsynced)
            waiting = [*self._in_sync, *self._unsynced]
            self._in_sync.clear()
            self._unsynced.clear()
            for ticket in waiting:
                self._answer(ticket)
            self._sync_next()

    def _answer(self, ticket: Ticket) -> None:
        """What was synced so far counts: once that has failed, nothing can be made to last."""
        if self._sync_error:
            ticket.failed(self._sync_error)
        else:
            ticket.done()

    def block_status(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        return self._image.extents(offset, length)

    def _change(self, ticket: Ticket, job: Callable[[], None], fua: bool) -> None:
        def done(result: OSError | None) -> None:
            if isinstance(result, OSError):
                ticket.failed(_number(result))
            else:
                self._finish(ticket, fua)

        self._workers.submit(job, done)

    def _read_done(self, ticket: Ticket, result: bytes | OSError) -> None:
        if isinstance(result, OSError):
            ticket.failed(_number(result))
        else:
            ticket.data((result,))

    def _finish(self, ticket: Ticket, sync: bool) -> None:
        """Answer, after an fdatasync that begins from now on if `sync`."""
        if not sync or self.read_only:
            ticket.done()
            return
        if self._hurried:
            self._owed = True
            self._answer(ticket)
        else:
            self._unsynced.append(ticket)
        self._sync_next()

    def _sync_next(self) -> None:
        """All that wait share one fdatasync; those who come while it runs wait for the next."""
        if self._syncing or not (self._unsynced or self._owed):
            return
        self._in_sync, self._unsynced = self._unsynced, []
        self._syncing, self._owed = True, False
        self._workers.submit(self._image.sync, self._synced)

    def _synced(self, result: OSError | None) -> None:
        self._syncing = False
        if isinstance(result, OSError):
            self._sync_error = _number(result)
        tickets, self._in_sync = self._in_sync, []
        for ticket in tickets:
            self._answer(ticket)
        self._sync_next()


def _number(error: OSError) -> int:
    return error.errno or errno.EIO
