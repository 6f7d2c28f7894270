"""Events of one VM as server-sent events: none is missed by who comes back with the id of the last one.

An id is "BOOT-NO": numbers begin anew with each life of the daemon, so an id of another life means everything there is.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime

from aiohttp import web

from pycolo.errors import WrongState
from pycolo.events import EventLog, Record

CLIENTS_MAX = 32
QUIET_S_MAX = 10.0
WRITE_S_MAX = 10.0
BATCH_EVENTS = 500
_ID = re.compile("([0-9a-f]{8})-([0-9]{1,15})")


def last_number(boot: str, header: str) -> int:
    """After which event to begin, given what a client says it has seen last."""
    match = _ID.fullmatch(header.strip())
    return int(match[2]) if match and match[1] == boot else 0


def with_time(record: Record) -> Record:
    """The event with the time of day at which it happened."""
    ago_s = time.monotonic() - float(record["t_ms"]) / 1000
    return {"time": datetime.fromtimestamp(time.time() - ago_s, UTC).isoformat(timespec="milliseconds"), **record}


class EventStreams:
    """All streams of a daemon; `boot` tells its life from others."""

    def __init__(self, boot: str) -> None:
        self._boot, self._clients = boot, 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams."""
        self._closing.set()

    async def serve(self, request: web.Request, events: EventLog, *, follow: bool) -> web.StreamResponse:
        """Stream until the client goes. Raises WrongState when there are too many."""
        if self._clients >= CLIENTS_MAX:
            raise WrongState(f"{CLIENTS_MAX} clients follow events here already: end one of them")
        self._clients += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(request)
            await self._stream(
                response, events, last_number(self._boot, request.headers.get("Last-Event-ID", "")), follow
            )
        except (ConnectionError, TimeoutError):  # the client is gone, or does not read
            pass
        finally:
            self._clients -= 1
        return response

    async def _stream(self, response: web.StreamResponse, events: EventLog, number: int, follow: bool) -> None:
        if number + 1 < events.oldest_no and number:
            await self._write(response, f": events {number + 1} to {events.oldest_no - 1} are not kept any more\n\n")
        while not self._closing.is_set():
            news = events.since(number)[:BATCH_EVENTS]
            if news:
                number = news[-1]["no"]
                await self._write(response, "".join(map(self._text, news)))
            elif not follow:
                return
            elif not await self._wait(events, number):
                await self._write(response, ": nothing new\n\n")

    async def _wait(self, events: EventLog, number: int) -> bool:
        """Until there is news or the daemon ends; False when neither came."""
        waits = [asyncio.ensure_future(events.wait(number, QUIET_S_MAX)), asyncio.ensure_future(self._closing.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[1].done() or bool(waits[0].done() and waits[0].result())
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _text(self, record: Record) -> str:
        data = json.dumps(with_time(record), separators=(",", ":"))
        return f"id: {self._boot}-{record['no']}\nevent: {record['kind']}\ndata: {data}\n\n"

    async def _write(self, response: web.StreamResponse, text: str) -> None:
        async with asyncio.timeout(WRITE_S_MAX):
            await response.write(text.encode())
