"""QEMU's own COLO, set up by the book (docs/system/qemu-colo.rst of 11.1) and given its best.

Guarantees
* Guest, machine, memory and card are those of the others. The guest boots unprotected, as the others' do, so that its
  boot is no part of anything measured.
* Nothing but QEMU is at work: no daemon looks after the pair, and the takeover is told to the secondary at once when
  the primary is dead, as the fastest failure detector could.
* The migration stream goes over a unix socket or over TCP between the hosts; frames go over TCP, without delay.

From QEMU 11.0 on COLO works under TCG; 7.2 to 10.2 stand still for ever at the first checkpoint (docs/qemu-notes.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, Lab, build_lab, host_address
from pycolo.edge.namespaces import Namespace
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.guest.control import CONTROL_PORT
from pycolo.guest.disk_image import copy_disk
from pycolo.manager.common import console_says
from upload_guests import COMPARE_PORT, MAC, MEMORY_MIB, MIRROR_PORT, TAP, await_tap, start_qemu, until

from .monitor import GoneError, Monitor, monitor
from .subject import DeadError, Start, Subject

MIGRATION_PORT, NBD_PORT = 9998, 9999
RECONNECT = "reconnect-ms=200"
SYNC_S_MAX = 60.0
POLL_S = 0.05
SETTLE_S = 1.0
CAPABILITIES = ("return-path", "x-colo")


def plain(qemu: str) -> Start:
    """One QEMU whose tap is on the bridge, with all that a tap offers: what the others are compared with."""

    @contextlib.asynccontextmanager
    async def start(image: GuestImage, folder: Path, disk: Path | None) -> AsyncIterator[Subject]:
        async with AsyncExitStack() as stack:
            lab = build_lab()
            stack.callback(lab.close)
            drive = _raw_disk(disk, folder, 1)
            process = await _booted(stack, lab, 1, qemu, [*_machine(image, folder, 1), *_card(""), *drive], folder)
            yield Subject(lab.clients, {"qemu": process.pid})

    return start


def colo(qemu: str, transport: str) -> Start:
    """A pair of QEMU's own; `transport` is `unix` or `tcp`."""

    @contextlib.asynccontextmanager
    async def start(image: GuestImage, folder: Path, disk: Path | None) -> AsyncIterator[Subject]:
        async with AsyncExitStack() as stack:
            lab = build_lab()
            stack.callback(lab.close)
            pair = _Pair(stack, lab, qemu, transport, image, folder, disk)
            await pair.start()
            yield pair.subject()

    return start


class _Pair:
    """Two QEMUs on the way to COLO."""

    def __init__(
        self,
        stack: AsyncExitStack,
        lab: Lab,
        qemu: str,
        transport: str,
        image: GuestImage,
        folder: Path,
        disk: Path | None,
    ) -> None:
        self._stack, self._lab, self._qemu, self._image, self._folder = stack, lab, qemu, image, folder
        self._disk = disk
        here = f"unix:{folder / 'migration'}"
        self._stream = here if transport == "unix" else f"tcp:{host_address(2)}:{MIGRATION_PORT}"
        self._first_sync_s = 0.0

    async def start(self) -> None:
        """Boot, copy the disk, connect, and wait until the two are in COLO. Raises DeadError."""
        machine = _machine(self._image, self._folder, 1)
        primary = [*machine, *_card(",vnet_hdr=off"), *_chardevs_of_primary(self._folder), *self._primary_disk()]
        self._primary = await _booted(self._stack, self._lab, 1, self._qemu, primary, self._folder)
        self._first = await self._monitor(1)
        if self._disk is not None:  # both disks have to be the same when COLO begins
            await _sync(self._lab.clients)
            await self._first.execute("stop")
            copy_disk(self._folder / "disk-1.img", self._folder / "disk-2.img")
        machine = _machine(self._image, self._folder, 2)
        secondary = [*machine, *_card(",vnet_hdr=off"), *_filters_of_secondary(), *self._secondary_disk()]
        host = self._lab.hosts[HOSTS[1]]
        self._secondary = start_qemu(self._stack, host, [*secondary, "-incoming", self._stream], (), self._qemu)
        await await_tap(host)
        await asyncio.sleep(SETTLE_S)
        self._second = await self._monitor(2)
        try:
            await self._connect()
        except GoneError as problem:
            raise DeadError(str(problem)) from None

    async def _connect(self) -> None:
        capabilities = [{"capability": name, "state": True} for name in CAPABILITIES]
        for one in (self._second, self._first):
            await one.execute("migrate-set-capabilities", capabilities=capabilities)
        if self._disk is not None:
            await self._connect_disks()
        for kind, properties in _filters_of_primary():
            await self._first.execute("object-add", **{"qom-type": kind}, **properties)
        began_s = time.monotonic()
        await self._first.execute("migrate", uri=self._stream)
        while (status := (await self._first.execute("query-migrate")).get("status")) != "colo":
            if status == "failed" or time.monotonic() > began_s + SYNC_S_MAX:
                raise DeadError(f"QEMU's COLO does not come to be: its migration is {status}")
            await asyncio.sleep(POLL_S)
        self._first_sync_s = time.monotonic() - began_s

    async def _connect_disks(self) -> None:
        inet = {"type": "inet", "host": host_address(2), "port": str(NBD_PORT)}
        nbd = {"driver": "nbd", "node-name": "far", "server": inet, "export": "parent0", "detect-zeroes": "on"}
        address = {"type": "inet", "data": {"host": host_address(2), "port": str(NBD_PORT)}}
        await self._second.execute("nbd-server-start", addr=address)
        await self._second.execute("nbd-server-add", device="parent0", writable=True)
        await self._first.execute("blockdev-add", **nbd)
        await self._first.execute("x-blockdev-change", parent="disk0", node="far")

    def subject(self) -> Subject:
        """What is measured."""
        return Subject(
            self._lab.clients,
            {"qemu primary": self._primary.pid},
            self._first.pauses,
            {"qemu secondary": self._secondary.pid},
            request=self._request,
            kill=self._kill,
            first_sync_s=self._first_sync_s,
        )

    async def _request(self) -> None:
        """Setting the delay, even to what it is, starts a checkpoint (migration/options.c)."""
        try:
            delay = (await self._first.execute("query-migrate-parameters"))["x-checkpoint-delay"]
            await self._first.execute("migrate-set-parameters", **{"x-checkpoint-delay": delay})
        except GoneError as problem:
            raise DeadError(str(problem)) from None

    async def _kill(self) -> float:
        self._primary.kill()
        killed_s = time.monotonic()
        try:
            if self._disk is not None:
                await self._second.execute("nbd-server-stop")
            await self._second.execute("x-colo-lost-heartbeat")
            self._lab.hosts[HOSTS[1]].ip("link", "set", TAP, "master", "br0")
            for name in ("in", "out"):
                await self._second.execute("object-del", id=name)
        except GoneError as problem:
            raise DeadError(str(problem)) from None
        return killed_s

    async def _monitor(self, number: int) -> Monitor:
        path = self._folder / f"monitor-{number}"
        await until("QEMU's monitor", path.exists)
        return await self._stack.enter_async_context(monitor(path))

    def _primary_disk(self) -> list[str]:
        if self._disk is None:
            return []
        copy_disk(self._disk, self._folder / "disk-1.img")
        children = f"children.0.driver=raw,children.0.file.filename={self._folder / 'disk-1.img'}"
        quorum = f"if=none,id=disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,{children}"
        return ["-drive", quorum, "-device", "virtio-blk-pci,drive=disk0,serial=data"]

    def _secondary_disk(self) -> list[str]:
        if self._disk is None:
            return []
        for name in ("active", "hidden"):
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", self._folder / f"{name}.qcow2", str(_bytes(self._disk))],
                check=True,
                timeout=SYNC_S_MAX,
            )
        overlays = (
            f"file.driver=qcow2,top-id=disk0,file.file.filename={self._folder / 'active.qcow2'},"
            f"file.backing.driver=qcow2,file.backing.file.filename={self._folder / 'hidden.qcow2'},"
            "file.backing.backing=parent0"
        )
        return [
            *("-drive", f"if=none,id=parent0,driver=raw,file.filename={self._folder / 'disk-2.img'}"),
            *("-drive", f"if=none,id=childs0,driver=replication,mode=secondary,{overlays}"),
            *("-drive", "if=none,id=disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=childs0"),
            *("-device", "virtio-blk-pci,drive=disk0,serial=data"),
        ]


def _machine(image: GuestImage, folder: Path, number: int) -> list[str]:
    """As `edge/qemu_command` has it."""
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "qemu64,-rdrand"),
        *("-machine", "q35", "-smp", "1", "-m", f"{MEMORY_MIB}M", "-rtc", "base=utc,clock=vm"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", image.command_line(f"{GUEST_ADDRESS}/24"), "-device", "pvpanic-pci"),
        *("-chardev", f"file,id=console,path={folder / f'console{number}'}", "-serial", "chardev:console"),
        *("-qmp", f"unix:{folder / f'monitor-{number}'},server=on,wait=off"),
    ]


def _card(more: str) -> list[str]:
    netdev = f"tap,id=net0,ifname={TAP},script=no,downscript=no,vhost=off{more}"
    return ["-netdev", netdev, "-device", f"virtio-net-pci,id=nic0,netdev=net0,mac={MAC},romfile="]


def _raw_disk(disk: Path | None, folder: Path, number: int) -> list[str]:
    if disk is None:
        return []
    image = folder / f"disk-{number}.img"
    copy_disk(disk, image)
    return [
        *("-drive", f"if=none,id=disk0,driver=raw,file.filename={image}"),
        *("-device", "virtio-blk-pci,drive=disk0,serial=data"),
    ]


def _bytes(disk: Path) -> int:
    return disk.stat().st_size


def _chardevs_of_primary(folder: Path) -> list[str]:
    far = f"host={host_address(1)},server=on,wait=off,nodelay=on"
    options = [f"socket,id=mirror,port={MIRROR_PORT},{far}", f"socket,id=theirs,port={COMPARE_PORT},{far}"]
    for name in ("compare", "out"):
        path = f"path={folder / name}"
        options += [f"socket,id={name},{path},server=on,wait=off", f"socket,id={name}-end,{path}"]
    return [part for option in options for part in ("-chardev", option)]


def _filters_of_primary() -> list[tuple[str, dict[str, Any]]]:
    compare = {"primary_in": "compare-end", "secondary_in": "theirs", "outdev": "out-end", "iothread": "thread"}
    return [
        ("filter-mirror", {"id": "mirrors", "netdev": "net0", "queue": "tx", "outdev": "mirror"}),
        ("filter-redirector", {"id": "released", "netdev": "net0", "queue": "rx", "indev": "out"}),
        ("filter-redirector", {"id": "held", "netdev": "net0", "queue": "rx", "outdev": "compare"}),
        ("iothread", {"id": "thread"}),
        ("colo-compare", {"id": "compare0", **compare}),
    ]


def _filters_of_secondary() -> list[str]:
    chardev = f"host={host_address(1)},{RECONNECT},nodelay=on"
    return [
        *("-chardev", f"socket,id=mirror,port={MIRROR_PORT},{chardev}"),
        *("-chardev", f"socket,id=theirs,port={COMPARE_PORT},{chardev}"),
        *("-object", "filter-redirector,id=in,netdev=net0,queue=tx,indev=mirror"),
        *("-object", "filter-redirector,id=out,netdev=net0,queue=rx,outdev=theirs"),
        *("-object", "filter-rewriter,id=rewriter,netdev=net0,queue=all"),
    ]


async def _booted(
    stack: AsyncExitStack, lab: Lab, number: int, qemu: str, arguments: list[str], folder: Path
) -> subprocess.Popen[bytes]:
    """A QEMU whose guest serves, its tap on the bridge."""
    host, console = lab.hosts[HOSTS[number - 1]], folder / f"console{number}"
    process = start_qemu(stack, host, arguments, (), qemu)
    await await_tap(host)
    ready: Callable[[], bool] = lambda: process.poll() is not None or console_says(console, READY_LINE)  # noqa: E731
    await until("the guest", ready)
    if process.poll() is not None:
        raise DeadError(f"{qemu} ended with status {process.returncode}")
    host.ip("link", "set", TAP, "master", "br0")
    return process


async def _sync(clients: Namespace) -> None:
    """All that the guest has written is on its disk."""
    command = [
        *clients.prefix(),
        sys.executable,
        "-m",
        "pycolo.guest.control",
        GUEST_ADDRESS,
        str(CONTROL_PORT),
        "sync",
    ]
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise DeadError("the guest does not write to its disk")
