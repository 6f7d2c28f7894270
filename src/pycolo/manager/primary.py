"""The primary's story: run the VM, find a secondary, keep it one checkpoint behind, go on alone when it is lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from pycolo.agent import protocol
from pycolo.config import HostConfig, VmConfig
from pycolo.core.checkpoint import CheckpointLimits, take_checkpoint
from pycolo.core.epochs import EpochLedger
from pycolo.core.failover import Event, Role, State
from pycolo.edge.peer_greeting import connect
from pycolo.edge.peer_link import SessionWithSecondary
from pycolo.edge.state_file import ArbiterUnanswered
from pycolo.edge.vm_ports import PrimaryVmPort
from pycolo.errors import CheckpointFailed, EnvironmentFault, PeerLost
from pycolo.events import EventLog
from pycolo.manager.common import COPY_CHECK_S, NOTHING_KNOWN, Known, Manager

CONNECT_RETRY_S = 0.5
WANTED_MAX = 8
LOADED_S_MAX = 1.0
FAILED_CHECKPOINTS_MAX = 5
FAILED_CHECKPOINT_RETRY_S = 0.1


class PrimaryManager(Manager):
    """The host where the VM started."""

    role = Role.PRIMARY
    session: SessionWithSecondary | None

    def __init__(
        self, host: HostConfig, vm: VmConfig, known: Known = NOTHING_KNOWN, events: EventLog | None = None
    ) -> None:
        super().__init__(host, vm, known, events)
        self._wanted: asyncio.Queue[str] = asyncio.Queue(maxsize=WANTED_MAX)
        self._ledger: EpochLedger | None = None
        self._refused = ""
        self._last_epoch = 0

    def want_checkpoint(self, reason: str) -> None:
        """Ask for a checkpoint as soon as possible; ignored while there is nobody to send it to."""
        with suppress(asyncio.QueueFull):  # one is on its way, and it serves all who asked
            self._wanted.put_nowait(reason)

    def details(self) -> dict[str, Any]:
        ledger, session = self._ledger, self.session
        return {
            "epoch": ledger.running if ledger else 0,
            "committed_epoch": ledger.committed if ledger else 0,
            "pages_sent": session.pages_sent if session else 0,
            "pages": self.qemu.ram.page_count,
            "apply_ms": session.apply_ms if session else 0.0,
            "refused": self._refused,
        }

    async def live(self) -> None:
        await self._claim_first_term()
        self._vm = PrimaryVmPort(self.qemu, self_check=self.vm.protection.self_check)
        self.agent.on_wanted = self.want_checkpoint
        await self.qemu.cont()
        await self.qemu.announce()  # the network may still look for this VM where it ran last
        self.events.add("running")
        while not self.failover.ended:
            session = await self._find_secondary()
            await self.drive(Event.PEER_JOINED)
            lost = await self._protect(session)
            self.events.add("peer-lost", reason=lost)
            await self.drive(Event.PEER_LOST)

    async def go_alone(self) -> None:
        answer = await self.agent.command(protocol.GoSolo())
        assert isinstance(answer, protocol.Done)
        self.events.add("solo", released=answer.frames)

    async def _claim_first_term(self) -> None:
        """A VM starts only where no other copy of it can live: under the first term, or by the operator's word."""
        try:
            record = await asyncio.to_thread(self.arbiter.record)
            if record is not None and not self.known.no_copy_lives:
                raise EnvironmentFault(
                    f"{record.holder} holds term {record.term} of VM {record.vm}, so a copy may live there: "
                    "if you know that none does, start with --no-copy-lives"
                )
            term = record.term + 1 if record else 1
            answer = await asyncio.to_thread(self.arbiter.claim, self.vm.name, term, self.host.name)
        except ArbiterUnanswered as problem:
            raise EnvironmentFault(f"{problem}: correct `arbiter_file` in host.toml") from problem
        if not answer.granted:
            raise EnvironmentFault(f"the VM can't start here: {answer.reason}")
        self.term = term

    async def _find_secondary(self) -> SessionWithSecondary:
        """Call the peer until it answers; meanwhile make sure that our own VM is alive."""
        protection = self.vm.protection
        while True:
            await self.check_copy()
            try:
                session, welcome = await connect(
                    self.host.peer,
                    self.hello("control"),
                    protection.heartbeat_ms,
                    protection.heartbeat_lost_max,
                )
                self._refused = ""
                self._tie(session)  # heartbeats first: the packet channel may take its time
                host = session.peer_host
                await self.agent.command(protocol.Connect(host, welcome.packet_port, welcome.packet_token))
                await self.disks.connect(host, welcome.disk_port, welcome.disk_token)
                self.events.add("paired", secondary=welcome.host)
                return session
            except PeerLost as lost:
                await self._untie(str(lost))
            except EnvironmentFault as refusal:
                if str(refusal) != self._refused:
                    self._refused = str(refusal)
                    self.events.add("refused", reason=self._refused)
            await asyncio.sleep(CONNECT_RETRY_S)

    def _tie(self, session: SessionWithSecondary) -> None:
        session.resumed_ms_ago = self._vm.resumed_ms_ago
        session.on_wanted = self.want_checkpoint
        self.agent.on_channel_lost = session.close
        self.disks.tie(self.want_checkpoint, session.close)
        session.open()
        self.session = session
        self._ledger = EpochLedger(self.qemu.ram.page_count, last_used=self._last_epoch)

    async def _untie(self, why: str) -> None:
        if self.session is not None:
            await self.session.leave(why)
            self.session = None

    async def _protect(self, session: SessionWithSecondary) -> str:
        """Take checkpoints as they are wanted; returns why the peer is lost."""
        reason, failures = "first-sync", 0
        try:
            await self._copy_disks(session)
            while True:
                try:
                    await self._checkpoint(session, reason)
                    failures = 0
                except CheckpointFailed as failed:
                    failures += 1
                    self.events.add("checkpoint-failed", reason=str(failed))
                    if failures >= FAILED_CHECKPOINTS_MAX:
                        session.close(f"{failures} checkpoints in a row failed: {failed}")
                        return str(failed)
                    await asyncio.sleep(FAILED_CHECKPOINT_RETRY_S)
                    reason = "retry"
                    continue
                reason = await self._next_reason(session)
        except PeerLost as lost:
            session.close(str(lost))
            return str(lost)

    async def _copy_disks(self, session: SessionWithSecondary) -> None:
        """Bring the secondary's images up to ours while the VM runs. Raises PeerLost, VmLost."""
        disks, began_s = self.disks.link, time.monotonic()
        if disks is None:
            return
        while not await disks.wait_following(COPY_CHECK_S):
            if session.lost.done():
                raise PeerLost(session.lost.result())
            await self.check_copy()
        assert disks.following is not None
        self.events.add(
            "disks-copied",
            whole=disks.following.whole,
            bytes=disks.following.copied_bytes,
            total_ms=(time.monotonic() - began_s) * 1000,
        )

    async def _checkpoint(self, session: SessionWithSecondary, reason: str) -> None:
        assert self._ledger is not None
        began = time.monotonic()

        def sealed() -> None:
            """Whatever asked for a checkpoint before this instant has got it."""
            while not self._wanted.empty():
                self._wanted.get_nowait()
            self.decide(Event.OUTPUT_SEALED)

        try:
            transfer = await take_checkpoint(
                self._vm, self.agent, self.disks.ports, session, self._ledger, CheckpointLimits(), sealed
            )
        finally:
            self._last_epoch = self._ledger.last_used
        self.events.add(
            "checkpoint",
            epoch=transfer.epoch,
            reason=reason,
            pause_ms=self._vm.pause_ms,
            pages=transfer.pages,
            bytes=transfer.bytes,
            total_ms=(time.monotonic() - began) * 1000,
        )

    async def _next_reason(self, session: SessionWithSecondary) -> str:
        """Wait until a checkpoint is wanted or the epoch is long enough. Raises PeerLost, VmLost."""
        ends_at = time.monotonic() + self.vm.protection.epoch_ms_max / 1000
        await _either(session.loaded.wait(), session.lost, LOADED_S_MAX)
        while time.monotonic() < ends_at:
            if session.lost.done():
                raise PeerLost(session.lost.result())
            wait_s = min(COPY_CHECK_S, ends_at - time.monotonic())
            reason = await _either(self._wanted.get(), session.lost, max(0.0, wait_s))
            if reason is not None:
                return str(reason)
            if not session.lost.done():
                await self.check_copy()
        return "epoch"

    @property
    def protected(self) -> bool:
        """Whether a secondary could take over now."""
        return self.failover.state is State.PROTECTED


async def _either(waiting: Any, lost: asyncio.Future[str], wait_s: float) -> Any:
    """The result of `waiting`, or None when the peer is lost or the time is over first."""
    task = asyncio.ensure_future(waiting)
    await asyncio.wait((task, lost), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None
