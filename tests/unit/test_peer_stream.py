"""The bytes of a connection between managers: the same for every cut, bounded, and ended in the right way."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from pycolo.edge.peer_stream import AHEAD_BYTES, PeerStream

LONG_BYTES = 3 * AHEAD_BYTES


class Wire(asyncio.Transport):
    """The kernel's end: it gives while it is not paused, and takes what is written."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__()
        self.stream = PeerStream()
        self.paused = False
        self.written = b""
        self._content = memoryview(content)
        self.stream.connection_made(self)

    def give(self, bytes_max: int) -> int:
        """Some of what is left; returns how many bytes."""
        if self.paused:
            return 0
        space = self.stream.get_buffer(-1)
        assert len(space), "asyncio ends a connection that has no room"
        part = self._content[: min(bytes_max, len(space))]
        space[: len(part)] = part
        self._content = self._content[len(part) :]
        if len(part):
            self.stream.buffer_updated(len(part))
        return len(part)

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


@given(
    st.lists(st.sampled_from([0, 1, 5, 4096, AHEAD_BYTES - 5, AHEAD_BYTES, AHEAD_BYTES + 1, LONG_BYTES]), max_size=6),
    st.lists(st.sampled_from([1, 7, 5000, 1 << 14, AHEAD_BYTES, 1 << 20]), min_size=1, max_size=8),
    st.booleans(),
)
def test_what_was_sent_is_read_however_it_is_cut(lengths: list[int], cuts: list[int], eager: bool) -> None:
    content = random.Random(len(lengths)).randbytes(sum(lengths))

    async def reads() -> None:
        wire = Wire(content)
        found = b""

        async def reader() -> None:
            nonlocal found
            for length in lengths:
                part = await wire.stream.read(length)
                assert len(part) == length
                found += part

        reading = asyncio.create_task(reader())
        turn = 0
        while not reading.done():
            wire.give(max(cuts[turn % len(cuts)], len(content) // 50))
            turn += 1
            if eager or turn % 3 == 0:
                await asyncio.sleep(0)
        await reading
        assert found == content

    asyncio.run(reads())


async def test_what_nobody_asks_for_stays_with_the_kernel() -> None:
    content = random.Random(1).randbytes(LONG_BYTES)
    wire = Wire(content)
    while wire.give(10_000):
        pass
    assert wire.paused
    assert await wire.stream.read(10) == content[:10]
    assert wire.paused, "there is enough for a while"
    reading = asyncio.create_task(wire.stream.read(LONG_BYTES - 10))
    await asyncio.sleep(0)
    assert not wire.paused
    while wire.give(AHEAD_BYTES):
        pass
    assert await reading == content[10:]


async def test_a_part_read_is_the_readers_own() -> None:
    wire = Wire(b"first" + b"other")
    wire.give(5)
    first = await wire.stream.read(5)
    wire.give(5)
    await wire.stream.read(5)
    assert bytes(first) == b"first"


@pytest.mark.parametrize("asked", [3, 6])
async def test_an_end_in_the_middle_is_an_end(asked: int) -> None:
    wire = Wire(b"whole")
    wire.give(5)
    wire.stream.eof_received()
    wire.stream.connection_lost(None)
    if asked <= 5:
        assert len(await wire.stream.read(asked)) == asked
    with pytest.raises(asyncio.IncompleteReadError):
        await wire.stream.read(6)


async def test_a_read_under_way_ends_with_the_connection() -> None:
    wire = Wire()
    reading = asyncio.create_task(wire.stream.read(5))
    await asyncio.sleep(0)
    wire.stream.connection_lost(ConnectionResetError("reset by peer"))
    with pytest.raises(ConnectionResetError, match="reset by peer"):
        await asyncio.wait_for(reading, 10)


async def test_a_writer_waits_while_much_is_kept() -> None:
    wire = Wire()
    wire.stream.write(b"abc")
    await wire.stream.drain()
    wire.stream.pause_writing()
    waiting = [asyncio.create_task(wire.stream.drain()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    wire.stream.resume_writing()
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert wire.written == b"abc"


@pytest.mark.parametrize("before", [False, True])
async def test_a_writer_hears_that_the_connection_is_lost(before: bool) -> None:
    wire = Wire()
    wire.stream.pause_writing()
    if before:
        wire.stream.connection_lost(None)
    waiting = asyncio.create_task(wire.stream.drain())
    await asyncio.sleep(0)
    if not before:
        wire.stream.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize("secured", [False, True])
async def test_long_and_short_messages_both_ways_over_tcp(secured: bool) -> None:
    """The reader is slower than the writer now and then, so that reading is paused in the middle of records."""
    served: ssl.SSLContext | None = None
    dialled: dict[str, Any] = {}
    if secured:
        authority = trustme.CA()
        served, called = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        authority.issue_cert("h2").configure_cert(served)
        authority.configure_trust(called)
        dialled = {"ssl": called, "server_hostname": "h2"}
    lengths = [5, 4 << 20, 5, 0, 5, 70_000, 1, AHEAD_BYTES, 5, (4 << 20) + 1]
    content = [random.Random(length).randbytes(length) for length in lengths]
    accepted: asyncio.Queue[PeerStream] = asyncio.Queue()

    class Accepted(PeerStream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.put_nowait(self)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Accepted, "127.0.0.1", 0, ssl=served)
    port = server.sockets[0].getsockname()[1]
    _, near = await loop.create_connection(PeerStream, "127.0.0.1", port, **dialled)
    far = await asyncio.wait_for(accepted.get(), 5)

    async def writes(stream: PeerStream) -> None:
        for part in content:
            stream.write(part)
            await stream.drain()

    async def reads(stream: PeerStream) -> None:
        for part in content:
            await asyncio.sleep(0.01)
            assert await stream.read(len(part)) == part

    async with asyncio.timeout(20):
        await asyncio.gather(writes(near), reads(far), writes(far), reads(near))
        near.transport.close()
        with pytest.raises(asyncio.IncompleteReadError):
            await far.read(1)
    far.transport.abort()
    server.close()
    await server.wait_closed()
