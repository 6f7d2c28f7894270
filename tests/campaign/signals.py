"""What ends a campaign or a soak before its time: Ctrl-C, or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any


async def until_signalled(running: Coroutine[Any, Any, None]) -> bool:
    """Run it to its end, or cancel it at a signal; whether a signal ended it."""
    task = asyncio.create_task(running)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return task.cancelled()
