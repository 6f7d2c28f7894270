"""At once or at a pace: the decision by itself, and what it does to clients and guest of a model pair."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pair_model import Adapting, AtOnce, Costs, Load, Periodic, Result, run
from pycolo.core.adaptive import Adaptive, AdaptiveLimits

LIMITS = AdaptiveLimits()


def forced(adaptive: Adaptive, at_ms: float, *, cost_ms: float = 30, pause_ms: float | None = None) -> float:
    """A divergence at `at_ms` and the checkpoint that comes of it; returns when it was sealed."""
    adaptive.wanted("divergence", at_ms)
    due_ms = adaptive.due_at_ms(at_ms)
    assert due_ms is not None
    seal_ms = max(due_ms, at_ms)
    adaptive.sealed(seal_ms)
    adaptive.committed(seal_ms + cost_ms, pause_ms=pause_ms)
    return seal_ms


def in_periodic_mode(limits: AdaptiveLimits = LIMITS) -> tuple[Adaptive, float]:
    """One in which divergence after divergence cost 30 ms each, and when it went over."""
    adaptive, now_ms = Adaptive(limits), 0.0
    while adaptive.mode == "comparing":
        now_ms = forced(adaptive, now_ms) + 30
    return adaptive, now_ms


def quiet(adaptive: Adaptive, from_ms: float) -> float:
    """Nothing is wanted; returns when it compares again."""
    now_ms = from_ms
    while adaptive.mode == "periodic":
        now_ms += 10
        assert adaptive.due_at_ms(now_ms) is None
    return now_ms


def test_rare_divergence_is_served_at_once() -> None:
    adaptive = Adaptive(LIMITS)
    assert adaptive.due_at_ms(0) is None
    for at_ms in range(0, 60_000, 1000):
        assert forced(adaptive, at_ms) == at_ms
    assert adaptive.mode == "comparing"


def test_divergence_after_divergence_is_paced() -> None:
    adaptive, now_ms = in_periodic_mode()
    assert adaptive.reason == ("14 divergences in 2.0 s: periodic checkpoints every 150 ms until outputs agree again")
    assert adaptive.interval_ms == 150
    sealed_ms = forced(adaptive, now_ms)
    assert forced(adaptive, sealed_ms + 30) == sealed_ms + 150
    assert forced(adaptive, sealed_ms + 150 + 149) == sealed_ms + 300
    assert forced(adaptive, sealed_ms + 460) == sealed_ms + 460, "after a quiet interval it is at once"


def test_a_limit_never_waits() -> None:
    adaptive, now_ms = in_periodic_mode()
    forced(adaptive, now_ms)
    adaptive.wanted("divergence", now_ms + 200)
    assert adaptive.due_at_ms(now_ms + 200) > now_ms + 200  # type: ignore[operator]
    adaptive.wanted("limit", now_ms + 210)
    assert adaptive.due_at_ms(now_ms + 210) <= now_ms + 210  # type: ignore[operator]


def test_after_a_limit_the_pace_is_as_before() -> None:
    adaptive, now_ms = in_periodic_mode()
    adaptive.wanted("limit", now_ms)
    adaptive.sealed(now_ms)
    adaptive.committed(now_ms + 30)
    assert forced(adaptive, now_ms + 40) == now_ms + 150


def test_only_what_differs_or_is_late_counts_as_forced() -> None:
    """Limits that are reached, and checkpoints that somebody else wanted, say nothing about the outputs."""
    adaptive = Adaptive(LIMITS)
    for number in range(200):
        if number % 2:
            adaptive.wanted("limit", number * 30)
        adaptive.sealed(number * 30)
        adaptive.committed(number * 30 + 30)
    assert adaptive.mode == "comparing"


def test_what_is_wanted_while_a_checkpoint_is_under_way_belongs_to_the_next() -> None:
    adaptive = Adaptive(LIMITS)
    adaptive.wanted("divergence", 0)
    adaptive.sealed(1)
    assert adaptive.due_at_ms(2) is None
    adaptive.wanted("late", 3)
    adaptive.committed(30)
    assert adaptive.due_at_ms(30) == 3


def test_when_outputs_agree_it_compares_again() -> None:
    adaptive, now_ms = in_periodic_mode()
    took_ms = quiet(adaptive, now_ms) - now_ms
    assert took_ms == pytest.approx(LIMITS.agreeing_min * 150, abs=10)
    assert adaptive.reason == "outputs agreed in 16 intervals of 150 ms: what differs gets a checkpoint at once again"


def test_while_a_checkpoint_is_under_way_nothing_is_compared_so_nothing_agrees() -> None:
    adaptive, now_ms = in_periodic_mode()
    adaptive.sealed(now_ms)
    adaptive.due_at_ms(now_ms + 100_000)
    adaptive.committed(now_ms + 100_000, pause_ms=10)
    assert adaptive.due_at_ms(now_ms + 100_100) is None
    assert adaptive.mode == "periodic"


def test_one_divergence_in_ten_intervals_does_not_keep_it() -> None:
    adaptive, now_ms = in_periodic_mode()
    for _ in range(6):
        now_ms = forced(adaptive, now_ms + 1500)
    assert adaptive.mode == "comparing"
    adaptive, now_ms = in_periodic_mode()
    for _ in range(100):
        now_ms = forced(adaptive, now_ms + 450)
    assert adaptive.mode == "periodic"


def test_the_caller_may_know_of_a_difference_that_nobody_waited_for() -> None:
    adaptive, now_ms = in_periodic_mode()
    for _ in range(60):
        now_ms += 400
        adaptive.sealed(now_ms, epoch_was_equal=False)
        adaptive.committed(now_ms + 30)
    assert adaptive.mode == "periodic"


def test_each_relapse_doubles_the_way_back() -> None:
    adaptive, now_ms = in_periodic_mode()
    ways = []
    for _ in range(8):
        back_ms = quiet(adaptive, now_ms)
        ways.append(round((back_ms - now_ms) / adaptive.interval_ms))
        now_ms = back_ms
        while adaptive.mode == "comparing":
            now_ms = forced(adaptive, now_ms) + 30
    assert ways == [16, 32, 64, 128, 256, 512, 512, 512]
    now_ms = quiet(adaptive, now_ms) + LIMITS.relapse_ms
    while adaptive.mode == "comparing":
        now_ms = forced(adaptive, now_ms) + 30
    assert round((quiet(adaptive, now_ms) - now_ms) / adaptive.interval_ms) == 16, "that was no relapse"


def test_the_interval_follows_what_is_measured() -> None:
    limits = replace(LIMITS, interval_ms_max=10_000)
    adaptive, now_ms = Adaptive(limits), 0.0
    for cost_ms, pause_ms, interval_ms in ((40.0, None, 200), (40.0, 30.0, 150), (40.0, 4.0, 36), (2.0, 1.0, 20)):
        for _ in range(60):
            now_ms = forced(adaptive, now_ms + 2000, cost_ms=cost_ms, pause_ms=pause_ms)
        assert adaptive.interval_ms == pytest.approx(interval_ms, rel=0.05)


def test_the_rarer_the_difference_the_longer_the_interval() -> None:
    adaptive = Adaptive(replace(LIMITS, interval_ms_max=10_000))
    for number in range(60):
        adaptive.wanted("divergence", number * 1000)
        adaptive.sealed(number * 1000, differing_share=0.01)
        adaptive.committed(number * 1000 + 25, pause_ms=5, load_ms=10)
    assert adaptive.interval_ms == pytest.approx(300)


def test_it_can_be_switched_off() -> None:
    adaptive, now_ms = Adaptive(replace(LIMITS, enabled=False)), 0.0
    for _ in range(1000):
        assert forced(adaptive, now_ms) == now_ms
        now_ms += 30
    assert adaptive.mode == "comparing"


# ---------------------------------------------------------------- a model pair

LIGHT, HEAVY = Costs(pause_ms=5, cost_ms=25, load_ms=10), Costs(pause_ms=20, cost_ms=25, load_ms=10)
OTHERS = (AtOnce(), Periodic(25), Periodic(50), Periodic(100), Periodic(200))


def always(now_ms: float) -> float:
    return 1.0


def adapting(**changed: float) -> Adapting:
    return Adapting(Adaptive(replace(LIMITS, **changed)))  # type: ignore[arg-type]


def best(load: Load, costs: Costs) -> float:
    """Answers per second of the best fixed policy that leaves the guest as much of its time."""
    results = [run(policy, load, costs) for policy in OTHERS]
    return max(one.answers_per_s for one in results if one.paused_share <= LIMITS.overhead_share_max)


def test_when_divergence_is_rare_it_is_as_if_it_were_not_there() -> None:
    load = Load(10, 2, 5, lambda _: 0.0005)
    policy = adapting()
    mine, at_once = run(policy, load, LIGHT), run(AtOnce(), load, LIGHT)
    assert mine == at_once
    assert policy.modes == [(0.0, "comparing")]
    assert mine.answers_per_s > 2 * run(Periodic(50), load, LIGHT).answers_per_s


@pytest.mark.parametrize("clients", [1, 20, 200])
@pytest.mark.parametrize("costs", [LIGHT, HEAVY], ids=["light", "heavy"])
def test_when_everything_differs_no_policy_is_much_better(clients: int, costs: Costs) -> None:
    """Among those that leave the guest 80 % of its time; the way there takes a window."""
    load = Load(clients, 2, 1, always)
    mine = run(adapting(), load, costs)
    assert mine.paused_share <= LIMITS.overhead_share_max + 0.03
    assert mine.answers_per_s * 1.25 >= best(load, costs)
    assert mine.wait_ms_max <= LIMITS.interval_ms_max + costs.cost_ms + costs.load_ms


def test_a_busy_guest_gets_its_time_back() -> None:
    load = Load(200, 2, 1, always)
    mine, at_once = run(adapting(), load, HEAVY), run(AtOnce(), load, HEAVY)
    assert at_once.paused_share > 0.5
    assert mine.answers_per_s > 1.6 * at_once.answers_per_s


def test_a_client_that_is_alone_pays_for_the_guests_time_no_more_than_the_interval() -> None:
    load = Load(1, 2, 1, always)
    mine, at_once = run(adapting(), load, HEAVY), run(AtOnce(), load, HEAVY)
    interval_ms = HEAVY.pause_ms / LIMITS.overhead_share_max
    assert mine.answers_per_s >= at_once.answers_per_s / (1 + interval_ms / HEAVY.cost_ms)
    assert run(adapting(), load, LIGHT) == run(AtOnce(), load, LIGHT), "where the pause is short it pays nothing"


@pytest.mark.parametrize("share", [0.01, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("costs", [LIGHT, HEAVY], ids=["light", "heavy"])
def test_when_some_differ_the_others_are_spared(share: float, costs: Costs) -> None:
    load = Load(10, 2, 5, lambda _: share)
    mine, at_once = run(adapting(), load, costs), run(AtOnce(), load, costs)
    assert mine.answers_per_s * 1.05 >= best(load, costs)
    assert mine.answers_per_s >= at_once.answers_per_s * 0.95
    assert mine.wait_ms <= at_once.wait_ms * 1.25 or costs is HEAVY


def test_phases_that_alternate() -> None:
    """Ten seconds in which everything differs, ten in which nothing does."""
    load = Load(50, 2, 1, lambda now_ms: float(now_ms // 10_000 % 2))
    policy = adapting()
    mine = run(policy, load, HEAVY, seconds=120)
    assert mine.answers_per_s >= 1.2 * run(AtOnce(), load, HEAVY, seconds=120).answers_per_s
    assert mine.answers_per_s >= 1.1 * run(Periodic(100), load, HEAVY, seconds=120).answers_per_s
    assert len(policy.modes) <= 1 + 2 * 6
    assert (
        overhead(mine, HEAVY) <= LIMITS.overhead_share_max * 60_000 + 6 * LIMITS.overhead_share_max * LIMITS.window_ms
    )


def overhead(result: Result, costs: Costs) -> float:
    return len(result.seals_ms) * costs.pause_ms
