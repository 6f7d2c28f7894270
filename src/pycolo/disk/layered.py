"""What the exports have in common that serve an image with layers of memory over it."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pycolo.core.block_store import StoreFull, blocks_touched
from pycolo.core.disk_epochs import OnImage, SecondaryDisk
from pycolo.disk.source import SourceDisk
from pycolo.disk.trimming import TrimsAsZeros
from pycolo.edge.nbd_export import Export, Ticket


@dataclass(frozen=True, slots=True)
class Withheld:
    """A write that may have to wait; `data` is None for zeros."""

    ticket: Ticket
    offset: int
    length: int
    data: memoryview | None

    @property
    def blocks(self) -> int:
        """How many blocks it touches."""
        return blocks_touched(self.offset, self.length)

    def into(self, core: SecondaryDisk) -> None:
        """Do it in memory. Raises StoreFull, and OSError of the spill file."""
        if self.data is None:
            core.write_zeros(self.offset, self.length)
        else:
            core.write(self.offset, self.data)

    def to(self, export: Export, *, fua: bool) -> None:
        """Ask an export to do it, and to answer."""
        if self.data is None:
            export.zero(self.ticket, self.offset, self.length, fua=fua, may_trim=False)
        else:
            export.write(self.ticket, self.offset, self.data, fua=fua)


class LayeredDisk(TrimsAsZeros):
    """Reads the layers of `core`, and from `source`'s image where they have nothing; writes to its top layer."""

    def __init__(self, core: SecondaryDisk, source: SourceDisk) -> None:
        self.size_bytes, self.read_only = source.size_bytes, False
        self.core, self.source = core, source

    def read(self, ticket: Ticket, offset: int, length: int) -> None:
        try:
            parts = self.core.read(offset, length)
            if len(parts) == 1 and isinstance(parts[0], OnImage):
                self.source.read(ticket, offset, length)
                return
            image = self.source.image
            ticket.data([image.read(p.offset, p.length) if isinstance(p, OnImage) else p for p in parts])
        except OSError as problem:
            ticket.failed(problem.errno or errno.EIO)

    @abstractmethod
    def no_room(self) -> None:
        """There was none in memory for a write."""

    @abstractmethod
    def spill_failed(self, why: str) -> None:
        """The spill file failed while a write should have gone to it."""

    def into_memory(self, write: Withheld) -> bool:
        """Whether the write is there now; one of the two above is called when it is not."""
        try:
            write.into(self.core)
        except StoreFull:
            self.no_room()
            return False
        except OSError as problem:
            self.spill_failed(f"the spill file can't be written ({problem.strerror}): make room in `state_dir`")
            return False
        return True

    def block_status(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        """All is data: the layers change too fast to say more."""
        del offset
        return [(length, 0)]
