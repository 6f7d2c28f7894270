"""What happened to one VM on one host, in order: for status, log, demo and tests."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from itertools import islice
from typing import Any

import structlog

EVENTS_MAX = 20_000
REFUSED_AGAIN_S = 60.0
REFUSED_NEXT_S = 1.0
Record = dict[str, Any]


class EventLog:
    """The newest events, numbered; each has `no`, `t_ms` (CLOCK_MONOTONIC) and `kind`."""

    def __init__(self, host: str, vm: str = "") -> None:
        """`vm` stands in the log of a process that has several."""
        self._log = structlog.get_logger().bind(host=host, **({"vm": vm} if vm else {}))
        self._records: deque[Record] = deque(maxlen=EVENTS_MAX)
        self._next_no = 1
        self._changed = asyncio.Event()

    def add(self, kind: str, **fields: Any) -> None:
        """Note that something happened now."""
        self._records.append({"no": self._next_no, "t_ms": time.monotonic_ns() / 1e6, "kind": kind, **fields})
        self._next_no += 1
        self._log.info(kind, **fields)
        self.wake()

    def relay(self, record: Record) -> None:
        """Take over what another process noted, with its time, under a number of ours; it is in that one's log."""
        self._records.append({**record, "no": self._next_no})
        self._next_no += 1
        self.wake()

    def wake(self) -> None:
        """Whoever waits for news looks again, and goes with nothing if there is none."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def oldest_no(self) -> int:
        """The number of the oldest event that is still kept; without any, of the next."""
        return int(self._records[0]["no"]) if self._records else self._next_no

    @property
    def newest_no(self) -> int:
        """The number of the newest event; 0 without any."""
        return self._next_no - 1

    def since(self, number: int) -> list[Record]:
        """Events after number `number` that are still kept."""
        count = min(len(self._records), max(0, self.newest_no - number))  # they are numbered without a gap
        return list(islice(reversed(self._records), count))[::-1]

    async def wait(self, number: int, wait_s: float, gather_s: float = 0.0) -> list[Record]:
        """As `since`, but wait up to `wait_s` for the first one, and `gather_s` for more behind it."""
        if self.newest_no <= number:
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                return []
            if self.newest_no > number:  # else it was only woken
                await asyncio.sleep(gather_s)
        return self.since(number)


class RefusalLog:
    """Why somebody was not let in, as events; whoever knocks all the time does not fill the log."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._last, self._noted_at_s = "", 0.0

    def note(self, why: str, now_s: float) -> None:
        """`now_s` is monotonic."""
        wait_s = REFUSED_AGAIN_S if why == self._last else REFUSED_NEXT_S
        if self._last and now_s - self._noted_at_s < wait_s:
            return
        self._last, self._noted_at_s = why, now_s
        self._events.add("refused", reason=why)
