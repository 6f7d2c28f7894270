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
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, Lab, build_lab, host_address
from pycolo.edge.qmp_session import QmpSession
from pycolo.edge.scheduling import be_patient
from pycolo.guest.builder import GuestImage
from pycolo.guest.control import CONTROL_PORT
from pycolo.guest.disk_image import copy_disk
from upload_guests import (
    TAP,
    await_tap,
    booted,
    card,
    chardevs_of_primary,
    filters_of_secondary,
    machine,
    start_qemu,
    until,
)

from .monitor import Pauses, monitor
from .subject import DeadError, Row, Start, Subject
from .workloads import tool

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
            process = await booted(stack, lab, 1, image, folder, [*card(""), *drive], qemu=qemu)
            yield Subject(lab.clients, {"qemu": process.pid})

    return start


def colo(qemu: str, transport: str, *, patient: bool = False) -> Start:
    """A pair of QEMU's own; `transport` is `unix` or `tcp`.

    `patient`: all its threads are, as ours while the VM runs (docs/adr/0019), which no manual says. They stay so during
    checkpoints: pauses are not the best there can be.
    """

    @contextlib.asynccontextmanager
    async def start(image: GuestImage, folder: Path, disk: Path | None) -> AsyncIterator[Subject]:
        async with AsyncExitStack() as stack:
            lab = build_lab()
            stack.callback(lab.close)
            pair = _Pair(stack, lab, qemu, transport, image, folder, disk)
            await pair.start()
            if patient:
                pair.be_patient()
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
        self._pauses = Pauses()

    async def start(self) -> None:
        """Boot, copy the disk, connect, and wait until the two are in COLO. Raises DeadError."""
        nic, folder = card(",vnet_hdr=off"), self._folder
        primary = [*nic, *self._monitor_of(1), *chardevs_of_primary(folder), *self._primary_disk()]
        self._primary = await booted(self._stack, self._lab, 1, self._image, folder, primary, qemu=self._qemu)
        self._first = await self._monitor(1, self._pauses)
        if self._disk is not None:  # both disks have to be the same when COLO begins
            control = ("-m", "pycolo.guest.control", GUEST_ADDRESS, str(CONTROL_PORT), "sync")
            await tool(self._lab.clients, SYNC_S_MAX, sys.executable, *control)
            await self._first.execute("stop")
            copy_disk(folder / "disk-1.img", folder / "disk-2.img")
        secondary = [*machine(self._image, folder / "console2"), *nic, *self._monitor_of(2), *self._secondary_disk()]
        secondary += [*filters_of_secondary("", RECONNECT), "-incoming", self._stream]
        host = self._lab.hosts[HOSTS[1]]
        self._secondary = start_qemu(self._stack, host, secondary, (), self._qemu)
        await await_tap(host)
        await asyncio.sleep(SETTLE_S)
        self._second = await self._monitor(2, Pauses())
        await self._connect()

    async def _connect(self) -> None:
        capabilities = [{"capability": name, "state": True} for name in CAPABILITIES]
        for one in (self._second, self._first):
            await one.execute("migrate-set-capabilities", {"capabilities": capabilities})
        if self._disk is not None:
            await self._connect_disks()
        for kind, properties in _filters_of_primary():
            await self._first.execute("object-add", {"qom-type": kind, **properties})
        began_s = time.monotonic()
        await self._first.execute("migrate", {"uri": self._stream})
        while (status := (await _told(self._first, "query-migrate")).get("status")) != "colo":
            if status == "failed" or time.monotonic() > began_s + SYNC_S_MAX:
                raise DeadError(f"QEMU's COLO does not come to be: its migration is {status}")
            await asyncio.sleep(POLL_S)
        self._first_sync_s = time.monotonic() - began_s

    async def _connect_disks(self) -> None:
        inet = {"type": "inet", "host": host_address(2), "port": str(NBD_PORT)}
        nbd = {"driver": "nbd", "node-name": "far", "server": inet, "export": "parent0", "detect-zeroes": "on"}
        address = {"type": "inet", "data": {"host": host_address(2), "port": str(NBD_PORT)}}
        await self._second.execute("nbd-server-start", {"addr": address})
        await self._second.execute("nbd-server-add", {"device": "parent0", "writable": True})
        await self._first.execute("blockdev-add", nbd)
        await self._first.execute("x-blockdev-change", {"parent": "disk0", "node": "far"})

    def be_patient(self) -> None:
        """See docs/adr/0019. Threads to come are as the one that makes them."""
        for process in (self._primary, self._secondary):
            for thread in os.listdir(f"/proc/{process.pid}/task"):
                be_patient(int(thread))

    def subject(self) -> Subject:
        """What is measured."""
        return Subject(
            self._lab.clients,
            {"qemu primary": self._primary.pid},
            self._pauses,
            {"qemu secondary": self._secondary.pid},
            request=self._request,
            kill=self._kill,
            first_sync_s=self._first_sync_s,
        )

    async def _request(self) -> None:
        """Setting the delay, even to what it is, starts a checkpoint (migration/options.c)."""
        parameters = await _told(self._first, "query-migrate-parameters")
        delay = {"x-checkpoint-delay": parameters["x-checkpoint-delay"]}
        await self._first.execute("migrate-set-parameters", delay)

    async def _kill(self) -> float:
        self._primary.kill()
        killed_s = time.monotonic()
        if self._disk is not None:
            await self._second.execute("nbd-server-stop")
        await self._second.execute("x-colo-lost-heartbeat")
        self._lab.hosts[HOSTS[1]].ip("link", "set", TAP, "master", "br0")
        for name in ("in", "out"):
            await self._second.execute("object-del", {"id": name})
        return killed_s

    def _monitor_of(self, number: int) -> list[str]:
        return ["-qmp", f"unix:{self._folder / f'monitor-{number}'},server=on,wait=off"]

    async def _monitor(self, number: int, pauses: Pauses) -> QmpSession:
        path = self._folder / f"monitor-{number}"
        await until("QEMU's monitor", path.exists)
        return await self._stack.enter_async_context(monitor(path, pauses))

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


def _filters_of_primary() -> list[tuple[str, dict[str, Any]]]:
    compare = {"primary_in": "compare-end", "secondary_in": "theirs", "outdev": "out-end", "iothread": "thread"}
    return [
        ("filter-mirror", {"id": "mirrors", "netdev": "net0", "queue": "tx", "outdev": "mirror"}),
        ("filter-redirector", {"id": "released", "netdev": "net0", "queue": "rx", "indev": "out"}),
        ("filter-redirector", {"id": "held", "netdev": "net0", "queue": "rx", "outdev": "compare"}),
        ("iothread", {"id": "thread"}),
        ("colo-compare", {"id": "compare0", **compare}),
    ]


async def _told(session: QmpSession, command: str) -> Row:
    """What QEMU answers to a question about its migration."""
    answer = await session.execute(command)
    assert isinstance(answer, dict)
    return answer
