"""The disks of one VM on one host: the disk process, what connects it to QEMU, and what it tells."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pycolo.agent.protocol import Connect
from pycolo.config import CopyConfig, VmConfig, disk_path
from pycolo.core import wire
from pycolo.core.failover import Role
from pycolo.disk import protocol
from pycolo.edge.disk_link import DiskLink, NoDisks
from pycolo.edge.peer_greeting import address
from pycolo.edge.qemu_command import QemuDisk
from pycolo.errors import PeerLost, VmLost

MIB = 1 << 20


class VmDisks:
    """All disks of a VM; a VM without disks has no disk process. `ports` are those of core/checkpoint."""

    def __init__(self, host: CopyConfig, vm: VmConfig, role: Role, token: str, *, older_disk: bool = False) -> None:
        """`older_disk`: a VM may start from an image that was a secondary's when it was used last."""
        self._host, self._vm, self._role, self._token = host, vm, role, token
        self._older_disk = older_disk
        self.link: DiskLink | None = None
        self.qemu_ends: list[socket.socket] = []
        self.shapes: tuple[wire.DiskShape, ...] = ()
        self._port = 0

    @property
    def ports(self) -> DiskLink | NoDisks:
        """What the story of a checkpoint needs."""
        return self.link or NoDisks()

    @property
    def channel(self) -> tuple[int, str]:
        """Where a primary's disk process has to call, and with which token."""
        return self._port, self._token

    @property
    def for_qemu(self) -> tuple[QemuDisk, ...]:
        """The disks as QEMU gets them, in the order of `qemu_ends`."""
        return tuple(QemuDisk(disk.name, disk.werror) for disk in self._vm.disks)

    async def start(self, on_trouble: Callable[[protocol.Trouble], None], on_refused: Callable[[str], None]) -> None:
        """Open the images. Raises EnvironmentFault, DiskTrouble, VmLost."""
        if not self._vm.disks:
            return
        command = self._open_command()
        pairs = [socket.socketpair() for _ in self._vm.disks]
        self.qemu_ends = [theirs for _, theirs in pairs]
        try:
            self.link = await DiskLink.start([ours for ours, _ in pairs])
        finally:
            for ours, _ in pairs:
                ours.close()
        self.link.on_trouble, self.link.on_refused = on_trouble, on_refused
        opened = await self.link.open(command)
        self._port = opened.port
        self.shapes = tuple(
            wire.DiskShape(disk.name, size) for disk, size in zip(self._vm.disks, opened.sizes, strict=True)
        )

    def qemu_has_them(self) -> None:
        """QEMU has its own copies of its ends: when it dies, the disk process sees that."""
        for end in self.qemu_ends:
            end.close()
        self.qemu_ends = []

    async def details(self) -> dict[str, Any]:
        """For the status; nothing for a VM without disks."""
        if self.link is None:
            return {}
        try:
            stats = await self.link.stats()
        except VmLost:  # this side is about to end; what else it knows is still worth showing
            stats = protocol.DiskStats()
        return {"disks": {name: getattr(stats, name) for name in stats.__struct_fields__}}

    @property
    def gone(self) -> list[asyncio.Future[str]]:
        """Done when the disk process has ended, and why; none for a VM without disks."""
        return [] if self.link is None else [self.link.gone]

    def tie(self, on_wanted: Callable[[str], None], on_channel_lost: Callable[[str], None]) -> None:
        """There is a session to the peer: who hears that a checkpoint is wanted, and that the disk channel is lost."""
        if self.link is not None:
            self.link.on_wanted, self.link.on_channel_lost = on_wanted, on_channel_lost

    async def listen(self) -> tuple[int, str]:
        """Secondary: as `channel`, for a primary that comes back. Raises VmLost."""
        if self.link is not None:
            self._port = await self.link.listen()
        return self.channel

    async def connect(self, command: Connect) -> None:
        """Primary: begin to bring the secondary's images up to ours. Raises PeerLost, VmLost."""
        if self.link is None:
            return
        try:
            await self.link.connect(command)
        except VmLost as silence:
            if self.link.gone.done():
                raise
            raise PeerLost(f"our own disks are too slow to be copied: {silence}") from None

    def give_up(self, why: str) -> None:
        """The session to the peer is over: who waits for its disks waits in vain."""
        if self.link is not None:
            self.link.give_up(why)

    async def folding(self) -> bool:
        """Whether a takeover is still under way on the images: until it is not there can be no other secondary."""
        try:
            return self.link is not None and (await self.link.stats()).folding
        except VmLost:
            if self.link is None or self.link.gone.done():
                raise
            return True  # a disk that is slow ends no VM that has no partner; it is no time for one either

    async def take_over(self) -> None:
        """The SVM's disks are the disks now. Raises VmLost."""
        if self.link is not None:
            await self.link.take_over()

    async def leave_pair(self) -> None:
        """The pair is over. Raises VmLost only when the process is gone: one that is slow does it when it can."""
        if self.link is None:
            return
        try:
            await self.link.leave_pair()
        except VmLost:
            if self.link.gone.done():
                raise

    async def end(self) -> None:
        """QEMU is gone: what counts goes to the images, then the process ends."""
        self.qemu_has_them()
        if self.link is None:
            return
        with suppress(
            VmLost
        ):  # it is gone or hangs: the images are as after a crash, and are recovered at the next start
            await self.link.finish()
        await self.link.close()

    def _open_command(self) -> protocol.Open:
        vm, protection = self._vm, self._vm.protection
        files = [
            protocol.DiskFile(
                disk.name,
                str(disk_path(self._host, disk)),
                disk.size_mib * MIB,
                "" if disk.format == "auto" else disk.format,
            )
            for disk in vm.disks
        ]
        return protocol.Open(
            role=self._role,
            disks=files,
            state_dir=str(self._host.state_dir),
            listen_host=address(self._host.listen)[0],
            token=self._token,
            tls=self._host.tls_files,
            buffer_bytes_max=protection.disk_buffer_mib_max * MIB,
            spill_bytes_max=protection.disk_spill_mib_max * MIB,
            queue_bytes_max=protection.disk_queue_mib_max * MIB,
            stall_ms_max=protection.disk_stall_ms_max,
            copy_bytes_per_s_max=protection.disk_copy_mib_per_s_max * MIB,
            self_check=protection.self_check,
            older_disk=self._older_disk,
        )
