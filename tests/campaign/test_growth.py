"""The judge of growth: leaks are seen, noise and steps of the warm-up are not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign.growth import Allowance, Samples, complaints, gained, slope

ALLOWED = {"memory": Allowance(2.0, 0.02)}


def sampled(value_at: object, count: int = 120) -> list[tuple[float, float]]:
    assert callable(value_at)
    return [(5.0 * number, value_at(5.0 * number)) for number in range(count)]


def judge(samples: Samples) -> list[str]:
    return complaints({"memory of h1's agent": samples}, ALLOWED)


@pytest.mark.parametrize(
    "value_at",
    [
        lambda s: 50.0,
        lambda s: 80.0 - s / 10,
        lambda s: min(50.0 + s, 180.0),
        lambda s: 50.0 + 40.0 * (s % 100 == 0),
        lambda s: 50.0 + random.Random(s).gauss(0, 2),
        lambda s: 50.0 + (s % 60) / 6,
    ],
    ids=["level", "falling", "warm-up", "spikes", "noise", "saw"],
)
def test_no_growth(value_at: object) -> None:
    assert judge(sampled(value_at)) == []


@pytest.mark.parametrize(
    "value_at",
    [
        lambda s: 50.0 + s / 60,
        lambda s: 50.0 + s / 60 + random.Random(s).gauss(0, 2),
        lambda s: 50.0 + 4 * (s // 60),
        lambda s: 50.0 + s / 60 + 300.0 * (s % 50 == 0),
    ],
    ids=["leak", "leak in noise", "leak in steps", "leak under spikes"],
)
def test_growth(value_at: object) -> None:
    (said,) = judge(sampled(value_at))
    assert said.startswith("memory of h1's agent grows by ")


def test_too_few_to_say_and_what_nobody_limits() -> None:
    assert judge(sampled(lambda s: s, 11)) == []
    assert complaints({"pages of h1": sampled(lambda s: s)}, ALLOWED) == []


@given(st.floats(-10, 10), st.floats(-1000, 1000), st.integers(2, 400))
def test_the_slope_of_a_line(steep: float, level: float, count: int) -> None:
    line = sampled(lambda s: level + steep * s, count)
    assert slope(line) == pytest.approx(steep, abs=1e-6)
    assert gained(line) == pytest.approx(steep * (line[-1][0] - line[round(count / 3)][0]), abs=1e-3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=40, max_size=40), st.floats(-5, 5))
def test_a_quarter_of_the_samples_may_lie_anywhere(wild: list[float], steep: float) -> None:
    line = sampled(lambda s: steep * s, 160)
    spoilt = [(at, wild[number // 4]) if number % 4 == 0 else (at, value) for number, (at, value) in enumerate(line)]
    assert abs(slope(spoilt)) < 1e6
    if all(value == 0 for value in wild):
        assert abs(slope(spoilt)) <= abs(steep) + 1e-6
