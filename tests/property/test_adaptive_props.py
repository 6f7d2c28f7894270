"""Whatever comes when: due in time, overhead within its bound, back when outputs agree, no flapping, never an error."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.adaptive import Adaptive, AdaptiveLimits, Wanted

LIMITS = AdaptiveLimits()
times = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 5000)
maybe_ms = st.none() | st.floats(-1e9, 1e9)

call = st.one_of(
    st.tuples(st.just("wanted"), times, st.sampled_from(["divergence", "late", "limit"])),
    st.tuples(st.just("sealed"), times, st.none() | st.booleans(), st.none() | st.floats(-2, 2)),
    st.tuples(st.just("committed"), times, maybe_ms, maybe_ms),
    st.tuples(st.just("due"), times),
)
limits = st.builds(
    AdaptiveLimits,
    overhead_share_max=st.floats(0.01, 1),
    interval_ms_min=st.floats(0.1, 50),
    interval_ms_max=st.floats(50, 1000),
    window_ms=st.floats(10, 10_000),
    forced_max=st.integers(4, 64),
    agreeing_min=st.integers(1, 8),
    agreeing_max=st.integers(8, 64),
)


@settings(max_examples=400)
@given(limits, st.lists(call, max_size=80))
def test_any_calls_in_any_order(limits: AdaptiveLimits, calls: list[tuple]) -> None:  # type: ignore[type-arg]
    adaptive = Adaptive(limits)
    clock_ms, wanted_ms, limit = 0.0, None, False
    for kind, now_ms, *more in calls:
        clock_ms = max(clock_ms, now_ms)
        if kind == "wanted":
            adaptive.wanted(more[0], now_ms)
            wanted_ms, limit = clock_ms if wanted_ms is None else wanted_ms, limit or more[0] == "limit"
        elif kind == "sealed":
            adaptive.sealed(now_ms, epoch_was_equal=more[0], differing_share=more[1])
            wanted_ms, limit = None, False
        elif kind == "committed":
            adaptive.committed(now_ms, pause_ms=more[0], load_ms=more[1])
        due_ms = adaptive.due_at_ms(now_ms)
        assert (due_ms is None) == (wanted_ms is None)
        if due_ms is not None and wanted_ms is not None:
            assert wanted_ms <= due_ms <= wanted_ms + limits.interval_ms_max
            assert not limit or due_ms <= clock_ms
        assert limits.interval_ms_min <= adaptive.interval_ms <= limits.interval_ms_max
        assert len(adaptive._forced_ms) <= limits.forced_max
        assert adaptive._agreeing <= adaptive._agreeing_needed + limits.agreeing_max
        assert limits.agreeing_min <= adaptive._agreeing_needed <= limits.agreeing_max


# ---------------------------------------------------------------- a workload


@dataclass
class Played:
    """Seals and changes of mode."""

    seals_ms: list[float] = field(default_factory=list)
    modes: list[tuple[float, str]] = field(default_factory=list)
    end_ms: float = 0.0

    def note(self, now_ms: float, mode: str) -> None:
        if not self.modes or self.modes[-1][1] != mode:
            self.modes.append((now_ms, mode))


def play(adaptive: Adaptive, gaps_ms: list[float], cost_ms: float, pause_ms: float, reason: Wanted) -> Played:
    """Something differs so long after the last checkpoint is committed."""
    played, now_ms = Played(), 0.0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        adaptive.wanted(reason, now_ms)
        due_ms = adaptive.due_at_ms(now_ms)
        assert due_ms is not None
        assert due_ms - now_ms <= LIMITS.interval_ms_max
        played.note(now_ms, adaptive.mode)
        now_ms = max(now_ms, due_ms)
        adaptive.sealed(now_ms)
        played.seals_ms.append(now_ms)
        now_ms += cost_ms
        adaptive.committed(now_ms, pause_ms=pause_ms)
        played.note(now_ms, adaptive.mode)
    played.end_ms = now_ms
    return played


phases = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 50.0, 300.0, 3000.0]), st.integers(1, 60)), max_size=20)


def gaps_of(phases: list[tuple[float, int]]) -> list[float]:
    return [gap_ms for gap_ms, count in phases for _ in range(count)]


@settings(max_examples=150)
@given(phases, st.floats(1, 100), st.floats(0.05, 1))
def test_the_guest_keeps_its_share(phases: list[tuple[float, int]], cost_ms: float, pause_part: float) -> None:
    """In every span of time: its share, one window's worth on top, one pause for each window and change of mode."""
    pause_ms = min(cost_ms * pause_part, LIMITS.interval_ms_max * LIMITS.overhead_share_max)
    played = play(Adaptive(LIMITS), gaps_of(phases), cost_ms, pause_ms, "divergence")
    seals_ms = played.seals_ms
    for first in range(0, len(seals_ms), 7):
        for last in range(first, len(seals_ms), 7):
            span_ms = seals_ms[last] - seals_ms[first]
            more = span_ms / LIMITS.window_ms + len(played.modes) + 2
            allowed_ms = LIMITS.overhead_share_max * (span_ms + LIMITS.window_ms) + pause_ms * more
            assert (last - first + 1) * pause_ms <= allowed_ms * 1.000001


@settings(max_examples=100)
@given(phases, st.floats(1, 100))
def test_it_comes_back_when_outputs_agree(phases: list[tuple[float, int]], cost_ms: float) -> None:
    adaptive = Adaptive(LIMITS)
    played = play(adaptive, gaps_of(phases), cost_ms, cost_ms, "late")
    adaptive.due_at_ms(played.end_ms + LIMITS.agreeing_max * LIMITS.interval_ms_max)
    assert adaptive.mode == "comparing"


@settings(max_examples=25)
@given(st.floats(5, 100), st.floats(0, 1))
def test_it_does_not_flap(cost_ms: float, pause_part: float) -> None:
    """The worst workload there is: it agrees just as long as it is paced, and differs as soon as it is not."""
    adaptive, now_ms = Adaptive(LIMITS), 0.0
    changes, mode = 0, "comparing"
    while now_ms < 500_000:
        if adaptive.mode == "comparing":
            now_ms = play_one(adaptive, now_ms, cost_ms, cost_ms * pause_part)
        else:
            now_ms += 200
            adaptive.due_at_ms(now_ms)
        if adaptive.mode != mode:
            changes, mode = changes + 1, adaptive.mode
    doublings = 6
    assert changes <= 2 * (doublings + now_ms / (LIMITS.agreeing_max * LIMITS.interval_ms_min))


def play_one(adaptive: Adaptive, now_ms: float, cost_ms: float, pause_ms: float) -> float:
    adaptive.wanted("divergence", now_ms)
    adaptive.sealed(now_ms)
    adaptive.committed(now_ms + cost_ms, pause_ms=pause_ms)
    return now_ms + cost_ms
