"""Connections between two daemons: control (heartbeats and answers) and bulk (checkpoints), each with its own socket.

Guarantees: when the peer is lost, `lost` is set with the reason in a sentence and every call under way raises PeerLost.
A closed socket counts at once; silence counts after `heartbeat_lost_max` heartbeats of our own, so that a stall of our
own process is never taken for the peer's death. In a first sync nobody waits for the peer yet, and its host is busier
than ever: silence of less than `SYNC_SILENCE_S_MAX` doesn't count until the primary has cut the first checkpoint, and
the secondary committed it. A secondary that hears nothing between these two bears that, so the primary, whose clients
wait from the cut on, goes by what the peer's kernel acknowledges as well.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from pycolo.core import peer, wire
from pycolo.core.memory_cache import Stage
from pycolo.core.pages import PageBatch
from pycolo.edge.peer_socket import UNACKNOWLEDGED_S_MAX, limit_unacknowledged, prepare_peer_socket
from pycolo.edge.peer_stream import PeerStream
from pycolo.edge.tls import certified_names, failure
from pycolo.errors import CheckpointFailed, PeerLost, PeerViolation

T = TypeVar("T")

SYNC_SILENCE_S_MAX = 3.0
COMMIT_S_MAX = 10.0
FAREWELL_S_MAX = 0.5
DISMISSAL_S_MAX = 1.0
REBASE_S_MAX = 1.0


class Connection:
    """One connection as a stream of whole messages. Every method may raise PeerLost.

    `certified` are the names in the peer's certificate; None without TLS.
    """

    def __init__(self, stream: PeerStream) -> None:
        self._stream = stream
        connection: socket.socket = stream.transport.get_extra_info("socket")
        name = stream.transport.get_extra_info("peername")
        self.peer_host = str(name[0]) if name else ""  # it may be gone already
        tls: ssl.SSLObject | None = stream.transport.get_extra_info("ssl_object")
        self.certified = None if tls is None else certified_names(tls)
        prepare_peer_socket(connection)

    def limit_unacknowledged(self, seconds: float) -> None:
        """From here on it breaks when the peer's kernel acknowledges nothing for so long; sooner, never later."""
        connection: socket.socket | None = self._stream.transport.get_extra_info("socket")
        if connection is None:  # it has broken, and TLS has let go of it
            return
        with suppress(OSError):  # it may have broken just now
            limit_unacknowledged(connection, min(seconds, UNACKNOWLEDGED_S_MAX))

    async def send(self, *buffers: bytes | memoryview) -> None:
        """Send one encoded message; waits while the peer does not take it."""
        try:
            for buffer in buffers:
                self._stream.write(buffer)
            await self._stream.drain()
        except ssl.SSLError as error:
            raise failure("the peer", error) from None
        except (OSError, RuntimeError) as error:
            raise PeerLost(f"the connection to the peer broke: {error}") from None

    async def receive_greeting(self) -> memoryview:
        """The body of the first message, which is a short one. Raises PeerViolation for what can't be one."""
        kind, body = await self._receive_body(wire.GREETING_BYTES_MAX)
        if kind is not wire.Kind.CONTROL:
            raise PeerViolation(f"the peer greets with a message of kind {kind.name}")
        return body

    async def receive(self) -> wire.Message:
        """The next message. Raises PeerViolation for what can't be one."""
        kind, body = await self._receive_body(wire.MESSAGE_BYTES_MAX)
        if kind is wire.Kind.PAGES:
            return wire.decode_pages(body)
        if kind is wire.Kind.CONTROL:
            return wire.decode_control(body)
        raise PeerViolation("the peer sent frames on a connection between daemons")

    async def _receive_body(self, bytes_max: int) -> tuple[wire.Kind, memoryview]:
        try:
            length, kind = wire.decode_header(await self._stream.read(wire.HEADER.size), bytes_max)
            return kind, await self._stream.read(length)
        except asyncio.IncompleteReadError:
            raise PeerLost("the peer closed the connection") from None
        except ssl.SSLError as error:
            raise failure("the peer", error) from None
        except OSError as error:
            raise PeerLost(f"the connection to the peer broke: {error}") from None

    def abort(self) -> None:
        """Close at once; calls under way raise PeerLost."""
        self._stream.transport.abort()


class PeerSession:
    """The open session with the peer, whichever role we have: heartbeats, loss, and the messages of both channels."""

    def __init__(
        self,
        control: Connection,
        bulk: Connection,
        table: peer.PeerTable,
        heartbeat_ms: int,
        heartbeat_lost_max: int,
    ) -> None:
        self._control, self._bulk, self._table = control, bulk, table
        self._heartbeat_s, self._lost_max = heartbeat_ms / 1000, heartbeat_lost_max
        self._heard = True
        self._awaited: Callable[[], bool]
        self.said_bye = False  # the peer has left by its own will
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def peer_host(self) -> str:
        """The address of the peer, in numbers: further channels go to the same host, without asking a name server."""
        return self._control.peer_host

    def open(self, awaited: Callable[[], bool]) -> None:
        """Start heartbeats and the control reader; `awaited` as Failover.awaits_peer, which stays at yes."""
        self._awaited = awaited
        self._table.phase = peer.Phase.OPEN
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._listen())]

    def close(self, why: str) -> None:
        """End the session from our side or because the peer is lost."""
        if self.lost.done():
            return
        self._table.phase = peer.Phase.CLOSED
        self.lost.set_result(why)
        for connection in (self._control, self._bulk):
            connection.abort()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    async def leave(self, why: str) -> None:
        """Tell the peer that we go, so that it need not wait for a timeout, and close."""
        if not self.lost.done():
            with suppress(PeerLost, TimeoutError):
                await asyncio.wait_for(self.tell(wire.Bye(why)), FAREWELL_S_MAX)
        self.close(why)

    async def tell(self, message: wire.Control) -> None:
        """Send a message on the control channel."""
        await self._guarded_send(self._control, wire.encode_control(message))

    def tell_soon(self, message: wire.Control) -> None:
        """As `tell`, from code that can't wait."""
        task = asyncio.create_task(self._tell_or_lose(message))
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _tell_or_lose(self, message: wire.Control) -> None:
        with suppress(PeerLost):  # the loss is noted by then; there is nobody else to tell
            await self.tell(message)

    def handle(self, message: wire.Message) -> None:
        """A message other than heartbeat and farewell came on the control channel."""
        raise NotImplementedError

    async def _guarded_send(self, connection: Connection, *buffers: bytes | memoryview) -> None:
        if self.lost.done():
            raise PeerLost(self.lost.result())
        try:
            await connection.send(*buffers)
        except PeerLost as lost:
            raise self._lose(lost) from None

    def _lose(self, lost: PeerLost) -> PeerLost:
        """Close the session; returns the loss that came first, as the others only follow from it."""
        if self.lost.done():
            return PeerLost(self.lost.result())
        self.close(str(lost))
        return lost

    async def _beat(self) -> None:
        silent, patient = 0, True
        while True:
            await asyncio.sleep(self._heartbeat_s)
            silent = 0 if self._heard else silent + 1
            self._heard = False
            if patient and self._awaited():
                silent, patient = 0, False  # what was allowed until now is not counted
                self._control.limit_unacknowledged(self._heartbeat_s * self._lost_max)
            if silent >= self._lost_max and not (patient and silent * self._heartbeat_s < SYNC_SILENCE_S_MAX):
                self.close(f"the peer has been silent for {silent} heartbeats of {self._heartbeat_s * 1000:.0f} ms")
                return
            try:
                await self.tell(wire.Heartbeat())
            except PeerLost:
                return

    async def _listen(self) -> None:
        try:
            while True:
                message = await self._control.receive()
                self._heard = True
                self._table.check(peer.Channel.CONTROL, message)
                if isinstance(message, wire.Bye):
                    self.said_bye = True
                    self.close(f"the peer left: {message.why}")
                    return
                if not isinstance(message, wire.Heartbeat):
                    self.handle(message)
        except PeerLost as lost:
            self.close(str(lost))


class SessionWithSecondary(PeerSession):
    """The primary's side; implements SecondaryLink of core/checkpoint."""

    def __init__(
        self,
        control: Connection,
        bulk: Connection,
        table: peer.PeerTable,
        heartbeat_ms: int,
        heartbeat_lost_max: int,
    ) -> None:
        super().__init__(control, bulk, table, heartbeat_ms, heartbeat_lost_max)
        self._verdicts: dict[int, asyncio.Future[str | None]] = {}
        self.loaded = asyncio.Event()
        self.pages_sent = 0
        self.apply_ms = 0.0  # from the last commit until the SVM ran
        self.resumed_ms_ago: Callable[[], float] = lambda: 0.0
        self.on_wanted: Callable[[str], None] = _ignore
        self._rebased: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked = itertools.count(1)
        self._caught_up: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def send_pages(self, epoch: int, batch: PageBatch) -> None:
        await self._guarded_send(self._bulk, *wire.encode_pages(epoch, batch))
        await asyncio.sleep(0)  # heartbeats have their turn between batches
        self.pages_sent += batch.page_count

    async def send_stage(self, stage: Stage) -> None:
        self.loaded.clear()
        self._verdicts = {stage.epoch: asyncio.get_running_loop().create_future()}
        message = wire.StageMessage(
            stage.epoch,
            stage.boundary,
            stage.device_state,
            stage.batch_count,
            stage.digest,
            self.resumed_ms_ago(),
        )
        await self._guarded_send(self._bulk, wire.encode_control(message))

    async def dismiss(self, why: str) -> bool:
        """Send the secondary away; whether it has promised not to take over."""
        with suppress(PeerLost):
            await self.tell(wire.Dismiss(why))
        await asyncio.wait((self.lost,), timeout=DISMISSAL_S_MAX)
        return self.said_bye

    async def rebase(self, term: int) -> bool:
        """Let the secondary claim the term after `term` when it loses us; whether it has agreed."""
        self._rebased = asyncio.get_running_loop().create_future()
        with suppress(PeerLost):
            await self.tell(wire.Rebase(term))
        await asyncio.wait((self._rebased, self.lost), timeout=REBASE_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        return self._rebased.done() and self._rebased.result() == term and not self.lost.done()

    async def caught_up(self) -> None:
        number, self._caught_up = next(self._asked), asyncio.get_running_loop().create_future()
        await self._guarded_send(self._bulk, wire.encode_control(wire.CatchUp(number)))
        if await self._answer(self._caught_up, "has not taken the pages") != number:
            raise self._lose(PeerViolation("the peer has taken pages that it was not asked for"))

    async def committed(self, epoch: int) -> None:
        discarded = await self._answer(self._verdicts[epoch], f"did not commit epoch {epoch}")
        if discarded is not None:
            raise CheckpointFailed(f"the secondary discarded epoch {epoch}: {discarded}")

    async def _answer(self, answer: asyncio.Future[T], failing: str) -> T:
        """What the secondary answers. Raises PeerLost, in words with `failing` when it lets us wait."""
        await asyncio.wait((answer, self.lost), timeout=COMMIT_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            self.close(f"the secondary {failing} in {COMMIT_S_MAX:.0f} s")
            raise PeerLost(self.lost.result())
        return answer.result()

    def handle(self, message: wire.Message) -> None:
        match message:
            case wire.Committed(epoch=epoch):
                self._decide(epoch, None)
            case wire.Discarded(epoch=epoch, why=why):
                self._decide(epoch, why)
            case wire.Loaded(apply_ms=apply_ms):
                self.apply_ms = apply_ms
                self.loaded.set()
            case wire.CheckpointWanted(reason=reason):
                self.on_wanted(reason)
            case wire.CaughtUp(number=number) if not self._caught_up.done():
                self._caught_up.set_result(number)
            case wire.Rebased(term=term) if not self._rebased.done():
                self._rebased.set_result(term)

    def _decide(self, epoch: int, discarded: str | None) -> None:
        verdict = self._verdicts.get(epoch)
        if verdict is None or verdict.done():
            raise PeerViolation(f"the peer answered for epoch {epoch}, which is not under way")
        verdict.set_result(discarded)


class SessionWithPrimary(PeerSession):
    """The secondary's side; implements PrimaryLink of core/checkpoint."""

    def __init__(
        self,
        control: Connection,
        bulk: Connection,
        table: peer.PeerTable,
        heartbeat_ms: int,
        heartbeat_lost_max: int,
    ) -> None:
        super().__init__(control, bulk, table, heartbeat_ms, heartbeat_lost_max)
        self.pvm_resumed_at_s = 0.0
        self._committed_at_s = 0.0
        self.on_committed: Callable[[], None] = _do_nothing
        self.on_rebase: Callable[[int], bool] = lambda _: False
        self.dismissed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def handle(self, message: wire.Message) -> None:
        if isinstance(message, wire.Dismiss) and not self.dismissed.done():
            self.dismissed.set_result(message.why)
        elif isinstance(message, wire.Rebase) and self.on_rebase(message.term):
            self.tell_soon(wire.Rebased(message.term))

    async def receive(self) -> tuple[int, PageBatch] | Stage:
        message = await self._receive()
        while isinstance(message, wire.CatchUp):  # whoever receives the next message has taken all before it
            await self.tell(wire.CaughtUp(message.number))
            message = await self._receive()
        if isinstance(message, wire.StageMessage):
            self.pvm_resumed_at_s = time.monotonic() - message.resumed_ms_ago / 1000
            return message.stage()
        assert isinstance(message, tuple)
        return message

    async def _receive(self) -> wire.Message:
        try:
            message = await self._bulk.receive()
            self._heard = True
            self._table.check(peer.Channel.BULK, message)
        except PeerLost as lost:
            raise self._lose(lost) from None
        return message

    async def send_committed(self, epoch: int) -> None:
        self._committed_at_s = time.monotonic()
        self.on_committed()
        await self.tell(wire.Committed(epoch))

    async def send_discarded(self, epoch: int, why: str) -> None:
        await self.tell(wire.Discarded(epoch, why))

    async def send_loaded(self, epoch: int) -> None:
        await self.tell(wire.Loaded(epoch, self.since_commit_ms()))

    def since_commit_ms(self) -> float:
        """Time since the last commit point."""
        return (time.monotonic() - self._committed_at_s) * 1000


def _ignore(text: str) -> None:
    """Nobody listens yet."""
    del text


def _do_nothing() -> None:
    """Nobody listens yet."""
