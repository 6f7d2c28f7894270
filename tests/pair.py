"""A real pair for tests: two daemons in a lab of network namespaces, and a load that checks every answer.

Guarantees: whatever a test does, `close` ends every process that the pair started, by pid; it raises LeftBehind when a
daemon's end left something that only `close` removed: a process, a tap device, a namespace, a file in /dev/shm.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pycolo.api import Client
from pycolo.core.failover import Role
from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, build_lab, file_arbiter, make_pki
from pycolo.demo.load_echo import GIVE_UP_S
from pycolo.demo.processes import DaemonProcess, LoadProcess
from pycolo.edge.namespaces import CLONE_NEWNET, Namespace
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.guest.console import console_says
from tested_qemu import CPUS, QEMU

BOOT_S_MAX = 60.0
PATIENT, AS_SHIPPED = 10, 3  # heartbeats until a host is taken for dead
SYNC_S_MAX = 40.0
END_S_MAX = 6.0
MEMORY_MIB = 128
GUEST_MAC = bytes.fromhex("525400000002")
MARK = "PYCOLO_TEST_PAIR"


class LeftBehind(AssertionError):
    """Something of a pair outlived it."""


class Pair:
    """Two hosts, at most one daemon on each, and their clients."""

    def __init__(
        self,
        image: GuestImage,
        folder: Path,
        memory_mib: int = MEMORY_MIB,
        disks: Sequence[dict[str, Any]] = (),
        vm: dict[str, Any] | None = None,
        ready_line: str = READY_LINE,
        **protection: Any,
    ) -> None:
        """`disks` are the tables of vm.toml; relative paths lie in a folder for each host, see `disk`.

        A busy machine's stall is no death, unless `heartbeat_lost_max` says so: a test that asks how fast one is seen.
        `vm` replaces values of vm.toml, None leaves a key out; a guest that serves says `ready_line` on its console.
        """
        folder.mkdir(exist_ok=True)
        self.disks = list(disks)
        for name in HOSTS:
            (folder / f"disks-{name}").mkdir(exist_ok=True)
        (folder / "arbiter").mkdir(exist_ok=True)
        self.image, self.folder = image, folder
        self.vm, self.ready_line = vm or {}, ready_line
        self.memory_mib, self.protection = memory_mib, {"heartbeat_lost_max": PATIENT} | protection
        self.pki = make_pki((folder / "pki").absolute())
        self.lab = build_lab()
        self.load: LoadProcess | None = None
        self.ask_s = GIVE_UP_S  # of a test in which nobody may speak for a while: TIMEOUT_S, as its other clients wait
        self._daemons: list[DaemonProcess] = []
        self._closed = False
        self._shm_before = files_in_shm()
        self.join_arbiter(*HOSTS)

    @property
    def primary(self) -> DaemonProcess:
        """The newest daemon that was started as primary."""
        return self._newest(Role.PRIMARY)

    @property
    def secondary(self) -> DaemonProcess:
        """The newest daemon that was started as secondary."""
        return self._newest(Role.SECONDARY)

    def host(self, role: Role) -> Namespace:
        """The network namespace of the host with that role at the start."""
        return self.lab.hosts[_host_name(role)]

    def disk(self, role: Role, path: str) -> Path:
        """The image of a disk on the host with that role at the start."""
        return self.folder / f"disks-{_host_name(role)}" / path

    async def start(self, role: Role, on: str = "", **vm: Any) -> DaemonProcess:
        """Start a daemon, on the host of its role unless `on` names one; `vm` replaces values of vm.toml."""
        name = on or _host_name(role)
        number = len(self._daemons)
        state_dir = self.folder / f"{name}-{number}"
        host_toml, vm_toml = self.folder / f"{name}-{number}.toml", self.folder / f"vm-{number}.toml"
        disk_dir = self.folder / f"disks-{name}"
        host_toml.write_text(self.lab.copy_toml(name, state_dir, self.arbiter_toml(name), disk_dir, self.pki))
        vm_toml.write_text(self._vm_toml(vm))
        with environment_of_pair(self.folder):
            daemon = await DaemonProcess.start(
                self.lab.hosts[name], role, host_toml, vm_toml, state_dir, outlives_us=False
            )
        self._daemons.append(daemon)
        return daemon

    def _arbiter(self, name: str) -> Path:
        """The arbiter's folder, as a host reaches it."""
        return self.folder / f"arbiter-{name}"

    def arbiter_toml(self, name: str) -> str:
        """The arbiter in a host's configuration."""
        return file_arbiter(self._arbiter(name))

    def cut_arbiter(self, *names: str) -> None:
        """From now on these hosts get no answer from the arbiter."""
        for name in names:
            self._arbiter(name).unlink()

    def join_arbiter(self, *names: str) -> None:
        """These hosts reach the arbiter."""
        for name in names:
            self._arbiter(name).symlink_to(self.folder / "arbiter")

    def link(self, state: str) -> None:
        """Set the link between the hosts up or down."""
        self.lab.hosts[HOSTS[0]].ip("link", "set", "peer0", state)

    async def boot_primary(self) -> None:
        """Start the primary; returns when the guest serves."""
        primary = await self.start(Role.PRIMARY)
        console = primary.state_dir / "console.log"
        await primary.wait_for(lambda: console_says(console, self.ready_line), BOOT_S_MAX, "the guest's boot")

    async def join_secondary(self) -> None:
        """Start a secondary; returns when it could take over and its SVM runs."""
        joining_ms = now_ms()
        secondary = await self.start(Role.SECONDARY)
        await secondary.wait_for(lambda: secondary.first("loaded"), SYNC_S_MAX, "the first sync")
        primary = self.primary
        await primary.wait_for(lambda: primary.first("checkpoint", joining_ms), SYNC_S_MAX, "the first checkpoint")
        await until(lambda: {"primary", "secondary"} <= {role for role, _ in self.pids()}, 5.0, "a status of both")

    async def protect(self) -> None:
        """The whole start: boot, then sync."""
        await self.boot_primary()
        await self.join_secondary()

    async def protect_again(self, survivor: DaemonProcess, on: str) -> DaemonProcess:
        """Start a secondary on that host; returns when it could take over from the survivor and its SVM runs."""
        joining_ms = now_ms()
        secondary = await self.start(Role.SECONDARY, on)
        await secondary.wait_for(lambda: secondary.first("loaded"), SYNC_S_MAX, "protection again")
        await survivor.wait_for(lambda: survivor.first("checkpoint", joining_ms), SYNC_S_MAX, "the first checkpoint")
        await until(lambda: "pids" in secondary.status, 5.0, "a status of the new secondary")
        return secondary

    async def load_on(self, warm_s: float = 1.5) -> None:
        """Start the clients and let them come into their stride."""
        log = self.folder / f"load-{now_ms():.0f}.log"
        self.load = await LoadProcess.start(self.lab.clients, GUEST_ADDRESS, log, "", f"--ask-s={self.ask_s}")
        await self.serves(warm_s)

    async def serves(self, seconds: float) -> None:
        """Let the load run; afterwards it must have got answers, and nothing else."""
        assert self.load is not None
        load = self.load
        before = load.latest.get("requests", 0)
        await asyncio.sleep(seconds)
        await until(lambda: load.latest.get("requests", 0) > before + 20, 5.0, "progress of the load")
        assert load.process.returncode is None
        assert (load.latest["failed"], load.latest["reset"], load.latest["wrong_bytes"]) == (0, 0, 0), load.latest

    async def load_off(self) -> dict[str, Any]:
        """End the clients; every answer must have been right and every connection kept. Returns the result."""
        assert self.load is not None
        result = await self.load.finish()
        self.load = None
        wrong = {name: result[name] for name in ("failed", "reset", "wrong_bytes", "lost_acknowledged")}
        assert not any(wrong.values()), (wrong, result["errors"])
        assert result["connections_kept"], result["errors"]
        return result

    async def goes_on(self, survivor: DaemonProcess, since_ms: float, within_s: float) -> dict[str, Any]:
        """The survivor speaks alone in time, and the clients have noticed nothing; returns the load's result."""
        await survivor.wait_for(lambda: survivor.first("solo", since_ms), 20.0, "going on alone")
        solo = survivor.first("solo", since_ms)
        assert solo is not None
        assert solo["t_ms"] - since_ms < within_s * 1000
        await self.serves(1.5)
        return await self.load_off()

    def pids(self) -> dict[tuple[str, str], int]:
        """(role, daemon | agent | qemu) -> pid, as far as known."""
        known: dict[tuple[str, str], int] = {}
        for daemon in self._daemons:
            if "pids" in daemon.status and daemon.process.returncode is None:
                known |= {(str(daemon.role), name): pid for name, pid in daemon.status["pids"].items()}
                known[str(daemon.role), "daemon"] = daemon.process.pid
        return known

    def signal(self, role: Role, names: tuple[str, ...], number: signal.Signals) -> float:
        """Send a signal to processes of one side; returns when that was, in ms."""
        pids = [self.pids()[str(role), name] for name in names]
        at_ms = now_ms()
        os.kill(pids[0], number)
        for pid in pids[1:]:
            with contextlib.suppress(ProcessLookupError):  # the end of the one before was the end of this one, too
                os.kill(pid, number)
        return at_ms

    async def exit_status(self, daemon: DaemonProcess) -> int:
        """Wait for a daemon's end."""
        return await asyncio.wait_for(daemon.process.wait(), END_S_MAX)

    async def end(self, daemon: DaemonProcess) -> None:
        """SIGKILL to the daemon: what it owns has to go by itself."""
        daemon.forget()
        if daemon.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                daemon.process.kill()
        await daemon.process.wait()

    async def close(self) -> None:
        """End everything, once. Raises LeftBehind when something did not go with its daemon."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.load is not None:
                await self.load.stop()
            for daemon in self._daemons:
                await self.end(daemon)
            await self._nothing_left()
        finally:
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            identities = [os.fstat(namespace.fd).st_ino for namespace in (*self.lab.hosts.values(), self.lab.clients)]
            self.lab.close()

        def in_them() -> set[int]:
            return {pid for pid, inode in namespaces_of_processes() if inode in identities}

        # A dying process gives up its memory, and with it what marks it as ours, before its namespaces.
        with contextlib.suppress(TimeoutError):
            await until(lambda: not in_them(), END_S_MAX, "the end of the namespaces")
        if in_them():
            raise LeftBehind(f"processes {in_them()} keep the pair's namespaces alive")

    async def _nothing_left(self) -> None:
        with contextlib.suppress(TimeoutError):
            await until(lambda: not self._processes() and not self._taps(), END_S_MAX, "the end of all processes")
        left = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200] for pid in self._processes()]
        if left:
            raise LeftBehind(f"processes are left: {left}")
        if self._taps():
            raise LeftBehind(f"tap devices are left: {self._taps()}")
        if stayed := await stayed_in_shm(self._shm_before):
            raise LeftBehind(f"files are left in /dev/shm: {stayed}")

    def _processes(self) -> list[int]:
        """Living processes that descend from a daemon of this pair."""
        return processes_of(self.folder)

    def _taps(self) -> list[str]:
        return [
            line
            for host in self.lab.hosts.values()
            for line in output_of(host, "ip", "-o", "link", "show", "type", "tun")
        ]

    def _newest(self, role: Role) -> DaemonProcess:
        return [daemon for daemon in self._daemons if daemon.role is role][-1]

    def _vm_toml(self, changed: dict[str, Any]) -> str:
        vm = {
            "name": "paired",
            "memory_mib": self.memory_mib,
            **vm_values(self.image),
            **self.vm,
            **changed,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in vm.items() if value is not None]
        protection = [f"{key} = {json.dumps(value)}" for key, value in self.protection.items()]
        tables = [["[[disks]]", *(f"{k} = {json.dumps(v)}" for k, v in disk.items())] for disk in self.disks]
        return "\n".join([*lines, "[protection]", *protection, *(line for table in tables for line in table)])


def _host_name(role: Role) -> str:
    return HOSTS[0 if role is Role.PRIMARY else 1]


def now_ms() -> float:
    """The clock of the daemons' events."""
    return time.monotonic_ns() / 1e6


async def until(condition: Callable[[], Any], wait_s: float, what: str) -> None:
    """Wait for a condition. Raises TimeoutError that says what did not happen."""
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come in {wait_s} s")
        await asyncio.sleep(0.05)


def files_in_shm() -> set[str]:
    """The names of the files in memory that the whole machine shares."""
    return set(os.listdir("/dev/shm"))


async def stayed_in_shm(before: set[str]) -> set[str]:
    """Files that came since and stay; the ones that go soon belong to a living process, maybe of other tests."""
    came = files_in_shm() - before
    with contextlib.suppress(TimeoutError):
        await until(lambda: not came & files_in_shm(), END_S_MAX, "the end of what lives")
    return came & files_in_shm()


async def take_checkpoints(pair: Pair, count: int) -> None:
    """One after the other, each loaded by the secondary before the next is asked for."""
    secondary = pair.secondary
    async with Client(pair.primary.state_dir) as primary, Client(secondary.state_dir) as other:
        loaded = (await other.status())["loads_checked"]
        for _ in range(count):
            epoch = (await other.status())["loaded_epoch"]
            await primary.checkpoint()
            deadline_ms = now_ms() + 20_000
            while (status := await other.status())["loaded_epoch"] <= epoch:
                assert now_ms() < deadline_ms, log_of(pair.primary)[-2000:]
                await asyncio.sleep(0.02)
        if pair.protection.get("self_check"):
            assert status["loads_checked"] >= loaded + count


async def still_protected(pair: Pair) -> None:
    """Both sides live and are a pair, and nothing bad stands in their logs."""
    for daemon in (pair.primary, pair.secondary):
        async with Client(daemon.state_dir) as client:
            assert (await client.status())["state"] == "protected"
        assert failures_in(daemon) == []


def log_of(daemon: DaemonProcess) -> str:
    """Everything that a daemon, its agent included, has said."""
    return (daemon.state_dir / "daemon.log").read_text(errors="replace")


def failures_in(daemon: DaemonProcess) -> list[str]:
    """What must never stand in a log, whatever the fault."""
    return failures_in_text(log_of(daemon))


def failures_in_text(log: str) -> list[str]:
    """As `failures_in`; what follows of a traceback too."""
    bad = ("Traceback", "self-check", "UnexpectedEvent", "never retrieved", "never awaited")
    found, goes_on = [], False
    for line in log.splitlines():
        if any(word in line for word in bad):
            found.append(line)
            goes_on = True
        elif goes_on:
            found.append(line)
            goes_on = line.startswith((" ", "future: "))
    return found


def output_of(namespace: Namespace, *command: str) -> list[str]:
    """Lines that a command in a namespace prints."""
    done = subprocess.run([*namespace.prefix(), *command], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.splitlines()


def socket_in(namespace: Namespace, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in the namespace, for use from here."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fd, CLONE_NEWNET) != 0:
            made.append(OSError(ctypes.get_errno(), "setns"))
            return
        made.append(socket.socket(family, kind, protocol))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    result = made[0]
    if isinstance(result, OSError):
        raise result
    return result


class Wiretap:
    """What one host sends to the clients' network, from the guest's MAC address."""

    def __init__(self, pair: Pair, role: Role) -> None:
        self._end = socket_in(pair.lab.clients, socket.AF_PACKET, socket.SOCK_RAW)  # hears nothing before it is bound
        self._end.bind((f"lan{HOSTS.index(_host_name(role)) + 1}", 3))
        self._end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._end.setblocking(False)

    def frames(self) -> list[bytes]:
        """Frames of the guest since the last call."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, _, _) = self._end.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING and frame[6:12] == GUEST_MAC:
                    found.append(frame)
        return found

    def close(self) -> None:
        """Stop listening."""
        self._end.close()


def _environments() -> Iterator[tuple[int, bytes]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry), Path(f"/proc/{entry}/environ").read_bytes()


def namespaces_of_processes() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry), os.stat(f"/proc/{entry}/ns/net").st_ino


def processes_of(folder: Path) -> list[int]:
    """Living processes that descend from one that was started under `environment_of_pair`."""
    mark = f"{MARK}={folder}".encode()
    return [pid for pid, environment in _environments() if mark in environment.split(b"\0") and pid != os.getpid()]


@contextlib.contextmanager
def environment_of_pair(folder: Path) -> Iterator[None]:
    """What is started under it can be found again by `processes_of`."""
    os.environ[MARK] = str(folder)
    try:
        yield
    finally:
        del os.environ[MARK]


def vm_values(image: GuestImage) -> dict[str, Any]:
    """What stands in the vm.toml of every pair: the tested QEMU, and the guest that it boots."""
    return {
        "cpus": CPUS,
        "qemu": QEMU,
        "accel": "tcg",
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "append": image.command_line(f"{GUEST_ADDRESS}/24"),
    }


@contextlib.asynccontextmanager
async def protected_under_load(pair: Pair) -> AsyncIterator[Pair]:
    """Closes the pair at the end; no daemon may have failed by then."""
    try:
        await pair.protect()
        await pair.load_on()
        yield pair
        for daemon in (pair.primary, pair.secondary):
            assert failures_in(daemon) == []
    finally:
        await pair.close()
