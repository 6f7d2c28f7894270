"""When the agent asks for a checkpoint: what its dataplanes want, at the pace that `adaptive` allows.

Guarantee: what is wanted is asked for once in an epoch, and once more when a limit is reached after that.
"""

from __future__ import annotations

from dataclasses import dataclass

from pycolo.core.adaptive import Adaptive, AdaptiveLimits, Mode
from pycolo.core.dataplane import Reason


@dataclass(frozen=True, slots=True)
class PaceNews:
    """The mode has changed, and why."""

    mode: Mode
    interval_ms: float
    why: str


class CheckpointPace:
    """One primary's; times are in ms, of any clock that does not stop."""

    def __init__(self, limits: AdaptiveLimits, now_ms: float) -> None:
        self._adaptive = Adaptive(limits, now_ms)
        self._pending: Reason | None = None
        self._asked: Reason | None = None
        self._told: Mode = self._adaptive.mode
        self._paused_ms = self._pause_ms = 0.0
        self._released_before = 0

    @property
    def mode(self) -> Mode:
        """As in `Adaptive`."""
        return self._adaptive.mode

    @property
    def interval_ms(self) -> float:
        """From one checkpoint to the next in periodic mode; 0 in the other."""
        return self._adaptive.interval_ms if self._adaptive.mode == "periodic" else 0.0

    # ---------------------------------------------------------------- what is wanted

    def want(self, reason: Reason, now_ms: float) -> None:
        """Something is held that only a checkpoint releases."""
        if self._asked == "limit" or (self._asked is not None and reason != "limit"):
            return
        self._adaptive.wanted("divergence" if reason == "policy" else reason, now_ms)
        if self._pending is None or reason == "limit":
            self._pending = reason

    def due(self, now_ms: float) -> Reason | None:
        """What to ask for a checkpoint with, now; None: nothing, or not yet."""
        at_ms = self.next_ms(now_ms)
        if at_ms is None or at_ms > now_ms:
            return None
        self._asked, self._pending = self._pending, None
        return self._asked

    def next_ms(self, now_ms: float) -> float | None:
        """When `due` should be asked at the latest; None while nothing is wanted."""
        return None if self._pending is None else self._adaptive.due_at_ms(now_ms)

    def news(self, now_ms: float) -> PaceNews | None:
        """The mode, when it has changed since the last call."""
        self._adaptive.due_at_ms(now_ms)  # time alone may end the periodic mode
        if self._adaptive.mode == self._told:
            return None
        self._told = self._adaptive.mode
        return PaceNews(self._told, self.interval_ms, self._adaptive.reason)

    # ---------------------------------------------------------------- what happens

    def paused(self, now_ms: float) -> None:
        """The PVM gets no client frames from here on; soon it will stand still."""
        self._paused_ms = now_ms

    def resumed(self, now_ms: float) -> None:
        """It runs again."""
        self._pause_ms = now_ms - self._paused_ms

    def sealed(self, now_ms: float, held: int, released_equal: int) -> None:
        """A checkpoint was cut: with `held` frames; `released_equal` counts from the beginning."""
        equal, self._released_before = released_equal - self._released_before, released_equal
        share = held / (held + equal) if held else None
        self._adaptive.sealed(now_ms, differing_share=share)
        self._asked = self._pending = None

    def committed(self, now_ms: float) -> None:
        """The checkpoint sealed last is committed."""
        self._adaptive.committed(now_ms, pause_ms=self._pause_ms)
