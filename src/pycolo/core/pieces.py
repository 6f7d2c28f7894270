"""Fragments on the primary: the PVM's wait as they are until their packet can be compared, and leave with it.

Guarantee: a fragment is held from the moment it comes until it leaves, alone (by a checkpoint) or with its packet.
"""

from __future__ import annotations

from collections import deque

from pycolo.core.fragments import Reassembly
from pycolo.core.layers import Layers

HeldFragment = tuple[int, float, bytes]
"""Number, arrival in ms, frame."""


class Assembled(bytes):
    """A packet as one frame, for the comparison; `pieces` is what leaves in its place."""

    pieces: list[bytes]


def assembled(frame: bytes, pieces: list[bytes]) -> Assembled:
    """The packet `frame` that came in `pieces`."""
    whole = Assembled(frame)
    whole.pieces = pieces
    return whole


def in_pieces(frames: list[bytes]) -> list[bytes]:
    """Frames as they came: every packet that was put together in its pieces again."""
    out: list[bytes] = []
    for frame in frames:
        if isinstance(frame, Assembled):
            out += frame.pieces
        else:
            out.append(frame)
    return out


class FragmentHold:
    """The PVM's fragments that wait for the rest of their packet; held like a flow, but nothing leaves from here."""

    __slots__ = ("_reassembly", "hold")

    def __init__(self) -> None:
        self.hold: deque[HeldFragment] = deque()
        self._reassembly: Reassembly[int] = Reassembly()

    def add(self, no: int, now_ms: float, frame: bytes, layers: Layers) -> list[bytes]:
        """A fragment; returns packets that are no longer held here: complete ones, and frames that make none."""
        self.hold.append((no, now_ms, frame))
        whole = self._reassembly.add(no, frame, layers)
        out: list[bytes] = []
        if whole is not None:
            out.append(assembled(whole.frame, self._take(whole.tickets)))
        while (hopeless := self._reassembly.over_limit()) is not None:
            out += self._take(hopeless.tickets)
        return out

    def _take(self, tickets: list[int]) -> list[bytes]:
        taken = set(tickets)
        frames = [held[2] for held in self.hold if held[0] in taken]
        self.hold = deque(held for held in self.hold if held[0] not in taken)
        return frames

    def give_up(self) -> list[bytes]:
        """All frames that wait, those of one packet together."""
        return [frame for pieces in self._reassembly.give_up() for frame in self._take(pieces.tickets)]

    def forget(self) -> None:
        """What waited has left otherwise."""
        self.hold.clear()
        self._reassembly.give_up()
