"""One copy of a VM, whatever its role: a QEMU, an agent, the failover table, and carrying out what that commands.

Guarantees: every change of role goes through `drive`, so that its reason stands in the event log; whatever happens,
`run` ends with the VM copy dead and nothing left behind.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from pycolo.agent import protocol
from pycolo.config import CopyConfig, VmConfig
from pycolo.core import peer, wire
from pycolo.core.arbitration import ClaimRecord
from pycolo.core.failover import Command, Event, Failover, Role, State
from pycolo.core.lease import lease_ms_of
from pycolo.disk import protocol as disk_protocol
from pycolo.edge.agent_link import AgentLink
from pycolo.edge.arbiter import make_arbiter
from pycolo.edge.peer_greeting import address, new_token
from pycolo.edge.peer_link import PeerSession, SessionWithSecondary
from pycolo.edge.qemu import Qemu
from pycolo.edge.qemu_code import keeps_code
from pycolo.edge.qemu_command import QemuConfig, default_machine, nic_properties_off, qemu_version
from pycolo.errors import (
    ArbiterUnanswered,
    DiskTrouble,
    EnvironmentFault,
    Fenced,
    PeerLost,
    VmEnds,
    VmLost,
    WrongState,
)
from pycolo.events import EventLog, RefusalLog
from pycolo.manager.comparison import compare_terms
from pycolo.manager.disks import VmDisks
from pycolo.manager.nics import VmNics

CLAIM_S_MAX = 1.0
CLAIM_RETRY_S = 0.2
END_S_MAX = 5.0
DOUBT_S = 10.0  # ATTEMPT_S_MAX of etcd's gateway, many times over
ARBITER_CHECK_S = 30.0  # often enough for etcd to keep our token
COPY_CHECK_S = 0.5
DISK_PAUSED = "io-error"  # QEMU's run state
DISK_RETRY_S = 5.0
CANCEL_AGAIN_S = 1.0


@dataclass(frozen=True)
class Known:
    """What the operator knows, whatever arbiter and images say."""

    no_copy_lives: bool = False  # no copy of this VM runs anywhere
    older_disk: bool = False  # the newer disk, on the other host, is lost


NOTHING_KNOWN = Known()


class Story(Protocol):
    """What a role does with the copy."""

    async def go_alone(self) -> None:
        """The claim is ours: speak alone."""

    @property
    def covered(self) -> bool:
        """Whether the secondary has what a takeover needs."""

    def details(self) -> dict[str, Any]:
        """What the role adds to `status`."""

    async def newer_term(self, term: int) -> None:
        """The arbiter has a newer term than the one under which the pair was formed."""

    async def wait_for_peer(self, wait_s: float) -> Event | None:
        """Nobody has the claim: pass about `wait_s`, and see if the peer is back, or has left us for good."""


class VmCopy:
    """One side of a pair; `story` is its role's."""

    story: Story

    def __init__(self, host: CopyConfig, vm: VmConfig, role: Role, known: Known, events: EventLog) -> None:
        """`role`: the one to start with."""
        self.host, self.vm, self.known, self.events = host, vm, known, events
        self.failover = Failover(role)
        self.arbiter = make_arbiter(host.arbiter)
        self.term = 0  # under which the pair was formed; whoever goes alone claims the next
        self._claim_id = ""
        self._base_in_doubt = False
        self._doubt_ends_s = 0.0
        self._promised = True  # the secondary, if there is one, does not take over
        self.arbiter_trouble = ""
        self.session: PeerSession | None = None
        self.qemu: Qemu
        self.agent: AgentLink
        self.machine = ""
        self._keeps_code = False
        self.qemu_version = ""
        self.started = False
        self.nics = VmNics(host, vm)
        # A secret for those who may call a process of ours; a primary is not called.
        self.disks = VmDisks(host, vm, role, new_token(), older_disk=known.older_disk)
        self._disk_slow = False
        self._refusals = RefusalLog(self.events)
        self._trouble: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._disk_pause_began_s = 0.0
        self._stop = asyncio.Event()
        self._end_wanted = ""

    @property
    def role(self) -> Role:
        """The role now: a secondary that has taken over is a primary."""
        return self.failover.role

    async def run(self, live: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`live` until the operator stops it, the VM copy is lost (VmLost) or the claim is lost (Fenced)."""
        try:
            await self._start()
            await self._live_or_end(live)
        finally:
            await self._clean_up()

    def stop(self) -> None:
        """The operator's wish to end this side."""
        self._stop.set()

    def peer_lost(self, why: str) -> None:
        """Somebody who knows says that the partner is dead. Raises WrongState where there is none."""
        if self.session is None:
            raise WrongState("the VM has no partner here that could be lost: ask for its status")
        self.session.close(why)

    def end_vm(self, why: str) -> None:
        """The operator's wish to end both copies."""
        self._end_wanted = why

    @property
    def ending(self) -> str:
        """Why the VM comes to its end; empty when it does not."""
        return self._end_wanted or self.qemu.guest_end.how

    async def status(self) -> dict[str, Any]:
        """Everything an operator asks for, as JSON-able values."""
        stats = await self._stats()
        state, reason = self.failover.state, self.failover.reason
        if state is State.PROTECTED and not self.story.covered:
            state, reason = State.SYNCING, "the first checkpoint is on its way: before that no takeover is possible"
        return {
            "host": self.host.name,
            "vm": self.vm.name,
            "role": self.role,
            "state": state,
            "reason": reason,
            "term": self.term,
            "qemu_version": self.qemu_version,
            "accel": self.vm.accel,
            "dirty_pages": self.qemu.dirty.kind,
            "pids": self._pids(),
            "packets": {name: getattr(stats, name) for name in stats.__struct_fields__},
            "arbiter": self.arbiter_trouble or "answers",
            "paused_by_disk": bool(self._disk_pause_began_s),
            **self.story.details(),
            **self.nics.details(),
            **await self.disks.details(),
        }

    def _pids(self) -> dict[str, int]:
        pids = {"qemu": self.qemu.pid, "agent": self.agent.pid}
        return pids if self.disks.link is None else {**pids, "disks": self.disks.link.pid}

    async def _stats(self) -> protocol.Stats:
        if self.failover.ended:  # the agent is gone already, or about to be
            return protocol.Stats()
        try:
            return await self.agent.stats()
        except VmLost:  # this side is about to end; what else it knows is still worth showing
            return protocol.Stats()

    async def check_copy(self) -> None:
        """Raises VmLost when QEMU, the agent or the disk process does not answer, or the VM does not run; VmEnds."""
        if self.ending:
            raise VmEnds(self.ending)
        state = await self.qemu.status()
        if state == DISK_PAUSED and self.failover.state is not State.PROTECTED:
            await self._try_disk_again()
        elif state != "running" and not self.ending:  # it may have ended meanwhile
            raise VmLost(f"QEMU {self.qemu.config.name} is in state {state} although the VM should run")
        elif self._disk_pause_began_s:
            self._disk_pause_began_s = 0.0
            self.events.add("disk-resumed", reason="the failed requests went well at last")
        await self.agent.stats()
        await self._check_disks()

    async def _check_disks(self) -> None:
        """A disk process that hangs costs a VM that has a partner; without one the VM waits for its disk, as any VM."""
        link = self.disks.link
        if link is None:
            return
        try:
            await link.stats()
        except VmLost as silence:
            if link.gone.done() or self.failover.state is State.PROTECTED:
                raise
            if not self._disk_slow:
                self.events.add("disk-slow", reason=f"{silence}: the guest waits for its disk")
            self._disk_slow = True
        else:
            self._disk_slow = False

    async def _try_disk_again(self) -> None:
        """A failed write has paused the VM (`werror`): without a partner it waits, and tries again now and then."""
        now_s = time.monotonic()
        if not self._disk_pause_began_s:
            self.events.add("disk-paused", reason="a disk failed and `werror` pauses the VM: mend it or make room")
            self._disk_pause_began_s = now_s
        elif now_s - self._disk_pause_began_s > DISK_RETRY_S:
            self._disk_pause_began_s = now_s
            await self.qemu.cont()

    def _on_trouble(self, trouble: disk_protocol.Trouble) -> None:
        self.events.add("disk-trouble", reason=trouble.why, fatal=trouble.fatal)
        # A copy that nobody else has goes on with a failing disk; one that only follows would follow wrongly.
        follows = self.role is Role.SECONDARY and self.failover.state in (State.SYNCING, State.PROTECTED)
        if trouble.fatal and follows and not self._trouble.done():
            self._trouble.set_result(trouble.why)

    def refused(self, why: str) -> None:
        """Somebody called, or was called, who does not fit."""
        self._refusals.note(why, time.monotonic())

    # ---- decisions

    async def drive(self, event: Event) -> None:
        """Hand an event to the failover table and carry out what it commands, and what follows from that."""
        self._claim_id = new_token()  # a claim that an earlier event led to has been given up
        commands = deque(self.decide(event))
        while commands:
            outcome = await self._carry_out(commands.popleft())
            if outcome is not None:
                # Claims were given up: one may have been granted.
                if outcome is Event.PEER_RETURNED:
                    self._base_in_doubt, self._doubt_ends_s = True, time.monotonic() + DOUBT_S
                commands.extend(self.decide(outcome))

    def decide(self, event: Event) -> tuple[Command, ...]:
        """The table's decision, noted in the event log when it changes something."""
        before = self.failover.state
        decision = self.failover.handle(event)
        if decision.state is not before or decision.commands:
            self.events.add("decision", on=str(event), state=str(decision.state), reason=decision.reason)
        return decision.commands

    async def _carry_out(self, command: Command) -> Event | None:
        match command:
            case Command.DISMISS_PEER:
                await self._dismiss_peer()
            case Command.LEAVE_PAIR:
                await self._leave_pair()
            case Command.CLAIM:
                return await self._claim()
            case Command.RETRY_CLAIM_LATER:
                return await self.story.wait_for_peer(CLAIM_RETRY_S) or Event.CLAIM_RETRY_DUE
            case Command.GO_SOLO | Command.TAKE_OVER:
                await self.story.go_alone()
            case Command.KILL_VM:
                await self.qemu.kill()
            case Command.NOTE_END:
                await self._note_end()
            case Command.EXIT:
                self._stop.set()
        return None

    async def _claim(self) -> Event:
        try:
            async with asyncio.timeout(CLAIM_S_MAX):
                answer = await self.arbiter.claim(self.vm.name, self.term + 1, self.host.name, self._claim_id)
        except (ArbiterUnanswered, TimeoutError) as problem:
            self.events.add("claim", granted=False, reason=str(problem) or "the arbiter does not answer in time")
            return Event.CLAIM_UNANSWERED
        self.events.add("claim", granted=answer.granted, term=answer.term or self.term + 1, reason=answer.reason)
        if not answer.granted:
            return Event.CLAIM_DENIED
        self.term = answer.term
        return Event.CLAIM_GRANTED

    async def _watch_arbiter(self) -> None:
        """Who could not claim should be known before it has to; and see `Story.newer_term`."""
        due_s = 0.0
        while True:
            if self._base_in_doubt or time.monotonic() >= due_s:
                due_s = time.monotonic() + ARBITER_CHECK_S
                record = await self.check_arbiter()
                if record is not None and record.term > self.term:
                    await self.story.newer_term(record.term)
                if self.arbiter_trouble:  # a claim that was given up may be under way until some time after it answers
                    self._doubt_ends_s = time.monotonic() + DOUBT_S
                self._base_in_doubt = self._base_in_doubt and time.monotonic() < self._doubt_ends_s
            await asyncio.sleep(CLAIM_RETRY_S)

    async def check_arbiter(self) -> ClaimRecord | None:
        """What the arbiter has of this VM; None also when it does not answer, which is an event when it is news."""
        try:
            async with asyncio.timeout(CLAIM_S_MAX):
                record = await self.arbiter.record(self.vm.name)
        except (ArbiterUnanswered, TimeoutError) as problem:
            if not self.arbiter_trouble:
                self.arbiter_trouble = str(problem) or "the arbiter does not answer in time"
                self.events.add("arbiter-unanswered", reason=self.arbiter_trouble)
            return None
        if self.arbiter_trouble:
            self.arbiter_trouble = ""
            self.events.add("arbiter-answers")
        return record

    async def _dismiss_peer(self) -> None:
        if isinstance(self.session, SessionWithSecondary):
            self._promised = await self.session.dismiss(self.ending or self.failover.reason)
            self.events.add("dismissed", promised=self._promised)

    async def _note_end(self) -> None:
        """Nobody has to give --no-copy-lives at the next start. A secondary that did not promise is shut out first."""
        try:
            async with asyncio.timeout(CLAIM_S_MAX):
                if not self._promised:
                    answer = await self.arbiter.claim(self.vm.name, self.term + 1, self.host.name, self._claim_id)
                    self.term = answer.term or self.term
                noted = await self.arbiter.end(self.vm.name, self.term, self.host.name)
        except (ArbiterUnanswered, TimeoutError) as problem:
            self.events.add("end-not-noted", reason=str(problem) or "the arbiter does not answer in time")
        else:
            self.events.add("end-noted" if noted else "end-not-noted", term=self.term)

    async def _leave_pair(self) -> None:
        """First the packets, then the session: nothing may be released by a peer that we are leaving.

        A side that ends does not ask its agent, which may hang: the peer waits for us to be gone.
        """
        if self.failover.ended:
            await self.agent.close()
        else:
            await self.agent.command(protocol.LeavePair())
            await self.disks.leave_pair()
        if self.session is not None:
            await self.session.leave(self.failover.reason)
            self.session = None

    # ---- life and end

    async def _start(self) -> None:
        version = qemu_version(self.vm.qemu)
        self.qemu_version = ".".join(map(str, version))
        self.machine = default_machine(version)
        self._keeps_code = keeps_code(version, self.vm.accel, self.machine, self.vm.memory_mib)
        self.host.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.nics.open()
        self.agent = await AgentLink.start(self.nics.pairs)
        self.agent.on_refused = self.refused
        protection = self.vm.protection
        self.packet_token = new_token()
        started = await self.agent.command(
            protocol.Start(
                self.role,
                self.nics.ports,
                address(self.host.listen)[0],
                self.packet_token,
                protection.hold_ms_min,
                protection.hold_ms_max,
                lease_ms_of(protection.heartbeat_ms * protection.heartbeat_lost_max),
                compare_terms(self.vm.compare),
                self.host.tls_files,
            )
        )
        assert isinstance(started, protocol.Started)
        self.packet_port = started.packet_port
        await self.disks.start(self._on_trouble, self.refused)
        self.qemu = await Qemu.start(
            self._qemu_config(),
            self.nics.qemu_ends,
            disks=self.disks.qemu_ends,
            paused=True,
            console=self.host.state_dir / "console.log",
            log=self.host.state_dir / "qemu.log",
            qmp_deadline_s=protection.qmp_deadline_ms / 1000,
            use_uffd=protection.dirty_pages == "auto",
        )
        self.disks.qemu_has_them()
        await self.qemu.yield_vcpus()
        self.started = True
        self.events.add("started", qemu=self.qemu_version, dirty_pages=self.qemu.dirty.kind, why=self.qemu.why_not_uffd)
        if self.host.insecure:
            self.events.add("insecure", reason="`insecure` in host.toml: whoever reaches our ports can be the peer")

    def _qemu_config(self) -> QemuConfig:
        vm = self.vm
        for path in (vm.kernel, vm.initrd):
            if path is not None and not path.is_file():
                found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
                raise EnvironmentFault(
                    f"{path} of vm.toml {found}: name a kernel and an initrd, see `colo guest build`"
                )
        return QemuConfig(
            accel=vm.accel,
            machine=self.machine,
            cpus=vm.cpus,
            memory_mib=vm.memory_mib,
            macs=self.nics.macs,
            kernel=vm.kernel,
            initrd=vm.initrd,
            append=vm.append,
            name=vm.name,
            binary=vm.qemu,
            disks=self.disks.for_qemu,
            keeps_code=self._keeps_code,
            nic_off=nic_properties_off(vm.qemu),
        )

    def hello(self, *, resume: bool = False) -> wire.Hello:
        """Our greeting; `resume`: to a secondary that we have lost."""
        vm = self.vm
        return wire.Hello(
            wire.PROTOCOL_VERSION,
            wire.PROTOCOL_VERSION_MIN,
            peer.Channel.CONTROL,
            vm.name,
            self.host.name,
            self.term,
            self.machine,
            vm.memory_mib,
            vm.cpus,
            self.nics.shapes,
            vm.accel,
            self.disks.shapes,
            resume,
        )

    async def _live_or_end(self, live: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Live until something ends this side; then leave in the order that lets the peer go on at once."""
        living, watching = asyncio.create_task(live()), asyncio.create_task(self._watch_arbiter())
        stopped = asyncio.create_task(self._stop.wait())
        gone = [self.qemu.lost, self.agent.gone, *self.disks.gone]
        ends: list[asyncio.Future[Any]] = [living, watching, stopped, self._trouble, *gone]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if self.failover.ended:  # it is carrying out its end, of which the VM's is a part
            await asyncio.wait((living,), timeout=END_S_MAX)
        elif self.failover.state is State.TAKING_OVER:  # a claim that is granted and not known would shut out the peer
            await asyncio.wait((living,), timeout=CLAIM_S_MAX)
        failures = [failure for task in (living, watching, stopped) if (failure := await ended(task)) is not None]
        for bug in failures:
            if not isinstance(bug, VmLost | PeerLost | DiskTrouble):
                raise bug
        failure = failures[0] if failures else None
        if not self.failover.ended:
            if failure is None and self._trouble.done():
                failure = DiskTrouble(self._trouble.result())
                if self.session is not None:
                    await self.session.leave(str(failure))  # the partner's events say why it is alone
            elif failure is None and not self._stop.is_set():
                failure = VmLost(next(lost.result() for lost in gone if lost.done()))
            await self.drive(Event.STOP if failure is None else Event.VM_LOST)
        self.events.add("ended", state=str(self.failover.state), reason=str(failure or self.failover.reason))
        if self.failover.state is State.FENCED:
            raise Fenced(self.failover.reason)
        if failure is not None:
            raise failure

    async def _clean_up(self) -> None:
        if self.session is not None:
            self.session.close("this daemon ends")
        if hasattr(self, "qemu"):
            await self.qemu.kill()
        await self.disks.end()
        if hasattr(self, "agent"):
            await self.agent.close()
        self.nics.close()


async def ended(task: asyncio.Task[Any]) -> BaseException | None:
    """End a task of ours; returns what it failed with, if it did by itself."""
    while not task.done():
        task.cancel()  # again, as a task that was just being woken may not notice the first one
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)
    return None if task.cancelled() else task.exception()
