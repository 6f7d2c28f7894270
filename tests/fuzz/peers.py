"""Targets for what another host says: control messages, pages, frames, disks, and the greeting of a stranger."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar
from unittest import mock

import numpy as np

from pycolo.core import disk_wire, peer, wire
from pycolo.core.memory_cache import MemoryCache, Stage, StageDigest
from pycolo.core.page_changes import MASK_BYTES, apply_twin
from pycolo.core.pages import PAGE_BYTES, Contents, PageBatch, PageDeltas
from pycolo.disk import secondary as disk_secondary
from pycolo.edge import packet_channel, peer_greeting
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.packet_channel import PacketChannel
from pycolo.edge.peer_greeting import Listener
from pycolo.edge.peer_link import Connection
from pycolo.edge.peer_stream import PeerStream
from pycolo.errors import EnvironmentFault, PeerLost, PeerViolation

from .reader import Reader

T = TypeVar("T")
PAGES = 8
HELLO = wire.Hello(
    version=wire.PROTOCOL_VERSION,
    version_min=wire.PROTOCOL_VERSION_MIN,
    channel="control",
    vm="web",
    host="h1",
    term=0,
    machine="pc-q35-7.2",
    memory_mib=256,
    cpus=1,
    nics=(wire.NicShape("52:54:00:00:00:02"), wire.NicShape("52:54:00:00:00:03", "lan")),
    accel="tcg",
    disks=(wire.DiskShape("root", 1 << 20),),
)
TOKEN = "0123456789abcdef0123456789abcdef"


def control(body: bytes) -> None:
    """A control message is refused, or says what its sender meant; the table lets no message in at the wrong time."""
    with suppress(PeerViolation):
        wire.decode_versions(body)
    for greeting in (packet_channel.GREETING, disk_secondary.GREETING):
        for kind in range(4):
            with suppress(PeerViolation):
                peer.may_enter(greeting.token(kind, body), "secret", frozenset({"h1"}))
    with suppress(PeerViolation):
        said = wire.decode_control(body)
        whole = wire.encode_control(said)
        assert wire.decode_header(whole[: wire.HEADER.size]) == (len(whole) - wire.HEADER.size, wire.Kind.CONTROL)
        assert wire.decode_control(whole[wire.HEADER.size :]) == said
        if isinstance(said, wire.Hello):
            peer.greeting_problem(HELLO, said)
        for is_primary in (True, False):
            for phase in peer.Phase:
                for channel in peer.Channel:
                    table = peer.PeerTable(receiver_is_primary=is_primary)
                    table.phase = phase
                    with suppress(PeerViolation):
                        table.check(channel, said)
                        assert phase is not peer.Phase.CLOSED


def pages(data: bytes) -> None:
    """A secondary's memory: only what is whole is committed, and a page outside of RAM is refused."""
    reader, cache = Reader(data), MemoryCache(PAGES)
    digest, epoch, committed = StageDigest(1), 1, cache.image.copy()
    while reader:
        what = reader.number() % 8
        with suppress(PeerViolation):
            if what < 3:
                batch_epoch, batch = wire.decode_pages(_pages_body(reader, epoch))
                _stage(cache, batch_epoch, batch)
                digest.add(batch)
            elif what == 3:
                batch_epoch, batch = wire.decode_pages(reader.piece())
                _stage(cache, batch_epoch, batch)
            elif what == 4:
                cache.discard()
                if reader.flag():
                    _check_restored(cache, committed)
                epoch, digest = epoch + 1, StageDigest(epoch + 1)
            elif what == 5:
                said = wire.decode_control(reader.piece())
                if isinstance(said, wire.StageMessage):
                    cache.problem(said.stage())
            elif what == 6:
                cache.restore_next()
            else:
                right = digest.finish(5, b"state")
                stage = Stage(epoch, 5, b"state", digest.batch_count, right if reader.flag() else bytes(16))
                if cache.problem(stage) is None:
                    assert stage.digest == right
                    cache.commit(stage)
                    assert cache.committed_epoch == epoch
                    while cache.restore_next():  # of an earlier one, when this one brought no page
                        pass
                    committed = cache.image.copy()
                    epoch, digest = epoch + 1, StageDigest(epoch + 1)
    assert cache.image.shape == (PAGES, PAGE_BYTES)


def _check_restored(cache: MemoryCache, committed: Contents) -> None:
    """Nothing is left of what was discarded."""
    while cache.restore_next():
        pass
    assert cache.committed is None or np.array_equal(cache.image, committed)


def _stage(cache: MemoryCache, epoch: int, batch: PageBatch) -> None:
    deltas, twin = batch.deltas, cache.image.copy()
    is_set_back = epoch != cache._staging_epoch or bool(cache._restoring)  # the image, before the batch is applied
    cache.stage(epoch, batch)
    for indices in batch.all_indices():
        assert np.all(indices < PAGES)
    if not is_set_back and len(np.unique(deltas.indices)) == len(deltas.indices):
        replace(batch, deltas=PageDeltas.none()).apply_to(twin)
        apply_twin(twin.view(np.uint64), deltas.indices, deltas.masks, deltas.words)
        assert np.array_equal(twin, cache.image)


def _pages_body(reader: Reader, epoch: int) -> bytes:
    """A batch of a few pages, mostly of this VM."""
    indices = np.array([reader.number() % (PAGES + 1) for _ in range(reader.number() % 4)], np.uint32)
    zeros = np.array([reader.number() % (PAGES + 1) for _ in range(reader.number() % 4)], np.uint32)
    contents = np.full((len(indices), PAGE_BYTES), reader.number(), np.uint8)
    changed = np.array([reader.number() % (PAGES + 1) for _ in range(reader.number() % 4)], np.uint32)
    pattern = np.array([reader.number() for _ in range(1 + reader.number() % 4)], np.uint8)
    masks = np.resize(pattern, (len(changed), MASK_BYTES))
    words = np.arange(int(np.bitwise_count(masks).sum()) + reader.number() % 2, dtype=np.uint64)
    batch = PageBatch(indices, contents, zeros, PageDeltas(changed, masks, words))
    body = b"".join(wire.encode_pages(epoch + reader.number() % 2, batch))
    return body[wire.HEADER.size :]


class Arrivals:
    """A transport whose reads give one chunk after the other."""

    ready, pending = True, False
    certified: frozenset[str] | None = None

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self.chunks = [chunk for chunk in chunks if chunk]
        self._next = 0

    def fileno(self) -> int:
        return -1

    def shake(self) -> bool:
        return True

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        return sum(map(len, buffers))

    def flush(self) -> None:
        pass

    def receive(self) -> bytes:
        self._next += 1
        return self.chunks[self._next - 1] if self._next <= len(self.chunks) else b""

    def close(self) -> None:
        pass


def _cut(reader: Reader) -> tuple[list[bytes], bytes]:
    """A stream, in chunks of a length that the bytes choose, and in one."""
    size = reader.number() + 1
    stream = reader.rest()
    return [stream[at : at + size] for at in range(0, len(stream), size)], stream


def _all_of(receive: Callable[[], Sequence[Any]]) -> tuple[list[Any], str]:
    """What comes until the channel is lost, and why it is."""
    came: list[Any] = []
    for _ in range(1 << 17):
        try:
            came += receive()
        except PeerLost as lost:
            return came, str(lost)
    raise AssertionError("a stream that ends does not end")


def channel(data: bytes) -> None:
    """The packet channel of either role: the same messages however they are cut, and each may come there."""
    reader = Reader(data)
    is_primary = reader.flag()
    chunks, stream = _cut(reader)
    outcomes = []
    for arrivals in (chunks, [stream]):
        messages = MessageStream(Arrivals(arrivals), "the packet channel", wire.decode_header)
        packets = PacketChannel(messages, 2, receiver_is_primary=is_primary)
        outcomes.append(_one_by_one(packets))
    assert outcomes[0] == outcomes[1]


def _one_by_one(packets: PacketChannel) -> tuple[list[Any], str]:
    """As `_all_of`, but with the messages that came in the same call as a violation."""
    came: list[Any] = []
    stream = packets._stream
    try:
        while stream.read():
            for kind, body in stream.messages():
                said = packets._decode(wire.Kind(kind), body)
                if isinstance(said, tuple):
                    nic, epoch, first_no, batch = said
                    assert nic < 2
                    came.append((nic, epoch, first_no, bytes(batch.packed), batch.count))
                else:
                    came.append(said)
    except PeerLost as lost:
        return came, str(lost)
    raise AssertionError("a stream that ends does not end")


def disk_messages(data: bytes) -> None:
    """The disk channel: each message keeps the limits, however it is cut."""
    chunks, stream = _cut(Reader(data))
    outcomes = []
    for arrivals in (chunks, [stream]):
        messages = MessageStream(Arrivals(arrivals), "the disk channel", disk_wire.decode_header)
        came: list[Any] = []

        def receive(messages: MessageStream = messages, came: list[Any] = came) -> Sequence[Any]:
            messages.read()
            for kind, body in messages.messages():
                came.append(_checked(disk_wire.decode(kind, body)))
            return []

        _, why = _all_of(receive)
        outcomes.append((came, why))
    assert outcomes[0] == outcomes[1]


def _checked(said: disk_wire.Message) -> object:
    if isinstance(said, disk_wire.Data):
        assert said.disk < disk_wire.DISKS_MAX
        assert said.offset + len(said.content) <= 2 * disk_wire.DISK_BYTES_MAX
        return said.disk, said.offset, bytes(said.content)
    if isinstance(said, disk_wire.Zeros):
        assert said.disk < disk_wire.DISKS_MAX
        assert 0 < said.length <= disk_wire.DISK_BYTES_MAX
        return said
    body = disk_wire.encode_control(said)[wire.HEADER.size :]
    assert disk_wire.decode(disk_wire.Kind.CONTROL, body) == said
    return said


# ---------------------------------------------------------------- strangers


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all executions."""
    made = asyncio.new_event_loop()
    made.set_exception_handler(lambda _, context: _complaints.append(context))
    return made


_complaints: list[dict[str, Any]] = []


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Its result; what goes wrong in a task or callback beside it is not overlooked."""
    _complaints.clear()
    result = loop().run_until_complete(coroutine)
    for context in _complaints:
        raise AssertionError(context["message"]) from context.get("exception")
    return result


@cache
def _tcp_socket() -> socket.socket:
    """What a connection sets its options on; connected to nobody."""
    return socket.socket()


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return _tcp_socket() if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        """Nothing more comes."""

    def resume_reading(self) -> None:
        """Nothing more comes."""

    def abort(self) -> None:
        self.aborted = True


def _caller(said: bytes, certified: frozenset[str] | None) -> tuple[Connection, _Transport]:
    stream, writer = PeerStream(), _Transport()
    stream.connection_made(writer)
    space = stream.get_buffer(len(said))
    space[: len(said)] = said[: len(space)]
    stream.buffer_updated(min(len(said), len(space)))
    stream.eof_received()
    connection = Connection(stream)
    connection.certified = certified
    return connection, writer


def greetings(data: bytes) -> None:
    """Callers of a secondary, one after the other: each is kept, refused with a sentence, or dropped."""
    reader = Reader(data)
    certified = reader.choice([None, frozenset({"h1"}), frozenset({"h1", "h2"}), frozenset[str]()])
    run(_greet_all(reader, certified))


async def _greet_all(reader: Reader, certified: frozenset[str] | None) -> None:
    refusals: list[str] = []
    ours = wire.Hello(**{**{name: getattr(HELLO, name) for name in HELLO.__struct_fields__}, "host": "h2"})
    listener = Listener(ours, (1, "packets"), (2, "disks"), refusals.append)
    with (
        mock.patch.object(peer_greeting, "new_token", return_value=TOKEN),
        mock.patch.object(peer_greeting, "REUNION_S_MAX", 0.0),
    ):
        for said in reader.pieces()[:16]:
            connection, writer = _caller(said, certified)
            before = len(refusals)
            await listener.greet(connection)
            assert len(refusals) <= before + 1
            kept = not writer.aborted
            assert not kept or len(refusals) == before
            if writer.written:
                answer = wire.decode_control(writer.written[wire.HEADER.size :])
                assert isinstance(answer, wire.Welcome if kept else wire.Refused)
    listener._ready.cancel()


def welcomes(data: bytes) -> None:
    """What a secondary answers to a primary: understood, or refused in one of two ways."""
    table = peer.PeerTable(receiver_is_primary=True)
    connection, _ = _caller(data, None)
    try:
        body = run(connection.receive_greeting())
        answer = peer_greeting._welcome(body, HELLO, table, "127.0.0.1:1")
    except (PeerLost, EnvironmentFault):
        return
    assert HELLO.version_min <= answer.version <= HELLO.version
