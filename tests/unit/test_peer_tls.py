"""Sessions between two daemons with TLS, and greetings: who is let in, and what is said of who is not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

import msgspec
import numpy as np
import pytest
from test_peer_link import HEARTBEAT_MS, HELLO, LOST_MAX, OURS, free_port, lost

from pycolo.core import peer, wire
from pycolo.core.pages import PAGE_BYTES, PageBatch
from pycolo.edge import peer_greeting
from pycolo.edge.peer_greeting import CALLERS_MAX, Listener, address, connect, listening, new_token
from pycolo.edge.peer_link import Connection, SessionWithPrimary, SessionWithSecondary
from pycolo.edge.peer_stream import PeerStream
from pycolo.edge.tls import TlsFiles, client_context, server_context
from pycolo.errors import EnvironmentFault, PeerLost, PeerUntrusted
from tls_tools import INTRUDERS, Pki

PACKETS, DISKS = "p" * 32, "d" * 32
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("tls") / "pki")


@pytest.fixture
def own_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("own") / "pki")


class Secondary:
    """A listener of h2, and what it says of callers."""

    def __init__(self, tls: TlsFiles | None) -> None:
        self.where = f"127.0.0.1:{free_port()}"
        self.refusals: list[str] = []
        self.listener = Listener(OURS, (1, PACKETS), (2, DISKS), self.refusals.append)
        self._tls = tls
        self._connections: list[Connection] = []
        self._sessions: list[SessionWithSecondary] = []

    async def greets(self, tls: TlsFiles | None, hello: wire.Hello = HELLO) -> wire.Welcome:
        """A primary that fits comes in."""
        session, welcome = await connect(self.where, hello, HEARTBEAT_MS, LOST_MAX, tls)
        self._sessions.append(session)
        self._connections += await asyncio.wait_for(self.listener.accepted(), 5)
        return welcome

    def sessions(self) -> tuple[SessionWithSecondary, SessionWithPrimary]:
        """Both ends of the session, open."""
        table = peer.PeerTable(receiver_is_primary=False)
        control, bulk = self._connections
        both = self._sessions[0], SessionWithPrimary(control, bulk, table, HEARTBEAT_MS, LOST_MAX)
        for session in both:
            session.open(lambda: True)
        return both

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Secondary]:
        async with listening(self.where, self.listener, self._tls):
            try:
                yield self
            finally:
                for session in self._sessions:
                    session.close("the test ends")
                for connection in self._connections:
                    connection.abort()
                await asyncio.sleep(0.02)


async def call(where: str, context: ssl.SSLContext | None, said: bytes) -> bytes:
    """Say something; returns what is answered until the end."""
    secured = {} if context is None else {"ssl": context, "server_hostname": ""}
    answer = b""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(*address(where), **secured)  # type: ignore[arg-type]
        try:
            writer.write(said)
            answer = await asyncio.wait_for(reader.read(1 << 16), 5)
        finally:
            writer.transport.abort()
    await asyncio.sleep(0.02)
    return answer


async def test_a_session_with_everything_a_checkpoint_needs(pki: Pki) -> None:
    async with Secondary(pki.files("h2")).serving() as secondary:
        welcome = await secondary.greets(pki.files("h1"))
        assert welcome.packet_token == peer.channel_token(PACKETS, "h1")
        assert welcome.disk_token == peer.channel_token(DISKS, "h1")
        primary, other = secondary.sessions()
        content = np.arange(1024 * PAGE_BYTES, dtype=np.uint32).astype(np.uint8).reshape(1024, PAGE_BYTES)
        batch = PageBatch.of(np.arange(1024, dtype=np.uint32), content)
        for epoch in (1, 2, 3):
            sending = asyncio.create_task(primary.send_pages(epoch, batch))
            got = await asyncio.wait_for(other.receive(), 5)
            await sending
            assert isinstance(got, tuple)
            assert got[0] == epoch
            assert np.array_equal(got[1].contents, content)
        await primary.leave("enough")
        assert await lost(other) == "the peer left: enough"


async def test_a_death_is_seen_at_once(pki: Pki) -> None:
    async with Secondary(pki.files("h2")).serving() as secondary:
        await secondary.greets(pki.files("h1"))
        primary, other = secondary.sessions()
        began = asyncio.get_running_loop().time()
        primary._control.abort()  # no farewell, no close_notify
        assert "the peer closed" in await lost(other) or "broke" in await lost(other)
        assert asyncio.get_running_loop().time() - began < HEARTBEAT_MS * LOST_MAX / 1000


@pytest.mark.parametrize(("make", "says"), INTRUDERS.values(), ids=INTRUDERS)
async def test_who_is_not_known_is_told_of_and_does_not_even_greet(
    own_pki: Pki, make: Callable[[Pki], ssl.SSLContext], says: str
) -> None:
    async with Secondary(own_pki.files("h2")).serving() as secondary:
        assert await call(secondary.where, make(own_pki), wire.encode_control(HELLO)) == b""
        assert len(secondary.refusals) == 1
        assert says in secondary.refusals[0]
        assert "the primary at 127.0.0.1" in secondary.refusals[0]
        await secondary.greets(own_pki.files("h1"))


@pytest.mark.parametrize("said", [wire.encode_control(HELLO), b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100])
async def test_plain_text_is_not_taken(pki: Pki, said: bytes) -> None:
    async with Secondary(pki.files("h2")).serving() as secondary:
        assert HELLO.vm.encode() not in await call(secondary.where, None, said)
        assert len(secondary.refusals) == 1
        assert "does not speak TLS 1.3 with a certificate" in secondary.refusals[0]
        await secondary.greets(pki.files("h1"))


async def test_a_host_of_our_ca_under_another_name(pki: Pki) -> None:
    async with Secondary(pki.files("h2")).serving() as secondary:
        says = "the peer calls itself h1, but its certificate is for h3: make `name`"
        with pytest.raises(EnvironmentFault, match=says):
            await connect(secondary.where, HELLO, HEARTBEAT_MS, LOST_MAX, pki.files("h3"))
        with pytest.raises(EnvironmentFault, match="the peer shows a certificate of this host's own name h2"):
            await connect(secondary.where, HELLO, HEARTBEAT_MS, LOST_MAX, pki.files("h2"))
        assert [why.split(":")[0] for why in secondary.refusals] == [
            "the peer calls itself h1, but its certificate is for h3",
            "the peer shows a certificate of this host's own name h2",
        ]
        await secondary.greets(pki.files("h1"))


async def test_a_bulk_channel_of_another_host_with_a_good_token(pki: Pki) -> None:
    async with Secondary(pki.files("h2")).serving() as secondary:
        _, stream = await asyncio.get_running_loop().create_connection(
            PeerStream, *address(secondary.where), ssl=client_context(pki.files("h1")), server_hostname=""
        )
        control = Connection(stream)
        await control.send(wire.encode_control(HELLO))
        welcome = await control.receive()
        assert isinstance(welcome, wire.Welcome)
        thief = msgspec.structs.replace(HELLO, channel="bulk", token=welcome.token, host="h3")
        await call(secondary.where, client_context(pki.files("h3")), wire.encode_control(thief))
        assert secondary.refusals == ["a bulk connection of h3 shows a token that nobody waits for"]
        assert not secondary.listener._ready.done()
        control.abort()


async def test_a_bulk_token_serves_once(pki: Pki) -> None:
    async with Secondary(pki.files("h2")).serving() as secondary:
        welcome = await secondary.greets(pki.files("h1"))
        again = msgspec.structs.replace(HELLO, channel="bulk", token=welcome.token)
        assert await call(secondary.where, client_context(pki.files("h1")), wire.encode_control(again)) == b""
        assert secondary.refusals == ["a bulk connection of h1 shows a token that nobody waits for"]


async def test_a_greeting_once_more_ends_the_session(pki: Pki) -> None:
    async with Secondary(pki.files("h2")).serving() as secondary:
        await secondary.greets(pki.files("h1"))
        primary, other = secondary.sessions()
        await primary.tell(HELLO)
        assert await lost(other) == "the peer sent Hello on the control channel while the session is open"


async def test_silent_callers_neither_block_nor_stand_in_the_way(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_greeting, "GREETING_S_MAX", 60.0)  # time makes room for nobody
    async with Secondary(pki.files("h2")).serving() as secondary:
        silent: list[Streams] = [
            await asyncio.open_connection(*address(secondary.where)) for _ in range(CALLERS_MAX + 3)
        ]
        for number, (_, writer) in enumerate(silent):
            writer.write(b"\x16\x03\x01\x02\x00\x01"[:number])  # the beginning of a handshake
        assert await asyncio.wait_for(silent[0][0].read(), 10) == b""  # the oldest made room
        await asyncio.wait_for(secondary.greets(pki.files("h1")), 10)
        for _, writer in silent:
            writer.transport.abort()


async def test_silent_callers_are_dropped_in_time(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_greeting, "GREETING_S_MAX", 0.1)
    async with Secondary(pki.files("h2")).serving() as secondary:
        assert await asyncio.wait_for(call(secondary.where, None, b"\x16\x03\x01"), 10) == b""
        assert secondary.refusals == []


# ---------------------------------------------------------------- a secondary that is not what it should be


@contextlib.asynccontextmanager
async def impostor(context: ssl.SSLContext | None, *answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Somebody who answers a greeting; also what was said to it."""
    heard: list[bytes] = []
    waiting = iter(answers)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            heard.append(await reader.read(1 << 16))
            writer.write(next(waiting, b""))
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(speak, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()
        await asyncio.sleep(0.02)


WELCOME = wire.Welcome(wire.PROTOCOL_VERSION, "h2", 1, "p", 2, "d", "t")


@pytest.mark.parametrize("kind", ["another CA", "expired", "plain"])
async def test_a_primary_says_nothing_to_who_is_not_known(own_pki: Pki, kind: str) -> None:
    files = {"another CA": own_pki.of_another_ca, "expired": own_pki.expired}
    context = server_context(files[kind]("h2")) if kind in files else None
    async with impostor(context, wire.encode_control(WELCOME)) as (where, heard):
        with pytest.raises(PeerUntrusted, match=f"the (certificate of the )?secondary at {where}"):
            await connect(where, HELLO, HEARTBEAT_MS, LOST_MAX, own_pki.files("h1"))
        assert not any(HELLO.vm.encode() in said and HELLO.nics[0].mac.encode() in said for said in heard)


async def test_a_primary_shows_no_token_to_another_name(pki: Pki) -> None:
    async with impostor(server_context(pki.files("h3")), wire.encode_control(WELCOME)) as (where, heard):
        with pytest.raises(PeerUntrusted, match="the peer calls itself h2, but its certificate is for h3"):
            await connect(where, HELLO, HEARTBEAT_MS, LOST_MAX, pki.files("h1"))
        assert len(heard) == 1


async def test_a_primary_that_is_not_accepted_is_told_why(own_pki: Pki) -> None:
    async with Secondary(own_pki.files("h2")).serving() as secondary:
        with pytest.raises(PeerUntrusted, match=r"ends the connection without an answer: see its log; if it does not"):
            await connect(secondary.where, HELLO, HEARTBEAT_MS, LOST_MAX, own_pki.of_another_ca("h1"))


# ---------------------------------------------------------------- versions


LATER = wire.PROTOCOL_VERSION + 1


def hello_of(version: int, version_min: int | None, **more: object) -> bytes:
    """A greeting of another pycolo."""
    fields = {"type": "hello", **msgspec.structs.asdict(HELLO), "version": version, **more}
    del fields["version_min"]
    if version_min is not None:
        fields["version_min"] = version_min
    body = msgspec.msgpack.encode(fields)
    return wire.HEADER.pack(len(body), wire.Kind.CONTROL) + body


def answer_of(message: bytes) -> wire.Control:
    return wire.decode_control(message[wire.HEADER.size :])


@pytest.mark.parametrize(
    ("said", "speaks"),
    [
        (hello_of(2, None), "2"),
        (hello_of(LATER + 1, LATER), f"{LATER} to {LATER + 1}"),
        (hello_of(LATER + 1, LATER, novelty={"a": 1}), f"{LATER} to {LATER + 1}"),
        (hello_of(LATER + 1, LATER, type="salute", memory_mib="much"), f"{LATER} to {LATER + 1}"),
    ],
)
async def test_a_primary_of_another_version_is_told_both(said: bytes, speaks: str) -> None:
    async with Secondary(None).serving() as secondary:
        answer = answer_of(await call(secondary.where, None, said))
        assert isinstance(answer, wire.Refused)
        assert answer.why == (
            f"the primary speaks protocol {speaks}, the secondary {wire.PROTOCOL_VERSION}: "
            "install the same pycolo on both hosts"
        )
        assert secondary.refusals == [answer.why]


async def test_a_newer_primary_that_still_speaks_ours() -> None:
    async with Secondary(None).serving() as secondary:
        newer = msgspec.structs.replace(HELLO, version=wire.PROTOCOL_VERSION + 4)
        assert (await secondary.greets(None, newer)).version == wire.PROTOCOL_VERSION


async def test_a_secondary_of_a_version_that_we_do_not_speak() -> None:
    newer = {**msgspec.structs.asdict(WELCOME), "type": "welcome", "version": LATER, "novelty": 1}
    body = msgspec.msgpack.encode(newer)
    other = wire.encode_control(msgspec.structs.replace(WELCOME, version=LATER))
    for answer in (wire.HEADER.pack(len(body), 1) + body, other):
        async with impostor(None, answer) as (where, _):
            with pytest.raises(
                EnvironmentFault,
                match=f"the primary speaks protocol {wire.PROTOCOL_VERSION}, the secondary {LATER}: install",
            ):
                await connect(where, HELLO, HEARTBEAT_MS, LOST_MAX, None)


# ---------------------------------------------------------------- length


@pytest.mark.parametrize("kind", [wire.Kind.CONTROL, wire.Kind.PAGES])
async def test_a_long_greeting_is_refused_before_its_body_is_read(kind: wire.Kind) -> None:
    async with Secondary(None).serving() as secondary:
        said = wire.HEADER.pack(wire.GREETING_BYTES_MAX + 1, kind)
        assert await asyncio.wait_for(call(secondary.where, None, said), 10) == b""
        assert "a message of 16385 bytes; the limit is 16384" in secondary.refusals[0]


async def test_a_long_answer_to_a_greeting() -> None:
    async with impostor(None, wire.HEADER.pack(wire.GREETING_BYTES_MAX + 1, 1)) as (where, _):
        with pytest.raises(PeerLost, match="a message of 16385 bytes; the limit is 16384"):
            await connect(where, HELLO, HEARTBEAT_MS, LOST_MAX, None)


@pytest.mark.parametrize("cut", [0, 3, 5, 40])
async def test_a_greeting_that_is_cut_short(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_greeting, "GREETING_S_MAX", 0.1)
    async with Secondary(None).serving() as secondary:
        assert await call(secondary.where, None, wire.encode_control(HELLO)[:cut]) == b""
        assert secondary.refusals == []


@pytest.mark.parametrize("first", [wire.Heartbeat(), wire.Bye("x"), wire.Committed(1)])
async def test_something_else_first(first: wire.Control) -> None:
    async with Secondary(None).serving() as secondary:
        assert await call(secondary.where, None, wire.encode_control(first)) == b""
        assert len(secondary.refusals) == 1


async def test_an_unknown_channel() -> None:
    async with Secondary(None).serving() as secondary:
        said = wire.encode_control(msgspec.structs.replace(HELLO, channel="other"))
        assert await call(secondary.where, None, said) == b""
        assert secondary.refusals == ["the primary wants a channel of the unknown kind other"]


def test_tokens_differ() -> None:
    assert new_token() != new_token()
