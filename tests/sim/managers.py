"""The model managers: they drive the production core and carry out its commands in order, as the daemon has to.

What the daemon has to keep, and what these show: the end of the checkpoint procedure comes before PEER_LOST is handled;
COMMITTED comes before PEER_LOST; a roll-forward past the commit point is finished before the secondary speaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pycolo.core import checkpoint
from pycolo.core.checkpoint import CheckpointLimits
from pycolo.core.epochs import EpochLedger
from pycolo.core.failover import Command, Event, Failover, Role, State
from pycolo.core.memory_cache import MemoryCache
from pycolo.errors import CheckpointFailed, PeerLost, VmLost

from .agents import PrimaryAgent
from .disk_ports import PvmDisksPort, SvmDisksPort
from .disks import PvmDisk, SvmDisk
from .network import ClientNetwork
from .ports import (
    ArbiterPort,
    ClaimUnanswered,
    FeedPort,
    Gate,
    OutputPort,
    PvmPort,
    Side,
    SvmPort,
    ToPrimary,
    ToSecondary,
)
from .scheduler import Task

TERM = 1
POLL_US = 700
HOLD_US_MAX = 3_000
EPOCH_US_MAX = 12_000
RETRY_US = 1_500
CLAIM_RETRY_US = 8_000
ROLL_FORWARD_TRIES_MAX = 8
LIMITS = CheckpointLimits(precopy_rounds_max=2, precopy_pages_min=3, first_sync_rounds_max=3, batch_pages_max=4)


@dataclass(slots=True)
class Surroundings:
    """What both managers use."""

    gate: Gate
    side: Side
    network: ClientNetwork
    trace: Callable[[str], None]


class Manager:
    """What both sides do alike."""

    def __init__(self, around: Surroundings, role: Role) -> None:
        self._around, self._side, self._gate = around, around.side, around.gate
        self.failover = Failover(role)
        self._arbiter = ArbiterPort(around.gate, around.side.host)
        self.vm_lost_by_fault = False
        self.done = False

    async def run(self) -> None:
        """The role's whole story."""
        raise NotImplementedError

    @property
    def state(self) -> State:
        """Where this side is."""
        return self.failover.state

    async def _pass(self, delay_us: int) -> None:
        await self._gate.scheduler.sleep(delay_us, self._side.host)

    def _take(self, event: Event) -> tuple[Command, ...]:
        before = self.failover.state
        decision = self.failover.handle(event)
        self.vm_lost_by_fault |= event is Event.VM_LOST
        self._around.trace(f"{self._side.host.name}: {before} + {event} -> {decision.state}: {decision.reason}")
        return decision.commands

    async def handle(self, event: Event) -> None:
        """Take an event, carry out the commands in order, and take the events that come of them."""
        due: list[Event] = [event]
        while due:
            for command in self._take(due.pop(0)):
                follows = await self._carry_out(command)
                if follows is not None:
                    due.append(follows)

    async def _carry_out(self, command: Command) -> Event | None:
        match command:
            case Command.LEAVE_PAIR:
                self._side.link.close()
            case Command.CLAIM:
                return await self._claim()
            case Command.RETRY_CLAIM_LATER:
                await self._pass(CLAIM_RETRY_US)
                return Event.VM_LOST if self._side.guest.dead else Event.CLAIM_RETRY_DUE
            case Command.KILL_VM:
                self._side.guest.kill()
            case Command.EXIT:
                self.done = True
            case _:
                return await self._speak()
        return None

    async def _claim(self) -> Event:
        try:
            granted = await self._arbiter.claim(TERM)
        except ClaimUnanswered:
            answer = Event.CLAIM_UNANSWERED
        else:
            answer = Event.CLAIM_GRANTED if granted else Event.CLAIM_DENIED
        return Event.VM_LOST if self._side.guest.dead else answer

    async def _speak(self) -> Event | None:
        raise NotImplementedError

    async def _go_on_alone(self) -> None:
        """Solo: nothing is left to happen but the loss of the VM."""
        while self.state is State.SOLO:
            await self._pass(POLL_US * 5)
            if self._side.guest.dead:
                await self.handle(Event.VM_LOST)


class PrimaryManager(Manager):
    """The primary's side of one VM."""

    def __init__(self, around: Surroundings, agent: PrimaryAgent, disk: PvmDisk, page_count: int) -> None:
        super().__init__(around, Role.PRIMARY)
        self._agent = agent
        self._vm = PvmPort(self._gate, self._side.guest, agent)
        self._output = OutputPort(self._gate, agent)
        self._disks = PvmDisksPort(self._gate, self._side.host, disk)
        self._to_secondary = ToSecondary(self._gate, self._side.link)
        self.ledger = EpochLedger(page_count)

    async def run(self) -> None:
        """From the join of the secondary to the end."""
        await self.handle(Event.PEER_JOINED)
        while self.state in (State.SYNCING, State.PROTECTED):
            event = await self._epoch()
            if event is not None:
                await self.handle(event)
        await self._go_on_alone()

    async def _epoch(self) -> Event | None:
        """Wait until a checkpoint is wanted, take it; returns what happened meanwhile."""
        started_us = self._gate.scheduler.now_us
        while self._agent.held_us < HOLD_US_MAX and self._gate.scheduler.now_us - started_us < EPOCH_US_MAX:
            if self._side.guest.dead:
                return Event.VM_LOST
            if self._side.link.lost:
                return Event.PEER_LOST
            if self.state is State.SYNCING:
                break
            await self._pass(POLL_US)
        return await self._checkpoint()

    async def _checkpoint(self) -> Event | None:
        try:
            await checkpoint.take_checkpoint(
                self._vm, self._output, self._disks, self._to_secondary, self.ledger, LIMITS, lambda: self._sealed()
            )
        except VmLost:
            return Event.VM_LOST
        except PeerLost:
            return Event.PEER_LOST
        except CheckpointFailed:
            await self._pass(RETRY_US)
        return None

    def _sealed(self) -> None:
        self._take(Event.OUTPUT_SEALED)

    async def _speak(self) -> Event | None:
        try:
            await self._output.go_solo()
        except VmLost:
            return Event.VM_LOST
        return None


class SecondaryManager(Manager):
    """The secondary's side of one VM."""

    def __init__(
        self, around: Surroundings, feed: FeedPort, disk: SvmDisk, cache: MemoryCache, *, interrupts: bool
    ) -> None:
        super().__init__(around, Role.SECONDARY)
        self._feed, self._cache, self._interrupts = feed, cache, interrupts
        self._vm = SvmPort(self._gate, self._side.guest, cache)
        self._disks = SvmDisksPort(self._gate, self._side.host, disk)
        self.to_primary = ToPrimary(self._gate, self._side.link, cache, disk.would_commit)
        self._told_epoch = 0
        self._follower: Task[bool] | None = None
        self._side.link.on_lost = self._interrupt

    async def run(self) -> None:
        """From the connection to the primary to the end."""
        await self.handle(Event.PEER_JOINED)
        while self.state in (State.SYNCING, State.PROTECTED):
            for event in await self._follow():
                await self.handle(event)
        await self._go_on_alone()

    def _interrupt(self) -> None:
        """The failure detector ends the follower's task, wherever it is."""
        if self._follower and self._interrupts and not self._side.link.inbox:
            self._follower.interrupt(PeerLost("the failure detector says so"))

    async def _follow(self) -> list[Event]:
        procedure = checkpoint.receive_checkpoint(self.to_primary, self._vm, self._feed, self._disks, self._cache)
        self._follower = self._gate.scheduler.spawn(self._side.host, procedure)
        self._follower.handled = (VmLost, PeerLost)
        while not self._follower.finished.done:
            await self._pass(POLL_US)
            if self._side.guest.dead:
                self._follower.interrupt(VmLost("the guest is gone"))
        return self._ended(self._follower)

    def _ended(self, follower: Task[bool]) -> list[Event]:
        events: list[Event] = []
        try:
            follower.finished.result()
        except VmLost:
            events.append(Event.VM_LOST)
        except PeerLost:
            events.append(Event.PEER_LOST)
        if self._cache.committed_epoch > self._told_epoch:
            self._told_epoch = self._cache.committed_epoch
            events.insert(0, Event.COMMITTED)
        return events

    async def _speak(self) -> Event | None:
        try:
            await self._roll_forward()
            self.to_primary.look("takeover")
            await self._disks.take_over()
            await self._feed.take_over()
        except VmLost:
            return Event.VM_LOST
        self._around.network.owner = self._side.host
        return None

    async def _roll_forward(self) -> None:
        for _ in range(ROLL_FORWARD_TRIES_MAX):
            try:
                return await checkpoint.roll_forward(self._vm, self._feed, self._disks, self._cache)
            except PeerLost:
                continue
        raise VmLost("the roll-forward did not succeed")
