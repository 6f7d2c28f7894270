"""The agent of one VM copy: the production's sides (`pycolo.agent`) with the model's wires, and their event loop.

A command is carried out at once, as the agent's process does between two turns of its loop, or when it goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from unittest import mock

from pycolo.agent import primary as primary_module
from pycolo.agent import protocol
from pycolo.agent import secondary as secondary_module
from pycolo.agent.primary import PrimarySide
from pycolo.agent.secondary import SecondarySide
from pycolo.agent.side import Card, Side
from pycolo.core import engines, wire
from pycolo.core.adaptive import AdaptiveLimits
from pycolo.core.compare_terms import DEFAULT_TERMS
from pycolo.core.lease import lease_ms_of
from pycolo.core.limits import DataplaneLimits
from pycolo.core.pace import CheckpointPace
from pycolo.core.secondary import advance_ticks
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.packet_channel import PacketChannel
from pycolo.errors import PeerLost
from tcp_frames import GUEST_MAC

from .guest import Guest
from .links import SILENCE_US_MAX, LinkEnd
from .network import ClientNetwork
from .scheduler import Scheduler
from .wires import ModelNic, ModelTap, ModelTransport

T = TypeVar("T")
LIMITS = DataplaneLimits(hold_ms_min=3, hold_ms_max=20, flows_max=64, held_frames_max=200, datagrams_max=64)
TURN_US = (5, 60)
FEED_DRAIN_US_MAX = 20_000
FEED_CHECK_US = 30


class _Doorway:
    """Where the primary's agent comes in; the model connects by itself."""

    port = 1

    def turn(self, now_s: float) -> None:
        """See Doorway."""

    def close(self) -> None:
        """See Doorway."""


class Agent:
    """The agent beside one copy of the guest; it keeps its sockets when the copy changes its role."""

    def __init__(
        self, scheduler: Scheduler, guest: Guest, network: ClientNetwork, speaker: str, seed: str, *, primary: bool
    ) -> None:
        self._scheduler, self._guest, self.host, self._network = scheduler, guest, guest.host, network
        self._dice = random.Random(seed)
        self._tap = ModelTap(
            self.host, lambda: self._now_ms() / 1000, lambda frame: network.emit(speaker, self.host, frame)
        )
        self._nic = ModelNic(scheduler, guest, self._poke)
        chain = TranslatorChain(LIMITS.flows_max, advance_ticks(LIMITS))
        card = Card(0, GUEST_MAC, self._tap, self._nic, chain)
        self._transport: ModelTransport | None = None
        self.on_wanted: Callable[[str], None] = lambda _: None
        self.on_channel_lost: Callable[[], None] = lambda: None
        self._side: Side = self._primary([card]) if primary else self._secondary(card)
        network.uplinks[self.host] = self._hear
        self._turning = False
        self._gone = False

    def _primary(self, cards: list[Card]) -> PrimarySide:
        pace = CheckpointPace(AdaptiveLimits(), self._now_ms())
        return PrimarySide(cards, self._notified, LIMITS, DEFAULT_TERMS, pace, lease_ms_of(SILENCE_US_MAX / 1000))

    def _secondary(self, card: Card) -> SecondarySide:
        def open_doorway(greeted: Callable[[MessageStream], None]) -> _Doorway:
            self._greeted = greeted
            return _Doorway()

        return SecondarySide([card], self._notified, LIMITS, open_doorway)  # type: ignore[arg-type]

    def _now_ms(self) -> float:
        return self.host.now_ms(self._scheduler.now_us)

    @property
    def is_primary(self) -> bool:
        """Whether it speaks, or will."""
        return isinstance(self._side, PrimarySide)

    @property
    def primary(self) -> PrimarySide:
        """The side of one who speaks, or will."""
        assert isinstance(self._side, PrimarySide)
        return self._side

    @property
    def secondary(self) -> SecondarySide:
        """The side of one who follows."""
        assert isinstance(self._side, SecondarySide)
        return self._side

    # ---- the event loop

    def _hear(self, frame: bytes) -> None:
        self._tap.inbox.append(frame)
        self._poke()

    def _poke(self) -> None:
        """Something may be readable."""
        if not self._turning and not self._gone:
            self._turning = True
            self._scheduler.call_later(self._dice.randint(*TURN_US), self.host.agent, self._turn)

    def _turn(self) -> None:
        self._turning = False
        if self._gone:
            return
        things = [self._on_tap, self._on_nic, self._on_channel]
        self._dice.shuffle(things)
        try:
            for thing in things:
                thing()
        except PeerLost:
            self._side.leave_pair()
            self._scheduler.call_later(0, self.host.manager, self.on_channel_lost)
        due_ms = self._side.on_time(self._now_ms())
        if due_ms is not None:
            delay_us = max(0, int((due_ms - self._now_ms()) * 1000))
            self._scheduler.call_later(delay_us + self._dice.randint(*TURN_US), self.host.agent, self._poke)

    def _on_tap(self) -> None:
        if self._tap.inbox and self._side.reads_tap(0):
            self._side.on_tap(0, self._now_ms())
            self._poke()

    def _on_nic(self) -> None:
        if self._nic.out and self._side.reads_nic(0):
            self._side.on_nic(0, self._now_ms())
            self._poke()

    def _on_channel(self) -> None:
        channel, transport = self._side.channel, self._transport
        if channel is not None and transport is not None and transport.readable:
            self._side.on_channel(self._now_ms())
            self._poke()

    def _notified(self, notice: protocol.Notice) -> None:
        if isinstance(notice, protocol.Wanted):
            self.on_wanted(notice.reason)

    @property
    def frames_unnumbered(self) -> int:
        """How many frames the guest has got, or will get of what is on its way, that no partner was to hear of."""
        return self._guest.taken + self._nic.unread - self.primary._input_no

    # ---- commands of both roles

    async def obey(self, command: Callable[[], T]) -> T:
        """A command of the manager, which waits for a process that stands still."""
        while self.host.agent.frozen_until_us > self._scheduler.now_us:
            await self._scheduler.sleep(0, self.host.agent)
        return command()

    def connect(self, link: LinkEnd) -> None:
        """The packet channel to the partner is open."""
        transport = self._transport = ModelTransport(link, self._poke)
        stream = MessageStream(transport, "the packet channel", wire.decode_header)
        if isinstance(self._side, PrimarySide):
            self._side.attach(PacketChannel(stream, 1, receiver_is_primary=True), self._now_ms())
        else:
            self._greeted(stream)

    def listen(self) -> None:
        """The same primary may call once more."""
        self.secondary.listen()

    def leave_pair(self) -> None:
        """Close the packet channel."""
        self._side.leave_pair()

    def end(self) -> None:
        """The process ends."""
        self._gone = True
        self._side.leave_pair()
        self._network.uplinks.pop(self.host, None)

    # ---- commands to a primary

    async def pause_feed(self) -> int:
        """See PrimaryOutput."""
        boundary = await self.obey(lambda: self.primary.pause_feed(self._now_ms()))
        paused_ms = self._now_ms()
        until_us = self._scheduler.now_us + FEED_DRAIN_US_MAX
        while self.primary.waits_for_qemu(self._now_ms() - paused_ms) and self._scheduler.now_us < until_us:
            await self._scheduler.sleep(FEED_CHECK_US, self.host.agent)
        self.primary.end_wait()
        return boundary

    def resume_feed(self) -> None:
        """See PrimaryOutput."""
        self.primary.resume_feed(self._now_ms())
        self._poke()

    def seal(self, epoch: int) -> None:
        """See PrimaryOutput; a channel that breaks here is found broken by the next command."""
        drained = self.primary.drain()
        try:
            self.primary.seal(epoch, drained, self._now_ms())
        except PeerLost:
            self._side.leave_pair()
            self.on_channel_lost()

    def commit(self, epoch: int) -> None:
        """See PrimaryOutput."""
        self.primary.commit(epoch, self._now_ms())
        self._poke()

    def go_solo(self) -> None:
        """Release what is held, then let output flow."""
        self.primary.go_solo()
        self._poke()

    # ---- commands to a secondary

    def stop_feed(self) -> None:
        """See SecondaryFeed."""
        self.secondary.stop_feed()

    def drop_output(self) -> None:
        """See SecondaryFeed."""
        self.secondary.drop_output()

    def start_feed(self, epoch: int, boundary: int) -> None:
        """See SecondaryFeed."""
        self.secondary.start_feed(epoch, boundary)
        self._poke()

    async def take_over(self) -> None:
        """Wait out the primary's lease, send what is not known to be released, then let output flow."""
        secondary = await self.obey(lambda: self.secondary)
        while not secondary.may_speak():
            await self._scheduler.sleep(FEED_CHECK_US, self.host.agent)
        released, missed = secondary.take_over(self._now_ms())
        side = self._primary(list(secondary.cards))
        side.counters = secondary.counters
        self._side = side
        self._network.announce(self.host)
        side.take_over(released, missed)
        self._poke()


def boottime_s(scheduler: Scheduler) -> float:
    """CLOCK_BOOTTIME, which goes on while a host sleeps: the same for all."""
    return scheduler.now_us / 1e6


@contextmanager
def in_virtual_time(scheduler: Scheduler, *, compiled: bool) -> Iterator[None]:
    """The production's code reads the model's clock, and compares with one of its engines."""

    def now_s() -> float:
        return boottime_s(scheduler)

    with (
        mock.patch.object(primary_module, "boottime_s", now_s),
        mock.patch.object(secondary_module, "boottime_s", now_s),
        mock.patch.object(engines, "COMPILED", compiled and engines.COMPILED),
    ):
        yield
