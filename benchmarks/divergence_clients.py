#!/usr/bin/env python3
"""Clients of one kind for `make bench-divergences`: each asks again a moment after it was answered.

`divergence_clients.py ADDRESS LOAD CONNECTIONS PACE_MS SECONDS`, in the clients' namespace. Says `begin` once the first
WARM_S are over, and at the end as JSON how many requests were answered since, and how many went wrong.

Guarantees: an answer counts only when it is what the service must say, where that can be known; every wait has an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from bulk_client import command
from pycolo.guest.static_files import static_file

HTTP_PORT, TLS_PORT, REDIS_PORT, ODD_PORT, BACK_PORT = 80, 443, 6379, 81, 9100
WARM_S = 5.0
ANSWER_S_MAX = 20.0
ODD_ANSWER_BYTES = 16
KEYS = 200
IDLE_S = (0.9, 1.1)  # about the server's keep-alive timeout of a second
DOWNLOAD_PAUSE_S = 0.5  # longer than a retransmission timeout: slow start after idle may set in
COMPLAINTS_MAX = 3

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class WrongAnswerError(Exception):
    """The service said what it must not say."""


@dataclass
class Outcome:
    """What the clients saw since counting began."""

    counts_from_s: float
    answered: int = 0
    failed: int = 0
    complaints: list[str] = field(default_factory=list)

    def note(self, complaint: str = "") -> None:
        if time.monotonic() < self.counts_from_s:
            return
        if not complaint:
            self.answered += 1
            return
        self.failed += 1
        if len(self.complaints) < COMPLAINTS_MAX:
            self.complaints.append(complaint)


@contextlib.asynccontextmanager
async def connected(address: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Stream]:
    """A connection, closed at the end."""
    reader, writer = await asyncio.open_connection(address, port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def get(stream: Stream, name: str) -> None:
    """One download, compared byte by byte."""
    reader, writer = stream
    writer.write(f"GET /{name} HTTP/1.1\r\nHost: guest\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    expected = static_file(name)
    if not head.startswith(b"HTTP/1.1 200 ") or b"Content-Length: %d\r\n" % len(expected) not in head:
        raise WrongAnswerError(f"/{name} was answered with {head[:60]!r}")
    if await reader.readexactly(len(expected)) != expected:
        raise WrongAnswerError(f"/{name} has other contents")


async def ask(stream: Stream, question: bytes, answer: bytes) -> None:
    """One exchange whose answer is known."""
    stream[1].write(question)
    if (said := await stream[0].readexactly(len(answer))) != answer:
        raise WrongAnswerError(f"{question[:60]!r} was answered with {said[:60]!r}")


class Clients:
    """All clients of one load; each method is the life of one client."""

    def __init__(self, address: str, pace_s: float, until_s: float, outcome: Outcome) -> None:
        self._address, self._pace_s, self._until_s, self._outcome = address, pace_s, until_s, outcome

    def life(self, load: str) -> Callable[[int], Awaitable[None]]:
        """What a client of that load does."""
        if load.startswith("odd:"):
            return lambda _: self.odd(load[-1].encode())
        lives: dict[str, Callable[[int], Awaitable[None]]] = {
            "http": self.http,
            "idle": self.idle,
            "downloads": self.downloads,
            "redis": self.redis,
            "counter": self.counter,
            "tls": self.tls,
        }
        return lives[load]

    async def http(self, _: int) -> None:
        """Small downloads over one connection."""
        async with connected(self._address, HTTP_PORT) as stream:
            await self._again(lambda: get(stream, "small.bin"), self._pace_s)

    async def idle(self, _: int) -> None:
        """Small downloads with pauses after which the server may just be about to close the connection."""

        async def both() -> None:
            async with connected(self._address, HTTP_PORT) as stream:
                await get(stream, "small.bin")
                await asyncio.sleep(random.uniform(*IDLE_S))  # noqa: S311
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # it was closed, as it may be
                    await get(stream, "small.bin")

        await self._again(both, self._pace_s)

    async def downloads(self, number: int) -> None:
        """1 MiB each: every second client keeps its connection, the others open one for each."""
        if number % 2 == 0:
            async with connected(self._address, HTTP_PORT) as stream:
                await self._again(lambda: get(stream, "big2.bin"), DOWNLOAD_PAUSE_S)
            return

        async def opened() -> None:
            async with connected(self._address, HTTP_PORT) as stream:
                await get(stream, "big2.bin")

        await self._again(opened, DOWNLOAD_PAUSE_S)

    async def redis(self, number: int) -> None:
        """Writes and reads keys of its own."""
        turn = 0

        async def exchange() -> None:
            nonlocal turn
            turn += 1
            key, value = b"%d:%d" % (number, turn % KEYS), b"%d" % turn * 8
            await ask(stream, command(b"SET", key, value), b"+OK\r\n")
            await ask(stream, command(b"GET", key), b"$%d\r\n%s\r\n" % (len(value), value))

        async with connected(self._address, REDIS_PORT) as stream:
            await self._again(exchange, self._pace_s)

    async def counter(self, _: int) -> None:
        """Counts up one counter of Redis that all clients share."""

        async def count() -> None:
            stream[1].write(command(b"INCR", b"shared"))
            if not (said := await stream[0].readuntil(b"\r\n")).startswith(b":"):
                raise WrongAnswerError(f"INCR was answered with {said!r}")

        async with connected(self._address, REDIS_PORT) as stream:
            await self._again(count, self._pace_s)

    async def odd(self, question: bytes) -> None:
        """Asks the service of odd_answers.c."""

        async def exchange() -> None:
            stream[1].write(question)
            await stream[0].readexactly(ODD_ANSWER_BYTES)

        async with connected(self._address, ODD_PORT) as stream:
            await self._again(exchange, self._pace_s)

    async def tls(self, _: int) -> None:
        """A handshake, and the connection is closed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        async def handshake() -> None:
            async with connected(self._address, TLS_PORT, context):
                pass

        await self._again(handshake, self._pace_s)

    async def _again(self, request: Callable[[], Awaitable[None]], pause_s: float) -> None:
        """A request that fails is counted, and ends this client: its connection is of no use any more."""
        while time.monotonic() < self._until_s:
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    await request()
            except (OSError, asyncio.IncompleteReadError, WrongAnswerError, TimeoutError) as problem:
                self._outcome.note(f"{type(problem).__name__}: {problem}")
                return
            self._outcome.note()
            await asyncio.sleep(pause_s)


async def _welcome(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whom the guest calls."""
    writer.close()


async def run(address: str, load: str, connections: int, pace_ms: float, seconds: float) -> Outcome:
    """The outcome once the time is over."""
    begin_s = time.monotonic() + WARM_S
    outcome = Outcome(begin_s)
    clients = Clients(address, pace_ms / 1000, begin_s + seconds, outcome)
    async with await asyncio.start_server(_welcome, port=BACK_PORT):
        lives = [asyncio.ensure_future(clients.life(load)(number)) for number in range(connections)]
        await asyncio.sleep(begin_s - time.monotonic())
        sys.stdout.write("begin\n")
        sys.stdout.flush()
        for problem in await asyncio.gather(*lives, return_exceptions=True):
            if problem is not None:
                outcome.note(f"a client ended: {problem!r}")
    return outcome


def main() -> None:
    address, load, connections, pace_ms, seconds = sys.argv[1:]
    outcome = asyncio.run(run(address, load, int(connections), float(pace_ms), float(seconds)))
    found = {"answered": outcome.answered, "failed": outcome.failed, "complaints": outcome.complaints}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
