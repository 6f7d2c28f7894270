"""The model agents: they feed client frames, hold, compare and release output, as the packet story says.

The agents are part of the harness, not of the product: just enough to give the core's ports their meaning. A position
in the output is the number of the frame that the guest worked on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .guest import RESPONSE, Guest, Output
from .network import ClientNetwork, LinkEnd, Packet
from .scheduler import Future, Host, Scheduler

TAKE_US = 40  # a frame's way into QEMU
DRAIN_US = 60  # a packet's way out of it


class Feeder:
    """Frames on their way into one QEMU."""

    def __init__(self, scheduler: Scheduler, guest: Guest) -> None:
        self._scheduler, self._guest = scheduler, guest
        self._on_way = 0
        self._taken: Future[None] = Future()

    def feed(self, frame: bytes) -> None:
        """Hand a frame to QEMU."""
        self._on_way += 1
        self._scheduler.call_later(TAKE_US, self._guest.host, lambda: self._take(frame))

    def _take(self, frame: bytes) -> None:
        self._guest.deliver(frame)
        self._on_way -= 1
        if not self._on_way:
            taken, self._taken = self._taken, Future()
            taken.resolve(None)

    async def until_taken(self) -> None:
        """Wait until QEMU has every frame."""
        while self._on_way:
            await self._taken


@dataclass(frozen=True, slots=True)
class Held:
    """A response that waits for its release."""

    epoch: int
    output: Output
    since_us: int

    @property
    def client(self) -> int:
        """The flow it belongs to."""
        return int(RESPONSE.unpack(self.output.response)[0])


class PrimaryAgent:
    """The agent beside the PVM."""

    def __init__(self, scheduler: Scheduler, guest: Guest, network: ClientNetwork, link: LinkEnd) -> None:
        self._scheduler, self._guest, self._network, self._link = scheduler, guest, network, link
        self.host: Host = guest.host
        self._feeder = Feeder(scheduler, guest)
        self._next_no = 0
        self._feed_paused = False
        self._backlog: deque[bytes] = deque()
        self.epoch = 0
        self._free_because = "unprotected"  # empty: output is held
        self._held: list[Held] = []
        self._twin: dict[tuple[int, int], bytes] = {}
        guest.on_output = lambda: scheduler.call_later(DRAIN_US, guest.host, self._drain)
        link.on_packet = self._on_packet
        network.uplinks[self.host.name] = self.on_request

    @property
    def held_us(self) -> int:
        """How long the oldest held response has waited."""
        return self._scheduler.now_us - self._held[0].since_us if self._held else 0

    def on_request(self, frame: bytes) -> None:
        """A client's frame came in."""
        if self._feed_paused:
            self._backlog.append(frame)
            return
        self._feeder.feed(frame)
        self._link.send("packets", Packet(("frame", 0, self._next_no, frame)))
        self._next_no += 1

    async def pause_feed(self) -> int:
        """See PrimaryOutput."""
        self._feed_paused = True
        await self._feeder.until_taken()
        return self._next_no

    def resume_feed(self) -> None:
        """See PrimaryOutput."""
        self._feed_paused = False
        while self._backlog:
            self.on_request(self._backlog.popleft())

    def seal(self, epoch: int) -> None:
        """See PrimaryOutput."""
        self._drain()
        self.epoch = epoch
        self._free_because = ""

    def commit(self, epoch: int) -> None:
        """See PrimaryOutput."""
        freed = [held for held in self._held if held.epoch < epoch]
        self._held = [held for held in self._held if held.epoch >= epoch]
        self._twin = {place: response for place, response in self._twin.items() if place[0] >= epoch}
        for held in freed:
            self._release(held, "commit")

    def go_solo(self) -> None:
        """Release what is held, then let output flow."""
        held, self._held = self._held, []
        self._free_because = "solo"
        for one in held:
            self._release(one, "solo")

    def _drain(self) -> None:
        if self._guest.dead:
            return
        outputs, self._guest.outbox = self._guest.outbox, []
        for output in outputs:
            held = Held(self.epoch, output, self._scheduler.now_us)
            if self._free_because:
                self._release(held, self._free_because)
            else:
                self._held.append(held)
        self._release_equal()

    def _on_packet(self, packet: Packet) -> None:
        what, epoch, position, response = packet
        if what == "output" and not self._guest.dead:
            self._twin[epoch, position] = response
            self._release_equal()

    def _release_equal(self) -> None:
        """In order within a flow, what the SVM has produced at the same place of the same epoch."""
        blocked: set[int] = set()
        for held in list(self._held):
            equal = self._twin.get((held.epoch, held.output.position)) == held.output.response
            if equal and held.client not in blocked:
                self._held.remove(held)
                self._release(held, "equal")
            else:
                blocked.add(held.client)

    def _release(self, held: Held, why: str) -> None:
        self._network.emit(self.host, why, held.output.response)
        self._link.send("packets", Packet(("released", held.epoch, held.output.position, b"")))


class SecondaryAgent:
    """The agent beside the SVM."""

    def __init__(self, scheduler: Scheduler, guest: Guest, network: ClientNetwork, link: LinkEnd) -> None:
        self._scheduler, self._guest, self._network, self._link = scheduler, guest, network, link
        self.host: Host = guest.host
        self._feeder = Feeder(scheduler, guest)
        self._log: dict[int, bytes] = {}
        self._next_no = 0
        self._feed_no: int | None = None  # None: the feed is stopped
        self._epoch: int | None = None  # None: it is not known yet to which epoch the output belongs
        self._unreleased: list[tuple[int, Output]] = []
        self._free = False
        guest.on_output = lambda: scheduler.call_later(DRAIN_US, guest.host, self._drain)
        link.on_packet = self._on_packet
        network.uplinks[self.host.name] = self._on_request

    async def stop_feed(self) -> None:
        """See SecondaryFeed."""
        self._feed_no = None
        await self._feeder.until_taken()

    def drop_output(self) -> None:
        """See SecondaryFeed."""
        self._guest.outbox.clear()
        self._unreleased.clear()
        self._epoch = None

    def start_feed(self, epoch: int, boundary: int) -> None:
        """See SecondaryFeed; a second call for the same epoch changes nothing."""
        if self._epoch == epoch:
            return
        self._epoch = epoch
        self._feed_no = boundary
        self._log = {no: frame for no, frame in self._log.items() if no >= boundary}
        self._feed_logged()
        self._drain()

    def take_over(self) -> None:
        """Send what is not known to be released, then let output flow."""
        self._free = True
        for _, output in self._unreleased:
            self._network.emit(self.host, "takeover", output.response)
        self._unreleased.clear()
        self._drain()

    def _on_request(self, frame: bytes) -> None:
        """A client's frame comes here directly once the takeover is announced."""
        self._log_frame(self._next_no, frame)

    def _on_packet(self, packet: Packet) -> None:
        what, epoch, number, frame = packet
        if what == "frame":
            self._log_frame(number, frame)
        elif what == "released":
            self._unreleased = [u for u in self._unreleased if (u[0], u[1].position) != (epoch, number)]

    def _log_frame(self, number: int, frame: bytes) -> None:
        self._log[number] = frame
        self._next_no = number + 1
        self._feed_logged()

    def _feed_logged(self) -> None:
        while self._feed_no is not None and self._feed_no in self._log:
            self._feeder.feed(self._log[self._feed_no])
            self._feed_no += 1

    def _drain(self) -> None:
        if self._epoch is None or self._guest.dead:
            return
        outputs, self._guest.outbox = self._guest.outbox, []
        for output in outputs:
            if self._free:
                self._network.emit(self.host, "takeover", output.response)
            else:
                self._unreleased.append((self._epoch, output))
                self._link.send("packets", Packet(("output", self._epoch, output.position, output.response)))
