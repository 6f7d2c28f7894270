"""A stall of our own is not taken for the other's."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pycolo.edge import patience
from pycolo.edge.patience import STALL_S, wait_for_first


async def test_an_answer_ends_the_wait() -> None:
    answer = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.02, answer.set_result, None)
    async with asyncio.timeout(10):
        await wait_for_first((answer, asyncio.get_running_loop().create_future()), 60.0)
    assert answer.done()


@pytest.fixture
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each wait was to take."""
    begun: list[float] = []
    real = asyncio.wait

    async def wait(futures: set[asyncio.Future[Any]], **how: Any) -> Any:
        begun.append(how["timeout"])
        return await real(futures, **how)

    monkeypatch.setattr(asyncio, "wait", wait)
    return begun


async def test_silence_ends_it_after_the_limit(waits_s: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    answer, began_s = asyncio.get_running_loop().create_future(), time.monotonic()
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: began_s))  # nothing stalls on this clock
    await wait_for_first((answer,), 0.1)
    assert not answer.done()
    assert waits_s == [0.1]
    assert time.monotonic() - began_s >= 0.1


@pytest.mark.parametrize("answers", [True, False])
async def test_after_a_stall_the_time_begins_anew_once(answers: bool, waits_s: list[float]) -> None:
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    loop.call_soon(time.sleep, 0.1 + 2 * STALL_S)  # as SIGSTOP would do to the whole process
    if answers:
        loop.call_soon(lambda: loop.call_later(0.05, answer.set_result, None))
    await wait_for_first((answer,), 0.1)
    assert answer.done() is answers
    assert waits_s == [0.1, 0.1]
