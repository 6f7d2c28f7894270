"""Whose guest is measured: one on a plain tap, ours alone and protected, and two under QEMU's own COLO.

Guarantees
* All get the same kernel, initramfs, memory and network card, in a lab of network namespaces of their own: clients on a
  bridge, hosts joined by another. What travels between two hosts travels over TCP there.
* Every wait has an end, and no process outlives its measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from pycolo.core.failover import Role
from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, Lab, build_lab, file_arbiter, host_address, make_pki
from pycolo.demo.processes import DaemonProcess
from pycolo.edge.namespaces import Namespace
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.manager.common import console_says

QEMU = "qemu-system-x86_64"
MAC = "52:54:00:00:00:02"
MEMORY_MIB = 256
TAP = "guest0"
MIRROR_PORT, COMPARE_PORT, MIGRATION_PORT = 9003, 9004, 9998
CHECKPOINT_DELAY_MS = 20_000  # QEMU's default
WAIT_S_MAX = 90.0
STOP_S_MAX = 10.0
FIX = Path(__file__).with_name("colofix.c")

Checkpoints = Callable[[], Any]


@dataclass
class Guest:
    """A guest that serves: where clients are, and the processes that work for it."""

    clients: Namespace
    pids: dict[str, int]
    checkpoints: Checkpoints = field(default=lambda: 0)
    """How many there have been; awaitable."""


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
        console = folder / "console"
        process = _qemu(stack, lab.hosts["h1"], [*_machine(image, console, "q35"), *_card("")])
        await _serves(process, console, lab.hosts["h1"])
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
    async with AsyncExitStack() as stack:
        lab = _lab(stack)
        primary = await _primary(stack, lab, image, folder)
        secondary = await _copy(stack, lab, Role.SECONDARY, image, folder)
        await secondary.wait_for(lambda: secondary.first("loaded"), WAIT_S_MAX, "the first sync")
        await primary.wait_for(lambda: primary.first("checkpoint"), WAIT_S_MAX, "the first checkpoint")
        await until("the secondary's status", lambda: "pids" in secondary.status)
        yield _ours(lab, primary, secondary)


def _ours(lab: Lab, *copies: DaemonProcess) -> Guest:
    pids = {f"{name} {copy.role}": pid for copy in copies for name, pid in copy.status["pids"].items()}

    async def checkpoints() -> dict[str, int]:
        await asyncio.sleep(0.5)  # events are asked for
        reasons = [event["reason"] for event in copies[0].events if event["kind"] == "checkpoint"]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}

    return Guest(lab.clients, pids, checkpoints)


async def _primary(stack: AsyncExitStack, lab: Lab, image: GuestImage, folder: Path) -> DaemonProcess:
    make_pki(folder / "pki")
    (folder / "arbiter").mkdir()
    primary = await _copy(stack, lab, Role.PRIMARY, image, folder)
    console = primary.state_dir / "console.log"
    await primary.wait_for(lambda: console_says(console, READY_LINE), WAIT_S_MAX, "the guest's boot")
    await until("the primary's status", lambda: "pids" in primary.status)
    return primary


async def _copy(stack: AsyncExitStack, lab: Lab, role: Role, image: GuestImage, folder: Path) -> DaemonProcess:
    name = HOSTS[0 if role is Role.PRIMARY else 1]
    state_dir, host_toml, vm_toml = folder / name, folder / f"{name}.toml", folder / f"vm-{name}.toml"
    host_toml.write_text(lab.copy_toml(name, state_dir, file_arbiter(folder / "arbiter"), folder, folder / "pki"))
    vm = {
        **{"name": "bench", "memory_mib": MEMORY_MIB, "mac": MAC, "accel": "tcg"},
        **{"kernel": str(image.kernel), "initrd": str(image.initrd)},
        "append": image.command_line(f"{GUEST_ADDRESS}/24"),
    }
    vm_toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in vm.items()))
    copy = await DaemonProcess.start(lab.hosts[name], role, host_toml, vm_toml, state_dir, outlives_us=False)
    stack.push_async_callback(_end, copy)
    return copy


async def _end(copy: DaemonProcess) -> None:
    copy.forget()
    copy.kill_all()
    await copy.process.wait()


# ---------------------------------------------------------------- QEMU's COLO


def colo(*, offload: bool) -> Start:
    """Two QEMUs in COLO state; with `offload` all filters know the header by which large segments pass whole."""

    @contextlib.asynccontextmanager
    async def start(image: GuestImage, folder: Path) -> AsyncIterator[Guest]:
        async with AsyncExitStack() as stack:
            lab = _lab(stack)
            environment = {"LD_PRELOAD": str(_fix(stack))}
            both = [_machine(image, folder / f"console{n}", "pc") + _card("" if offload else ",vnet_hdr=off") for n in (1, 2)]
            first, second = (lab.hosts[name] for name in HOSTS)
            header = ",vnet_hdr_support=on" if offload else ""
            primary = _qemu(
                stack, first, [*both[0], *_qmp(folder / "qmp1"), *_chardevs_of_primary(folder)], environment
            )
            await _serves(primary, folder / "console1", first)
            secondary = _qemu(
                stack, second, [*both[1], *_qmp(folder / "qmp2"), *_filters_of_secondary(header)], environment
            )
            await _tap(second)
            monitors = [await _monitor(stack, folder / name) for name in ("qmp1", "qmp2")]
            await _begin_colo(*monitors, header)
            pids = {"qemu primary": primary.pid, "qemu secondary": secondary.pid}
            yield Guest(lab.clients, pids, _stops(monitors[0]))

    return start


def _fix(stack: AsyncExitStack) -> Path:
    """Without it COLO under TCG stands still at the first checkpoint."""
    library = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="colo-fix-"))) / "colofix.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, FIX, "-ldl"], check=True, timeout=60)
    return library


def _chardevs_of_primary(folder: Path) -> list[str]:
    far = f"host={host_address(1)},server=on,wait=off,nodelay=on"
    near = {name: f"path={folder / name}" for name in ("compare", "out")}
    options = [f"socket,id=mirror,port={MIRROR_PORT},{far}", f"socket,id=theirs,port={COMPARE_PORT},{far}"]
    for name, path in near.items():
        options += [f"socket,id={name},{path},server=on,wait=off", f"socket,id={name}-end,{path}"]
    return [part for option in options for part in ("-chardev", option)]


def _filters_of_secondary(header: str) -> list[str]:
    chardev = f"host={host_address(1)},reconnect=1,nodelay=on"
    return [
        *("-chardev", f"socket,id=mirror,port={MIRROR_PORT},{chardev}"),
        *("-chardev", f"socket,id=theirs,port={COMPARE_PORT},{chardev}"),
        *("-object", f"filter-redirector,id=in,netdev=net0,queue=tx,indev=mirror{header}"),
        *("-object", f"filter-redirector,id=out,netdev=net0,queue=rx,outdev=theirs{header}"),
        *("-object", f"filter-rewriter,id=rewriter,netdev=net0,queue=all{header}"),
        *("-incoming", f"tcp:{host_address(2)}:{MIGRATION_PORT}"),
    ]


def _filters_of_primary(header: str) -> list[dict[str, Any]]:
    more = {"vnet_hdr_support": True} if header else {}
    at_card = {"netdev": "net0", **more}
    return [
        {"qom-type": "filter-mirror", "id": "m0", "queue": "tx", "outdev": "mirror", **at_card},
        {"qom-type": "filter-redirector", "id": "released", "queue": "rx", "indev": "out", **at_card},
        {"qom-type": "filter-redirector", "id": "held", "queue": "rx", "outdev": "compare", **at_card},
        {"qom-type": "iothread", "id": "thread"},
        {
            **{"qom-type": "colo-compare", "id": "c0", "primary_in": "compare-end", "secondary_in": "theirs"},
            **{"outdev": "out-end", "iothread": "thread", **more},
        },
    ]


async def _begin_colo(primary: QMPClient, secondary: QMPClient, header: str) -> None:
    capability = {"capabilities": [{"capability": "x-colo", "state": True}]}
    await secondary.execute("migrate-set-capabilities", capability)
    await asyncio.sleep(1.5)  # its chardevs connect anew each second
    for one in _filters_of_primary(header):
        await primary.execute("object-add", one)
    await primary.execute("migrate-set-capabilities", capability)
    await primary.execute("migrate-set-parameters", {"x-checkpoint-delay": CHECKPOINT_DELAY_MS})
    await primary.execute("migrate", {"uri": f"tcp:{host_address(2)}:{MIGRATION_PORT}"})
    ends_s = time.monotonic() + WAIT_S_MAX
    while (status := await primary.execute("query-migrate"))["status"] != "colo":
        if status["status"] == "failed" or time.monotonic() > ends_s:
            raise SystemExit(f"QEMU does not come into the COLO state: {status}")
        await asyncio.sleep(0.2)
    await asyncio.sleep(3.0)


async def _monitor(stack: AsyncExitStack, path: Path) -> QMPClient:
    client = QMPClient()
    await client.connect(str(path))
    stack.push_async_callback(_leave, client)
    return client


async def _leave(client: QMPClient) -> None:
    with contextlib.suppress(Exception):  # QEMU may have died, in whatever way
        await client.disconnect()


def _stops(primary: QMPClient) -> Checkpoints:
    """Each checkpoint stops the PVM, which is an event; the first sync is one too."""
    listener = primary.listen(names=["STOP"])
    events = listener.__enter__()

    async def count() -> int:
        return len(events.history) if hasattr(events, "history") else events._queue.qsize()

    return count


# ---------------------------------------------------------------- QEMU by hand


def _lab(stack: AsyncExitStack) -> Lab:
    lab = build_lab()
    stack.callback(lab.close)
    return lab


def _machine(image: GuestImage, console: Path, machine: str) -> list[str]:
    """As `edge/qemu_command` has it. QEMU's COLO needs `pc`: a secondary with q35 crashes before QEMU 11."""
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "qemu64,-rdrand"),
        *("-machine", machine, "-smp", "1", "-m", f"{MEMORY_MIB}M", "-rtc", "base=utc,clock=vm"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", image.command_line(f"{GUEST_ADDRESS}/24"), "-device", "pvpanic-pci"),
        *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
    ]


def _card(more: str) -> list[str]:
    netdev = f"tap,id=net0,ifname={TAP},script=no,downscript=no,vhost=off{more}"
    return ["-netdev", netdev, "-device", f"virtio-net-pci,id=nic0,netdev=net0,mac={MAC},romfile="]


def _qmp(path: Path) -> list[str]:
    return ["-qmp", f"unix:{path},server=on,wait=off"]


def _qemu(
    stack: AsyncExitStack, host: Namespace, arguments: list[str], environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    command = ["setpriv", "--pdeathsig", "KILL", *host.prefix(), "env", *settings, QEMU, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    stack.callback(process.wait, STOP_S_MAX)
    stack.callback(process.kill)
    return process


async def _serves(process: subprocess.Popen[bytes], console: Path, host: Namespace) -> None:
    await _tap(host)
    await until("the guest", lambda: process.poll() is not None or console_says(console, READY_LINE))
    if process.poll() is not None:
        raise SystemExit(f"{QEMU} ended with status {process.returncode}")
    host.ip("link", "set", TAP, "master", "br0")


async def _tap(host: Namespace) -> None:
    """QEMU makes the device; nobody has switched it on."""

    def there() -> bool:
        return subprocess.run([*host.prefix(), "ip", "link", "set", TAP, "up"], capture_output=True, check=False).returncode == 0

    await until("QEMU's tap device", there)
