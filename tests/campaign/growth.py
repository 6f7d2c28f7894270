"""Whether something grows that should not: a robust slope after the warm-up, against a stated allowance. Pure.

The slope is the median of the slopes between all pairs of samples (Theil and Sen), so a third of the samples may lie
anywhere. What counts is how much it makes over the whole time looked at: a run of 10 minutes finds what grows by some
50 MiB an hour, a run of 8 hours what grows by 1 MiB an hour.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WARM_UP_SHARE = 1 / 3
SAMPLES_MIN = 12
SECONDS_MIN = 180.0  # a process of before that is still learning what it needs
SAMPLES_MAX = 240


@dataclass(frozen=True)
class Allowance:
    """So much may be gained over the time looked at: `fixed` and a `share` of the median."""

    fixed: float
    share: float = 0.0


Samples = Sequence[tuple[float, float]]
"""(s, value), in time."""


def slope(samples: Samples) -> float:
    """The median slope of all pairs, a second."""
    some = samples[:: len(samples) // SAMPLES_MAX + 1]
    slopes = [
        (late[1] - early[1]) / (late[0] - early[0])
        for at, early in enumerate(some)
        for late in some[at + 1 :]
        if late[0] > early[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def after_warm_up(samples: Samples) -> Samples:
    """Without the first third."""
    return samples[round(len(samples) * WARM_UP_SHARE) :]


def gained(samples: Samples) -> float:
    """How much of it is new since the warm-up, by the slope."""
    seen = after_warm_up(samples)
    return slope(seen) * (seen[-1][0] - seen[0][0]) if len(seen) > 1 else 0.0


def is_long(samples: Samples) -> bool:
    """Whether it has been seen for long enough to say whether it grows."""
    return len(samples) >= SAMPLES_MIN and samples[-1][0] - samples[0][0] >= SECONDS_MIN


def complaints(series: Mapping[str, Samples], allowances: Mapping[str, Allowance]) -> list[str]:
    """What grows, in sentences; `series` by `KIND of WHAT`, `allowances` by kind. What has been seen for too short a
    time to say is passed over, and so is what has no allowance.
    """
    found = []
    for name, samples in series.items():
        allowance = allowances.get(name.partition(" of ")[0])
        if allowance is None or not is_long(samples):
            continue
        level = statistics.median(value for _, value in after_warm_up(samples))
        grown, allowed = gained(samples), allowance.fixed + allowance.share * abs(level)
        if grown > allowed:
            seconds = samples[-1][0] - after_warm_up(samples)[0][0]
            found.append(f"{name} grows by {grown:.1f} in {seconds:.0f} s ({allowed:.1f} allowed, median {level:.1f})")
    return found
