"""The core's ports over the model: every await passes the gate, where a fault may strike before or after the effect."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pycolo.core.arbitration import ClaimAnswer, ClaimRecord
from pycolo.core.memory_cache import MemoryCache, Stage
from pycolo.core.pages import Contents, Indices, PageBatch
from pycolo.errors import CheckpointFailed, PeerLost, VmLost

from .agents import Agent
from .faults import ENDING, PARTING, Fault, Kind, Plan, spoiled
from .guest import Guest
from .history import Cut, Heir, History, Image, Load
from .links import LinkEnd, Message, Verdict
from .network import Arbiter, Wires
from .scheduler import Host, HostDied, Scheduler

T = TypeVar("T")
FREEZE_US, SLOW_US, SHORT_US = 45_000, 40_000, 2_000
CUT_US = (5_000, 150_000)
OUTAGE_US = (20_000, 250_000)
LATE_US = 30_000
CLOCK_US_MAX = 90_000
OP_US = (20, 200)
LONG_US = (200, 3_000)
LONG_SHARE = 0.05


class ClaimUnanswered(Exception):
    """The arbiter gave no answer; the claim may have been granted all the same."""


@dataclass(slots=True, eq=False)
class Side:
    """A copy of the VM with all that belongs to it; `link` and `partner` are those of its present or last pair."""

    name: str
    host: Host
    guest: Guest
    agent: Agent
    link: LinkEnd | None = None
    partner: Side | None = None
    harmed: bool = False  # whether a fault took its VM
    host_dies: Callable[[], None] = lambda: None  # besides what the model does anyway
    disk_fails: Callable[[], bool] = lambda: False  # the disk of one who follows, or did; whether there is one

    def linked(self) -> LinkEnd:
        """The link of a pair."""
        assert self.link is not None
        return self.link

    def harm(self) -> None:
        """The VM is lost; nobody is told."""
        self.harmed = True
        self.guest.kill()

    def can_end_by(self, kind: Kind) -> bool:
        """Whether a fault that strikes here now can end a copy: this one, its partner, or one of the two."""
        if kind is Kind.PEER_DIES:
            return self.partner is not None and self.partner.host.alive and not self.partner.guest.dead
        return kind in ENDING or (kind in PARTING and self.link is not None and not self.link.lost)


def _primary_of(side: Side) -> Side:
    """The one of the pair that speaks."""
    return side if side.agent.is_primary or side.partner is None else side.partner


class Gate:
    """Where faults strike."""

    def __init__(
        self, scheduler: Scheduler, plan: Plan, history: History, arbiter: Arbiter, wires: Wires, seed: str
    ) -> None:
        self.scheduler, self._plan, self.history, self.arbiter, self.wires = scheduler, plan, history, arbiter, wires
        self._random = random.Random(seed)
        self.sides: list[Side] = []
        self.trace: Callable[[str], None] = lambda _: None
        self.outside = Host("arbiter")
        self.late_claims = self.late_under_way = 0

    async def operate(self, host: Host, port: str, effect: Callable[[], Awaitable[T]], *, vm: bool = False) -> T:
        """One call of a port: half of its time, the effect, the other half; a fault before or after the effect."""
        self._check(host, vm)
        fault = self._plan.next(port)
        if fault and not fault.after:
            await self._strike(host, port, fault)
        await self._work(host)
        self._check(host, vm)
        result = await effect()
        if fault and fault.after:
            await self._work(host)
            await self._strike(host, port, fault)
        await self._work(host)
        self._check(host, vm)
        return result

    async def _work(self, host: Host) -> None:
        """Half the time of a call; now and then it takes long."""
        span = LONG_US if self._random.random() < LONG_SHARE else OP_US
        await self.scheduler.sleep(self._random.randint(*span), host.manager)

    def _check(self, host: Host, vm: bool) -> None:
        if not host.alive:
            raise HostDied(host.name)
        if vm and self._own(host).guest.dead:
            raise VmLost("the guest is gone")

    def _own(self, host: Host) -> Side:
        return next(side for side in self.sides if side.host is host)

    async def _strike(self, host: Host, port: str, fault: Fault) -> None:
        self.history.faults.append(f"{fault} {port} on {host.name}")
        self.trace(f"{host.name}: fault {fault} {port}")
        own = self._own(host)
        self.history.deadly += own.can_end_by(fault.kind)
        match fault.kind:
            case Kind.VM_LOST:
                own.harmed = True
                raise VmLost(f"injected at {port}")
            case Kind.PEER_LOST:  # a link that lost its peer once never finds it again
                own.linked().lose()
                raise PeerLost(f"injected at {port}")
            case Kind.REFUSED:
                raise CheckpointFailed(f"injected at {port}")
            case Kind.UNANSWERED:
                raise ClaimUnanswered
            case Kind.DIE:
                self.kill(own)
                raise HostDied(host.name)
            case Kind.SLOW:
                await self.scheduler.sleep(SLOW_US, host.manager)
                self._check(host, False)
            case Kind.NO_ARBITER_HERE | Kind.NO_ARBITER | Kind.LATE_CLAIM:
                self._disturb_arbiter(host, fault.kind)
            case _:
                self._disturb(own, fault.kind)
                if own.link is not None and own.partner is not None and own.partner.link is not None:
                    self._disturb_pair(own.link, own.partner.link, fault.kind)

    def _disturb_arbiter(self, host: Host, kind: Kind) -> None:
        match kind:
            case Kind.LATE_CLAIM:
                self.late_claims += 1
            case Kind.NO_ARBITER_HERE | Kind.NO_ARBITER:
                until_us = self.scheduler.now_us + self._random.randint(*OUTAGE_US)
                names = [host.name] if kind is Kind.NO_ARBITER_HERE else [side.host.name for side in self.sides]
                self.arbiter.unreachable_until_us.update(dict.fromkeys(names, until_us))

    def _disturb(self, own: Side, kind: Kind) -> None:
        host = own.host
        match kind:
            case Kind.GUEST_DIES:
                own.harm()
            case Kind.DISK_FAILS:
                pair = [side for side in (own, own.partner) if side is not None and side.host.alive]
                self.history.deadly += sum(side.disk_fails() for side in pair)
            case Kind.PEER_DIES if own.partner is not None:
                self.kill(own.partner)
            case Kind.FREEZE:
                host.frozen_until_us = self.scheduler.now_us + FREEZE_US
            case Kind.AGENT_FREEZES | Kind.MANAGER_FREEZES:
                host = _primary_of(own).host
                part = host.agent if kind is Kind.AGENT_FREEZES else host.manager
                part.stopped_until_us = self.scheduler.now_us + FREEZE_US
            case Kind.SUSPEND:
                sleeper = _primary_of(own).host if self._random.random() < 0.8 else host  # it has a lease to lose
                sleeper.fall_asleep(self.scheduler.now_us, FREEZE_US)
            case Kind.CLOCK:
                host.clock_ahead_us += self._random.randint(-CLOCK_US_MAX, CLOCK_US_MAX)

    def _disturb_pair(self, own: LinkEnd, peer: LinkEnd, kind: Kind) -> None:
        match kind:
            case Kind.CUT:
                self._cut(own, peer)
                self._cut(peer, own)
            case Kind.CUT_OUT:
                self._cut(own, peer)
            case Kind.CUT_IN:
                self._cut(peer, own)
            case Kind.CLOG:
                own.clog()
            case Kind.CUT_DISK | Kind.CUT_PACKETS:
                for end in (own, peer):
                    end.end_channel("disk" if kind is Kind.CUT_DISK else "packets")
            case Kind.PEER_FREEZES:
                peer.host.frozen_until_us = self.scheduler.now_us + FREEZE_US
            case Kind.SPOIL | Kind.DROP:
                own.damage = spoiled if kind is Kind.SPOIL else lambda _: None

    def _cut(self, one: LinkEnd, other: LinkEnd) -> None:
        self.wires.cut(one.host.name, other.host.name, self._random.randint(*CUT_US))
        one.cut()

    def kill(self, side: Side) -> None:
        """A host dies, whatever it was doing."""
        if side.link is not None:
            side.link.host_died(seen=self._random.random() < 0.5)
        side.guest.kill()
        if side.host.alive:
            side.host_dies()
        self.scheduler.kill(side.host)


async def now(effect: Callable[[], T]) -> T:
    """An effect that takes no time of its own."""
    return effect()


class PvmPort:
    """PrimaryVm."""

    def __init__(self, gate: Gate, guest: Guest, epoch: Callable[[], int]) -> None:
        """`epoch`: the one that was sealed last."""
        self._gate, self._guest, self._epoch = gate, guest, epoch
        self.frames_before = 0  # how many of the guest's frames came before the first of this pair

    async def _call(self, name: str, effect: Callable[[], T]) -> T:
        return await self._gate.operate(self._guest.host, f"pvm.{name}", lambda: now(effect), vm=True)

    async def pause(self) -> None:
        """See PrimaryVm."""
        await self._call("pause", self._guest.pause)

    async def resume(self) -> None:
        """See PrimaryVm."""
        await self._call("resume", self._guest.resume)

    async def take_dirty_pages(self) -> Indices:
        """See PrimaryVm."""
        return await self._call("take_dirty_pages", self._guest.take_dirty)

    async def expect_pages(self, count: int) -> None:
        """Memory of our own is made ready, which nobody else takes part in."""

    async def read_pages(self, indices: Indices) -> Contents:
        """See PrimaryVm."""
        return await self._call("read_pages", lambda: self._guest.ram[indices])

    def begin_save(self) -> None:
        """See PrimaryVm; what stands still is the same a little later."""

    async def save_device_state(self) -> bytes:
        """See PrimaryVm."""
        return await self._call("save_device_state", self._save)

    def _save(self) -> bytes:
        guest, epoch = self._guest, self._epoch()
        state = guest.device_state()
        if not guest.running:
            boundary = guest.taken - self.frames_before
            self._gate.history.cuts[epoch] = Cut(epoch, boundary, guest.ram.copy(), state, guest.disk.content)
        return state


class OutputPort:
    """PrimaryOutput."""

    def __init__(self, gate: Gate, agent: Agent) -> None:
        self._gate, self._agent = gate, agent
        self.epoch = 0

    async def _call(self, name: str, effect: Callable[[], T]) -> T:
        return await self._gate.operate(self._agent.host, f"output.{name}", lambda: self._agent.obey(effect))

    async def pause_feed(self) -> int:
        """See PrimaryOutput."""
        return await self._gate.operate(self._agent.host, "output.pause_feed", self._agent.pause_feed)

    async def resume_feed(self) -> None:
        """See PrimaryOutput."""
        await self._call("resume_feed", self._agent.resume_feed)

    async def seal(self, epoch: int) -> None:
        """See PrimaryOutput."""
        await self._call("seal", lambda: self._seal(epoch))

    def _seal(self, epoch: int) -> None:
        self._gate.history.sealed_epochs.append(epoch)
        self.epoch = epoch
        self._agent.seal(epoch)

    async def commit(self, epoch: int) -> None:
        """See PrimaryOutput."""
        await self._call("commit", lambda: self._agent.commit(epoch))

    async def go_solo(self) -> None:
        """The command GO_SOLO."""
        await self._call("go_solo", self._agent.go_solo)


class ToSecondary:
    """SecondaryLink."""

    def __init__(self, gate: Gate, link: LinkEnd) -> None:
        self._gate, self._link = gate, link

    async def send_pages(self, epoch: int, batch: PageBatch) -> None:
        """See SecondaryLink."""
        await self._gate.operate(self._link.host, "to_secondary.send_pages", lambda: self._send_pages(epoch, batch))

    async def _send_pages(self, epoch: int, batch: PageBatch) -> None:
        damage, self._link.damage = self._link.damage, None
        arriving = damage(batch) if damage else batch
        if arriving is not None:
            self._say((epoch, arriving))

    async def send_stage(self, stage: Stage) -> None:
        """See SecondaryLink."""
        await self._gate.operate(self._link.host, "to_secondary.send_stage", lambda: now(lambda: self._say(stage)))

    async def caught_up(self) -> None:
        """See SecondaryLink; what is sent arrives soon."""
        await self._gate.operate(self._link.host, "to_secondary.caught_up", lambda: now(self._check_link))

    def _say(self, message: Message) -> None:
        self._check_link()
        self._link.say(message)

    def _check_link(self) -> None:
        if self._link.lost:
            raise PeerLost("the secondary is lost")

    async def committed(self, epoch: int) -> None:
        """See SecondaryLink."""
        verdict = await self._gate.operate(self._link.host, "to_secondary.committed", lambda: self._link.verdict(epoch))
        if verdict.why_discarded:
            raise CheckpointFailed(verdict.why_discarded)


class SvmPort:
    """SecondaryVm."""

    def __init__(self, gate: Gate, guest: Guest, cache: MemoryCache) -> None:
        self._gate, self._guest, self._cache = gate, guest, cache

    @property
    def faults(self) -> list[str]:
        """For mutants: those that have struck."""
        return self._gate.history.faults

    async def _call(self, name: str, effect: Callable[[], T]) -> T:
        return await self._gate.operate(self._guest.host, f"svm.{name}", lambda: now(effect), vm=True)

    async def breathe(self) -> None:
        """See SecondaryVm."""
        await self._call("breathe", lambda: None)

    async def stop_for_load(self) -> None:
        """See SecondaryVm."""
        await self._call("stop_for_load", self._guest.pause)

    async def take_dirty_pages(self) -> Indices:
        """See SecondaryVm."""
        return await self._call("take_dirty_pages", self._guest.take_dirty)

    def looks_ahead(self) -> bool:
        return True

    async def alike(self, indices: Indices, image: Contents) -> Indices:
        """See SecondaryVm."""
        return await self._call("alike", lambda: indices[(self._guest.ram[indices] == image[indices]).all(axis=1)])

    async def write_pages(self, indices: Indices, image: Contents) -> None:
        """See SecondaryVm."""
        await self._call("write_pages", lambda: self._guest.ram.__setitem__(indices, image[indices]))

    async def load_device_state(self, device_state: bytes) -> None:
        """See SecondaryVm."""
        await self._call("load_device_state", lambda: self._guest.load(device_state))

    async def resume(self) -> bool:
        """See SecondaryVm."""
        await self._call("resume", self._resume)
        return True

    def _resume(self) -> None:
        guest = self._guest
        load = Load(self._cache.committed_epoch, guest.ram.copy(), guest.device_state(), guest.disk.content)
        self._gate.history.loads.append(load)
        guest.resume()


class FeedPort:
    """SecondaryFeed."""

    def __init__(self, gate: Gate, side: Side) -> None:
        self._gate, self._agent, self._side = gate, side.agent, side

    async def _call(self, name: str, effect: Callable[[], T]) -> T:
        return await self._gate.operate(self._agent.host, f"feed.{name}", lambda: self._agent.obey(effect))

    async def stop_feed(self) -> None:
        """See SecondaryFeed."""
        await self._call("stop_feed", self._agent.stop_feed)

    async def drop_output(self) -> None:
        """See SecondaryFeed."""
        await self._call("drop_output", self._agent.drop_output)

    async def start_feed(self, epoch: int, boundary: int) -> None:
        """See SecondaryFeed."""
        await self._call("start_feed", lambda: self._agent.start_feed(epoch, boundary))

    async def take_over(self) -> None:
        """The command TAKE_OVER, after the roll-forward."""
        await self._gate.operate(self._agent.host, "feed.take_over", self._take_over)

    async def _take_over(self) -> None:
        await self._agent.take_over()
        history, guest = self._gate.history, self._side.guest
        heir = Heir(self._side.name, len(history.emissions), guest.ram.copy(), guest.disk.content)
        history.takeovers.append(heir)


def _applied(cache: MemoryCache) -> Contents:
    """The image that a roll-forward from here would come to; the cache itself stays as it is."""
    image = cache.image.copy()
    for kept in (cache._restoring, cache._past):
        for past in kept:
            past.apply_to(image)
    return image


class ToPrimary:
    """PrimaryLink; it also takes a snapshot of the committed image whenever the core passes by."""

    def __init__(self, gate: Gate, link: LinkEnd, cache: MemoryCache, disk_at: Callable[[int], bytes | None]) -> None:
        self._gate, self._link, self._cache, self._disk_at = gate, link, cache, disk_at

    def look(self, moment: str) -> None:
        """Record what a failover would use now."""
        stage = self._cache.committed
        if stage is not None:
            ram, disk = _applied(self._cache), self._disk_at(stage.epoch)
            image = Image(moment, stage.epoch, stage.boundary, ram, stage.device_state, disk)
            self._gate.history.images.append(image)

    async def receive(self) -> tuple[int, PageBatch] | Stage:
        """See PrimaryLink."""
        return await self._gate.operate(self._link.host, "to_primary.receive", self._link.receive)

    async def send_committed(self, epoch: int) -> None:
        """See PrimaryLink."""
        self.look("commit")
        await self._send("send_committed", Verdict(epoch))

    async def send_discarded(self, epoch: int, why: str) -> None:
        """See PrimaryLink."""
        self.look("discard")
        await self._send("send_discarded", Verdict(epoch, why))

    async def send_loaded(self, epoch: int) -> None:
        """See PrimaryLink."""
        await self._send("send_loaded", None)

    async def _send(self, name: str, verdict: Verdict | None) -> None:
        await self._gate.operate(self._link.host, f"to_primary.{name}", lambda: now(lambda: self._put(verdict)))

    def _put(self, verdict: Verdict | None) -> None:
        if self._link.lost:
            raise PeerLost("the primary is lost")
        if verdict is not None:
            self._link.say(verdict)


class ArbiterPort:
    """The claim over a network that may lose the question or the answer."""

    def __init__(self, gate: Gate, host: Host) -> None:
        self._gate, self._host = gate, host

    async def claim(self, term: int, claim_id: str) -> ClaimAnswer:
        """The arbiter's answer; raises ClaimUnanswered, also when it can decide nothing."""
        return await self._gate.operate(self._host, "arbiter.claim", lambda: now(lambda: self._claim(term, claim_id)))

    def _claim(self, term: int, claim_id: str) -> ClaimAnswer:
        gate = self._gate
        self._check_reachable()
        if gate.late_claims:  # the question arrives when nobody waits for its answer any more
            gate.late_claims -= 1
            gate.late_under_way += 1
            gate.scheduler.call_later(LATE_US, gate.outside, lambda: self._arrive_late(term, claim_id))
            raise ClaimUnanswered
        answer = gate.arbiter.claim(self._host.name, term, claim_id)
        if not answer.usable:
            raise ClaimUnanswered
        return answer

    async def record(self) -> ClaimRecord | None:
        """What the arbiter has; raises ClaimUnanswered."""
        return await self._gate.operate(self._host, "arbiter.record", lambda: now(self._record))

    def _record(self) -> ClaimRecord | None:
        self._check_reachable()
        return self._gate.arbiter.record

    def _check_reachable(self) -> None:
        if self._gate.scheduler.now_us < self._gate.arbiter.unreachable_until_us.get(self._host.name, 0):
            raise ClaimUnanswered

    def _arrive_late(self, term: int, claim_id: str) -> None:
        self._gate.late_under_way -= 1
        self._gate.arbiter.claim(self._host.name, term, claim_id)
