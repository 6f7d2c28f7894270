"""Deadlines for the answers of other processes.

Guarantee: a stall of our own (SIGSTOP, a machine without a free core) is never taken for the other's: when we wake, the
deadline is seen to be over before the answer that has come is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

STALL_S = 0.2  # so late after its time no deadline of a running process is noticed


async def wait_for_first(futures: Iterable[asyncio.Future[Any]], limit_s: float) -> None:
    """Return when one of `futures` is done, or after `limit_s`; after a stall of our own the time begins anew, once."""
    waited_for = set(futures)
    began_s = time.monotonic()
    done, _ = await asyncio.wait(waited_for, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    if not done and time.monotonic() - began_s > limit_s + STALL_S:
        await asyncio.wait(waited_for, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
