"""The secondary's story: wait for the primary, follow its checkpoints, take over when it is lost."""

from __future__ import annotations

import asyncio
from typing import Any

from pycolo.agent import protocol
from pycolo.config import HostConfig, VmConfig
from pycolo.core import peer, wire
from pycolo.core.checkpoint import receive_checkpoint, roll_forward
from pycolo.core.failover import Event, Role, State
from pycolo.core.memory_cache import MemoryCache
from pycolo.core.pages import PAGE_BYTES
from pycolo.edge.peer_greeting import Listener, listening, new_token
from pycolo.edge.peer_link import SessionWithPrimary
from pycolo.edge.vm_ports import SecondaryVmPort
from pycolo.errors import PeerLost
from pycolo.events import EventLog
from pycolo.manager.common import COPY_CHECK_S, NOTHING_KNOWN, Known, Manager


class SecondaryManager(Manager):
    """The host that could take over."""

    role = Role.SECONDARY
    session: SessionWithPrimary | None

    def __init__(
        self, host: HostConfig, vm: VmConfig, known: Known = NOTHING_KNOWN, events: EventLog | None = None
    ) -> None:
        super().__init__(host, vm, known, events)
        self._pvm_resumed_at_s = 0.0
        self._cache = MemoryCache((self.vm.memory_mib << 20) // PAGE_BYTES)
        self._svm: SecondaryVmPort | None = None

    def _new_token(self) -> str:
        return new_token()

    def details(self) -> dict[str, Any]:
        return {
            "committed_epoch": self._cache.committed_epoch,
            "loaded_epoch": self._cache.loaded_epoch,
            "loads_checked": self._svm.loads_checked if self._svm else 0,
        }

    async def live(self) -> None:
        protection = self.vm.protection
        self._svm = SecondaryVmPort(self.qemu, self._resumed_at_s, self_check=protection.self_check)
        self.agent.on_wanted = self._ask_primary
        packets = (self.packet_port, self.packet_token)
        listener = Listener(self.hello("control"), packets, self.disks.channel)
        async with listening(self.host.listen, listener):
            self.events.add("listening", address=self.host.listen)
            control, bulk = await listener.accepted()
            table = peer.PeerTable(receiver_is_primary=False)
            session = SessionWithPrimary(control, bulk, table, protection.heartbeat_ms, protection.heartbeat_lost_max)
            self.term = listener.term
            session.on_committed = self._committed
            self.agent.on_channel_lost = session.close
            self.disks.tie(self._ask_primary, session.close)
            session.lost.add_done_callback(lambda lost: self.disks.give_up(lost.result()))
            session.open()
            self.session = session
        await self.drive(Event.PEER_JOINED)
        lost = await self._follow(session, self._svm)
        self.events.add("peer-lost", reason=lost)
        await self.drive(Event.PEER_LOST)
        if self.failover.state is State.STOPPED:
            raise PeerLost(f"{lost}: {self.failover.reason}")
        while not self.failover.ended:
            await self.check_copy()
            await asyncio.sleep(COPY_CHECK_S)

    async def go_alone(self) -> None:
        assert self._svm is not None
        await roll_forward(self._svm, self.agent, self.disks.ports, self._cache)
        await self.disks.take_over()
        answer = await self.agent.command(protocol.TakeOver())
        assert isinstance(answer, protocol.Done)
        self.events.add("solo", released=answer.frames)
        await self.qemu.announce()

    async def _follow(self, session: SessionWithPrimary, svm: SecondaryVmPort) -> str:
        """Follow the primary from checkpoint to checkpoint; returns why it is lost."""
        try:
            while True:
                if await receive_checkpoint(session, svm, self.agent, self.disks.ports, self._cache):
                    self.events.add("loaded", epoch=self._cache.loaded_epoch, after_ms=session.since_commit_ms())
        except PeerLost as lost:
            session.close(str(lost))
            return str(lost)

    def _committed(self) -> None:
        self.decide(Event.COMMITTED)
        if self.session is not None:
            self._pvm_resumed_at_s = self.session.pvm_resumed_at_s

    def _resumed_at_s(self) -> float:
        return self._pvm_resumed_at_s

    def _ask_primary(self, reason: str) -> None:
        if self.session is not None and not self.session.lost.done():
            self.session.tell_soon(wire.CheckpointWanted(reason))
