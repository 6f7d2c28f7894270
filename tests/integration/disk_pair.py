"""Two real disk processes and what stands for the two guests: NBD clients that read and write. No QEMU.

Guarantees: whatever a test does, `close` ends every process that was started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pair import until
from pycolo.agent.protocol import Connect
from pycolo.core import peer
from pycolo.core.failover import Role
from pycolo.disk import protocol
from pycolo.edge.disk_link import DiskLink
from pycolo.edge.tls import TlsFiles
from pycolo.errors import PeerLost, PycoloError
from pycolo.pki.authority import init_authority, issue

MIB = 1 << 20
READ, WRITE, FLUSH, TRIM, ZEROES, FUA = 0, 1, 3, 4, 6, 1
TOKEN = "test-token"


class Guest:
    """A guest's view of one disk: an NBD client with many requests under way. Errors are OSError with NBD's number."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._cookie = 0
        self._waiting: dict[int, tuple[asyncio.Future[bytes], int]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, sock: socket.socket) -> Guest:
        """Shake hands (NBD_OPT_EXPORT_NAME)."""
        guest = cls(*await asyncio.open_connection(sock=sock))
        await guest._reader.readexactly(18)
        guest._writer.write(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        await guest._reader.readexactly(10)
        guest._task = asyncio.create_task(guest._read())
        return guest

    def begin(self, kind: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> asyncio.Future[bytes]:
        """Ask; the future gets the answer."""
        self._cookie += 1
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[self._cookie] = (answer, length if kind == READ else 0)
        self._writer.write(struct.pack(">IHHQQI", 0x25609513, flags, kind, self._cookie, offset, length) + data)
        return answer

    @property
    def waits(self) -> bool:
        """Whether a request is under way."""
        return bool(self._waiting)

    async def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Until it is answered."""
        await self.begin(WRITE, offset, len(data), data, flags)

    async def zero(self, offset: int, length: int) -> None:
        """Until it is answered."""
        await self.begin(ZEROES, offset, length)

    async def flush(self) -> None:
        """Until it is answered."""
        await self.begin(FLUSH, 0, 0)

    async def read(self, offset: int, length: int) -> bytes:
        """What is there."""
        return await self.begin(READ, offset, length)

    async def read_all(self, size: int) -> bytes:
        """The whole disk."""
        return b"".join([await self.read(at, min(MIB, size - at)) for at in range(0, size, MIB)])

    def close(self) -> None:
        """The guest is gone."""
        if self._task is not None:
            self._task.cancel()
        self._writer.transport.abort()

    async def _read(self) -> None:
        try:
            while True:
                magic, error, cookie = struct.unpack(">IIQ", await self._reader.readexactly(16))
                assert magic == 0x67446698
                answer, length = self._waiting.pop(cookie)
                data = b"" if error else await self._reader.readexactly(length)
                if not answer.done():
                    if error:
                        answer.set_exception(OSError(error, os.strerror(error)))
                    else:
                        answer.set_result(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            for answer, _ in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the disk process is gone"))


class DiskHost:
    """One side: a disk process and its guest."""

    def __init__(self, link: DiskLink, name: str, role: Role, paths: list[Path], tls: TlsFiles) -> None:
        self.link, self.name, self.role, self.paths, self.tls = link, name, role, paths, tls
        self.guests: list[Guest] = []
        self.port = 0
        self.wanted: list[str] = []
        self.lost: list[str] = []
        self.troubles: list[protocol.Trouble] = []
        self.refusals: list[str] = []
        link.on_refused = self.refusals.append
        link.on_wanted = self.wanted.append
        link.on_channel_lost = self.lost.append
        link.on_trouble = self.troubles.append

    @property
    def guest(self) -> Guest:
        """The guest on the first disk."""
        return self.guests[0]

    async def call(self, secondary: DiskHost, **changed: Any) -> None:
        """As a primary: connect to the secondary's disk process."""
        token = peer.channel_token(TOKEN, self.name)
        values = {"host": "127.0.0.1", "port": secondary.port, "token": token, "peer_name": secondary.name}
        await self.link.connect(Connect(**{**values, "tls": self.tls, **changed}))

    async def settled(self) -> None:
        """Until every request is answered, as QEMU does before its VM stands still."""
        await until(lambda: not any(guest.waits for guest in self.guests), 10.0, "the answers")

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.link.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End it, however it is."""
        for guest in self.guests:
            guest.close()
        await self.link.close()

    async def finish(self) -> None:
        """The guest is gone, the process ends in good order."""
        for guest in self.guests:
            guest.close()
        await self.link.finish()
        await self.link.close()


class DiskPair:
    """Hosts come and go; images are `h1/disk0.img` and so on below `folder`."""

    def __init__(self, folder: Path, sizes: tuple[int, ...] = (8 * MIB,), **limits: Any) -> None:
        self.folder, self.sizes, self.limits = folder, sizes, limits
        self.epoch = 0
        self.order = tuple(range(len(sizes)))
        self.running = asyncio.Event()  # a guest that is paused begins no request
        self.running.set()
        self._hosts: list[DiskHost] = []
        init_authority(folder / "pki")
        for host in ("h1", "h2"):
            issue(folder / "pki", host, folder / "pki")

    def path(self, host: str, number: int = 0) -> Path:
        """An image."""
        return self.folder / host / f"disk{number}.img"

    async def start(self, host: str, role: Role, **limits: Any) -> DiskHost:
        """A disk process on a host; images are made if they are missing."""
        (self.folder / host).mkdir(exist_ok=True)
        pairs = [socket.socketpair() for _ in self.sizes]
        link = await DiskLink.start([theirs for _, theirs in pairs])
        for _, theirs in pairs:
            theirs.close()
        paths = [self.path(host, number) for number in range(len(self.sizes))]
        started = DiskHost(link, host, role, paths, self.tls(host))
        self._hosts.append(started)
        try:
            opened = await link.open(self._command(host, role, limits))
        except PycoloError:
            for ours, _ in pairs:
                ours.close()
            raise
        started.port = opened.port
        started.guests = [await Guest.connect(ours) for ours, _ in pairs]
        return started

    def tls(self, host: str) -> TlsFiles:
        """A host's certificate."""
        folder = self.folder / "pki"
        return TlsFiles(*(str(folder / name) for name in ("ca.crt", f"{host}.crt", f"{host}.key")))

    def _command(self, host: str, role: Role, limits: dict[str, Any]) -> protocol.Open:
        values: dict[str, Any] = {
            "state_dir": str(self.folder / host),
            "listen_host": "127.0.0.1",
            "token": TOKEN,
            "tls": self.tls(host),
            "buffer_bytes_max": 64 * MIB,
            "spill_bytes_max": 0,
            "queue_bytes_max": 16 * MIB,
            "stall_ms_max": 2000,
            "copy_bytes_per_s_max": 0,
            "self_check": True,
            **self.limits,
            **limits,
        }
        files = [
            protocol.DiskFile(f"disk{number}", str(self.path(host, number)), self.sizes[number], "raw")
            for number in self.order
        ]
        return protocol.Open(role=str(role), disks=files, **values)

    async def join(self, primary: DiskHost, secondary: DiskHost, wait_s: float = 20.0) -> protocol.Following:
        """First copy; returns what it was."""
        await primary.call(secondary)
        deadline = asyncio.get_running_loop().time() + wait_s
        while not await primary.link.wait_following(1.0):
            assert asyncio.get_running_loop().time() < deadline, "the copy takes too long"
        assert primary.link.following is not None
        return primary.link.following

    async def checkpoint(
        self, primary: DiskHost, secondary: DiskHost, cut: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> int:
        """The disks' part of a checkpoint; `cut` is called while the PVM stands still."""
        await primary.link.room(self.epoch)
        self.epoch += 1
        self.running.clear()
        await primary.link.expect_pause()
        await primary.settled()
        if cut is not None:
            await cut()
        await primary.link.seal(self.epoch)
        await primary.link.expect_requests()
        self.running.set()
        try:
            await secondary.link.staged(self.epoch)
        except PeerLost:
            assert not secondary.troubles  # else the daemon would have heard at once
            raise
        await secondary.link.expect_pause()
        await secondary.link.commit(self.epoch)
        return self.epoch

    async def returned(self, primary: DiskHost) -> DiskHost:
        """A secondary that was killed is back for the few chunks that it missed, and follows again."""
        again = await self.start("h2", Role.SECONDARY)
        copied = await self.join(primary, again)
        assert not copied.whole
        assert 0 < copied.copied_bytes <= 4 * 65536
        await self.checkpoint(primary, again)
        return again

    async def applied(self, primary: DiskHost, secondary: DiskHost, wait_s: float = 10.0) -> None:
        """Until the secondary's images hold the newest epoch, and the primary knows."""
        await self.reached(secondary, wait_s)
        await self.reached(primary, wait_s)

    async def reached(self, host: DiskHost, wait_s: float = 10.0) -> None:
        """Until a host knows that the newest epoch is on the secondary's images."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while (await host.link.stats()).applied_epoch < self.epoch:
            assert asyncio.get_running_loop().time() < deadline, "the epoch does not reach the image"
            await asyncio.sleep(0.02)

    async def reunite(self, primary: DiskHost, secondary: DiskHost) -> protocol.Following:
        """A pair that has lost its channel, and nothing else, goes on."""
        await primary.link.leave_pair()
        await secondary.link.leave_pair()
        secondary.port = await secondary.link.listen()
        return await self.join(primary, secondary)

    async def folded(self, survivor: DiskHost, wait_s: float = 10.0) -> None:
        """Until a takeover has come to its end and the survivor may get another secondary."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while (await survivor.link.stats()).folding:
            assert asyncio.get_running_loop().time() < deadline, "the takeover does not come to its end"
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End every process."""
        for host in self._hosts:
            await host.close()


async def following(pair: DiskPair) -> tuple[DiskHost, DiskHost]:
    """A pair whose secondary has a first checkpoint."""
    primary, secondary = await pair.start("h1", Role.PRIMARY), await pair.start("h2", Role.SECONDARY)
    await pair.join(primary, secondary)
    await pair.checkpoint(primary, secondary)
    return primary, secondary
