"""Sessions between two daemons on loopback: greeting, messages, and every way to lose the other side."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core import peer, wire
from pycolo.core.memory_cache import Stage
from pycolo.core.pages import PageBatch
from pycolo.edge import peer_greeting, peer_link
from pycolo.edge.peer_greeting import Listener, address, connect, listening, new_token
from pycolo.edge.peer_link import Connection, SessionWithPrimary, SessionWithSecondary
from pycolo.edge.peer_stream import PeerStream
from pycolo.errors import CheckpointFailed, EnvironmentFault, PeerLost

HELLO = wire.Hello(
    *(wire.PROTOCOL_VERSION, wire.PROTOCOL_VERSION_MIN, "control", "vm", "h1", 5, "pc-q35-7.2", 256, 1),
    *((wire.NicShape("52:54:00:00:00:02"),), "tcg"),
)
OURS = msgspec.structs.replace(HELLO, host="h2")  # the secondary's
HEARTBEAT_MS, LOST_MAX = 20, 5
STAGE = Stage(3, 11, b"devices", 1, b"d" * 16)


def ignore(why: str) -> None:
    """Nobody asks why somebody was refused."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Pair:
    """Both ends of one session."""

    primary: SessionWithSecondary
    secondary: SessionWithPrimary
    asked: asyncio.Queue[str] = field(default_factory=asyncio.Queue)


@contextlib.asynccontextmanager
async def paired(*, beating: bool = True) -> AsyncIterator[Pair]:
    """A session as the two daemons make it; without `beating` neither side has opened it yet."""
    where = f"127.0.0.1:{free_port()}"
    listener = Listener(OURS, (1234, new_token()), (0, ""), ignore)
    async with listening(where, listener, None):
        primary, welcome = await connect(where, HELLO, HEARTBEAT_MS, LOST_MAX, None)
        control, bulk = await asyncio.wait_for(listener.accepted(), 5)
    assert (welcome.packet_port, welcome.host, listener.term) == (1234, "h2", 5)
    table = peer.PeerTable(receiver_is_primary=False)
    pair = Pair(primary, SessionWithPrimary(control, bulk, table, HEARTBEAT_MS, LOST_MAX))
    primary.on_wanted = pair.asked.put_nowait
    if beating:
        primary.open(lambda: True)
        pair.secondary.open(lambda: True)
    try:
        yield pair
    finally:
        primary.close("the test ends")
        pair.secondary.close("the test ends")
        await asyncio.sleep(0.01)


async def lost(session: peer_link.PeerSession) -> str:
    return await asyncio.wait_for(asyncio.shield(session.lost), 5)


async def test_a_checkpoint_goes_over_and_its_verdict_comes_back() -> None:
    batch = PageBatch.of(np.array([4, 9], np.uint32), np.arange(2 * 4096).reshape(2, 4096).astype(np.uint8))
    async with paired() as pair:
        pair.primary.resumed_ms_ago = lambda: 12.0
        await pair.primary.send_pages(3, batch)
        await pair.primary.send_stage(STAGE)
        pages = await pair.secondary.receive()
        assert isinstance(pages, tuple)
        assert pages[0] == 3
        assert np.array_equal(pages[1].contents, batch.contents)
        assert await pair.secondary.receive() == STAGE
        noted: list[bool] = []
        pair.secondary.on_committed = lambda: noted.append(pair.primary.loaded.is_set())
        await pair.secondary.send_committed(3)
        await asyncio.wait_for(pair.primary.committed(3), 5)
        await pair.secondary.send_loaded(3)
        await asyncio.wait_for(pair.primary.loaded.wait(), 5)
        assert noted == [False]
        assert pair.primary.pages_sent == 2


async def test_the_secondary_has_caught_up_when_it_has_received_all_before() -> None:
    batch = PageBatch.of(np.array([4], np.uint32), np.ones((1, 4096), np.uint8))
    async with paired() as pair:
        await pair.primary.send_pages(3, batch)
        waiting = asyncio.create_task(pair.primary.caught_up())
        assert isinstance(await pair.secondary.receive(), tuple)
        await asyncio.sleep(0.05)
        assert not waiting.done(), "it may still be about to stage them"
        receiving = asyncio.create_task(pair.secondary.receive())
        await asyncio.wait_for(waiting, 5)
        await pair.primary.send_stage(STAGE)
        assert await asyncio.wait_for(receiving, 5) == STAGE


async def test_a_secondary_that_has_taken_what_was_not_asked_for_is_lost() -> None:
    async with paired() as pair:
        waiting = asyncio.create_task(pair.primary.caught_up())
        pair.secondary.tell_soon(wire.CaughtUp(7))
        with pytest.raises(PeerLost, match="not asked for"):
            await asyncio.wait_for(waiting, 5)


async def test_a_secondary_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_link, "COMMIT_S_MAX", 0.2)
    async with paired() as pair:
        with pytest.raises(PeerLost, match="has not taken the pages"):
            await asyncio.wait_for(pair.primary.caught_up(), 5)


async def test_a_discarded_checkpoint_says_why() -> None:
    async with paired() as pair:
        await pair.primary.send_stage(STAGE)
        await pair.secondary.receive()
        await pair.secondary.send_discarded(3, "the digest differs")
        with pytest.raises(CheckpointFailed, match="the secondary discarded epoch 3: the digest differs"):
            await asyncio.wait_for(pair.primary.committed(3), 5)
        assert not pair.primary.lost.done()


async def test_the_secondary_may_ask_for_a_checkpoint() -> None:
    async with paired() as pair:
        pair.secondary.tell_soon(wire.CheckpointWanted("replay"))
        assert await asyncio.wait_for(pair.asked.get(), 5) == "replay"


async def test_a_session_outlives_silence_on_bulk() -> None:
    async with paired() as pair:
        await asyncio.sleep(HEARTBEAT_MS * LOST_MAX * 3 / 1000)
        assert not pair.primary.lost.done()
        assert not pair.secondary.lost.done()


async def test_silence_is_noticed_in_time_and_ends_every_call() -> None:
    async with paired(beating=False) as pair:
        pair.primary.open(lambda: True)
        await pair.primary.send_stage(STAGE)
        waiting = asyncio.create_task(pair.primary.committed(3))
        begun = asyncio.get_running_loop().time()
        assert await lost(pair.primary) == f"the peer has been silent for {LOST_MAX} heartbeats of {HEARTBEAT_MS} ms"
        assert asyncio.get_running_loop().time() - begun > 0.08
        with pytest.raises(PeerLost, match="has been silent"):
            await pair.primary.tell(wire.Heartbeat())
        with pytest.raises((PeerLost, CheckpointFailed), match="silent"):
            await asyncio.wait_for(waiting, 5)


async def test_while_nobody_waits_for_it_a_peer_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_link, "SYNC_SILENCE_S_MAX", 0.4)
    async with paired(beating=False) as pair:
        pair.primary.open(lambda: False)
        begun = asyncio.get_running_loop().time()
        assert "has been silent" in await lost(pair.primary)
        assert asyncio.get_running_loop().time() - begun >= 0.4


async def test_when_the_peer_is_waited_for_at_last_its_earlier_silence_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_link, "SYNC_SILENCE_S_MAX", 60.0)
    awaited = False
    async with paired(beating=False) as pair:
        pair.primary.open(lambda: awaited)
        await asyncio.sleep(HEARTBEAT_MS * LOST_MAX * 2 / 1000)
        assert not pair.primary.lost.done()
        awaited = True
        begun = asyncio.get_running_loop().time()
        assert await lost(pair.primary) == f"the peer has been silent for {LOST_MAX} heartbeats of {HEARTBEAT_MS} ms"
        assert asyncio.get_running_loop().time() - begun >= HEARTBEAT_MS * LOST_MAX / 1000


async def test_what_its_kernel_does_not_acknowledge_counts_when_the_peer_is_waited_for() -> None:
    awaited = False

    def acknowledged_ms_max(pair: Pair) -> int:
        connection: socket.socket = pair.primary._control._stream.transport.get_extra_info("socket")
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    async with paired(beating=False) as pair:
        pair.primary.open(lambda: awaited)
        pair.secondary.open(lambda: awaited)
        await asyncio.sleep(HEARTBEAT_MS * 2 / 1000)
        assert acknowledged_ms_max(pair) == 3000
        awaited = True
        await asyncio.sleep(HEARTBEAT_MS * 4 / 1000)
        assert acknowledged_ms_max(pair) == HEARTBEAT_MS * LOST_MAX
        assert not pair.primary.lost.done()


async def test_the_reason_is_the_first_one() -> None:
    async with paired() as pair:
        pair.primary.close("we had enough")
        with pytest.raises(PeerLost, match=r"^we had enough$"):
            await pair.primary.send_stage(STAGE)
        pair.primary.close("something else")
        assert await lost(pair.primary) == "we had enough"
        assert "closed the connection" in await lost(pair.secondary)


async def test_a_call_under_way_fails_with_the_reason_of_the_loss() -> None:
    async with paired() as pair:
        receiving = asyncio.create_task(pair.secondary.receive())
        await asyncio.sleep(0.05)
        pair.secondary.close("the peer has been silent")
        with pytest.raises(PeerLost, match=r"^the peer has been silent$"):
            await asyncio.wait_for(receiving, 5)


async def test_leaving_is_told() -> None:
    async with paired() as pair:
        await pair.primary.leave("the operator stops this side")
        assert await lost(pair.secondary) == "the peer left: the operator stops this side"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (wire.Committed(99), "answered for epoch 99, which is not under way"),
        (wire.Discarded(3, "x"), "answered for epoch 3, which is not under way"),
        (wire.Welcome(1, "h2", 1, "", 2, "", ""), "sent Welcome on the control channel"),
        (wire.Boundary(1), "sent Boundary on the control channel"),
    ],
)
async def test_a_secondary_that_breaks_the_protocol_is_lost(message: wire.Control, says: str) -> None:
    async with paired() as pair:
        await pair.secondary.tell(message)
        assert says in await lost(pair.primary)


async def test_a_verdict_comes_once() -> None:
    async with paired() as pair:
        await pair.primary.send_stage(STAGE)
        await pair.secondary.send_committed(3)
        await asyncio.wait_for(pair.primary.committed(3), 5)
        await pair.secondary.send_committed(3)
        assert "not under way" in await lost(pair.primary)


@pytest.mark.parametrize("garbage", [b"\xff" * 64, wire.HEADER.pack(4, 1) + b"abcd", wire.HEADER.pack(1, 7) + b"x"])
async def test_garbage_on_either_channel_ends_the_session(garbage: bytes) -> None:
    async with paired() as pair:
        await pair.primary._bulk.send(garbage)
        with pytest.raises(PeerLost):
            await asyncio.wait_for(pair.secondary.receive(), 5)
    async with paired() as pair:
        await pair.primary._control.send(garbage)
        assert "the peer" in await lost(pair.secondary)


# ---------------------------------------------------------------- greeting


async def test_a_primary_that_does_not_fit_is_told_why() -> None:
    where = f"127.0.0.1:{free_port()}"
    listener = Listener(OURS, (1, new_token()), (0, ""), ignore)
    async with listening(where, listener, None):
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match=f"at {where} refuses: the primary's cpus is 2"):
                await connect(where, msgspec.structs.replace(HELLO, cpus=2), HEARTBEAT_MS, LOST_MAX, None)
        session, _ = await connect(where, HELLO, HEARTBEAT_MS, LOST_MAX, None)  # the right one is welcome still
        control, bulk = await asyncio.wait_for(listener.accepted(), 5)
        with pytest.raises(EnvironmentFault, match="paired already"):
            await connect(where, HELLO, HEARTBEAT_MS, LOST_MAX, None)
        session.close("")
        control.abort()
        bulk.abort()


async def test_a_wrong_token_pairs_nobody() -> None:
    where = f"127.0.0.1:{free_port()}"
    listener = Listener(OURS, (1, new_token()), (0, ""), ignore)
    async with listening(where, listener, None):
        for token in ("", "0" * 32, "é"):
            reader, writer = await asyncio.open_connection(*address(where))
            writer.write(wire.encode_control(msgspec.structs.replace(HELLO, channel="bulk", token=token)))
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert not listener._ready.done()


async def test_a_strangers_greeting_in_between_does_not_mix_two_callers() -> None:
    where = f"127.0.0.1:{free_port()}"
    listener = Listener(OURS, (1, new_token()), (0, ""), ignore)
    async with listening(where, listener, None):
        dial = asyncio.get_running_loop().create_connection
        streams = [(await dial(PeerStream, *address(where)))[1] for _ in range(3)]
        first, stranger, bulk = map(Connection, streams)
        tokens = []
        for caller, term in ((first, 1), (stranger, 7)):
            await caller.send(wire.encode_control(msgspec.structs.replace(HELLO, term=term)))
            welcome = await caller.receive()
            assert isinstance(welcome, wire.Welcome)
            tokens.append(welcome.token)
        assert tokens[0] != tokens[1]
        await bulk.send(wire.encode_control(msgspec.structs.replace(HELLO, channel="bulk", token=tokens[0])))
        control, theirs = await asyncio.wait_for(listener.accepted(), 5)
        assert listener.term == 1
        await control.send(wire.encode_control(wire.Bye("to the first")))
        assert await asyncio.wait_for(first.receive(), 5) == wire.Bye("to the first")
        with pytest.raises(PeerLost):
            await asyncio.wait_for(stranger.receive(), 5)
        for connection in (first, stranger, bulk, control, theirs):
            connection.abort()
        await asyncio.sleep(0.05)


async def test_nobody_there() -> None:
    with pytest.raises(PeerLost, match="can't be reached"):
        await connect(f"127.0.0.1:{free_port()}", HELLO, HEARTBEAT_MS, LOST_MAX, None)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", wire.encode_control(wire.Heartbeat())])
async def test_somebody_else_there(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_greeting, "GREETING_S_MAX", 0.2)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(PeerLost):
        await asyncio.wait_for(connect(f"127.0.0.1:{port}", HELLO, HEARTBEAT_MS, LOST_MAX, None), 5)
    server.close()
    await asyncio.sleep(0.05)


async def test_a_silent_stranger_is_dropped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_greeting, "GREETING_S_MAX", 0.1)
    where = f"127.0.0.1:{free_port()}"
    async with listening(where, Listener(OURS, (1, new_token()), (0, ""), ignore), None):
        reader, writer = await asyncio.open_connection(*address(where))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EnvironmentFault, match=f"can't listen on {where} .*choose a free `listen` address"):
            async with listening(where, Listener(OURS, (1, new_token()), (0, ""), ignore), None):
                pass


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[fd00::1]:7700", ("fd00::1", 7700)),
        ("host.example:65535", ("host.example", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        host, port = address(text)
    except ValueError:
        return
    assert host
    assert 0 <= port < 65536
