"""IP packets in pieces: each side's are put together before they are compared, as the two copies number and cut them
differently (RFC 791, 3.2; RFC 8200, 4.5).

Guarantees
* A frame that is given in comes out exactly once: in a `Whole` when its packet is complete, else in `give_up`.
* What waits is bounded in packets, in frames and in bytes. Pieces that overlap make no packet (RFC 5722).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pycolo.core.layers import Layers, unfragmented

PACKETS_MAX = 64
FRAGMENTS_MAX = 64  # of one packet; 1,500 byte frames need 45 for the longest
WAITING_BYTES_MAX = 4 << 20

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class Pieces(Generic[T]):
    """The fragments of one packet so far: (offset, length) in order of the offsets, and the caller's tickets."""

    key: bytes
    tickets: list[T] = field(default_factory=list)
    placed: dict[int, bytes] = field(default_factory=dict)  # payload by offset
    first: tuple[bytes, Layers] | None = None
    length: int | None = None  # known once the last piece is here
    waiting_bytes: int = 0
    hopeless: bool = False  # overlaps, or lengths that contradict each other

    def add(self, ticket: T, frame: bytes, layers: Layers) -> None:
        """Take in one fragment."""
        fragment = layers.fragment
        assert fragment is not None
        payload = frame[layers.upper : layers.end]
        self.tickets.append(ticket)
        self.waiting_bytes += len(frame)
        end = fragment.offset + len(payload)
        if self.placed.get(fragment.offset) == payload:
            return  # the same once more
        if fragment.offset in self.placed or (fragment.more and (len(payload) % 8 or not payload)):
            self.hopeless = True
        self.placed[fragment.offset] = payload
        if not fragment.more:
            self.hopeless |= self.length not in (None, end)
            self.length = end
        if fragment.offset == 0:
            self.first = frame, layers

    def whole(self) -> bytes | None:
        """The packet as one frame; None while something is missing."""
        if self.first is None or self.length is None or self.hopeless:
            return None
        at, payload = 0, []
        for offset in sorted(self.placed):
            if offset != at:
                self.hopeless = offset < at
                return None
            payload.append(self.placed[offset])
            at += len(payload[-1])
        if at != self.length:
            self.hopeless = at > self.length
            return None
        return unfragmented(*self.first, b"".join(payload))


@dataclass(frozen=True, slots=True)
class Whole(Generic[T]):
    """A packet that is complete: as one frame, and what it came in."""

    frame: bytes
    tickets: list[T]


class Reassembly(Generic[T]):
    """One side's packets in pieces; a ticket is what the caller knows a fragment by."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[bytes, Pieces[T]] = OrderedDict()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, ticket: T, frame: bytes, layers: Layers) -> Whole[T] | None:
        """A fragment; returns the packet that it completes. Ask `over_limit` afterwards."""
        fragment = layers.fragment
        assert fragment is not None
        protocol = bytes([layers.protocol]) if layers.version == 4 else b""
        key = layers.tags + b"/" + layers.addresses(frame) + fragment.ident.to_bytes(4) + protocol
        pieces = self._waiting.get(key)
        if pieces is None:
            pieces = self._waiting[key] = Pieces(key)
        pieces.add(ticket, frame, layers)
        self._bytes += len(frame)
        whole = pieces.whole()
        if whole is None:
            return None
        self._forget(pieces)
        return Whole(whole, pieces.tickets)

    def over_limit(self) -> Pieces[T] | None:
        """Pieces that are given up: they can make no packet, or there are too many; None when there are none."""
        for pieces in (next(reversed(self._waiting.values()), None), next(iter(self._waiting.values()), None)):
            if pieces is not None and (pieces.hopeless or len(pieces.tickets) > FRAGMENTS_MAX):
                self._forget(pieces)
                return pieces
        if len(self._waiting) > PACKETS_MAX or self._bytes > WAITING_BYTES_MAX:
            oldest = next(iter(self._waiting.values()))
            self._forget(oldest)
            return oldest
        return None

    def give_up(self) -> list[Pieces[T]]:
        """Everything that waits."""
        given_up = list(self._waiting.values())
        self._waiting.clear()
        self._bytes = 0
        return given_up

    def _forget(self, pieces: Pieces[T]) -> None:
        del self._waiting[pieces.key]
        self._bytes -= pieces.waiting_bytes
