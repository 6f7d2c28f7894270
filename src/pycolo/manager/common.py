"""What both roles have in common: a QEMU, an agent, the failover table, and carrying out what it commands.

Guarantees: every change of role goes through `drive`, so that its reason stands in the event log; whatever happens,
`run` ends with the VM copy dead and nothing left behind.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycolo.agent import protocol
from pycolo.config import HostConfig, VmConfig
from pycolo.core import wire
from pycolo.core.failover import Command, Event, Failover, Role, State
from pycolo.disk import protocol as disk_protocol
from pycolo.edge.agent_link import AgentLink
from pycolo.edge.nic import nic_pair
from pycolo.edge.peer_greeting import address
from pycolo.edge.peer_link import PeerSession
from pycolo.edge.qemu import Qemu
from pycolo.edge.qemu_command import QemuConfig, default_machine, qemu_version
from pycolo.edge.state_file import ArbiterUnanswered, FileArbiter
from pycolo.errors import DiskTrouble, EnvironmentFault, Fenced, PeerLost, VmLost
from pycolo.events import EventLog
from pycolo.manager.disks import VmDisks

CLAIM_S_MAX = 1.0
CLAIM_RETRY_S = 0.2
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


class Manager:
    """One side of a pair."""

    role: Role

    def __init__(
        self, host: HostConfig, vm: VmConfig, known: Known = NOTHING_KNOWN, events: EventLog | None = None
    ) -> None:
        """`events`: the log to go on with, as a daemon has one for all its life."""
        self.host, self.vm, self.known = host, vm, known
        self.events = events or EventLog(host.name)
        self.failover = Failover(self.role)
        self.arbiter = FileArbiter(host.arbiter_file)
        self.term = 0
        self.session: PeerSession | None = None
        self.qemu: Qemu
        self.agent: AgentLink
        self.machine = ""
        self.qemu_version = ""
        self.started = False
        self.disks = VmDisks(host, vm, self.role, self._new_token(), older_disk=known.older_disk)
        self._disk_slow = False
        self._trouble: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._disk_pause_began_s = 0.0
        self._stop = asyncio.Event()
        self._sockets: list[Any] = []

    async def run(self) -> None:
        """Live until the operator stops it, the VM copy is lost (VmLost) or the claim is lost (Fenced)."""
        try:
            await self._start()
            await self._live_or_end()
        finally:
            await self._clean_up()

    def stop(self) -> None:
        """The operator's wish to end this side."""
        self._stop.set()

    async def live(self) -> None:
        """The role's own story."""
        raise NotImplementedError

    async def go_alone(self) -> None:
        """The claim is ours: speak alone."""
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        """What the role adds to `status`."""
        raise NotImplementedError

    async def status(self) -> dict[str, Any]:
        """Everything an operator asks for, as JSON-able values."""
        stats = await self._stats()
        return {
            "host": self.host.name,
            "vm": self.vm.name,
            "role": self.role,
            "state": self.failover.state,
            "reason": self.failover.reason,
            "term": self.term,
            "qemu_version": self.qemu_version,
            "accel": self.vm.accel,
            "dirty_pages": self.qemu.dirty.kind,
            "pids": self._pids(),
            "packets": {name: getattr(stats, name) for name in stats.__struct_fields__},
            "paused_by_disk": bool(self._disk_pause_began_s),
            **self.details(),
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
        """Raises VmLost when QEMU, the agent or the disk process does not answer, or the VM does not run."""
        state = await self.qemu.status()
        if state == DISK_PAUSED and self.failover.state is not State.PROTECTED:
            await self._try_disk_again()
        elif state != "running":
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

    # ---- decisions

    async def drive(self, event: Event) -> None:
        """Hand an event to the failover table and carry out what it commands, and what follows from that."""
        commands = deque(self.decide(event))
        while commands:
            outcome = await self._carry_out(commands.popleft())
            if outcome is not None:
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
            case Command.LEAVE_PAIR:
                await self._leave_pair()
            case Command.CLAIM:
                return await self._claim()
            case Command.RETRY_CLAIM_LATER:
                await asyncio.sleep(CLAIM_RETRY_S)
                return Event.CLAIM_RETRY_DUE
            case Command.GO_SOLO | Command.TAKE_OVER:
                await self.go_alone()
            case Command.KILL_VM:
                await self.qemu.kill()
            case Command.EXIT:
                self._stop.set()
        return None

    async def _claim(self) -> Event:
        given_up = threading.Event()
        try:
            async with asyncio.timeout(CLAIM_S_MAX):
                answer = await asyncio.to_thread(
                    self.arbiter.claim, self.vm.name, self.term + 1, self.host.name, given_up
                )
        except (ArbiterUnanswered, TimeoutError) as problem:
            self.events.add("claim", granted=False, reason=str(problem) or "the arbiter does not answer in time")
            return Event.CLAIM_UNANSWERED
        finally:
            given_up.set()  # the thread may live on, but grants nothing to a side that has gone on
        self.events.add("claim", granted=answer.granted, term=self.term + 1, reason=answer.reason)
        if not answer.granted:
            return Event.CLAIM_DENIED
        self.term += 1
        return Event.CLAIM_GRANTED

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
        self.host.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours, theirs = nic_pair()
        self._sockets = [ours, theirs]
        self.agent = await AgentLink.start(ours, theirs)
        protection = self.vm.protection
        self.packet_token = self._new_token()
        started = await self.agent.command(
            protocol.Start(
                self.role,
                self.host.tap,
                self.host.bridge,
                address(self.host.listen)[0],
                self.packet_token,
                self.vm.mac,
                protection.hold_ms_min,
                protection.hold_ms_max,
            )
        )
        assert isinstance(started, protocol.Started)
        self.packet_port = started.packet_port
        await self.disks.start(self._on_trouble)
        self.qemu = await Qemu.start(
            self._qemu_config(),
            theirs,
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

    def _new_token(self) -> str:
        """A secret for those who may call a process of ours; a primary is not called."""
        return ""

    def _qemu_config(self) -> QemuConfig:
        vm = self.vm
        for path in (vm.kernel, vm.initrd):
            if not path.is_file():
                raise EnvironmentFault(f"{path} of vm.toml does not exist: build the guest with `colo guest build`")
        return QemuConfig(
            accel=vm.accel,
            machine=self.machine,
            cpus=vm.cpus,
            memory_mib=vm.memory_mib,
            mac=vm.mac,
            kernel=vm.kernel,
            initrd=vm.initrd,
            append=vm.append,
            name=f"{vm.name}-{self.role}",
            binary=vm.qemu,
            disks=self.disks.for_qemu,
        )

    def hello(self, channel: str) -> wire.Hello:
        """Our greeting."""
        vm = self.vm
        return wire.Hello(
            wire.PROTOCOL_VERSION,
            channel,
            vm.name,
            self.host.name,
            self.term,
            self.machine,
            vm.memory_mib,
            vm.cpus,
            vm.mac,
            vm.accel,
            self.disks.shapes,
        )

    async def _live_or_end(self) -> None:
        """Live until something ends this side; then leave in the order that lets the peer go on at once."""
        living = asyncio.create_task(self.live())
        stopped = asyncio.create_task(self._stop.wait())
        gone = [self.qemu.lost, self.agent.gone, *self.disks.gone]
        ends: list[asyncio.Future[Any]] = [living, stopped, self._trouble, *gone]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        failure = await _ended(living)
        await _ended(stopped)
        if failure is not None and not isinstance(failure, VmLost | PeerLost | DiskTrouble):
            raise failure
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
        for end in self._sockets:
            end.close()


def console_says(path: Path, line: str) -> bool:
    """Whether the guest's console has printed `line`."""
    try:
        return line.encode() in path.read_bytes()
    except FileNotFoundError:
        return False


async def _ended(task: asyncio.Task[Any]) -> BaseException | None:
    """End a task of ours; returns what it failed with, if it did by itself."""
    while not task.done():
        task.cancel()  # again, as a task that was just being woken may not notice the first one
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)
    return None if task.cancelled() else task.exception()
