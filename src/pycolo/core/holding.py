"""How long a packet may wait for its twin, and how much of the SVM's output may wait for the PVM's.

Slow is not divergent, so the time limit follows the lag of the SVM.

Guarantee: the limit is always between `hold_ms_min` and `hold_ms_max`.
"""

from __future__ import annotations

_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4  # RFC 6298, 2.3
_PATIENCE = 5  # limits that a frame waits at most while the SVM goes on with other things
_LOADING_SHARE = 1 / 4  # of `hold_ms_max`
_FACTOR = 2.0
"""RFC 6298's bound fits a network path. The SVM's lag has a heavier tail (whole scheduling quanta), and a false alarm
feeds back: the needless checkpoint stops the SVM for about one lag, which makes the next packet late as well.
Twice the bound, as TCP doubles its own after a timeout, breaks the circle; only what meets a silent SVM waits more."""


class HoldLimit:
    """Smoothed lag between a PVM frame and its twin, in ms, and the limit that follows from it."""

    def __init__(self, hold_ms_min: float, hold_ms_max: float) -> None:
        self._ms_min, self._ms_max = hold_ms_min, hold_ms_max
        self.deviation_ms = 0.0
        self.sampled = False
        self.lag_ms = 0.0
        self.limit_ms = hold_ms_max  # nothing is known yet: patience

    def sample(self, lag_ms: float) -> None:
        """A frame was released because its twin came, `lag_ms` after it could have been."""
        lag_ms = min(max(lag_ms, 0.0), self._ms_max)
        if self.sampled:
            self.deviation_ms += _DEVIATION_GAIN * (abs(lag_ms - self.lag_ms) - self.deviation_ms)
            self.lag_ms += _GAIN * (lag_ms - self.lag_ms)
        else:
            self.lag_ms, self.deviation_ms, self.sampled = lag_ms, lag_ms / 2, True
        bound_ms = _FACTOR * (self.lag_ms + 4 * self.deviation_ms)
        self.limit_ms = min(max(bound_ms, self._ms_min), self._ms_max)

    def late_at_ms(self, waiting_since_ms: float, progress_ms: float, *, loading: bool = False) -> float:
        """When a frame waiting since then counts as late, given when the SVM last put out anything.

        `loading`: it has put out nothing since it was last loaded, when it is slowest (under TCG it translates all its
        code again) and another checkpoint would only make it begin anew.
        """
        limit_ms = max(self.limit_ms, self._ms_max * _LOADING_SHARE) if loading else self.limit_ms
        quiet_since_ms = max(waiting_since_ms, progress_ms)
        patience_ms = min(self._ms_max, max(_PATIENCE * self.limit_ms, limit_ms))
        return min(waiting_since_ms + patience_ms, quiet_since_ms + limit_ms)


class TwinBudget:
    """Bytes of the SVM's output kept for comparison, all flows together."""

    __slots__ = ("flow_bytes_max", "total_bytes_max", "used_bytes")

    def __init__(self, flow_bytes_max: int, total_bytes_max: int) -> None:
        self.flow_bytes_max, self.total_bytes_max = flow_bytes_max, total_bytes_max
        self.used_bytes = 0

    @property
    def crowded(self) -> bool:
        """Whether more than half is used."""
        return 2 * self.used_bytes > self.total_bytes_max

    def has_room(self, more_bytes: int) -> bool:
        """Whether so many bytes more may be kept."""
        return self.used_bytes + more_bytes <= self.total_bytes_max
