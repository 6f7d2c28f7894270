"""The model managers: they drive the production core and carry out its commands in order, as the daemon has to.

What the daemon has to keep, and what these show: the end of the checkpoint procedure comes before PEER_LOST is handled;
COMMITTED comes before PEER_LOST; a roll-forward past the commit point is finished before the secondary speaks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from pycolo.core import checkpoint
from pycolo.core.checkpoint import CheckpointLimits
from pycolo.core.epochs import EpochLedger
from pycolo.core.failover import Command, Event, Failover, Role, State
from pycolo.core.memory_cache import MemoryCache
from pycolo.errors import CheckpointFailed, PeerLost, VmLost

from .disk_ports import PvmDisksPort, SvmDisksPort
from .disks import PvmDisk, SvmDisk
from .links import LinkEnd, Rebase
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

POLL_US = 700
WAIT_US = 24_000  # of a secondary, for the primary's call: it calls about every CLAIM_RETRY_US
REBASE_US_MAX = 30_000
ARBITER_CHECK_US = 40_000
EPOCH_US_MAX = 12_000
RETRY_US = 8_000
CLAIM_RETRY_US = 8_000
ROLL_FORWARD_TRIES_MAX = 8
EPOCHS_AHEAD_MAX = 1000
LIMITS = CheckpointLimits(
    precopy_rounds_max=2, precopy_pages_min=3, catch_up_pages_min=4, first_sync_rounds_max=3, batch_pages_max=4
)


@dataclass(slots=True)
class Surroundings:
    """What a manager has around it; `call` calls the partner once more, and returns the link when it answers."""

    gate: Gate
    side: Side
    trace: Callable[[str], None]
    call: Callable[[Side], Awaitable[LinkEnd | None]]


class Story(Protocol):
    """What a role does."""

    async def live(self) -> None:
        """Until this side speaks alone, in which case it goes on, or has ended."""

    async def speak(self) -> Event | None:
        """The claim is ours, or none is needed: speak alone."""

    async def wait_for_peer(self) -> Event | None:
        """Nobody has the claim: wait a little, and see if the peer is back."""


class Manager:
    """One copy of the VM: its failover table, and the role that it has."""

    def __init__(self, around: Surroundings, role: Role, term: int) -> None:
        """`term`: under which the pair is formed."""
        self._around, self.side, self._gate = around, around.side, around.gate
        self.failover = Failover(role)
        self.term = term
        self.story: Story
        self.arbiter = ArbiterPort(around.gate, around.side.host)
        self._claims = 0
        self.vm_lost = False

    async def run(self) -> None:
        """All that this copy ever does."""
        await self.story.live()

    @property
    def state(self) -> State:
        """Where this side is."""
        return self.failover.state

    async def sleep(self, delay_us: int) -> None:
        """Wait in virtual time."""
        await self._gate.scheduler.sleep(delay_us, self.side.host.manager)

    def take(self, event: Event) -> tuple[Command, ...]:
        """The table's decision."""
        before = self.failover.state
        self.vm_lost |= event is Event.VM_LOST and not self.failover.ended
        decision = self.failover.handle(event)
        self._around.trace(f"{self.side.name}: {before} + {event} -> {decision.state}: {decision.reason}")
        return decision.commands

    async def handle(self, event: Event) -> None:
        """Take an event, carry out the commands in order, and take the events that come of them."""
        self._claims += 1  # what was claimed before has been given up
        due: list[Event] = [event]
        while due:
            for command in self.take(due.pop(0)):
                follows = await self._carry_out(command)
                if follows is not None:
                    due.append(follows)

    async def _carry_out(self, command: Command) -> Event | None:
        match command:
            case Command.LEAVE_PAIR:
                await self._leave_pair()
            case Command.CLAIM:
                return await self._claim()
            case Command.RETRY_CLAIM_LATER:
                event = await self.story.wait_for_peer()
                return Event.VM_LOST if self.side.guest.dead else event or Event.CLAIM_RETRY_DUE
            case Command.KILL_VM:
                self.side.guest.kill()
                self.side.agent.end()
            case Command.EXIT:
                pass  # the story ends by itself
            case _:
                return await self.story.speak()
        return None

    async def _leave_pair(self) -> None:
        """First the packets, then the session: nothing may be released by a peer that we are leaving.

        A side that ends does not ask its agent, which may hang.
        """
        if self.failover.ended:
            self.side.agent.end()
        else:
            await self.side.agent.obey(self.side.agent.leave_pair)
        if self.side.link is not None:
            self.side.link.close()

    async def _claim(self) -> Event:
        try:
            answer = await self.arbiter.claim(self.term + 1, f"{self.side.name} {self._claims}")
        except ClaimUnanswered:
            event = Event.CLAIM_UNANSWERED
        else:
            event = Event.CLAIM_GRANTED if answer.granted else Event.CLAIM_DENIED
            self.term = answer.term if answer.granted else self.term
        return Event.VM_LOST if self.side.guest.dead else event


class PrimaryStory:
    """The copy that speaks: alone, and beside one secondary after the other."""

    def __init__(self, around: Surroundings, manager: Manager, page_count: int, last_epoch: int) -> None:
        """`last_epoch`: no epoch of this VM has had a higher number."""
        self._around, self._gate, self._side, self._manager = around, around.gate, around.side, manager
        self._page_count, self._last_epoch = page_count, last_epoch
        self._output = OutputPort(self._gate, self._side.agent)
        self._vm = PvmPort(self._gate, self._side.guest, lambda: self._output.epoch)
        self._ledger: EpochLedger
        self._disks: PvmDisksPort
        self._to_secondary: ToSecondary
        self._disk: PvmDisk
        self._joined = self._wanted = self._base_in_doubt = False
        self._check_at_us = ARBITER_CHECK_US

    def join(self, link: LinkEnd, disk: PvmDisk) -> None:
        """A secondary is there, behind `link`."""
        self._disk, self._disks = disk, PvmDisksPort(self._gate, self._side.host, disk)
        self._ledger = EpochLedger(self._page_count, self._last_epoch, sent_pages_max=self._page_count // 2)
        self._connect(link)
        self._joined = True

    async def wait_for_peer(self) -> Event | None:
        """See Story: call it."""
        await self._manager.sleep(CLAIM_RETRY_US)
        link = await self._around.call(self._side)
        if link is None:
            return None
        self._side.link = link
        self._disk.follow_again(link)
        self._connect(link)
        self._wanted = self._base_in_doubt = True  # claims were given up: one may be granted all the same
        return Event.PEER_RETURNED

    def _connect(self, link: LinkEnd) -> None:
        self._to_secondary = ToSecondary(self._gate, link)
        agent = self._side.agent
        self._vm.frames_before = agent.frames_unnumbered
        agent.connect(link)
        agent.on_wanted, agent.on_channel_lost = self._want, link.lose

    def _want(self, reason: str) -> None:
        del reason
        self._wanted = True

    async def live(self) -> None:
        """See Story."""
        manager = self._manager
        while not manager.failover.ended:
            if manager.state is State.SOLO:
                await self._find_secondary()
            if manager.failover.ended:
                return
            event = await self._epoch()
            if event is not None:
                await manager.handle(event)

    async def _find_secondary(self) -> None:
        """Solo: nothing else happens but the loss of the VM."""
        while not self._joined:
            await self._manager.sleep(POLL_US)
            if self._side.guest.dead:
                await self._manager.handle(Event.VM_LOST)
                return
        self._joined = False
        await self._manager.handle(Event.PEER_JOINED)

    async def _epoch(self) -> Event | None:
        """Wait until a checkpoint is wanted, take it; returns what happened meanwhile."""
        if self._base_in_doubt or self._gate.scheduler.now_us >= self._check_at_us:
            await self._agree_on_the_base()
        started_us = self._gate.scheduler.now_us
        while not self._wanted and self._gate.scheduler.now_us - started_us < EPOCH_US_MAX:
            if self._side.guest.dead:
                return Event.VM_LOST
            if self._side.linked().lost:
                return Event.PEER_LOST
            if self._manager.state is State.SYNCING:
                break
            await self._manager.sleep(POLL_US)
        return await self._checkpoint()

    async def _agree_on_the_base(self) -> None:
        """When the arbiter answers, and now and then: both go by the term that stands there, the secondary first."""
        manager, link = self._manager, self._side.linked()
        self._check_at_us = self._gate.scheduler.now_us + ARBITER_CHECK_US
        try:
            record = await manager.arbiter.record()
        except ClaimUnanswered:
            return
        self._base_in_doubt = False
        if record is None or record.term <= manager.term or manager.state is not State.PROTECTED:
            return
        link.say(Rebase(record.term))
        until_us = self._gate.scheduler.now_us + REBASE_US_MAX
        while not link.lost and self._gate.scheduler.now_us < until_us:
            if link.rebased_to == record.term:
                manager.term = record.term
                self._gate.history.rebases += 1
                return
            await manager.sleep(POLL_US)

    async def _checkpoint(self) -> Event | None:
        try:
            await checkpoint.take_checkpoint(
                self._vm, self._output, self._disks, self._to_secondary, self._ledger, LIMITS, self._sealed
            )
        except VmLost:
            return Event.VM_LOST
        except PeerLost:
            return Event.PEER_LOST
        except CheckpointFailed:
            await self._manager.sleep(RETRY_US)
        finally:
            self._last_epoch = self._ledger.last_used
        return None

    def _sealed(self) -> None:
        self._wanted = False
        self._manager.take(Event.OUTPUT_SEALED)

    async def speak(self) -> Event | None:
        """See Story."""
        try:
            await self._output.go_solo()
        except VmLost:
            return Event.VM_LOST
        return None


class SecondaryStory:
    """The copy that follows, until it takes over or ends."""

    def __init__(
        self, around: Surroundings, manager: Manager, disk: SvmDisk, cache: MemoryCache, *, interrupts: bool
    ) -> None:
        self._around, self._gate, self._side, self._manager = around, around.gate, around.side, manager
        self.cache, self._interrupts = cache, interrupts
        self.disk = disk
        self._listens = False
        self._returned: LinkEnd | None = None
        self._feed = FeedPort(self._gate, self._side)
        self._vm = SvmPort(self._gate, self._side.guest, cache)
        self._disks = SvmDisksPort(self._gate, self._side.host, disk)
        self._told_epoch = 0
        self._follower: Task[bool] | None = None
        self._connect(self._side.linked())

    def _connect(self, link: LinkEnd) -> None:
        self.to_primary = ToPrimary(self._gate, link, self.cache, self.disk.would_commit)
        link.on_lost, link.on_rebase = self._interrupt, self._rebase
        self._side.agent.connect(link)
        self._side.agent.on_channel_lost = link.lose

    def _rebase(self, term: int) -> bool:
        """The primary has seen this term at the arbiter; whether it is our base now."""
        manager = self._manager
        if manager.state not in (State.SYNCING, State.PROTECTED) or term < manager.term:
            return False
        manager.term = term
        return True

    def take_back(self, link: LinkEnd, term: int) -> bool:
        """The primary that was ours calls; whether we are a pair again."""
        if not self._listens or self._returned is not None or term != self._manager.term:
            return False
        self._returned = self._side.link = link
        self.disk.follow_again(link)
        self._connect(link)
        return True

    async def wait_for_peer(self) -> Event | None:
        """See Story: listen."""
        await self._side.agent.obey(self._side.agent.listen)
        self._listens, self._returned = True, None
        until_us = self._gate.scheduler.now_us + WAIT_US
        while self._returned is None and self._gate.scheduler.now_us < until_us and not self._side.guest.dead:
            await self._manager.sleep(POLL_US)
        self._listens = False
        return None if self._returned is None else Event.PEER_RETURNED

    @property
    def last_epoch(self) -> int:
        """No primary of this VM has used a higher number."""
        return self.cache.committed_epoch + EPOCHS_AHEAD_MAX

    async def live(self) -> None:
        """See Story."""
        manager = self._manager
        await manager.handle(Event.PEER_JOINED)
        while manager.state in (State.SYNCING, State.PROTECTED):
            for event in await self._follow():
                await manager.handle(event)
        if not manager.failover.ended:
            manager.failover.promote()
            primary = PrimaryStory(self._around, manager, len(self._side.guest.ram), self.last_epoch)
            manager.story = primary
            await primary.live()

    def _interrupt(self) -> None:
        """The failure detector ends the follower's task, wherever it is."""
        if self._follower and self._interrupts and not self._side.linked().inbox:
            self._follower.interrupt(PeerLost("the failure detector says so"))

    async def _follow(self) -> list[Event]:
        procedure = checkpoint.receive_checkpoint(self.to_primary, self._vm, self._feed, self._disks, self.cache)
        self._follower = self._gate.scheduler.spawn(self._side.host.manager, procedure)
        self._follower.handled = (VmLost, PeerLost)
        while not self._follower.finished.done:
            await self._manager.sleep(POLL_US)
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
        if self.cache.committed_epoch > self._told_epoch:
            self._told_epoch = self.cache.committed_epoch
            events.insert(0, Event.COMMITTED)
        return events

    async def speak(self) -> Event | None:
        """See Story."""
        try:
            await self._roll_forward()
            self.to_primary.look("takeover")
            await self._disks.take_over()
            await self._feed.take_over()
        except VmLost:
            return Event.VM_LOST
        return None

    async def _roll_forward(self) -> None:
        for _ in range(ROLL_FORWARD_TRIES_MAX):
            try:
                return await checkpoint.roll_forward(self._vm, self._feed, self._disks, self.cache)
            except PeerLost:
                continue
        raise VmLost("the roll-forward did not succeed")
