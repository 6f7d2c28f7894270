"""What happened to one VM on one host, in order: for status, log, demo and tests."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import structlog

EVENTS_MAX = 20_000
Record = dict[str, Any]


class EventLog:
    """The newest events, numbered; each has `no`, `t_ms` (CLOCK_MONOTONIC) and `kind`."""

    def __init__(self, host: str) -> None:
        self._log = structlog.get_logger().bind(host=host)
        self._records: deque[Record] = deque(maxlen=EVENTS_MAX)
        self._next_no = 1
        self._changed = asyncio.Event()

    def add(self, kind: str, **fields: Any) -> None:
        """Note that something happened now."""
        self._records.append({"no": self._next_no, "t_ms": time.monotonic_ns() / 1e6, "kind": kind, **fields})
        self._next_no += 1
        self._log.info(kind, **fields)
        self._changed.set()
        self._changed = asyncio.Event()

    def since(self, number: int) -> list[Record]:
        """Events after number `number` that are still kept."""
        return [record for record in self._records if record["no"] > number]

    async def wait(self, number: int, wait_s: float) -> list[Record]:
        """As `since`, but wait up to `wait_s` for the first one."""
        if self._next_no - 1 <= number:
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                return []
        return self.since(number)
