"""A command that nobody waits for any more ends without a word in the log, whatever it ends with."""

from __future__ import annotations

import asyncio
import gc

import pytest

from pycolo.edge.qmp_session import QmpSession
from pycolo.errors import VmLost


async def breaks_when_it_is_given_up() -> None:
    try:
        await asyncio.sleep(10.0)
    except asyncio.CancelledError:
        raise EOFError from None


async def test_a_connection_that_breaks_behind_a_missed_deadline_is_no_complaint() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    session = QmpSession("web", 0.01)
    with pytest.raises(VmLost, match="did not answer status within"):
        await session._bounded("status", breaks_when_it_is_given_up())
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
