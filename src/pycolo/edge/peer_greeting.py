"""How a session between two daemons comes about: the primary calls, the secondary listens, both look if they fit.

Guarantees: a stranger costs at most a few connections for a short time, and learns only why it does not fit.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from pycolo.core import peer, wire
from pycolo.edge.peer_link import Connection, SessionWithSecondary
from pycolo.errors import EnvironmentFault, PeerLost

GREETING_S_MAX = 2.0
GREETED_MAX = 8  # greetings that wait for their bulk connection
STREAM_BUFFER_BYTES = 8 << 20


def address(text: str) -> tuple[str, int]:
    """Split HOST:PORT (or [HOST]:PORT). Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


# ---------------------------------------------------------------- primary: connect


async def connect(
    peer_address: str, hello: wire.Hello, heartbeat_ms: int, heartbeat_lost_max: int
) -> tuple[SessionWithSecondary, wire.Welcome]:
    """Open a session with the secondary. Raises PeerLost when nobody answers, EnvironmentFault when it refuses us."""
    control = await _dial(peer_address)
    table = peer.PeerTable(receiver_is_primary=True)
    try:
        async with asyncio.timeout(GREETING_S_MAX):
            await control.send(wire.encode_control(hello))
            answer = await control.receive()
            table.check(peer.Channel.CONTROL, answer)
            if isinstance(answer, wire.Refused):
                raise EnvironmentFault(f"the secondary at {peer_address} refuses: {answer.why}")
            assert isinstance(answer, wire.Welcome)
            bulk = await _dial(peer_address)
            bulk_hello = msgspec.structs.replace(hello, channel=peer.Channel.BULK, token=answer.token)
            await bulk.send(wire.encode_control(bulk_hello))
    except TimeoutError:
        control.abort()
        raise PeerLost(f"the secondary at {peer_address} does not greet in {GREETING_S_MAX:.0f} s") from None
    except (PeerLost, EnvironmentFault):
        control.abort()
        raise
    session = SessionWithSecondary(control, bulk, table, heartbeat_ms, heartbeat_lost_max)
    return session, answer


async def _dial(peer_address: str) -> Connection:
    host, port = address(peer_address)
    try:
        async with asyncio.timeout(GREETING_S_MAX):
            streams = await asyncio.open_connection(host, port, limit=STREAM_BUFFER_BYTES)
    except (OSError, TimeoutError) as error:
        raise PeerLost(f"the secondary at {peer_address} can't be reached: {error}") from None
    return Connection(*streams)


# ---------------------------------------------------------------- secondary: listen


ChannelAddress = tuple[int, str]
"""Port, and the token that has to be shown there."""


class Listener:
    """Waits for a primary that fits; everybody else is told why not, or dropped when they do not speak in time."""

    def __init__(self, ours: wire.Hello, packets: ChannelAddress, disks: ChannelAddress) -> None:
        """`packets` and `disks`: where the secondary's agent and disk process listen."""
        self._ours, self._packets, self._disks = ours, packets, disks
        self.term = 0
        self._greeted: dict[str, tuple[Connection, int]] = {}  # by token: control connection, term
        self._ready: asyncio.Future[tuple[Connection, Connection]] = asyncio.get_running_loop().create_future()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One incoming connection."""
        connection = Connection(reader, writer)
        try:
            async with asyncio.timeout(GREETING_S_MAX):
                hello = await connection.receive()
            peer.PeerTable(receiver_is_primary=False).check(peer.Channel.CONTROL, hello)
            assert isinstance(hello, wire.Hello)
            kept = (
                self._take_bulk(connection, hello) if hello.channel == "bulk" else await self._take(connection, hello)
            )
        except (PeerLost, TimeoutError):
            kept = False
        if not kept:
            connection.abort()

    async def accepted(self) -> tuple[Connection, Connection]:
        """The control and the bulk connection of the primary that fits."""
        return await self._ready

    async def _take(self, connection: Connection, hello: wire.Hello) -> bool:
        problem = peer.greeting_problem(self._ours, hello)
        if problem is None and self._ready.done():
            problem = "this secondary is paired already"
        if problem is not None:
            await connection.send(wire.encode_control(wire.Refused(problem)))
            return False
        while len(self._greeted) >= GREETED_MAX:
            oldest, _ = self._greeted.pop(next(iter(self._greeted)))
            oldest.abort()
        token = new_token()
        self._greeted[token] = (connection, hello.term)
        ours = self._ours
        welcome = wire.Welcome(wire.PROTOCOL_VERSION, ours.host, *self._packets, *self._disks, token)
        await connection.send(wire.encode_control(welcome))
        return True

    def _take_bulk(self, connection: Connection, hello: wire.Hello) -> bool:
        """The bulk connection that belongs to a greeting: whoever shows its token is the one who got it."""
        greeted = self._greeted.pop(hello.token, None)
        if greeted is None or self._ready.done():
            return False
        control, self.term = greeted
        self._ready.set_result((control, connection))
        for other, _ in self._greeted.values():
            other.abort()
        self._greeted.clear()
        return True


@asynccontextmanager
async def listening(listen: str, listener: Listener) -> AsyncIterator[None]:
    """Serve `listener` on HOST:PORT. Raises EnvironmentFault when the address can't be had."""
    host, port = address(listen)
    try:
        server = await asyncio.start_server(listener, host, port, limit=STREAM_BUFFER_BYTES)
    except OSError as error:
        raise EnvironmentFault(
            f"can't listen on {listen} ({error.strerror or error}): choose a free `listen` address in host.toml"
        ) from None
    try:
        yield
    finally:
        server.close()


def new_token() -> str:
    """A secret that binds the further channels to the greeting."""
    return secrets.token_hex(16)
