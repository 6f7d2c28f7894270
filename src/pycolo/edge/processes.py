"""Signals to child processes that asyncio watches."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


def send_signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """As `process.send_signal`, which would reap a process that has just ended behind the back of asyncio."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
