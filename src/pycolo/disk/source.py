"""A disk that a VM writes to, on the primary or solo: the image, the marks of what the partner may lack, the replica.

Guarantees: a chunk is marked before it is written; a write is sent to the secondary in the order in which it reached
the image, and before the guest gets its answer. While the VM is being stopped every request is answered at once.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from pycolo.core.changed_chunks import ChangedChunks
from pycolo.disk.local import LocalExport
from pycolo.disk.trimming import TrimsAsZeros
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.disk_meta import DiskMeta, Kind
from pycolo.edge.nbd_export import Ticket
from pycolo.edge.workers import Workers

TROUBLE_EVERY_S = 1.0
SEALED_SESSIONS_MAX = 16  # since the last that both sides have adopted; with more, the next copy may be a whole one


class Listeners(Protocol):
    """Who has to know what happens to a disk."""

    def wrote(self, disk: int, offset: int, data: bytes | memoryview) -> None: ...
    def zeroed(self, disk: int, offset: int, length: int) -> None: ...
    def give_up(self, why: str) -> None:
        """Nobody knows what is on the image now."""

    def answer(self, give: Callable[[], None]) -> None:
        """Answer a write, at once or when the secondary can take more."""


class SourceDisk(TrimsAsZeros, LocalExport):
    """One disk; `replica` is set while there is a secondary that gets every write."""

    def __init__(self, number: int, name: str, image: DiskImage, meta: DiskMeta, workers: Workers) -> None:
        super().__init__(image, workers)
        self.number, self.name, self.image, self.meta = number, name, image, meta
        self.changes = ChangedChunks(image.size_bytes, meta.bits)
        self.replica: Listeners | None = None
        self._sealed_sessions: deque[str] = deque(maxlen=SEALED_SESSIONS_MAX)
        self.written_bytes = self.read_errors = self.write_errors = 0
        self.trouble = ""  # the newest failure of the image, for whoever looks next
        self._trouble_at_s = -TROUBLE_EVERY_S

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        self.changes.note(offset, len(data))
        try:
            self.image.write(offset, data)
        except OSError as problem:
            self._failed(ticket, problem, offset, len(data))
            return
        self.written_bytes += len(data)
        if self.replica is not None:
            self.replica.wrote(self.number, offset, data)
        self._finish(ticket, fua)

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        self.changes.note(offset, length)
        try:
            self.image.zero(offset, length, may_trim=may_trim)
        except OSError as problem:
            self._failed(ticket, problem, offset, length)
            return
        if self.replica is not None:
            self.replica.zeroed(self.number, offset, length)
        self._finish(ticket, fua)

    def close(self) -> None:
        """Everything durable and in good order. Raises OSError."""
        self.image.sync()
        self.meta.change(self.meta.kind, self.meta.session, closed=True)
        self.give_up()

    def give_up(self) -> None:
        """Let go of the files as they are."""
        self.meta.close()
        self.image.close()

    def sealed_in(self, session: str) -> None:
        """From here on the partner may adopt `session`, and be lost before we hear of it and adopt it too."""
        if session not in self._sealed_sessions:
            self._sealed_sessions.append(session)

    def knows(self, session: str) -> bool:
        """Whether an image of `session` differs from ours in no more than the marked chunks."""
        return bool(session) and (session == self.meta.session or session in self._sealed_sessions)

    def adopt(self, session: str) -> None:
        """The partner's image equals ours but for what is under way; both are of `session` now."""
        replica = self.replica

        def adopted(result: OSError | None) -> None:
            if isinstance(result, OSError):
                self._note(
                    f"{self.meta.path} can't be written ({result.strerror}): mend it, or a later copy may be whole"
                )
            elif self.replica is replica:  # else another copy has begun, and what was marked is not there
                self._sealed_sessions.clear()  # an image of another one lacks more than is marked from here on
                self.changes.clear()

        self._workers.submit(partial(self.meta.change, Kind.SOURCE, session), adopted)

    def _finish(self, ticket: Ticket, sync: bool) -> None:
        if self.replica is None:
            super()._finish(ticket, sync)
        else:
            self.replica.answer(partial(super()._finish, ticket, sync))

    def _read_done(self, ticket: Ticket, result: bytes | OSError) -> None:
        if isinstance(result, OSError):
            self.read_errors += 1
            self._note(f"{self.image.path} can't be read ({result.strerror})")
        super()._read_done(ticket, result)

    def _synced(self, result: OSError | None) -> None:
        if isinstance(result, OSError):
            self.write_errors += 1
            self._note(f"{self.image.path} can't be synced ({result.strerror})")
        super()._synced(result)

    def _failed(self, ticket: Ticket, problem: OSError, offset: int, length: int) -> None:
        """The guest gets the error. Part of the range may have changed all the same: the secondary gets it as it is."""
        self.write_errors += 1
        self._note(f"{self.image.path} can't be written ({problem.strerror})")
        if self.replica is not None:
            try:
                self.replica.wrote(self.number, offset, self.image.read(offset, length))
            except OSError:
                self.replica.give_up(f"{self.image.path} can neither be written nor read ({problem.strerror})")
        ticket.failed(problem.errno or errno.EIO)

    def _note(self, trouble: str) -> None:
        """A guest may try again and again: one sentence a second is enough."""
        now_s = time.monotonic()
        if now_s - self._trouble_at_s >= TROUBLE_EVERY_S:
            self.trouble, self._trouble_at_s = f"disk {self.name}: {trouble}", now_s
