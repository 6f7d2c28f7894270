"""What the guest talks to: the export behind it changes at a takeover, the guest's connection does not."""

from __future__ import annotations

from collections.abc import Sequence

from pycolo.edge.nbd_export import Export, Ticket


class GuestDisk:
    """Implements Export by passing everything on to `export`."""

    def __init__(self, export: Export) -> None:
        self.size_bytes, self.read_only = export.size_bytes, export.read_only
        self.export = export

    def read(self, ticket: Ticket, offset: int, length: int) -> None:
        self.export.read(ticket, offset, length)

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        self.export.write(ticket, offset, data, fua=fua)

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        self.export.zero(ticket, offset, length, fua=fua, may_trim=may_trim)

    def trim(self, ticket: Ticket, offset: int, length: int, *, fua: bool) -> None:
        self.export.trim(ticket, offset, length, fua=fua)

    def flush(self, ticket: Ticket) -> None:
        self.export.flush(ticket)

    def block_status(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        return self.export.block_status(offset, length)
