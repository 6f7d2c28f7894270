"""The network side of the API: strangers cost little.

Guarantees: at most CONNECTIONS_MAX at a time; who has not sent a whole request head in HEAD_S_MAX is dropped, as is who
does not finish a TLS handshake in HANDSHAKE_S_MAX.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

CONNECTIONS_MAX = 256
HEAD_S_MAX = 10.0
HANDSHAKE_S_MAX = 5.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _TooMany(asyncio.Protocol):
    """Ends a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class Listener:
    """Serves an application on HOST:PORT."""

    def __init__(self, app: web.Application) -> None:
        self._mute: set[web.RequestHandler] = set()
        app.middlewares.insert(0, self._noting())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=30.0)
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Raises OSError."""
        await self._runner.setup()
        limit_s = HANDSHAKE_S_MAX if tls is not None else None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection, host, port, ssl=tls, ssl_handshake_timeout=limit_s, reuse_address=True
        )

    async def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or len(server.connections) >= CONNECTIONS_MAX:
            return _TooMany()
        connection = server()
        self._mute.add(connection)
        asyncio.get_running_loop().call_later(HEAD_S_MAX, self._drop_if_mute, connection)
        return connection

    def _drop_if_mute(self, connection: web.RequestHandler) -> None:
        if connection in self._mute:
            self._mute.discard(connection)
            if connection.transport is not None:
                connection.transport.abort()

    def _noting(self) -> Middleware:
        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._mute.discard(request.protocol)
            return await handler(request)

        return note
