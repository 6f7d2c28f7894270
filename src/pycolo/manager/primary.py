"""The primary's story: run the VM, find a secondary, keep it one checkpoint behind, go on alone when it is lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from pycolo.agent import protocol
from pycolo.core.checkpoint import CheckpointLimits, take_checkpoint
from pycolo.core.epochs import EpochLedger
from pycolo.core.failover import Event, State
from pycolo.core.pages import PAGES_PER_MIB
from pycolo.edge.heap import give_back_memory
from pycolo.edge.peer_greeting import connect
from pycolo.edge.peer_link import SessionWithSecondary
from pycolo.edge.vm_ports import PrimaryVmPort
from pycolo.errors import ArbiterUnanswered, CheckpointFailed, EnvironmentFault, PeerLost, PeerUntrusted, VmEnds
from pycolo.manager.common import COPY_CHECK_S, VmCopy
from pycolo.manager.comparison import DivergenceNotes

CONNECT_RETRY_S = 0.5
REUNION_S_MAX = 1.0
REUNION_COPY_S_MAX = 10.0
FIRST_CLAIM_S_MAX = 5.0
WANTED_MAX = 8
LOADED_S_MAX = 1.0
FAILED_CHECKPOINTS_MAX = 5
FAILED_CHECKPOINT_RETRY_S = 0.1


class PrimaryStory:
    """The host whose copy speaks; implements Story."""

    def __init__(self, copy: VmCopy, last_epoch: int = 0) -> None:
        """`last_epoch`: no epoch of this VM has had a higher number."""
        self._copy = copy
        self.divergences = DivergenceNotes(copy.events)
        self._vm = PrimaryVmPort(copy.qemu, self_check=copy.vm.protection.self_check)
        self._session: SessionWithSecondary | None = None
        self._wanted: asyncio.Queue[str] = asyncio.Queue(maxsize=WANTED_MAX)
        self._ledger: EpochLedger | None = None
        self._peer = self._paired_with = copy.host.peer
        self._refused = ""
        self._sends_away = self._hands_over = False
        self._last_epoch = last_epoch

    def call_peer(self, address: str) -> None:
        """From now on look for a secondary at HOST:PORT; empty: nowhere."""
        self._peer, self._sends_away = address, False

    def unprotect(self) -> None:
        """Send the secondary away, and look for no other."""
        self._peer, self._sends_away = "", True
        self.want_checkpoint("unprotect")  # whatever waits for news goes on

    def hand_over(self) -> None:
        """Let the secondary take over, in good order, as soon as it has one more checkpoint; this side ends then."""
        self._hands_over = True
        self.want_checkpoint("switchover")

    def want_checkpoint(self, reason: str) -> None:
        """Ask for a checkpoint as soon as possible; ignored while there is nobody to send it to."""
        with suppress(asyncio.QueueFull):  # one is on its way, and it serves all who asked
            self._wanted.put_nowait(reason)

    @property
    def covered(self) -> bool:
        return self._ledger is not None and self._ledger.committed > 0

    def details(self) -> dict[str, Any]:
        ledger, session = self._ledger, self._session
        return {
            "epoch": ledger.running if ledger else 0,
            "committed_epoch": ledger.committed if ledger else 0,
            "pages_sent": session.pages_sent if session else 0,
            "pages": self._copy.qemu.ram.page_count,
            "apply_ms": session.apply_ms if session else 0.0,
            "refused": self._refused,
            **self.divergences.details(),
        }

    async def begin(self) -> None:
        """Start the VM, where no other copy of it can live. Raises EnvironmentFault, VmLost."""
        await claim_first_term(self._copy)
        await self._copy.qemu.cont()
        await self._copy.qemu.announce()  # the network may still look for this VM where it ran last
        self._copy.events.add("running")

    async def live(self) -> None:
        """The VM runs alone here: find a secondary, protect, and again; until the VM ends."""
        copy = self._copy
        copy.agent.on_wanted = self.want_checkpoint
        copy.qemu.guest_end.on_end = _nothing  # a secondary asks its primary then; we look by ourselves
        copy.agent.on_divergences, copy.agent.on_paced = self.divergences.note, self.divergences.paced
        try:
            while not copy.failover.ended:
                if copy.failover.state is State.SOLO:
                    self._session = None
                    give_back_memory()
                    self._session = await self._find_secondary()
                    await copy.drive(Event.PEER_JOINED)
                assert self._session is not None
                await copy.drive(await self._protect(self._session))
        except VmEnds as end:
            copy.events.add("vm-ends", reason=str(end))
            await copy.drive(Event.VM_ENDS)

    async def go_alone(self) -> None:
        answer = await self._copy.agent.command(protocol.GoSolo())
        assert isinstance(answer, protocol.Done)
        self._copy.events.add("solo", released=answer.frames)

    async def _find_secondary(self) -> SessionWithSecondary:
        """Call the peer until it answers; meanwhile make sure that our own VM is alive."""
        while True:
            await self._copy.check_copy()
            if not await self._copy.disks.folding() and self._peer:  # looked at last: whom to call may change meanwhile
                try:
                    return await self._pair(self._peer, resume=False)
                except (PeerUntrusted, EnvironmentFault) as refusal:
                    self._refused = str(refusal)
                    self._copy.refused(self._refused)
                    await self._untie(self._refused)
                except PeerLost as lost:
                    await self._untie(str(lost))
            await asyncio.sleep(CONNECT_RETRY_S)

    async def wait_for_peer(self, wait_s: float) -> Event | None:
        await asyncio.sleep(wait_s)
        try:
            async with asyncio.timeout(REUNION_S_MAX):
                self._session = await self._pair(self._paired_with, resume=True)
        except (TimeoutError, PeerLost, EnvironmentFault) as problem:
            await self._untie(str(problem))
            return None
        return Event.PEER_RETURNED

    async def _pair(self, peer_address: str, *, resume: bool) -> SessionWithSecondary:
        """A session and all its channels. Raises PeerLost, EnvironmentFault when the secondary refuses us."""
        copy, protection, tls = self._copy, self._copy.vm.protection, self._copy.host.tls_files
        hello = copy.hello(resume=resume)
        session, welcome = await connect(
            peer_address, hello, protection.heartbeat_ms, protection.heartbeat_lost_max, tls
        )
        self._refused, self._paired_with = "", peer_address
        if not resume:  # else the debt goes on: the secondary has what it had
            remembered = protection.sent_pages_mib_max * PAGES_PER_MIB
            self._ledger = EpochLedger(copy.qemu.ram.page_count, self._last_epoch, sent_pages_max=remembered)
        self._tie(session)  # heartbeats first: the packet channel may take its time
        host, name = session.peer_host, welcome.host
        await copy.agent.command(protocol.Connect(host, welcome.packet_port, welcome.packet_token, name, tls))
        await copy.disks.connect(protocol.Connect(host, welcome.disk_port, welcome.disk_token, name, tls))
        copy.events.add("paired", secondary=name, again=resume)
        return session

    def _tie(self, session: SessionWithSecondary) -> None:
        session.resumed_ms_ago = self._vm.resumed_ms_ago
        session.on_wanted = self.want_checkpoint
        self._copy.agent.on_channel_lost = session.close
        self._copy.disks.tie(self.want_checkpoint, session.close)
        session.open(lambda: self._copy.failover.awaits_peer)
        self._copy.session = self._session = session

    async def _untie(self, why: str) -> None:
        """Whatever came about of a session and its channels is no more."""
        if self._copy.session is not None:
            await self._copy.agent.command(protocol.LeavePair())
            await self._copy.disks.leave_pair()
            await self._copy.session.leave(why)
            self._copy.session = None

    async def _protect(self, session: SessionWithSecondary) -> Event:
        """Take checkpoints as they are wanted; returns what ends that. Raises VmLost, VmEnds."""
        reason, failures = "first-sync", 0
        self._hands_over = False
        try:
            await self._copy_disks(session)
            while not self._sends_away:
                ending, hands_over = self._copy.ending, self._hands_over
                try:
                    await self._checkpoint(session, reason)
                    failures = 0
                except CheckpointFailed as failed:
                    failures += 1
                    self._copy.events.add("checkpoint-failed", reason=str(failed))
                    if failures >= FAILED_CHECKPOINTS_MAX:
                        raise PeerLost(f"{failures} checkpoints in a row failed: {failed}") from failed
                    await asyncio.sleep(FAILED_CHECKPOINT_RETRY_S)
                    reason = "retry"
                    continue
                if ending:  # the secondary has the end of the VM, and clients what it said last
                    raise VmEnds(ending)
                if hands_over:
                    self._copy.stop()
                reason = await self._next_reason(session)
        except PeerLost as lost:
            session.close(str(lost))
            self._copy.events.add("peer-lost", reason=str(lost))
            return Event.PEER_LOST
        return Event.UNPROTECT

    async def _copy_disks(self, session: SessionWithSecondary) -> None:
        """Bring the secondary's images up to ours while the VM runs. Raises PeerLost, VmLost, VmEnds."""
        disks, began_s = self._copy.disks.link, time.monotonic()
        if disks is None:
            return
        held = self._copy.failover.state is State.PROTECTED  # a reunion: output waits for this
        while not await disks.wait_following(COPY_CHECK_S):
            if held and time.monotonic() - began_s > REUNION_COPY_S_MAX:
                raise PeerLost("the disks have drifted too far apart to go on as a pair: the claim decides")
            if session.lost.done():
                raise PeerLost(session.lost.result())
            if self._sends_away:
                return
            await self._copy.check_copy()
        assert disks.following is not None
        self._copy.events.add(
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
            self._copy.decide(Event.OUTPUT_SEALED)

        try:
            transfer = await take_checkpoint(
                self._vm, self._copy.agent, self._copy.disks.ports, session, self._ledger, CheckpointLimits(), sealed
            )
        finally:
            self._last_epoch = self._ledger.last_used
        self._copy.events.add(
            "checkpoint",
            epoch=transfer.epoch,
            reason=reason,
            pause_ms=self._vm.pause_ms,
            pages=transfer.pages,
            bytes=transfer.bytes,
            total_ms=(time.monotonic() - began) * 1000,
        )

    async def _next_reason(self, session: SessionWithSecondary) -> str:
        """Wait until a checkpoint is wanted, the epoch is long enough or the VM ends. Raises PeerLost, VmLost."""
        ends_at = time.monotonic() + self._copy.vm.protection.epoch_ms_max / 1000
        await _either(session.loaded.wait(), session.lost, LOADED_S_MAX)
        while time.monotonic() < ends_at:
            if session.lost.done():
                raise PeerLost(session.lost.result())
            wait_s = min(COPY_CHECK_S, ends_at - time.monotonic())
            reason = await _either(self._wanted.get(), session.lost, max(0.0, wait_s))
            if reason is not None:
                return str(reason)
            if self._copy.ending:
                return "vm-ends"
            if not session.lost.done():
                await self._copy.check_copy()
        return "epoch"

    async def newer_term(self, term: int) -> None:
        """A claim that was given up has been granted: the pair has to agree that nobody acts upon it any more."""
        copy, session = self._copy, self._session
        if copy.failover.state is State.PROTECTED and session is not None and await session.rebase(term):
            copy.events.add("rebased", term=term)
            copy.term = term


async def claim_first_term(copy: VmCopy) -> None:
    """A VM starts only where no other copy of it can live: under the first term, or by the operator's word.

    Raises EnvironmentFault.
    """
    try:
        async with asyncio.timeout(FIRST_CLAIM_S_MAX):
            record = await copy.arbiter.record(copy.vm.name)
            if record is not None and not (record.ended or copy.known.no_copy_lives):
                raise EnvironmentFault(
                    f"{record.holder} holds term {record.term} of VM {record.vm}, so a copy may live there: "
                    "if you know that none does, start with --no-copy-lives"
                )
            term = record.term + 1 if record else 1
            answer = await copy.arbiter.claim(copy.vm.name, term, copy.host.name)
    except (ArbiterUnanswered, TimeoutError) as problem:
        why = str(problem) or f"the arbiter does not answer in {FIRST_CLAIM_S_MAX:.0f} s"
        raise EnvironmentFault(f"{why}: correct `arbiter` in host.toml") from problem
    if not answer.granted:
        raise EnvironmentFault(f"the VM can't start here: {answer.reason}")
    copy.term = term


def _nothing() -> None:
    """Has nothing to do."""


async def _either(waiting: Any, lost: asyncio.Future[str], wait_s: float) -> Any:
    """The result of `waiting`, or None when the peer is lost or the time is over first."""
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait((task, lost), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None
