"""How a session between two daemons comes about: the primary calls, the secondary listens, both look if they fit.

Guarantees: a stranger costs at most a few connections for a short time, and learns only why it does not fit; with TLS
it does not even learn that. No token and nothing of a VM's state goes to a host, or comes from one, whose certificate
is not for the name that it greets with.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from pycolo.core import peer, wire
from pycolo.edge.peer_link import Connection, SessionWithSecondary
from pycolo.edge.peer_stream import PeerStream
from pycolo.edge.tls import TlsFiles, client_context, handshake_failure, server_context
from pycolo.errors import EnvironmentFault, PeerLost, PeerUntrusted, PeerViolation

GREETING_S_MAX = 2.0
GREETED_MAX = 8  # greetings that wait for their bulk connection
CALLERS_MAX = 8  # who has not greeted yet; the oldest makes room
ACCEPT_RETRY_S = 0.1
REUNION_S_MAX = 1.5  # a claim that the arbiter does not answer, and a little more


def address(text: str) -> tuple[str, int]:
    """Split HOST:PORT (or [HOST]:PORT); port 0: a listener's port that the kernel chooses. Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


# ---------------------------------------------------------------- primary: connect


async def connect(
    peer_address: str, hello: wire.Hello, heartbeat_ms: int, heartbeat_lost_max: int, tls: TlsFiles | None
) -> tuple[SessionWithSecondary, wire.Welcome]:
    """Open a session with the secondary; without `tls` neither side knows who the other is.

    Raises PeerLost when nobody answers, PeerUntrusted when who answers is not who it says, EnvironmentFault when it
    refuses us, or speaks no protocol of ours.
    """
    control = await _dial(peer_address, tls)
    made = [control]
    table = peer.PeerTable(receiver_is_primary=True)
    try:
        async with asyncio.timeout(GREETING_S_MAX):
            await control.send(wire.encode_control(hello))
            welcome = _welcome(await _answer(control, peer_address), hello, table, peer_address)
            _check_identity(hello.host, welcome.host, control)
            bulk = await _dial(peer_address, tls)
            made.append(bulk)
            _check_identity(hello.host, welcome.host, bulk)
            bulk_hello = msgspec.structs.replace(hello, channel=peer.Channel.BULK, token=welcome.token)
            await bulk.send(wire.encode_control(bulk_hello))
    except TimeoutError:
        _abort(made)
        raise PeerLost(f"the secondary at {peer_address} does not greet in {GREETING_S_MAX:.0f} s") from None
    except BaseException:  # who called may have no more patience
        _abort(made)
        raise
    session = SessionWithSecondary(control, bulk, table, heartbeat_ms, heartbeat_lost_max)
    return session, welcome


def _abort(connections: Iterable[Connection]) -> None:
    for connection in connections:
        connection.abort()


async def _answer(control: Connection, peer_address: str) -> memoryview:
    """The body of the answer. A secondary that does not accept our certificate says so only by leaving."""
    try:
        return await control.receive_greeting()
    except PeerViolation:
        raise
    except PeerLost:
        if control.certified is None:
            raise
        raise PeerUntrusted(
            f"the secondary at {peer_address} ends the connection without an answer: see its log; if it does not "
            "accept our certificate, issue one with the CA that `tls.ca` names there"
        ) from None


def _welcome(body: memoryview, hello: wire.Hello, table: peer.PeerTable, peer_address: str) -> wire.Welcome:
    """The answer to our greeting. A version that we do not know is said first: the rest of it may be unreadable."""
    try:
        answer = wire.decode_control(body)
    except PeerViolation:
        theirs, ours = wire.decode_versions(body), _versions(hello)
        if peer.common_version(ours, theirs) is None:
            raise EnvironmentFault(peer.version_problem(primary=ours, secondary=theirs)) from None
        raise
    table.check(peer.Channel.CONTROL, answer)
    if isinstance(answer, wire.Refused):
        raise EnvironmentFault(f"the secondary at {peer_address} refuses: {answer.why}")
    assert isinstance(answer, wire.Welcome)
    if not hello.version_min <= answer.version <= hello.version:
        chosen = wire.Versions(answer.version)
        raise EnvironmentFault(peer.version_problem(primary=_versions(hello), secondary=chosen))
    return answer


def _versions(hello: wire.Hello) -> wire.Versions:
    return wire.Versions(hello.version, hello.version_min)


def _check_identity(ours: str, said: str, connection: Connection) -> None:
    problem = peer.identity_problem(ours, said, connection.certified)
    if problem is not None:
        connection.abort()
        raise PeerUntrusted(problem)


async def _dial(peer_address: str, tls: TlsFiles | None) -> Connection:
    host, port = address(peer_address)
    secured: dict[str, Any] = {} if tls is None else {"ssl": client_context(tls), "server_hostname": ""}
    where = f"the secondary at {peer_address}"
    try:
        async with asyncio.timeout(GREETING_S_MAX):
            _, stream = await asyncio.get_running_loop().create_connection(PeerStream, host, port, **secured)
            return Connection(stream)
    except ssl.SSLError as error:
        raise handshake_failure(where, error) from None
    except (OSError, TimeoutError) as error:
        raise PeerLost(f"{where} can't be reached: {error}") from None


# ---------------------------------------------------------------- secondary: listen


ChannelAddress = tuple[int, str]
"""Port, and the secret that the token is made of which has to be shown there."""


class Listener:
    """Waits for a primary that fits; everybody else is told why not, or dropped when they do not speak in time."""

    def __init__(
        self,
        ours: wire.Hello,
        packets: ChannelAddress,
        disks: ChannelAddress,
        refused: Callable[[str], None],
        primary: str = "",
    ) -> None:
        """`packets` and `disks`: where the secondary's agent and disk process listen.

        `primary` is the host that this secondary is for; empty: any that fits.
        `refused` hears, in a sentence, why somebody was not accepted.
        """
        self._ours, self._packets, self._disks, self.refused = ours, packets, disks, refused
        self.term, self.primary = 0, primary
        self._greeted: dict[str, tuple[Connection, wire.Hello]] = {}  # by token: control connection and its greeting
        self._ready: asyncio.Future[tuple[Connection, Connection]] = asyncio.get_running_loop().create_future()
        self._paired = False
        self._window = asyncio.Event()  # while it is set, the primary that was ours may come back
        self.superseded = False  # a primary of a newer term has called: we can never take over

    async def greet(self, connection: Connection) -> None:
        """One incoming connection: keep it, or end it."""
        kept = False
        try:
            async with asyncio.timeout(GREETING_S_MAX):
                body = await connection.receive_greeting()
                kept = await self._take_any(connection, body)
        except PeerViolation as violation:
            self.refused(str(violation))
        except (PeerLost, TimeoutError):
            pass
        finally:
            if not kept:
                connection.abort()

    async def accepted(self) -> tuple[Connection, Connection]:
        """The control and the bulk connection of the primary that fits."""
        return await self._ready

    async def returned(
        self, packets: ChannelAddress, disks: ChannelAddress, wait_s: float
    ) -> tuple[Connection, Connection] | None:
        """The connections of the primary that was ours, if it comes back in time."""
        self._packets, self._disks = packets, disks
        self._ready = asyncio.get_running_loop().create_future()
        self._window.set()
        await asyncio.wait((self._ready,), timeout=wait_s)
        self._window.clear()
        if self._ready.done():
            return self._ready.result()
        self._ready.cancel()  # who comes now comes too late
        for other, _ in self._greeted.values():
            other.abort()
        self._greeted.clear()
        return None

    async def _take_any(self, connection: Connection, body: memoryview) -> bool:
        theirs, ours = wire.decode_versions(body), _versions(self._ours)
        version = peer.common_version(ours, theirs)
        if version is None:
            return await self._refuse(connection, peer.version_problem(primary=theirs, secondary=ours))
        hello = wire.decode_control(body)
        peer.PeerTable(receiver_is_primary=False).check(peer.Channel.CONTROL, hello)
        assert isinstance(hello, wire.Hello)
        problem = peer.identity_problem(self._ours.host, hello.host, connection.certified)
        if problem is not None:
            return await self._refuse(connection, problem)
        if hello.channel == peer.Channel.BULK:
            return self._take_bulk(connection, hello)
        if hello.channel != peer.Channel.CONTROL:
            raise PeerViolation(f"the primary wants a channel of the unknown kind {hello.channel}")
        return await self._take(connection, hello, version)

    async def _refuse(self, connection: Connection, why: str) -> bool:
        self.refused(why)
        await connection.send(wire.encode_control(wire.Refused(why)))
        return False

    async def _take(self, connection: Connection, hello: wire.Hello, version: int) -> bool:
        problem = peer.greeting_problem(self._ours, hello)
        if problem is None and self.primary not in ("", hello.host):
            problem = f"this secondary is for the primary on {self.primary}, not for {hello.host}"
        if problem is None and hello.resume:
            problem = await self._resume_problem(hello)
        elif problem is None and self._paired:
            ours = hello.host == self.primary  # nobody else can tell us that our time is over
            self.superseded = self.superseded or (ours and hello.term > self.term)
            problem = "this secondary is paired already"
        if problem is not None:
            return await self._refuse(connection, problem)
        while len(self._greeted) >= GREETED_MAX:
            oldest, _ = self._greeted.pop(next(iter(self._greeted)))
            oldest.abort()
        token = new_token()
        self._greeted[token] = (connection, hello)
        caller = "" if connection.certified is None else hello.host
        packets, disks = ((port, peer.channel_token(secret, caller)) for port, secret in (self._packets, self._disks))
        welcome = wire.Welcome(version, self._ours.host, *packets, *disks, token)
        await connection.send(wire.encode_control(welcome))
        return True

    async def _resume_problem(self, hello: wire.Hello) -> str | None:
        """A primary that was ours may return only while we wait for it, and neither has gone on alone."""
        if hello.term != self.term:
            return f"this secondary was a pair with a primary of term {self.term}, not {hello.term}"
        with suppress(TimeoutError):
            await asyncio.wait_for(self._window.wait(), REUNION_S_MAX)
        return None if self._window.is_set() else "this secondary does not look for the primary that it had"

    def _take_bulk(self, connection: Connection, hello: wire.Hello) -> bool:
        """The bulk connection that belongs to a greeting: whoever shows its token is the one who got it."""
        greeted = self._greeted.get(hello.token)
        if greeted is None or greeted[1].host != hello.host or self._ready.done():
            raise PeerViolation(f"a bulk connection of {hello.host} shows a token that nobody waits for")
        control, self.term, self.primary = greeted[0], greeted[1].term, greeted[1].host
        self.superseded = False
        del self._greeted[hello.token]
        self._ready.set_result((control, connection))
        self._paired = True
        for other, _ in self._greeted.values():
            other.abort()
        self._greeted.clear()
        return True


@asynccontextmanager
async def listening(listen: str, listener: Listener, tls: TlsFiles | None) -> AsyncIterator[str]:
    """Serve `listener` on HOST:PORT, and say where that is. Raises EnvironmentFault when the address can't be had."""
    context = None if tls is None else server_context(tls)
    host, _ = address(listen)
    doors = await _bind(listen)
    chosen = doors[0].getsockname()[1]
    accepting = [asyncio.create_task(_accept(door, listener, context)) for door in doors]
    try:
        yield f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"
    finally:
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)
        for door in doors:
            door.close()


async def _bind(listen: str) -> list[socket.socket]:
    """Sockets that listen on every address of a host. Raises EnvironmentFault."""
    host, port = address(listen)
    doors: list[socket.socket] = []
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, where in dict.fromkeys((family, where[:2]) for family, _, _, _, where in found):
            door = socket.create_server((str(where[0]), port), family=family, backlog=CALLERS_MAX)
            door.setblocking(False)
            doors.append(door)
    except OSError as error:
        for door in doors:
            door.close()
        raise EnvironmentFault(
            f"can't listen on {listen} ({error.strerror or error}): choose a free `listen` address in host.toml"
        ) from None
    return doors


async def _accept(door: socket.socket, listener: Listener, context: ssl.SSLContext | None) -> None:
    """Let callers in for ever; of those who have not greeted the oldest makes room for the next."""
    loop, callers = asyncio.get_running_loop(), dict[asyncio.Task[None], None]()
    try:
        while True:
            try:
                connection, caller = await loop.sock_accept(door)
            except OSError:  # whoever it was is gone, or too many files are open: the next one may come in
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            if len(callers) >= CALLERS_MAX:
                next(iter(callers)).cancel()
            task = asyncio.create_task(_hear(connection, f"the primary at {caller[0]}", listener, context))
            callers[task] = None
            task.add_done_callback(callers.pop)
    finally:
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


async def _hear(connection: socket.socket, who: str, listener: Listener, context: ssl.SSLContext | None) -> None:
    """Shake hands with one caller and hear its greeting."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(GREETING_S_MAX):
            _, stream = await loop.connect_accepted_socket(PeerStream, connection, ssl=context)
        caller = Connection(stream)
    except ssl.SSLError as error:
        listener.refused(str(handshake_failure(who, error)))
    except (OSError, TimeoutError):
        pass  # a stranger that went away, or said nothing
    else:
        await listener.greet(caller)


def new_token() -> str:
    """A secret that binds the further channels to the greeting."""
    return secrets.token_hex(16)
