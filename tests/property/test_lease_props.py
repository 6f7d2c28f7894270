"""Leases: whatever is delayed or lost, and however the two clocks run, never may both sides speak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.lease import DRIFT, LEASE_MS_MAX, MARGIN_MS, Lease, Promise, lease_ms_of
from pycolo.errors import PeerViolation

RATES = st.floats(1 - DRIFT / 3, 1 + DRIFT / 3)
STEPS = st.lists(
    st.tuples(
        st.floats(0, 400),  # ms until the primary wants to speak again
        st.floats(0, 300),  # ms that the question takes
        st.floats(0, 300),  # ms that the answer takes
        st.sampled_from(["answered", "question lost", "answer lost"]),
    ),
    max_size=12,
)


@given(st.floats(10, LEASE_MS_MAX), RATES, RATES, st.floats(0, 1e6), st.floats(0, 1e6), STEPS)
def test_who_may_speak_is_one(
    lease_ms: float,
    rate: float,
    other_rate: float,
    start: float,
    other_start: float,
    steps: list[tuple[float, float, float, str]],
) -> None:
    lease, promise, now_ms = Lease(lease_ms), Promise(), 0.0

    def primary_ms(at: float) -> float:
        return start + rate * at

    def secondary_ms(at: float) -> float:
        return other_start + other_rate * at

    for pause_ms, there_ms, back_ms, fate in steps:
        now_ms += pause_ms
        number = lease.ask(primary_ms(now_ms))
        if number is not None and fate != "question lost":
            promise.grant(lease_ms, secondary_ms(now_ms + there_ms))
            if fate == "answered":
                now_ms += there_ms + back_ms
                lease.granted(number)
        end_ms = (lease.until_ms - start) / rate if lease.until_ms > 0 else 0.0
        if end_ms > 0:
            assert not promise.is_free(secondary_ms(end_ms))
            assert not promise.is_free(secondary_ms(end_ms + MARGIN_MS / 2))
        if fate != "answered" and number is not None:
            assert lease.ask(primary_ms(now_ms + 10_000)) is None  # the connection is over, or its answer comes


def test_a_question_is_due_when_half_of_the_lease_is_over() -> None:
    lease = Lease(100)
    number = lease.ask(1000)
    assert number is not None
    assert lease.ask(1001) is None
    lease.granted(number)
    assert lease.until_ms == 1100
    assert lease.ask(1049) is None
    assert lease.ask(1051) == number + 1


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_nobody_asked_for_is_no_grant(number: int) -> None:
    lease = Lease(100)
    asked = lease.ask(0)
    assert asked == 1
    lease.granted(asked)
    with pytest.raises(PeerViolation, match="nobody asked"):
        lease.granted(number)


def test_a_promise_ends_with_its_time_or_when_it_is_void() -> None:
    promise = Promise()
    assert promise.is_free(0)
    promise.grant(100, 50)
    assert not promise.is_free(150)
    assert promise.is_free(150 + 100 * DRIFT + MARGIN_MS)
    promise.void()
    assert promise.is_free(51)


def test_a_lease_is_over_before_a_silence_ends_the_pair() -> None:
    for silence_ms in (50, 300, 1000, 1e6):
        assert lease_ms_of(silence_ms) * (1 + DRIFT) + MARGIN_MS < silence_ms
    assert lease_ms_of(1e6) == LEASE_MS_MAX
