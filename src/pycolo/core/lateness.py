"""Since when frames wait for their twins, and when the one that has waited longest is late.

Guarantee: what is remembered is bounded by what is held.
"""

from __future__ import annotations

from collections import deque
from heapq import merge
from typing import Any, Generic, Protocol, TypeVar

from pycolo.core.holding import HoldLimit
from pycolo.core.limits import DataplaneLimits

_SLACK = 1024


class Holding(Protocol):
    """A flow: its held frames begin with their numbers, the oldest first."""

    hold: deque[Any]


F = TypeVar("F", bound=Holding)


class Lateness(Generic[F]):
    """The arrivals of held frames, all flows together."""

    def __init__(self, limits: DataplaneLimits) -> None:
        self.limit = HoldLimit(limits.hold_ms_min, limits.hold_ms_max)
        self._arrivals: deque[tuple[int, float, F]] = deque()
        self.beside_ms: float | None = None  # when the oldest came that is held elsewhere
        self.compared_since_ms = self._progress_ms = 0.0
        self._loading = False  # the SVM has put out nothing in this epoch yet

    def arrived(self, no: int, now_ms: float, flow: F, held_frames: int) -> None:
        """Frame number `no` has gone into the flow's hold, one of `held_frames` then."""
        self._arrivals.append((no, now_ms, flow))
        if len(self._arrivals) > 2 * held_frames + _SLACK:
            self._arrivals = deque(entry for entry in self._arrivals if _is_held(entry[0], entry[2]))

    def moved_here(self, entries: list[tuple[int, float]], flow: F) -> None:
        """Frames (number, arrival in ms) of a flow that were held elsewhere."""
        mine = [(no, arrived_ms, flow) for no, arrived_ms in entries]
        self._arrivals = deque(merge(self._arrivals, mine, key=lambda entry: entry[0]))

    def progress(self, now_ms: float) -> None:
        """The SVM has put out something."""
        self._progress_ms, self._loading = now_ms, False

    def compare_from(self, now_ms: float) -> None:
        """A checkpoint is committed: until now nothing could be released, and the SVM loads."""
        self.compared_since_ms = self._progress_ms = now_ms
        self._loading = True

    def released(self, arrived_ms: float, now_ms: float) -> None:
        """A frame that came at `arrived_ms` has met its twin."""
        self.limit.sample(now_ms - max(arrived_ms, self.compared_since_ms))

    def forget(self) -> None:
        """Nothing is held any more."""
        self._arrivals.clear()

    def oldest(self) -> F | None:
        """The flow whose frame has been held longest."""
        while self._arrivals:
            no, _, flow = self._arrivals[0]
            if _is_held(no, flow):
                return flow
            self._arrivals.popleft()
        return None

    def late_at_ms(self) -> float | None:
        """When the frame that could have been released longest ago is late; None: nothing is held."""
        if self.oldest() is None and self.beside_ms is None:
            return None
        return self.limit.late_at_ms(self._since_ms, self._progress_ms, loading=self._loading)

    def is_late(self, now_ms: float) -> bool:
        """Whether it is late now. Its twin's lag will never be measured: it is at least as long as this wait."""
        at_ms = self.late_at_ms()
        if at_ms is None or now_ms < at_ms:
            return False
        self.limit.sample(now_ms - self._since_ms)
        return True

    @property
    def _since_ms(self) -> float:
        here = [self._arrivals[0][1]] if self._arrivals else []
        beside = [self.beside_ms] if self.beside_ms is not None else []
        return max(min(here + beside), self.compared_since_ms)


def _is_held(no: int, flow: Holding) -> bool:
    """Whether frame `no` of the flow has not left yet: frames leave in order."""
    return bool(flow.hold) and bool(flow.hold[0][0] <= no)
