"""The secondary's story: wait for the primary, follow its checkpoints, take over when it is lost."""

from __future__ import annotations

import asyncio
from typing import Any

from pycolo.agent import protocol
from pycolo.core import peer, wire
from pycolo.core.checkpoint import receive_checkpoint, roll_forward
from pycolo.core.failover import Event, State
from pycolo.core.memory_cache import MemoryCache
from pycolo.core.pages import PAGE_BYTES
from pycolo.edge.peer_greeting import Listener, listening
from pycolo.edge.peer_link import Connection, SessionWithPrimary
from pycolo.edge.vm_ports import SecondaryVmPort
from pycolo.errors import PeerLost
from pycolo.manager.common import VmCopy, ended

EPOCHS_AHEAD_MAX = 1000
REUNION_WAITS = 3.0  # the primary's calls and our waits have to meet


class SecondaryStory:
    """The host that could take over; implements Story."""

    def __init__(self, copy: VmCopy) -> None:
        self._copy = copy
        self._session: SessionWithPrimary | None = None
        self._listener: Listener
        self._pvm_resumed_at_s = 0.0
        self._cache = MemoryCache((copy.vm.memory_mib << 20) // PAGE_BYTES)
        self._svm = SecondaryVmPort(copy.qemu, self._resumed_at_s, self_check=copy.vm.protection.self_check)

    @property
    def last_epoch(self) -> int:
        """No primary of this VM has used a higher number, as none begins so many checkpoints that are not committed."""
        return self._cache.committed_epoch + EPOCHS_AHEAD_MAX

    @property
    def covered(self) -> bool:
        return self._cache.committed_epoch > 0

    def details(self) -> dict[str, Any]:
        return {
            "committed_epoch": self._cache.committed_epoch,
            "loaded_epoch": self._cache.loaded_epoch,
            "loads_checked": self._svm.loads_checked,
        }

    async def live(self) -> None:
        """Follow a primary; returns when this side speaks alone or has ended. Raises PeerLost, VmLost."""
        copy = self._copy
        copy.agent.on_wanted = self._ask_primary
        copy.qemu.guest_end.on_end = lambda: self._ask_primary("guest-end")
        packets = (copy.packet_port, copy.packet_token)
        self._listener = Listener(copy.hello(), packets, copy.disks.channel, copy.refused, copy.host.primary)
        async with listening(copy.host.listen, self._listener, copy.host.tls_files) as address:
            copy.events.add("listening", address=address)
            session = self._open(*await self._listener.accepted())
            copy.term = self._listener.term
            await copy.drive(Event.PEER_JOINED)
            while copy.failover.state in (State.SYNCING, State.PROTECTED):
                await self._follow_to_the_end(session)
                session = self._session or session

    def _open(self, control: Connection, bulk: Connection) -> SessionWithPrimary:
        """A session over the connections of a primary that fits."""
        copy, protection = self._copy, self._copy.vm.protection
        table = peer.PeerTable(receiver_is_primary=False)
        session = SessionWithPrimary(control, bulk, table, protection.heartbeat_ms, protection.heartbeat_lost_max)
        session.on_committed = self._committed
        session.on_rebase = self._rebase
        copy.agent.on_channel_lost = session.close
        copy.disks.tie(self._ask_primary, session.close)
        session.lost.add_done_callback(lambda lost: copy.disks.give_up(lost.result()))
        session.open(lambda: copy.failover.awaits_peer)
        copy.session = self._session = session
        copy.events.add("paired", primary=session.peer_host)
        return session

    async def _follow_to_the_end(self, session: SessionWithPrimary) -> None:
        """Follow, and decide what comes after. Raises PeerLost when there is nothing to take over with."""
        copy = self._copy
        lost = await self._follow(session)
        if session.dismissed.done():
            copy.events.add("dismissed", reason=session.dismissed.result())
            await copy.drive(Event.DISMISSED)
            return
        copy.events.add("peer-lost", reason=lost)
        await copy.drive(Event.PEER_LOST)
        if copy.failover.state is State.STOPPED:
            raise PeerLost(f"{lost}: {copy.failover.reason}")

    async def wait_for_peer(self, wait_s: float) -> Event | None:
        copy = self._copy
        packets, disks = (await copy.agent.listen(), copy.packet_token), await copy.disks.listen()
        returned = await self._listener.returned(packets, disks, REUNION_WAITS * wait_s)
        if returned is not None:
            self._open(*returned)
            return Event.PEER_RETURNED
        await copy.agent.command(protocol.LeavePair())
        await copy.disks.leave_pair()
        return Event.CLAIM_DENIED if self._listener.superseded else None

    def _rebase(self, term: int) -> bool:
        """The primary has seen this term at the arbiter; whether it is our base now."""
        copy = self._copy
        if copy.failover.state not in (State.SYNCING, State.PROTECTED) or term < copy.term:
            return False
        copy.term = self._listener.term = term
        self._listener.superseded = False
        return True

    async def newer_term(self, term: int) -> None:
        """It is the primary's to ask what that means."""

    async def go_alone(self) -> None:
        copy = self._copy
        await roll_forward(self._svm, copy.agent, copy.disks.ports, self._cache)
        await copy.disks.take_over()
        answer = await copy.agent.command(protocol.TakeOver())
        assert isinstance(answer, protocol.Done)
        copy.events.add("solo", released=answer.frames)
        await copy.qemu.announce()
        self._svm.forget_image()
        self._cache.drop_image()

    async def _follow(self, session: SessionWithPrimary) -> str:
        """Follow the primary until it is lost or sends us away; returns why."""
        following = asyncio.create_task(self._take_checkpoints(session))
        try:
            await asyncio.wait((following, session.dismissed), return_when=asyncio.FIRST_COMPLETED)
            return await following if following.done() else session.dismissed.result()
        finally:
            await ended(following)

    async def _take_checkpoints(self, session: SessionWithPrimary) -> str:
        """Follow the primary from checkpoint to checkpoint; returns why it is lost."""
        copy = self._copy
        try:
            while True:
                if await receive_checkpoint(session, self._svm, copy.agent, copy.disks.ports, self._cache):
                    copy.events.add("loaded", epoch=self._cache.loaded_epoch, after_ms=session.since_commit_ms())
        except PeerLost as lost:
            session.close(str(lost))
            return str(lost)

    def _committed(self) -> None:
        self._copy.decide(Event.COMMITTED)
        if self._session is not None:
            self._pvm_resumed_at_s = self._session.pvm_resumed_at_s

    def _resumed_at_s(self) -> float:
        return self._pvm_resumed_at_s

    def _ask_primary(self, reason: str) -> None:
        if self._session is not None and not self._session.lost.done():
            self._session.tell_soon(wire.CheckpointWanted(reason))
