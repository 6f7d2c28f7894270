"""When the PVM put out each frame that has not left yet, and where outputs differed, while a capture runs.

The data plane gives frames back as bytes, so that is how they are known here: frames alike leave in the order in which
they came. Pure bookkeeping: no clock, no file.

Guarantee: it never knows more than `frames_max` frames, the oldest are forgotten first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pycolo.core.divergence import Divergence

UNPLACED_MAX = 8


class Arrival(NamedTuple):
    """A frame of the PVM: its number as in `Divergence.pvm_frame`, when it came, and in which epoch."""

    no: int
    ms: float
    epoch: int


class Arrivals:
    """The frames of one network card that are held."""

    def __init__(self, frames_max: int) -> None:
        self._frames_max = frames_max
        self._by_bytes: dict[int, deque[Arrival]] = {}
        self._differences: dict[int, Divergence | None] = {}  # one entry for each frame that is held, by number
        self._unplaced: deque[Divergence] = deque(maxlen=UNPLACED_MAX)

    def __len__(self) -> int:
        return len(self._differences)

    def add(self, frames: Sequence[bytes], first_no: int, ms: float, epoch: int) -> None:
        """The PVM has put these out, numbered from `first_no` on."""
        for no, frame in enumerate(frames, first_no):
            if len(self) >= self._frames_max:
                self._forget_oldest()
            self._by_bytes.setdefault(hash(frame), deque()).append(Arrival(no, ms, epoch))
            self._differences[no] = None

    def take(self, frame: bytes) -> tuple[Arrival | None, Divergence | None]:
        """It leaves: when it came, None when nobody saw that; and how it differs from its twin, if it does."""
        key = hash(frame)
        alike = self._by_bytes.get(key)
        if not alike:
            return None, None
        arrival = alike.popleft()
        if not alike:
            del self._by_bytes[key]
        return arrival, self._differences.pop(arrival.no, None)

    def differ(self, divergences: Iterable[Divergence]) -> None:
        """The data plane has found these."""
        for one in divergences:
            if one.pvm_frame in self._differences:
                self._differences[one.pvm_frame] = one
            else:
                self._unplaced.append(one)

    def take_unplaced(self) -> list[Divergence]:
        """Divergences about no frame that is held here, which the next frame has to tell."""
        found = list(self._unplaced)
        self._unplaced.clear()
        return found

    def _forget_oldest(self) -> None:
        key = next(iter(self._by_bytes))
        for arrival in self._by_bytes.pop(key):
            self._differences.pop(arrival.no, None)
