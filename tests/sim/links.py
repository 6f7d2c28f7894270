"""The link between two hosts: managers' messages, the agents' bytes and the disk's stream, each in its own order.

What managers say goes through the production encoding and table (`core/wire`, `core/peer`). Like TCP, the link loses
nothing but by its end: loss and reordering below it are delays here. It stalls, is cut in one direction or both, and
is lost by silence or because the connection ends.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pycolo.core import peer, wire
from pycolo.core.memory_cache import Stage
from pycolo.core.pages import PageBatch
from pycolo.errors import PeerLost

from .scheduler import Future, Host, Scheduler

DELAY_US = {"control": (40, 400), "packets": (30, 700), "disk": (30, 900)}
STALL_SHARE = {"control": 0.0, "packets": 0.01, "disk": 0.06}  # the disk's channel carries the most, and falls behind
STALL_US = (1_000, 8_000)
CLOG_US = (5_000, 20_000)  # below what ends a session
CHANNEL_ENDS_US = (200, 6_000)  # until an end learns that a single channel is gone
HEARTBEAT_US = 5_000
SILENCE_US_MAX = 25_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """The secondary's answer to a checkpoint."""

    epoch: int
    why_discarded: str = ""


class Alive:
    """A heartbeat."""


class Closed:
    """The other end closed the connection."""


@dataclass(frozen=True, slots=True)
class DiskWrite:
    """The PVM wrote to its disk; `data` is None for zeros."""

    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class DiskMark:
    """What came before belongs to the checkpoint that starts `epoch`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class DiskApplied:
    """The secondary's image safely has everything up to the start of `epoch`."""

    epoch: int


DiskMessage = DiskWrite | DiskMark | DiskApplied


@dataclass(frozen=True, slots=True)
class Rebase:
    """The arbiter has this term, and nobody acts upon it; the answer says that the secondary takes it for the base."""

    term: int
    answers: bool = False


Message = tuple[int, PageBatch] | Stage | Verdict | Alive | Closed | Rebase
Carried = bytes | DiskMessage
"""What is on its way: bytes of managers and agents, or what the model's disks say."""


def encoded(message: Message) -> bytes:
    """A manager's message as it is sent."""
    match message:
        case tuple():
            return b"".join(wire.encode_pages(*message))
        case Stage(epoch, boundary, device_state, batch_count, digest):
            return wire.encode_control(wire.StageMessage(epoch, boundary, device_state, batch_count, digest, 0.0))
        case Verdict(epoch, ""):
            return wire.encode_control(wire.Committed(epoch))
        case Verdict(epoch, why):
            return wire.encode_control(wire.Discarded(epoch, why))
        case Alive():
            return wire.encode_control(wire.Heartbeat())
        case Rebase(term, answers):
            return wire.encode_control(wire.Rebased(term) if answers else wire.Rebase(term))
        case Closed():
            return wire.encode_control(wire.Bye("it leaves"))


def decoded(data: bytes, table: peer.PeerTable) -> Message:
    """What an end with this table makes of it. Raises PeerViolation."""
    _, kind = wire.decode_header(data[: wire.HEADER.size])
    body = data[wire.HEADER.size :]
    if kind is wire.Kind.PAGES:
        pages = wire.decode_pages(body)
        table.check(peer.Channel.BULK, pages)
        return pages
    message = wire.decode_control(body)
    table.check(peer.Channel.BULK if isinstance(message, wire.StageMessage) else peer.Channel.CONTROL, message)
    match message:
        case wire.StageMessage():
            return message.stage()
        case wire.Committed(epoch):
            return Verdict(epoch)
        case wire.Discarded(epoch, why):
            return Verdict(epoch, why)
        case wire.Heartbeat():
            return Alive()
        case wire.Rebase(term):
            return Rebase(term)
        case wire.Rebased(term):
            return Rebase(term, answers=True)
        case _:
            return Closed()


class LinkEnd:
    """One host's end of the link of one pair."""

    def __init__(
        self, scheduler: Scheduler, host: Host, seed: str, passes: Callable[[], bool], *, of_primary: bool
    ) -> None:
        """`passes`: whether the wire carries now what this host sends to the other."""
        self._scheduler, self.host, self._passes = scheduler, host, passes
        self._random = random.Random(seed)
        self._table = peer.PeerTable(receiver_is_primary=of_primary)
        self._table.phase = peer.Phase.OPEN
        self.other: LinkEnd | None = None
        self.lost = False
        self.broken = False  # nothing that this end sends arrives any more
        self._generation = 0
        self._ended_channels: set[str] = set()
        self._clear_at_us: dict[str, int] = {}
        self._heard_us = scheduler.now_us
        self.inbox: deque[tuple[int, PageBatch] | Stage | Closed] = deque()
        self.verdicts: dict[int, Verdict] = {}
        self._arrived: Future[None] = Future()
        self._early: list[bytes] = []
        self.on_packets: Callable[[bytes], None] = self._early.append
        self.on_packets_lost: Callable[[], None] = lambda: None
        self.on_disk: Callable[[DiskMessage], None] = lambda _: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_rebase: Callable[[int], bool] = lambda _: False
        self.rebased_to = 0
        self.damage: Callable[[PageBatch], PageBatch | None] | None = None
        scheduler.call_later(HEARTBEAT_US, host.manager, self._beat)

    # ---- sending

    def send(self, channel: str, carried: Carried) -> None:
        """Send in order within the channel; what is on its way when the link is cut is lost.

        The agents' bytes have an end of their own: none at all.
        """
        other = self.other
        if not self._passes():
            self.cut()
        if other is None or self.broken or (self.lost and channel != "packets"):
            return
        stalls = self._random.random() < STALL_SHARE[channel]
        delay_us = self._random.randint(*(STALL_US if stalls else DELAY_US[channel]))
        at_us = max(self._scheduler.now_us + delay_us, self._clear_at_us.get(channel, 0))
        self._clear_at_us[channel] = at_us
        generation = self._generation

        def arrive() -> None:
            if not self._passes():
                self.cut()
            if generation == self._generation and channel not in self._ended_channels:
                other.take(channel, carried)

        reader = other.host.manager if channel == "control" else other.host
        self._scheduler.call_later(at_us - self._scheduler.now_us, reader, arrive)

    def carry_packets(self, take: Callable[[bytes], None], give_up: Callable[[], None]) -> None:
        """Who takes the agents' bytes; some may be here already. `give_up` when the connection is lost."""
        self.on_packets, self.on_packets_lost = take, give_up
        for data in self._early:
            take(data)

    def say(self, message: Message) -> None:
        """Send a manager's message."""
        self.send("control", encoded(message))

    def clog(self) -> None:
        """For a while nothing of this end arrives; then all of it does."""
        until_us = self._scheduler.now_us + self._random.randint(*CLOG_US)
        for channel in DELAY_US:
            self._clear_at_us[channel] = max(until_us, self._clear_at_us.get(channel, 0))

    def cut(self) -> None:
        """Nothing of this end arrives from now on, what is on its way neither."""
        self.broken = True
        self._generation += 1

    def end_channel(self, channel: str) -> None:
        """One connection of several ends; nothing of it arrives any more, and the session is lost with it."""
        self._ended_channels.add(channel)
        delay_us = self._random.randint(*CHANNEL_ENDS_US)
        if channel == "disk":
            self._scheduler.call_later(delay_us, self.host.manager, self.lose)
        else:
            self._scheduler.call_later(delay_us, self.host, self.on_packets_lost)

    def close(self) -> None:
        """Leave: the other end learns of it after what was sent before. The agents' bytes have been ended before."""
        self.say(Closed())
        self.lose()

    def host_died(self, *, seen: bool) -> None:
        """The host's kernel may or may not be able to end the connections."""
        if seen:
            self.say(Closed())
            self.send("packets", b"")
        self.broken = True

    # ---- receiving

    def lose(self) -> None:
        """From here on the peer is lost."""
        if not self.lost:
            self.lost = True
            self._wake()
            self.on_lost()

    def take(self, channel: str, carried: Carried) -> None:
        """Something arrived."""
        if channel == "packets":
            assert isinstance(carried, bytes)
            self.on_packets(carried)
        elif not self.lost:
            self._heard_us = self._scheduler.now_us
            if isinstance(carried, bytes):
                self._take_message(decoded(carried, self._table))
            else:
                self.on_disk(carried)
                self._wake()

    def _take_message(self, message: Message) -> None:
        if isinstance(message, Verdict):
            self.verdicts[message.epoch] = message
            self._wake()
        elif isinstance(message, Rebase):
            if message.answers:
                self.rebased_to = message.term
            elif self.on_rebase(message.term):
                self.say(Rebase(message.term, answers=True))
            self._wake()
        elif not isinstance(message, Alive):
            self.inbox.append(message)
            self._wake()
            if isinstance(message, Closed) and len(self.inbox) == 1:
                self.lose()

    async def receive(self) -> tuple[int, PageBatch] | Stage:
        """The next page batch or stage; raises PeerLost at the end of the stream."""
        while not self.inbox and not self.lost:
            await self._arrived
        message = self.inbox.popleft() if self.inbox else Closed()
        if self.inbox and isinstance(self.inbox[0], Closed) and not isinstance(message, Closed):
            self._scheduler.call_later(0, self.host.manager, self.lose)
        if isinstance(message, Closed):
            raise PeerLost("the primary is lost")
        return message

    async def verdict(self, epoch: int) -> Verdict:
        """The secondary's answer to the checkpoint of `epoch`."""
        while epoch not in self.verdicts and not self.lost:
            await self._arrived
        if epoch not in self.verdicts:
            raise PeerLost("the secondary is lost")
        return self.verdicts.pop(epoch)

    async def arrival(self) -> None:
        """The next time something arrives, or the peer is lost."""
        await self._arrived

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, Future()
        arrived.resolve(None)

    def _beat(self) -> None:
        if self.lost:
            return
        if self._scheduler.now_us - self._heard_us > SILENCE_US_MAX:
            self.lose()
            return
        self.say(Alive())
        self._scheduler.call_later(HEARTBEAT_US, self.host.manager, self._beat)


def connect(one: LinkEnd, two: LinkEnd) -> None:
    """Make the two ends a link."""
    one.other, two.other = two, one
