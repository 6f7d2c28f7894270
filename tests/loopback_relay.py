"""A service on our loopback, on the loopback of a network namespace as well; and the way to it can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence

from pair import socket_in
from pycolo.edge.namespaces import Namespace


class LoopbackRelay:
    """Passes on what comes to 127.0.0.1 on these ports in the namespace."""

    def __init__(self, namespace: Namespace, ports: Sequence[int]) -> None:
        self._namespace, self._ports = namespace, ports
        namespace.ip("link", "set", "lo", "up")
        self._servers: list[asyncio.Server] = []
        self._passing: set[asyncio.Task[None]] = set()

    async def join(self) -> None:
        """Let it through."""
        for port in self._ports:
            door = socket_in(self._namespace, socket.AF_INET, socket.SOCK_STREAM)
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(("127.0.0.1", port))
            self._servers.append(await asyncio.start_server(self._serving(port), sock=door))

    async def cut(self) -> None:
        """Nothing comes through, and what was connected is no more."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in list(self._passing):
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def _serving(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._passing.add(task)
            try:
                await self._relay(port, reader, writer)
            finally:
                self._passing.discard(task)

        return serve

    async def _relay(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # the service is down
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pass(reader, back), _pass(there, writer))
        except asyncio.CancelledError:
            return  # the cut, which asyncio's streams would take for an error of ours
        finally:
            writer.transport.abort()
            back.transport.abort()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
