"""The hold limit follows the lag, between its bounds."""

from __future__ import annotations

import pytest

from pycolo.core.holding import HoldLimit, TwinBudget


def test_patient_until_something_is_known() -> None:
    assert HoldLimit(50, 1000).limit_ms == 1000


def test_a_quick_svm_leads_to_the_lower_bound() -> None:
    limit = HoldLimit(50, 1000)
    for _ in range(100):
        limit.sample(0.5)
    assert limit.limit_ms == 50
    assert 0.4 < limit.lag_ms < 0.6


def test_a_slow_svm_gets_more_time_than_its_lag() -> None:
    limit = HoldLimit(50, 1000)
    for i in range(200):
        limit.sample(80 + 20 * (i % 2))
    assert 150 < limit.limit_ms < 500


def test_never_beyond_the_upper_bound_whatever_comes() -> None:
    limit = HoldLimit(50, 1000)
    for lag_ms in (1e9, -5.0, 700.0, 1e12):
        limit.sample(lag_ms)
        assert 50 <= limit.limit_ms <= 1000


def test_late_needs_silence_or_the_end_of_patience() -> None:
    limit = HoldLimit(50, 1000)
    for _ in range(100):
        limit.sample(1)
    assert limit.late_at_ms(waiting_since_ms=100, progress_ms=0) == 150
    assert limit.late_at_ms(waiting_since_ms=100, progress_ms=200) == 250
    assert limit.late_at_ms(waiting_since_ms=100, progress_ms=5000) == 350, "five limits"


def test_patience_grows_with_the_lag_up_to_the_upper_bound() -> None:
    limit = HoldLimit(50, 1000)
    for _ in range(100):
        limit.sample(40)
    assert limit.late_at_ms(waiting_since_ms=100, progress_ms=5000) == pytest.approx(500, abs=5)
    for _ in range(100):
        limit.sample(900)
    assert limit.late_at_ms(waiting_since_ms=100, progress_ms=5000) == 1100


def test_a_loading_svm_gets_a_quarter_of_the_upper_bound() -> None:
    limit = HoldLimit(50, 1000)
    for _ in range(100):
        limit.sample(1)
    assert limit.late_at_ms(waiting_since_ms=100, progress_ms=100, loading=True) == 350


def test_budget() -> None:
    budget = TwinBudget(10, 100)
    budget.used_bytes = 90
    assert budget.has_room(10)
    assert not budget.has_room(11)
