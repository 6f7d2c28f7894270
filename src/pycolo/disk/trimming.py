"""What a trim is on a disk of a pair: zeros, so that the range reads alike on both hosts."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pycolo.edge.nbd_export import Ticket

TRIM_BYTES_MAX = 64 << 20
"""More is only advice that we need not take, and each block of it would take room on the secondary."""


class TrimsAsZeros(ABC):
    """Implements `trim` of Export by `zero`."""

    @abstractmethod
    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        """As Export."""

    def trim(self, ticket: Ticket, offset: int, length: int, *, fua: bool) -> None:
        if length > TRIM_BYTES_MAX:
            ticket.done()
        else:
            self.zero(ticket, offset, length, fua=fua, may_trim=True)
