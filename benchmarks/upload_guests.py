"""Whose guest is measured: one on a plain tap, ours alone and protected, and two behind the filters of QEMU's COLO.

Guarantees
* All get the same kernel, initramfs, memory and network card, in a lab of network namespaces of their own: clients on a
  bridge, hosts joined by another. What travels between two hosts travels over TCP there.
* Every wait has an end, and no process outlives its measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare_frames import Splitter
from pycolo.core.failover import Role
from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, Lab, build_lab, file_arbiter, host_address, make_pki
from pycolo.demo.processes import DaemonProcess
from pycolo.edge.namespaces import Namespace
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.guest.console import console_says

QEMU = "qemu-system-x86_64"
MAC = "52:54:00:00:00:02"
MEMORY_MIB = 256
TAP = "guest0"
MIRROR_PORT, COMPARE_PORT = 9003, 9004
SETTLE_S = 3.0  # the secondary's chardevs connect anew each second
WAIT_S_MAX = 90.0
STOP_S_MAX = 10.0

Checkpoints = Callable[[], Awaitable[int]]


async def no_checkpoints() -> int:
    """There are none."""
    return 0


@dataclass
class Guest:
    """A guest that serves: where clients are, and the processes that work for it."""

    clients: Namespace
    pids: dict[str, int]
    checkpoints: Checkpoints = no_checkpoints
    """How many there have been, or were asked for."""


Start = Callable[[GuestImage, Path], AbstractAsyncContextManager[Guest]]


async def until(what: str, condition: Callable[[], Any]) -> None:
    """Wait, or end with a sentence."""
    ends_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        if time.monotonic() > ends_s:
            raise SystemExit(f"{what} did not come in {WAIT_S_MAX:.0f} s")
        await asyncio.sleep(0.05)


# ---------------------------------------------------------------- no protection


@contextlib.asynccontextmanager
async def plain(image: GuestImage, folder: Path) -> AsyncIterator[Guest]:
    """One QEMU whose tap is on the bridge, with all that a tap offers (checksums and large segments left to it)."""
    async with AsyncExitStack() as stack:
        lab = _lab(stack)
        process = await booted(stack, lab, 1, image, folder, card(""))
        yield Guest(lab.clients, {"qemu": process.pid})


# ---------------------------------------------------------------- ours


@contextlib.asynccontextmanager
async def solo(image: GuestImage, folder: Path) -> AsyncIterator[Guest]:
    """Our primary without a secondary: what the agent costs by itself."""
    async with AsyncExitStack() as stack:
        lab = _lab(stack)
        primary = await _primary(stack, lab, image, folder)
        yield _ours(lab, primary)


@contextlib.asynccontextmanager
async def pair(image: GuestImage, folder: Path) -> AsyncIterator[Guest]:
    """Our protected pair, with TLS between the hosts, as anybody gets it."""
    async with protected(image, folder) as (lab, primary, secondary):
        yield _ours(lab, primary, secondary)


@contextlib.asynccontextmanager
async def protected(
    image: GuestImage, folder: Path, vm_toml: str = "", *, tls: bool = True
) -> AsyncIterator[tuple[Lab, DaemonProcess, DaemonProcess]]:
    """The two copies of a pair after the first checkpoint; `vm_toml` is what vm.toml has besides."""
    async with AsyncExitStack() as stack:
        lab = _lab(stack)
        primary = await _primary(stack, lab, image, folder, vm_toml, tls=tls)
        secondary = await _copy(stack, lab, Role.SECONDARY, image, folder, vm_toml, tls=tls)
        await secondary.wait_for(lambda: secondary.first("loaded"), WAIT_S_MAX, "the first sync")
        await primary.wait_for(lambda: primary.first("checkpoint"), WAIT_S_MAX, "the first checkpoint")
        await until("the secondary's status", lambda: "pids" in secondary.status)
        yield lab, primary, secondary


def _ours(lab: Lab, *copies: DaemonProcess) -> Guest:
    pids = {f"{name} {copy.role}": pid for copy in copies for name, pid in copy.status["pids"].items()}
    pids |= {f"manager {copy.role}": copy.process.pid for copy in copies}

    async def checkpoints() -> int:
        await asyncio.sleep(0.5)  # events are asked for
        return sum(event["kind"] == "checkpoint" for event in copies[0].events)

    return Guest(lab.clients, pids, checkpoints)


async def _primary(
    stack: AsyncExitStack, lab: Lab, image: GuestImage, folder: Path, vm_toml: str = "", *, tls: bool = True
) -> DaemonProcess:
    make_pki(folder / "pki")
    (folder / "arbiter").mkdir()
    primary = await _copy(stack, lab, Role.PRIMARY, image, folder, vm_toml, tls=tls)
    console = primary.state_dir / "console.log"
    await primary.wait_for(lambda: console_says(console, READY_LINE), WAIT_S_MAX, "the guest's boot")
    await until("the primary's status", lambda: "pids" in primary.status)
    return primary


async def _copy(
    stack: AsyncExitStack, lab: Lab, role: Role, image: GuestImage, folder: Path, more: str, *, tls: bool
) -> DaemonProcess:
    name = HOSTS[0 if role is Role.PRIMARY else 1]
    state_dir, host_toml, vm_toml = folder / name, folder / f"{name}.toml", folder / f"vm-{name}.toml"
    disks, pki = disk_folder(folder, name), folder / "pki" if tls else None
    host_toml.write_text(lab.copy_toml(name, state_dir, file_arbiter(folder / "arbiter"), disks, pki))
    vm = {
        "name": "bench",
        "memory_mib": MEMORY_MIB,
        "mac": MAC,
        "accel": "tcg",
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "append": image.command_line(f"{GUEST_ADDRESS}/24"),
    }
    vm_toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in vm.items()) + more)
    copy = await DaemonProcess.start(lab.hosts[name], role, host_toml, vm_toml, state_dir, outlives_us=False)
    stack.push_async_callback(_end, copy)
    return copy


def disk_folder(folder: Path, host: str) -> Path:
    """Where a host keeps its images; it is there."""
    disks = folder / f"disks-{host}"
    disks.mkdir(exist_ok=True)
    return disks


async def _end(copy: DaemonProcess) -> None:
    copy.forget()
    copy.kill_all()
    await copy.process.wait()


# ---------------------------------------------------------------- QEMU's filters


def filters(*, offload: bool) -> Start:
    """Two QEMUs with equal guests and what docs/COLO-FT.txt puts between them, but no checkpoints (see below).

    With `offload` all filters know the header by which large segments pass whole. A real COLO does not live long enough
    here: stock QEMU 7.2 can't do it under TCG, and with its deadlock worked around the SVM panics at the first
    checkpoint under load. So QEMU is spared what checkpoints cost; what it asks one for may stand still for ever.
    """

    @contextlib.asynccontextmanager
    async def start(image: GuestImage, folder: Path) -> AsyncIterator[Guest]:
        async with AsyncExitStack() as stack:
            lab = _lab(stack)
            nic = card("" if offload else ",vnet_hdr=off")
            header = ",vnet_hdr_support=on" if offload else ""
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            with theirs:
                more = [*mirror_chardevs(folder, theirs.fileno()), *filters_of_primary(header)]
                primary = await booted(stack, lab, 1, image, folder, [*nic, *more], (theirs.fileno(),))
            secondary = await booted(stack, lab, 2, image, folder, [*nic, *filters_of_secondary(header)])
            await asyncio.sleep(SETTLE_S)
            pids = {"qemu primary": primary.pid, "qemu secondary": secondary.pid}
            yield Guest(lab.clients, pids, _requests(stack, ours))

    return start


async def booted(
    stack: AsyncExitStack,
    lab: Lab,
    number: int,
    image: GuestImage,
    folder: Path,
    more: list[str],
    fds: tuple[int, ...] = (),
    qemu: str = QEMU,
) -> subprocess.Popen[bytes]:
    """A QEMU whose guest serves. The secondary's tap stays off the bridge: it gets what is mirrored."""
    console, host = folder / f"console{number}", lab.hosts[HOSTS[number - 1]]
    process = start_qemu(stack, host, [*machine(image, console), *more], fds, qemu)
    await _serves(process, console, host)
    if number == 1:
        host.ip("link", "set", TAP, "master", "br0")
    return process


def mirror_chardevs(folder: Path, notices: int) -> list[str]:
    """The primary's, and one on which colo-compare asks for checkpoints."""
    return [*chardevs_of_primary(folder), "-chardev", f"socket,id=notices,fd={notices}"]


def chardevs_of_primary(folder: Path) -> list[str]:
    """To the secondary's filters, and between the primary's own."""
    far = f"host={host_address(1)},server=on,wait=off,nodelay=on"
    options = [f"socket,id=mirror,port={MIRROR_PORT},{far}", f"socket,id=theirs,port={COMPARE_PORT},{far}"]
    for name in ("compare", "out"):
        path = f"path={folder / name}"
        options += [f"socket,id={name},{path},server=on,wait=off", f"socket,id={name}-end,{path}"]
    return [part for option in options for part in ("-chardev", option)]


def filters_of_primary(header: str) -> list[str]:
    compare = "primary_in=compare-end,secondary_in=theirs,outdev=out-end,notify_dev=notices"
    return [
        *("-object", f"filter-mirror,id=m0,netdev=net0,queue=tx,outdev=mirror{header}"),
        *("-object", f"filter-redirector,id=released,netdev=net0,queue=rx,indev=out{header}"),
        *("-object", f"filter-redirector,id=held,netdev=net0,queue=rx,outdev=compare{header}"),
        *("-object", "iothread,id=thread", "-object", f"colo-compare,id=c0,{compare},iothread=thread{header}"),
    ]


def filters_of_secondary(header: str, reconnect: str = "reconnect=1") -> list[str]:
    """`reconnect`: as that QEMU wants it said."""
    chardev = f"host={host_address(1)},{reconnect},nodelay=on"
    return [
        *("-chardev", f"socket,id=mirror,port={MIRROR_PORT},{chardev}"),
        *("-chardev", f"socket,id=theirs,port={COMPARE_PORT},{chardev}"),
        *("-object", f"filter-redirector,id=in,netdev=net0,queue=tx,indev=mirror{header}"),
        *("-object", f"filter-redirector,id=out,netdev=net0,queue=rx,outdev=theirs{header}"),
        *("-object", f"filter-rewriter,id=rewriter,netdev=net0,queue=all{header}"),
    ]


def _requests(stack: AsyncExitStack, notices: socket.socket) -> Checkpoints:
    """How many checkpoints colo-compare has asked for. They are read at once, as it stands still while they are not."""
    notices.setblocking(False)
    splitter, seen, loop = Splitter(), 0, asyncio.get_running_loop()

    def read() -> None:
        nonlocal seen
        content = notices.recv(1 << 16)
        if not content:  # QEMU has ended
            loop.remove_reader(notices)
        seen += sum(frame == b"DO_CHECKPOINT" for frame in splitter.feed(content))

    async def count() -> int:
        return seen

    loop.add_reader(notices, read)
    stack.callback(loop.remove_reader, notices)
    return count


# ---------------------------------------------------------------- QEMU by hand


def _lab(stack: AsyncExitStack) -> Lab:
    lab = build_lab()
    stack.callback(lab.close)
    return lab


def machine(image: GuestImage, console: Path) -> list[str]:
    """As `edge/qemu_command` has it."""
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "qemu64,-rdrand"),
        # As ours: where no second processor may come, a virtio queue stands still some day (docs/qemu-notes.md).
        *("-machine", "q35", "-smp", "1,maxcpus=2", "-m", f"{MEMORY_MIB}M", "-rtc", "base=utc,clock=vm"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", image.command_line(f"{GUEST_ADDRESS}/24"), "-device", "pvpanic-pci"),
        *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
    ]


def card(more: str) -> list[str]:
    """The network card, on a tap device."""
    netdev = f"tap,id=net0,ifname={TAP},script=no,downscript=no,vhost=off{more}"
    return ["-netdev", netdev, "-device", f"virtio-net-pci,id=nic0,netdev=net0,mac={MAC},romfile="]


def cpu_s(pid: int) -> float:
    """Processor time of a process so far. Raises FileNotFoundError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_qemu(
    stack: AsyncExitStack, host: Namespace, arguments: list[str], fds: tuple[int, ...], qemu: str = QEMU
) -> subprocess.Popen[bytes]:
    """A QEMU on a host, ended with the stack."""
    command = ["setpriv", "--pdeathsig", "KILL", *host.prefix(), qemu, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds)
    stack.callback(process.wait, STOP_S_MAX)
    stack.callback(process.kill)
    return process


async def _serves(process: subprocess.Popen[bytes], console: Path, host: Namespace) -> None:
    await await_tap(host)
    await until("the guest", lambda: process.poll() is not None or console_says(console, READY_LINE))
    if process.poll() is not None:
        raise SystemExit(f"{QEMU} ended with status {process.returncode}")


async def await_tap(host: Namespace) -> None:
    """QEMU makes the device; nobody has switched it on."""

    def there() -> bool:
        return (
            subprocess.run(
                [*host.prefix(), "ip", "link", "set", TAP, "up"], capture_output=True, check=False
            ).returncode
            == 0
        )

    await until("QEMU's tap device", there)
