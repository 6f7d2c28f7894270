"""When a checkpoint that the dataplane wants is asked for: at once, or at a pace while outputs differ again and again.

The argument. One checkpoint costs twice. The PVM stands still (`pause_ms`; `loss_ms` is what the guest loses). And it
makes the comparison blind until it is committed and the SVM has loaded: what the PVM, running again, puts out in the
meantime (`blind_ms`) waits, equal or not.
* Rare divergence: at once is best. Who waits, waits one checkpoint, and nobody else waits.
* The guest's throughput: with loss / `overhead_share_max` from seal to seal it has the rest of the time. Back to back
  it would stand still most of the time when the pause is most of the cost.
* The clients' wait: let a share q of the output differ, and let `interval` be the time from seal to seal. What differs
  waits for the pace, interval / 2 in the mean. What falls into a blind time, a share blind / interval of all, waits
  blind / 2. The sum, q * interval / 2 + blind ** 2 / (2 * interval), is least at interval = blind / sqrt(q). If
  everything differs, that is back to back, as nobody gains by waiting; if one in a hundred does, checkpoints ten blind
  times apart spare the other 99.
* So the interval is the larger of the two, between `interval_ms_min` and `interval_ms_max`: where the last bounds it, a
  client's wait comes first and the share may be exceeded. Sums are what counts, so it follows smoothed means
  (RFC 6298's gain) and no deviation.
* The pace counts from the last seal, and the first divergence after a quiet interval is served at once as ever: a
  client who is alone and asks seldom is not slowed down. One who asks again at once, and is always answered
  differently, waits for the pace while the guest idles: at most 1 + interval / cost times as long as without it.
* Comparison goes on in between, and equal output leaves at once: to see whether outputs agree again costs nothing.

Guarantees
* What is wanted is due `interval_ms_max` after it was wanted at the latest; "limit" at once.
* What is lost by forced checkpoints stays below `overhead_share_max` of the time, but for one window's worth.
* When nothing is wanted any more the mode is "comparing" after `agreeing_max` intervals at the latest.
* The mode can't flap: each relapse soon after a return doubles what the next return takes, up to `agreeing_max`.
* No sequence of calls raises, clocks that step back included; what is kept is bounded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import sqrt
from typing import Literal

Wanted = Literal["divergence", "late", "limit"]
Mode = Literal["comparing", "periodic"]

_GAIN = 1 / 8  # RFC 6298, 2.3
_MEASURED_MS_MAX = 60_000.0
_SHARE_MIN = 1e-4


@dataclass(frozen=True, slots=True)
class AdaptiveLimits:
    """Bounds; `enabled` False: always at once.

    An interval in which a checkpoint was wanted takes `disagreement_cost` agreeing ones back: it compares again when
    clearly fewer than one interval in `disagreement_cost` + 1 disagrees.
    """

    enabled: bool = True
    overhead_share_max: float = 0.2
    interval_ms_min: float = 20
    interval_ms_max: float = 200
    window_ms: float = 2000
    forced_max: int = 256  # so many of a window are remembered
    agreeing_min: int = 16
    agreeing_max: int = 512
    disagreement_cost: int = 4
    relapse_ms: float = 30_000


class Adaptive:
    """One pair's decision. Its clock never goes back: an earlier `now_ms` counts as the latest."""

    def __init__(self, limits: AdaptiveLimits, now_ms: float = 0.0) -> None:
        self.mode: Mode = "comparing"
        self.reason = "outputs are compared, and what differs gets a checkpoint at once"
        self.loss_ms = _Mean()  # of the guest, by one checkpoint
        self.blind_ms = _Mean()  # the comparison, while the PVM runs
        self._differing = _Mean()  # share of the output, in epochs that ended by force
        self._limits = limits
        self._now_ms = now_ms
        self._wanted_ms: float | None = None
        self._at_once = False
        self._sealed_ms: float | None = None
        self._uncommitted = False
        self._forced_ms: deque[float] = deque(maxlen=limits.forced_max)  # seals that the dataplane forced
        self._agreeing = 0
        self._agreeing_needed = limits.agreeing_min
        self._counted_ms = now_ms  # up to here agreeing intervals are counted
        self._returned_ms: float | None = None

    # ---------------------------------------------------------------- what happens

    def wanted(self, reason: Wanted, now_ms: float) -> None:
        """Something is held that only a checkpoint releases."""
        self._pass(now_ms)
        self._at_once |= reason == "limit"
        if self._wanted_ms is None:
            self._wanted_ms = self._now_ms
            if reason != "limit":
                self._disagree()

    def sealed(
        self, now_ms: float, *, epoch_was_equal: bool | None = None, differing_share: float | None = None
    ) -> None:
        """A checkpoint, wanted or not, was cut: what was held before belongs to it.

        `epoch_was_equal`: whether the epoch that it ends had no divergence; None: as far as something was wanted.
        `differing_share`: frames still held at the seal, among these and those released as equal in the epoch; None: as
        before, at first all.
        """
        self._pass(now_ms)
        if epoch_was_equal is False and self._wanted_ms is None:
            self._disagree()
        if self._wanted_ms is not None and not self._at_once:
            self._forced_ms.append(self._now_ms)
            if differing_share is not None:
                self._differing.add(min(max(differing_share, _SHARE_MIN), 1.0))
        self._sealed_ms, self._uncommitted = self._now_ms, True
        self._wanted_ms, self._at_once = None, False

    def committed(self, now_ms: float, *, pause_ms: float | None = None, load_ms: float | None = None) -> None:
        """The checkpoint sealed last is committed.

        `pause_ms`: how long the PVM stood; None: all the time since the seal counts as lost. `load_ms`: how long the
        SVM is loaded after that, by the last time that is known.
        """
        self._pass(now_ms)
        if self._sealed_ms is None or not self._uncommitted:
            return
        self._uncommitted = False
        self._counted_ms = self._now_ms
        cost_ms = self._now_ms - self._sealed_ms
        self.loss_ms.add(cost_ms if pause_ms is None else pause_ms)
        self.blind_ms.add(cost_ms + (load_ms or 0.0) - min(pause_ms or 0.0, cost_ms))
        self._look_back()

    def due_at_ms(self, now_ms: float) -> float | None:
        """When the wanted checkpoint should be asked for, at or before `now_ms` for at once; None: none is wanted."""
        self._pass(now_ms)
        if self._wanted_ms is None:
            return None
        if self._at_once or self.mode == "comparing" or self._sealed_ms is None:
            return self._wanted_ms
        paced_ms = max(self._wanted_ms, self._sealed_ms + self.interval_ms)
        return min(paced_ms, self._wanted_ms + self._limits.interval_ms_max)

    @property
    def interval_ms(self) -> float:
        """From seal to seal in periodic mode."""
        return max(self._best_ms, self._limits.interval_ms_min)

    @property
    def _best_ms(self) -> float:
        for_guest_ms = self.loss_ms.value / self._limits.overhead_share_max
        for_clients_ms = self.blind_ms.value / sqrt(self._differing.value or 1.0)
        return min(max(for_guest_ms, for_clients_ms), self._limits.interval_ms_max)

    # ---------------------------------------------------------------- what follows

    def _pass(self, now_ms: float) -> None:
        """Time passes: count the intervals in which nothing was wanted; after enough of them compare as before."""
        self._now_ms = now_ms = max(now_ms, self._now_ms)
        if self.mode == "comparing" or self._wanted_ms is not None or self._uncommitted:
            self._counted_ms = now_ms
            return
        interval_ms = self.interval_ms
        passed = int(min((now_ms - self._counted_ms) / interval_ms, self._agreeing_needed))
        self._counted_ms += passed * interval_ms
        self._agreeing += passed
        if self._agreeing >= self._agreeing_needed:
            self._compare_again()

    def _disagree(self) -> None:
        self._agreeing = max(0, self._agreeing - self._limits.disagreement_cost)
        self._counted_ms = self._now_ms

    def _look_back(self) -> None:
        """Go over to periodic when checkpoints are forced more often than the interval that is best for all."""
        limits, forced_ms = self._limits, self._forced_ms
        while forced_ms and forced_ms[0] <= self._now_ms - limits.window_ms:
            forced_ms.popleft()
        often = len(forced_ms) * self._best_ms > limits.window_ms
        if often and limits.enabled and self.mode == "comparing":
            self._keep_pace()

    def _keep_pace(self) -> None:
        limits = self._limits
        soon = self._returned_ms is not None and self._now_ms - self._returned_ms < limits.relapse_ms
        self._agreeing_needed = min(2 * self._agreeing_needed, limits.agreeing_max) if soon else limits.agreeing_min
        self._agreeing, self._counted_ms = 0, self._now_ms
        self.mode = "periodic"
        self.reason = (
            f"{len(self._forced_ms)} divergences in {limits.window_ms / 1000:.1f} s: "
            f"periodic checkpoints every {self.interval_ms:.0f} ms until outputs agree again"
        )

    def _compare_again(self) -> None:
        self.reason = (
            f"outputs agreed in {self._agreeing_needed} intervals of {self.interval_ms:.0f} ms: "
            "what differs gets a checkpoint at once again"
        )
        self.mode, self._returned_ms = "comparing", self._now_ms


class _Mean:
    """A smoothed mean of what is measured; 0 until something is."""

    __slots__ = ("_sampled", "value")

    def __init__(self) -> None:
        self.value, self._sampled = 0.0, False

    def add(self, sample: float) -> None:
        """One more."""
        sample = min(max(sample, 0.0), _MEASURED_MS_MAX)
        self.value = self.value + _GAIN * (sample - self.value) if self._sampled else sample
        self._sampled = True
