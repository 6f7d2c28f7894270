"""Three hosts, a real etcd, a VM under load, and one fault after the other: what each does, and what has to come of it.

Guarantees: whoever speaks for the guest is seen from outside, by one socket that hears all hosts; a fault is undone
before the next one; every wait has a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from etcd_cluster import EtcdCluster
from hosts import Hosts
from loopback_relay import LoopbackRelay
from pair import GUEST_MAC, now_ms, socket_in, until
from pycolo.config import VmConfig, load_config
from pycolo.demo.lab import GUEST_ADDRESS, Lab
from pycolo.demo.load_echo import GIVE_UP_S
from pycolo.demo.processes import LoadProcess
from pycolo.errors import PycoloError
from pycolo.guest.builder import GuestImage
from pycolo.guest.disk_image import build_disk, copy_disk
from pycolo.host.client import DaemonClient
from pycolo.host.models import ProtectRequest, VmStatus

NAMES = ("h1", "h2", "h3")
VM = "web"
DISK: dict[str, Any] = {"name": "data", "path": "data.img", "size_mib": 512}
QMP_DEADLINE_MS = 1000  # with the default a frozen QEMU is noticed after 2.5 s, when UDP clients give up
WORKERS = "redis=1,http=2,tcp=1,udp=1,icmp=1,database=1"
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
LISTEN_BYTES = 32 << 20
LISTEN_S = 0.02
SETTLE_S_MAX = 30.0
SERVE_S = 0.5
REUNION_S_MAX = 3.0
LOSS_S_MAX = 5.0  # of ten heartbeats, and an answer of the arbiter's that does not come
AWAKE_S = 1.0
ANSWER_S_MAX = 12.0  # clients give up after 10
PARTS = ("daemon", "manager", "agent", "qemu", "disks")


class Speakers:
    """Which hosts put frames of the guest on the clients' network, in the order in which the kernel saw them."""

    def __init__(self, lab: Lab) -> None:
        self._ports = {f"lan{number}": name for number, name in enumerate(lab.hosts, 1)}
        self._end = socket_in(lab.clients, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, LISTEN_BYTES)
        self._end.setblocking(False)
        self._turns: list[str] = []
        self.heard_ms = 0.0
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            self._drain()
            await asyncio.sleep(LISTEN_S)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (port, _, kind, *_) = self._end.recvfrom(14)
                host = self._ports.get(port)
                if host is None or kind == socket.PACKET_OUTGOING or frame[6:12] != GUEST_MAC:
                    continue
                self.heard_ms = now_ms()
                if not self._turns or self._turns[-1] != host:
                    self._turns.append(host)

    def turns(self) -> list[str]:
        """Who has spoken since the last call, one after the other; the last one goes on in the next call."""
        self._drain()
        turns, self._turns = self._turns, self._turns[-1:]
        return turns

    @property
    def newest(self) -> str:
        """Who spoke last; "" as long as nobody has."""
        self._drain()
        return self._turns[-1] if self._turns else ""

    async def close(self) -> None:
        """Stop listening."""
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._end.close()


@dataclass(frozen=True)
class Seen:
    """Who is what, at one time; each loss of a partner ends a term."""

    primary: str
    secondary: str
    term: int


class Cluster:
    """The hosts, whatever is under them, and the clients."""

    settle_s_max = SETTLE_S_MAX

    def __init__(self, image: GuestImage, folder: Path, *, ask_s: float = GIVE_UP_S, **protection: Any) -> None:
        """`ask_s`: how long UDP and ICMP clients ask; `protection`: what differs from the defaults of vm.toml."""
        self._ask_s = ask_s
        self._protection = {"qmp_deadline_ms": QMP_DEADLINE_MS, **protection}
        (folder / "etcd").mkdir()
        self.etcd = EtcdCluster(folder / "etcd")
        self._image = image
        self.folder = folder
        self.hosts: Hosts
        self.load: LoadProcess
        self.speakers: Speakers
        self.vm: VmConfig
        self._relays: dict[str, LoopbackRelay] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, image: GuestImage, folder: Path, **protection: Any) -> AsyncIterator[Self]:
        """Protected, and under load. Raises LeftBehind at the end."""
        cluster = cls(image, folder, **protection)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(cluster.etcd.close)
            await asyncio.to_thread(cluster.etcd.start)
            await cluster._start(stack)
            yield cluster

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        arbiter = self.etcd.config().model_dump(mode="json", exclude_none=True, exclude={"insecure"})
        hosts = self.hosts = Hosts(self._image, self.folder, NAMES, arbiter)
        stack.push_async_callback(hosts.close)
        await self._prepare(stack)
        ports = [member.client_port for member in self.etcd.members]
        for name in NAMES:
            relay = self._relays[name] = LoopbackRelay(hosts.lab.hosts[name], ports)
            stack.push_async_callback(relay.cut)
            await relay.join()
            await hosts.start(name)
        copy_disk(build_disk(), hosts.disk_dir("h1") / DISK["path"])
        self.vm = load_config(hosts.vm_toml(disks=[DISK], protection=self._protection), VmConfig)
        await self.protect("h1")
        await hosts.boots(*NAMES, vm=VM)  # a machine that stood still for 300 ms has moved it already
        seen = await self.protected()
        await hosts.boots(seen.primary, vm=VM)  # the other copy may have been ahead, and clients hear this one
        stack.push_async_callback(self._stop_load)
        await self.load_on()
        self.speakers = Speakers(hosts.lab)
        stack.push_async_callback(self.speakers.close)

    async def _prepare(self, stack: contextlib.AsyncExitStack) -> None:
        """What has to be there before the daemons start."""

    async def _stop_load(self) -> None:
        await self.load.stop()

    async def load_on(self) -> None:
        """Start the clients; returns when they are in their stride."""
        load = self.load = await LoadProcess.start(
            self.hosts.lab.clients, GUEST_ADDRESS, self.folder / "load.log", WORKERS, f"--ask-s={self._ask_s}"
        )
        await until(lambda: load.latest.get("requests", 0) > 50, 10.0, "the load")

    async def protect(self, name: str, *, no_copy_lives: bool = False) -> None:
        """Start the VM on that host, as its operator would. Raises PycoloError."""
        request = ProtectRequest(vm=self.vm, secondary="", no_copy_lives=no_copy_lives, older_disk=False)
        async with self.client(name) as client:
            await client.protect(request)

    # ---- looking

    def client(self, name: str) -> DaemonClient:
        """For a host's daemon."""
        return DaemonClient(self.hosts.socket(name))

    def console(self, name: str) -> Path:
        """What the guest's copy there has printed."""
        return self.hosts.state_dir(name) / "vms" / VM / "console.log"

    async def status(self, name: str) -> VmStatus | None:
        """What a daemon says of the VM; None when it does not answer or knows nothing."""
        with contextlib.suppress(PycoloError, TimeoutError):
            async with asyncio.timeout(1.0), self.client(name) as client:
                return await client.vm(VM)
        return None

    async def seen(self) -> Seen | None:
        """The newest pair, if both of its hosts call it protected; there may be a host that is frozen in its past."""
        statuses = {name: status for name in NAMES if (status := await self.status(name)) is not None}
        primaries = [one for one in statuses.values() if (one.role, one.state) == ("primary", "protected")]
        if not primaries:
            return None
        primary = max(primaries, key=lambda one: int(one.manager["term"]))
        secondary = statuses.get(primary.partner)
        if secondary is None or (secondary.role, secondary.state) != ("secondary", "protected"):
            return None
        return Seen(primary.host, secondary.host, int(primary.manager["term"]))

    async def protected(self, was: Seen | None = None, moves: Moves = "any") -> Seen:
        """Wait until the VM is protected, and in the way that a fault has to lead to. Raises TimeoutError."""
        deadline_s = time.monotonic() + self.settle_s_max
        while time.monotonic() < deadline_s:
            now = await self.seen()
            if now is not None and (was is None or has_moved(was, now, moves)):
                return now
            await asyncio.sleep(0.1)
        raise TimeoutError(f"not protected in {self.settle_s_max:.0f} s: {[await self.status(name) for name in NAMES]}")

    async def both_wait(self, pair: Seen) -> None:
        """Wait until neither of a pair speaks, as neither knows who may; who is dead by a second fault doesn't either.

        Raises TimeoutError.
        """
        for name in (pair.primary, pair.secondary):
            deadline_s = time.monotonic() + LOSS_S_MAX
            while True:
                status = await self.status(name)
                if status is not None and (not status.running or status.state == "waiting-for-arbiter"):
                    break
                if time.monotonic() > deadline_s:
                    if status is None:
                        break
                    raise TimeoutError(f"with link and arbiter cut {name} is {status.state}: {status.reason}")
                await asyncio.sleep(0.05)

    async def pids(self, name: str) -> dict[str, int]:
        """The parts of a host that has a copy."""
        status = await self.status(name)
        assert status is not None
        daemon = self.hosts.daemons[name].pid
        (manager,) = map(int, Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split())
        return {"daemon": daemon, "manager": manager, **status.manager["pids"]}

    # ---- doing

    async def signal(self, name: str, parts: tuple[str, ...], number: signal.Signals) -> list[int]:
        """To all those parts at once; returns whom."""
        known = await self.pids(name)
        pids = [known[part] for part in parts]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    async def start_again(self, name: str) -> None:
        """After the death of its daemon."""
        await self.hosts.kill(name)
        await self.hosts.start(name)

    def mute(self, name: str, other: str) -> Callable[[], Awaitable[None]]:
        """What one host sends to the other gets lost; returns what ends that."""
        route = ("blackhole", f"{self.hosts.address(other)}/32")
        self.hosts.lab.hosts[name].ip("route", "add", *route)

        async def speak() -> None:
            self.hosts.lab.hosts[name].ip("route", "del", *route)

        return speak

    def cut(self, name: str, others: tuple[str, ...]) -> Callable[[], Awaitable[None]]:
        """Between one host and others nothing goes either way; returns what ends that."""
        undo = [self.mute(*pair) for other in others for pair in ((name, other), (other, name))]
        return partial(all_of, undo)

    async def cut_arbiter(self, *names: str) -> Callable[[], Awaitable[None]]:
        """These hosts don't reach etcd; returns what ends that."""
        for name in names:
            await self._relays[name].cut()
        return partial(all_of, [self._relays[name].join for name in names])


Moves = str
"""What a fault has to lead to: "over" (the secondary takes over), "on" (the primary goes on, with another secondary if
it has lost its own), "any" of the two, "not": the same two go on as a pair, or "may": any of all these."""


def has_moved(was: Seen, now: Seen, moves: Moves) -> bool:
    """Whether the pair of now is what had to become of the one before.

    One that goes on may have got another term: a claim that was given up has been granted late (ADR 10).
    """
    if moves == "not":
        return (now.primary, now.secondary) == (was.primary, was.secondary) and now.term >= was.term
    if now == was:
        return moves == "may"
    heirs: dict[Moves, tuple[str, ...]] = {"over": (was.secondary,), "on": (was.primary,)}
    return now.term > was.term and now.primary in heirs.get(moves, (was.primary, was.secondary))


async def all_of(steps: list[Callable[[], Awaitable[None]]]) -> None:
    """One after the other."""
    for step in steps:
        await step()


Undo = Callable[[], Awaitable[None]]
Inflict = Callable[[Cluster, Seen], Awaitable[Undo]]


@dataclass(frozen=True)
class Fault:
    """`inflict` returns what undoes it; `undo_first`: only then can there be a protected pair again."""

    name: str
    inflict: Inflict
    moves: Moves
    undo_first: bool = False
    lasts_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: when the first request begun after it was answered, how long the slowest one took, until
    both were over and the VM was protected again.
    """

    fault: str
    gap_ms: float
    slowest_ms: float
    protected_again_s: float
    turns: list[str]

    def __str__(self) -> str:
        figures = f"{self.gap_ms:6.0f} ms {self.slowest_ms:6.0f} ms {self.protected_again_s:5.1f} s"
        return f"{self.fault:34} {figures}   {' -> '.join(self.turns)}"


def kill(side: str, parts: tuple[str, ...]) -> Inflict:
    """SIGKILL to parts of one side; a dead daemon is started again."""

    async def inflict(cluster: Cluster, seen: Seen) -> Undo:
        name = getattr(seen, side)
        await cluster.signal(name, parts, signal.SIGKILL)
        return partial(cluster.start_again, name) if "daemon" in parts else nothing

    return inflict


def freeze(side: str, parts: tuple[str, ...]) -> Inflict:
    """SIGSTOP to parts of one side, and some day SIGCONT."""

    async def inflict(cluster: Cluster, seen: Seen) -> Undo:
        frozen = await cluster.signal(getattr(seen, side), parts, signal.SIGSTOP)

        async def thaw() -> None:
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        return thaw

    return inflict


async def nothing() -> None:
    """What undoes a fault that needs no undoing."""


async def cut_pair(cluster: Cluster, seen: Seen) -> Undo:
    return cluster.cut(seen.primary, (seen.secondary,))


async def mute_primary(cluster: Cluster, seen: Seen) -> Undo:
    return cluster.mute(seen.primary, seen.secondary)


async def mute_secondary(cluster: Cluster, seen: Seen) -> Undo:
    return cluster.mute(seen.secondary, seen.primary)


def isolate(side: str) -> Inflict:
    """One side reaches neither the other hosts nor the arbiter; its clients it does."""

    async def inflict(cluster: Cluster, seen: Seen) -> Undo:
        name = getattr(seen, side)
        undo = cluster.cut(name, tuple(other for other in NAMES if other != name))
        return partial(all_of, [undo, await cluster.cut_arbiter(name)])

    return inflict


async def frozen_alone(cluster: Cluster, seen: Seen) -> Undo:
    """The primary stands still, is cut off, and wakes cut off: only its lease tells it that it may not speak."""
    thaw = await freeze("primary", PARTS)(cluster, seen)
    join = await isolate("primary")(cluster, seen)
    return partial(all_of, [thaw, partial(asyncio.sleep, AWAKE_S), join])


async def cut_all_arbiters(cluster: Cluster, _: Seen) -> Undo:
    return await cluster.cut_arbiter(*NAMES)


async def cut_everything(cluster: Cluster, seen: Seen) -> Undo:
    """The link comes back first, early enough for the two to find each other; else one of them rightly claims."""
    arbiters = await cluster.cut_arbiter(*NAMES)
    link = cluster.cut(seen.primary, (seen.secondary,))
    await cluster.both_wait(seen)

    async def reunited() -> None:
        with contextlib.suppress(TimeoutError):  # one of them may be dead by a second fault
            async with asyncio.timeout(REUNION_S_MAX):
                await cluster.protected(seen, "not")

    return partial(all_of, [link, reunited, arbiters])


FAULTS = (
    *(Fault(f"kill the primary's {part}", kill("primary", (part,)), "over") for part in PARTS),
    *(Fault(f"kill the secondary's {part}", kill("secondary", (part,)), "on") for part in PARTS),
    Fault("kill all of the primary", kill("primary", PARTS), "over"),
    Fault("kill all of the secondary", kill("secondary", PARTS), "on"),
    *(Fault(f"freeze the primary's {part}", freeze("primary", (part,)), "over") for part in PARTS[1:]),
    *(Fault(f"freeze the secondary's {part}", freeze("secondary", (part,)), "on") for part in PARTS[1:]),
    Fault("freeze all of the primary", freeze("primary", PARTS), "over"),
    Fault("freeze all of the secondary", freeze("secondary", PARTS), "on"),
    Fault("freeze the primary's daemon", freeze("primary", ("daemon",)), "not", undo_first=True, lasts_s=1.0),
    Fault("freeze the secondary's daemon", freeze("secondary", ("daemon",)), "not", undo_first=True, lasts_s=1.0),
    Fault("cut the link", cut_pair, "any"),
    Fault("what the primary sends is lost", mute_primary, "any"),
    Fault("what the secondary sends is lost", mute_secondary, "any"),
    Fault("isolate the primary", isolate("primary"), "over"),
    Fault("isolate the secondary", isolate("secondary"), "on"),
    Fault("freeze and isolate the primary", frozen_alone, "over"),
    Fault("cut the arbiter", cut_all_arbiters, "not", undo_first=True, lasts_s=1.0),
    Fault("cut link and arbiter", cut_everything, "not", undo_first=True, lasts_s=0.5),
)


async def suffer(cluster: Cluster, fault: Fault) -> Outcome:
    """One fault, from a protected pair to a protected pair. Raises AssertionError, TimeoutError."""
    seen = await cluster.protected()
    await asyncio.sleep(SERVE_S / 2)
    cluster.speakers.turns()
    before = len(cluster.load.samples)
    began_ms = now_ms()
    undo = await fault.inflict(cluster, seen)
    undone = fault.undo_first
    try:
        if undone:
            await asyncio.sleep(fault.lasts_s)
            await undo()
        now = await cluster.protected(seen, fault.moves)
        again_s = (now_ms() - began_ms) / 1000
        if not undone:
            undone = True
            await undo()
            await cluster.protected(now, "not")  # who is back makes no difference
    finally:
        if not undone:
            await undo()
    await serves(cluster)
    turns = cluster.speakers.turns()
    samples = [(at, latency) for at, latency, _ in cluster.load.samples[before:] if at + latency > began_ms]
    gap_ms = min(at + latency for at, latency in samples if at > began_ms) - began_ms
    return Outcome(fault.name, gap_ms, max(latency for _, latency in samples), again_s, turns)


async def serves(cluster: Cluster) -> None:
    """Clients get answers, and none still waits for one from before. Raises TimeoutError."""
    load, began_s = cluster.load, time.monotonic()
    requests = load.latest["requests"]
    await asyncio.sleep(SERVE_S)
    await until(lambda: load.latest["requests"] > requests + 20, ANSWER_S_MAX, "progress of the load")
    old = "an answer to each request of before"
    await until(lambda: load.latest["waiting_ms"] < (time.monotonic() - began_s) * 1000, ANSWER_S_MAX, old)
