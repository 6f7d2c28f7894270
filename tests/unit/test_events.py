"""The event log: numbered without gaps, bounded, and who waits is woken."""

import asyncio
import time

import pytest

from pycolo import events
from pycolo.events import REFUSED_AGAIN_S, REFUSED_NEXT_S, EventLog, RefusalLog


async def test_events_are_numbered_and_kept_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog("h1")
    for number in range(3):
        log.add("kind", value=number)
    assert [(event["no"], event["value"]) for event in log.since(1)] == [(2, 1), (3, 2)]
    assert log.since(3) == []
    times = [event["t_ms"] for event in log.since(0)]
    assert times == sorted(times)
    assert abs(times[-1] - time.monotonic() * 1000) < 5000


async def test_only_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENTS_MAX", 5)
    log = EventLog("h1")
    for _ in range(8):
        log.add("kind")
    assert [event["no"] for event in log.since(0)] == [4, 5, 6, 7, 8]


async def test_waiting_ends_with_the_next_event_for_everybody() -> None:
    log = EventLog("h1")
    log.add("old")
    waiting = [asyncio.create_task(log.wait(1, 10.0)) for _ in range(3)]
    await asyncio.sleep(0)
    log.add("new")
    for got in await asyncio.wait_for(asyncio.gather(*waiting), 10):
        assert [event["kind"] for event in got] == ["new"]


async def test_waiting_has_an_end() -> None:
    log = EventLog("h1")
    assert await log.wait(0, 0.01) == []
    log.add("old")
    assert [event["kind"] for event in await log.wait(0, 60.0)] == ["old"]


async def test_who_is_woken_goes_with_nothing() -> None:
    log = EventLog("h1")
    waiting = asyncio.create_task(log.wait(0, 60.0))
    await asyncio.sleep(0)
    log.wake()
    assert await asyncio.wait_for(waiting, 10) == []


async def test_who_knocks_all_the_time_does_not_fill_the_log() -> None:
    log = EventLog("h1")
    refusals = RefusalLog(log)
    for number in range(1000):
        refusals.note(f"reason {number % 2}", 100.0 + number / 1000)
    assert [event["reason"] for event in log.since(0)] == ["reason 0"]
    refusals.note("reason 0", 100.0 + REFUSED_NEXT_S)
    refusals.note("reason 1", 100.0 + REFUSED_NEXT_S)
    refusals.note("reason 1", 100.0 + REFUSED_AGAIN_S)
    refusals.note("reason 1", 100.0 + REFUSED_AGAIN_S + REFUSED_NEXT_S)
    assert [event["reason"] for event in log.since(1)] == ["reason 1", "reason 1"]


async def test_who_gathers_gets_what_comes_right_behind() -> None:
    log = EventLog("h1")
    waiting = asyncio.create_task(log.wait(0, 10.0, 0.05))
    await asyncio.sleep(0)
    log.add("first")
    await asyncio.sleep(0)
    log.add("second")
    assert [event["kind"] for event in await waiting] == ["first", "second"]
