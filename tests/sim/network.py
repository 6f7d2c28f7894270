"""The model network: the link between the hosts, the arbiter, and the way between clients and hosts."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pycolo.core.arbitration import ClaimRecord, decide_claim
from pycolo.core.memory_cache import Stage
from pycolo.core.pages import PageBatch
from pycolo.errors import PeerLost

from .history import Emission, History
from .scheduler import Future, Host, Scheduler

DELAY_US = {"control": (40, 400), "packets": (30, 700), "disk": (30, 900)}
STALL_SHARE, STALL_US = 0.06, (1_000, 8_000)  # of the disk's channel: it carries the most, and falls behind
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


class Packet(tuple[str, int, int, bytes]):
    """(what, epoch, number, bytes) on the packet channel: a frame, the SVM's output, a release."""

    __slots__ = ()


Message = tuple[int, PageBatch] | Stage | Verdict | Alive | Closed | Packet | DiskMessage


class LinkEnd:
    """One host's end of the link: it loses the peer by silence or because the connection ends."""

    def __init__(self, scheduler: Scheduler, host: Host, seed: str) -> None:
        self._scheduler, self.host = scheduler, host
        self._random = random.Random(seed)
        self.other: LinkEnd | None = None
        self.lost = False
        self.broken = False  # nothing that this end sends arrives any more
        self._generation = 0
        self._ended_channels: set[str] = set()
        self._clear_at_us: dict[str, int] = {}
        self._heard_us = 0
        self.inbox: deque[Message] = deque()
        self.verdicts: dict[int, Verdict] = {}
        self._arrived: Future[None] = Future()
        self.on_packet: Callable[[Packet], None] = lambda _: None
        self.on_disk: Callable[[DiskMessage], None] = lambda _: None
        self.on_lost: Callable[[], None] = lambda: None
        self.damage: Callable[[PageBatch], PageBatch | None] | None = None
        scheduler.call_later(HEARTBEAT_US, host, self._beat)

    def send(self, channel: str, message: Message) -> None:
        """Send in order within the channel; what is on its way when the link is cut is lost."""
        other = self.other
        if other is None or self.broken or self.lost:
            return
        stalls = channel == "disk" and self._random.random() < STALL_SHARE
        delay_us = self._random.randint(*(STALL_US if stalls else DELAY_US[channel]))
        at_us = max(self._scheduler.now_us + delay_us, self._clear_at_us.get(channel, 0))
        self._clear_at_us[channel] = at_us
        generation = self._generation

        def arrive() -> None:
            if generation == self._generation and channel not in self._ended_channels:
                other.take(message)

        self._scheduler.call_later(at_us - self._scheduler.now_us, other.host, arrive)

    def cut(self) -> None:
        """Nothing of this end arrives from now on, what is on its way neither."""
        self.broken = True
        self._generation += 1

    def end_channel(self, channel: str) -> None:
        """One connection of several ends; nothing of it arrives any more, and the session is lost with it."""
        self._ended_channels.add(channel)
        self._scheduler.call_later(self._random.randint(*CHANNEL_ENDS_US), self.host, self.lose)

    def close(self) -> None:
        """Leave: the other end learns of it after what was sent before."""
        self.send("control", Closed())
        self.send("packets", Closed())
        self.lose()

    def host_died(self, seen: bool) -> None:
        """The host's kernel may or may not be able to end the connection."""
        if seen:
            self.send("control", Closed())
        self.broken = True

    def lose(self) -> None:
        """From here on the peer is lost."""
        if not self.lost:
            self.lost = True
            self._wake()
            self.on_lost()

    def take(self, message: Message) -> None:
        """A message arrived."""
        if self.lost:
            return
        self._heard_us = self._scheduler.now_us
        if isinstance(message, Packet):
            self.on_packet(message)
        elif isinstance(message, DiskMessage):
            self.on_disk(message)
            self._wake()
        elif isinstance(message, Verdict):
            self.verdicts[message.epoch] = message
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
            self._scheduler.call_later(0, self.host, self.lose)
        if isinstance(message, (Closed, Verdict, Alive, Packet, DiskMessage)):
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
        self.send("control", Alive())
        self._scheduler.call_later(HEARTBEAT_US, self.host, self._beat)


def connect(one: LinkEnd, two: LinkEnd) -> None:
    """Make the two ends a link."""
    one.other, two.other = two, one


class Arbiter:
    """The store of the claim; each request is one atomic step of `decide_claim`."""

    def __init__(self, vm: str, record: ClaimRecord | None) -> None:
        self._vm = vm
        self.record = record
        self.unreachable: set[str] = set()

    def claim(self, host: str, term: int) -> bool:
        """The atomic step."""
        answer = decide_claim(self.record, self._vm, term, host)
        if answer.record is not None:
            self.record = answer.record
        return answer.granted


class ClientNetwork:
    """Between clients and hosts: frames go to the host that announced itself last."""

    def __init__(self, scheduler: Scheduler, world: Host, history: History, seed: str) -> None:
        self._scheduler, self._world, self._history = scheduler, world, history
        self._random = random.Random(seed)
        self.owner: Host | None = None
        self.uplinks: dict[str, Callable[[bytes], None]] = {}
        self.on_response: Callable[[bytes], None] = lambda _: None

    def emit(self, host: Host, why: str, response: bytes) -> None:
        """A host lets a response go."""
        self._history.emissions.append(Emission(self._scheduler.now_us, host.name, why, response))
        delay_us = self._random.randint(50, 400)
        self._scheduler.call_later(delay_us, self._world, lambda: self.on_response(response))

    def request(self, frame: bytes) -> None:
        """A client sends a frame."""
        if self.owner is not None:
            uplink = self.uplinks[self.owner.name]
            self._scheduler.call_later(self._random.randint(50, 400), self.owner, lambda: uplink(frame))
