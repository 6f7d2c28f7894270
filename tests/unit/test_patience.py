"""A stall of our own is not taken for the other's."""

import asyncio
import time

import pytest

from pycolo.edge.patience import STALL_S, wait_for_first


async def test_an_answer_ends_the_wait() -> None:
    answer = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.02, answer.set_result, None)
    began_s = time.monotonic()
    await wait_for_first((answer, asyncio.get_running_loop().create_future()), 5.0)
    assert answer.done()
    assert time.monotonic() - began_s < 2.0


async def test_silence_ends_it_after_the_limit() -> None:
    answer = asyncio.get_running_loop().create_future()
    began_s = time.monotonic()
    await wait_for_first((answer,), 0.1)
    assert not answer.done()
    assert 0.1 <= time.monotonic() - began_s < 0.1 + STALL_S


@pytest.mark.parametrize("answers", [True, False])
async def test_after_a_stall_the_time_begins_anew_once(answers: bool) -> None:
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    loop.call_soon(time.sleep, 0.1 + 2 * STALL_S)  # as SIGSTOP would do to the whole process
    if answers:
        loop.call_soon(lambda: loop.call_later(0.05, answer.set_result, None))
    began_s = time.monotonic()
    await wait_for_first((answer,), 0.1)
    assert answer.done() is answers
    assert time.monotonic() - began_s < 2.0
