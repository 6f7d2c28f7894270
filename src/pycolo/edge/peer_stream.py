"""A TCP or TLS connection between two managers, as bytes that are asked for.

Guarantees: what was not asked for stays with the kernel but for `AHEAD_BYTES`; a long message is decrypted into the
buffer that its reader gets. asyncio's own streams copy it three times more (docs/adr/0020).
"""

from __future__ import annotations

import asyncio

AHEAD_BYTES = 1 << 18


class PeerStream(asyncio.BufferedProtocol):
    """The protocol of one connection; one task reads, any may write."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._ahead = bytearray(AHEAD_BYTES)  # what has arrived unasked: from `_start` to `_end`
        self._start = self._end = 0
        self._wanted: memoryview | None = None  # the rest of what is asked for
        self._ended = self._lost = False
        self._error: Exception | None = None  # why it ended, other than in good order
        self._reads_paused = self._writes_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []

    # ---------------------------------------------------------------- reading

    async def read(self, length: int) -> memoryview:
        """Exactly so many bytes, a buffer of the caller's own.

        Raises asyncio.IncompleteReadError at the end of the connection, OSError (ssl.SSLError) when it broke.
        """
        taken = min(length, self._end - self._start)
        if taken == length:
            found = memoryview(self._ahead[self._start : self._start + length])  # a copy
            self._start += length
            return found
        buffer = memoryview(bytearray(length))
        buffer[:taken] = self._ahead[self._start : self._end]
        self._start = self._end = 0
        self._wanted = buffer[taken:]
        try:
            while self._wanted is not None:
                await self._more()
        finally:
            self._wanted = None  # who gives up in the middle of a message can read no other one
        return buffer

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise asyncio.IncompleteReadError(b"", None)
        if self._reads_paused:
            self._reads_paused = False
            self.transport.resume_reading()
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go, see BufferedProtocol."""
        del sizehint
        if self._wanted is not None:
            return self._wanted
        if self._start == self._end:
            self._start = self._end = 0
        return memoryview(self._ahead)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        if self._wanted is not None:
            self._wanted = self._wanted[nbytes:] if nbytes < len(self._wanted) else None
            if self._wanted is None:
                self._wake()
            return
        self._end += nbytes
        if self._end == AHEAD_BYTES and not self._reads_paused:
            self._reads_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The peer sends no more; the connection is closed then."""
        self._ended = True
        self._wake()
        return False

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ---------------------------------------------------------------- writing

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep until it can be sent."""
        self.transport.write(data)

    async def drain(self) -> None:
        """Returns when not much is kept. Raises OSError when the connection is lost."""
        if self._writes_paused and not self._lost:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._writers.append(waiter)
            await waiter
        if self._lost:
            raise self._error or ConnectionResetError("it is closed")

    def pause_writing(self) -> None:
        """Much is kept, see BaseProtocol."""
        self._writes_paused = True

    def resume_writing(self) -> None:
        """Little is kept."""
        self._writes_paused = False
        self._wake_writers()

    def _wake_writers(self) -> None:
        for waiter in self._writers:
            if not waiter.done():
                waiter.set_result(None)
        self._writers.clear()

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is up, TLS as well."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._error = exc
        self._ended = self._lost = True
        self._wake()
        self._wake_writers()
