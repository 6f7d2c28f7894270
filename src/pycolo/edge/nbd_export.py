"""What an NBD connection asks of the store behind it: offsets and lengths in bytes, within the size, never empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

HOLE, ZERO = 1, 2  # flags of an extent, as base:allocation defines them


class Ticket(Protocol):
    """One request. Exactly one of these is called, at once or later, from the loop's thread."""

    def done(self) -> None:
        """A write, zero, trim or flush has been carried out."""

    def data(self, buffers: Sequence[bytes | memoryview]) -> None:
        """The data of a read; joined they have the length asked for."""

    def failed(self, error: int) -> None:
        """An errno value; the client gets the nearest error that NBD knows."""


class Export(Protocol):
    """A disk as its clients see it."""

    size_bytes: int
    read_only: bool

    def read(self, ticket: Ticket, offset: int, length: int) -> None:
        """Answer with `ticket.data`."""

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        """`data` is valid only during the call; with `fua`, answer when they would survive a loss of power."""

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        """The range reads as zeros from then on; `may_trim`: it need not stay allocated."""

    def trim(self, ticket: Ticket, offset: int, length: int, *, fua: bool) -> None:
        """The client does not need the range's content any more."""

    def flush(self, ticket: Ticket) -> None:
        """Answer when every write answered before this call would survive a loss of power."""

    def block_status(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        """(length, HOLE and ZERO flags) in order from `offset` on, of at least one byte. May raise OSError."""
