"""`colo demo`: a real guest on two hosts, real clients, one death of the primary and one of the secondary.

Guarantees: it ends with success only when the clients noticed nothing; whatever happens, also Ctrl-C at any moment,
every process is ended and every file removed but the report (and what `--keep` was asked to leave).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pycolo.core.failover import Role
from pycolo.demo.accel import choose_accel
from pycolo.demo.disk_round import WORKERS, DatabaseDisk, fsck, power_off
from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, Lab, build_lab, file_arbiter, make_pki
from pycolo.demo.load_ledger import SET_UP
from pycolo.demo.processes import DaemonProcess, LoadProcess
from pycolo.demo.report import (
    Disk,
    Failover,
    Guest,
    Packets,
    Report,
    Round,
    Series,
    checkpoints_of,
    client_of,
    size,
    summary_table,
    verdict,
    write_report,
)
from pycolo.demo.screen import Phase, Screen
from pycolo.edge.preflight import check_machine
from pycolo.errors import DemoFailed, EnvironmentFault, WrongState
from pycolo.guest.builder import READY_LINE, GuestImage, build_guest
from pycolo.guest.console import console_says
from pycolo.guest.disk_image import build_disk

BOOT_S_MAX = 90.0
SYNC_S_MAX = 60.0
SURVIVE_S = 5.0
CHECKPOINT_EVERY_S = 0.75
TAKEOVER_S_MAX = 10.0
RUN_DIR_PREFIX = "colo-demo-"

HOST_OF = dict(zip((Role.PRIMARY, Role.SECONDARY), HOSTS, strict=True))

Victim = Literal["primary", "secondary"]
ROUNDS: tuple[tuple[Victim, bool], ...] = (("primary", False), ("primary", True), ("secondary", False))
"""Who dies, and whether the guest has a database on a disk."""


@dataclass(frozen=True)
class DemoOptions:
    """What the command line says."""

    out: Path
    keep: bool
    accel: str
    qemu: str
    memory_mib: int
    load_seconds: int
    self_check: bool
    dirty_pages: str


def run_demo(options: DemoOptions) -> None:
    """Run the demo. Raises DemoFailed when a client noticed anything, EnvironmentFault when the machine can't."""
    check_machine(options.qemu, 4 * options.memory_mib)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clean up, then end
    asyncio.run(_Demo(options).run())


class _Demo:
    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._screen = Screen()
        self._kept = False
        self._survivor: list[str] = []

    async def run(self) -> None:
        """All phases, then the verdict."""
        self._prepare_out()
        _remove_stale_run_dirs()
        self._run_dir = Path(tempfile.mkdtemp(prefix=f"{RUN_DIR_PREFIX}{os.getpid()}-"))
        try:
            report, series = await self._rounds()
        except BaseException:
            _save_logs(self._run_dir, self._options.out / "logs")
            raise
        finally:
            if not self._kept:
                shutil.rmtree(self._run_dir, ignore_errors=True)
        self._conclude(report, series)
        for line in self._survivor:
            self._screen.say(line)

    def _prepare_out(self) -> None:
        try:
            self._options.out.mkdir(parents=True, exist_ok=True)
            (self._options.out / "report.json").unlink(missing_ok=True)
        except OSError as problem:
            raise EnvironmentFault(
                f"{self._options.out} can't be written ({problem.strerror}): choose another folder with --out"
            ) from problem

    async def _rounds(self) -> tuple[Report, list[Series]]:
        self._screen.say("[bold]colo demo[/bold]: two copies of one VM, real clients, and a host that dies")
        with self._screen.phase("guest built") as phase:
            image = await asyncio.to_thread(build_guest, None, phase.show)
        with self._screen.phase("accelerator chosen") as phase:
            accel, why = await choose_accel(self._options.accel, self._options.qemu, image, self._run_dir)
            phase.outcome = f"{accel}: {why}"
        with self._screen.phase("database's disk built") as phase:
            template = await asyncio.to_thread(build_disk, None, phase.show)
        lab = build_lab()
        try:
            rounds: list[Round] = []
            series: list[Series] = []
            for victim, has_disk in ROUNDS:
                number = len(rounds) + 1
                with_it = ", with a database on its disk" if has_disk else ""
                self._screen.say(f"[bold]round {number}: the {victim} dies{with_it}[/bold]")
                keep = self._options.keep and number == len(ROUNDS)
                folder = self._run_dir / f"round{number}"
                folders = {name: folder / f"disks-{name}" for name in HOSTS}
                disk = DatabaseDisk(template, folders) if has_disk else None
                this = _RoundRun(self._options, self._screen, lab, image, accel, folder, victim, disk, keep)
                played, curve = await this.play()
                self._kept, self._survivor = keep, this.how_to_reach
                rounds.append(played)
                series.append(curve)
                version = this.qemu_version
        finally:
            lab.close()
        return Report(version, accel, Guest(self._options.memory_mib, 1), rounds), series

    def _conclude(self, report: Report, series: list[Series]) -> None:
        write_report(self._options.out, report, series)
        self._screen.console.print(summary_table(report))
        good, reasons = verdict(report)
        self._screen.say(f"report: {self._options.out / 'report.html'} and report.json")
        if not good:
            raise DemoFailed("a client noticed: " + "; ".join(reasons))
        self._screen.say("[bold green]no client noticed[/bold green]")


class _RoundRun:
    """One round: a pair is set up, loaded, and loses one side."""

    def __init__(
        self,
        options: DemoOptions,
        screen: Screen,
        lab: Lab,
        image: GuestImage,
        accel: str,
        folder: Path,
        victim: Victim,
        disk: DatabaseDisk | None,
        keep: bool,
    ) -> None:
        self._options, self._screen, self._lab, self._image, self._accel = options, screen, lab, image, accel
        self._folder, self._victim, self._disk, self._keep = folder, victim, disk, keep
        self._pki = (folder / "pki").absolute()
        self._daemons: dict[Role, DaemonProcess] = {}
        self._load: LoadProcess | None = None
        self.qemu_version = ""
        self.how_to_reach: list[str] = []

    async def play(self) -> tuple[Round, Series]:
        """The whole round; afterwards nothing of it runs, unless the survivor is to be kept."""
        finished = False
        try:
            self._folder.mkdir()
            make_pki(self._pki)
            if self._disk is not None:
                self._disk.prepare(HOST_OF[Role.PRIMARY])
            await self._protect()
            played, series = await self._load_and_kill()
            if self._disk is not None:
                played = replace(played, disk=await self._judge_disk(self._disk, played))
            finished = True
        finally:
            interrupt = signal.signal(
                signal.SIGINT, signal.SIG_IGN
            )  # cleaning up is bounded, and half of it would leave things
            await asyncio.shield(self._end(keep_survivor=self._keep and finished))
            signal.signal(signal.SIGINT, interrupt)
        return played, series

    # ---- phases

    async def _protect(self) -> None:
        with self._screen.phase("guest booted on the primary"):
            primary = await self._start(Role.PRIMARY)
            console = primary.state_dir / "console.log"
            await primary.wait_for(lambda: console_says(console, READY_LINE), BOOT_S_MAX, "the guest's boot")
        with self._screen.phase("secondary in sync, VM protected") as phase:
            secondary = await self._start(Role.SECONDARY)
            shown = asyncio.create_task(_show_sync(phase, primary))
            try:
                await secondary.wait_for(lambda: secondary.first("loaded"), SYNC_S_MAX, "the first sync")
            finally:
                shown.cancel()
            first, disks = primary.first("checkpoint"), primary.first("disks-copied")
            copied = f"{size(disks['bytes'])} of disk, " if disks else ""
            phase.outcome = f"{copied}{first['pages']} pages, paused {first['pause_ms']:.1f} ms" if first else ""

    async def _start(self, role: Role) -> DaemonProcess:
        name = HOST_OF[role]
        state_dir = self._folder / name
        host_toml, vm_toml = self._folder / f"{name}.toml", self._folder / "vm.toml"
        disk_dir = self._disk.folders[name] if self._disk is not None else self._folder
        host_toml.write_text(self._lab.copy_toml(name, state_dir, file_arbiter(self._folder), disk_dir, self._pki))
        vm_toml.write_text(self._vm_toml())
        daemon = await DaemonProcess.start(
            self._lab.hosts[name],
            role,
            host_toml.absolute(),
            vm_toml.absolute(),
            state_dir,
            outlives_us=self._keep and str(role) != self._victim,
        )
        self._daemons[role] = daemon
        return daemon

    def _vm_toml(self) -> str:
        return (
            f'name = "demo"\nmemory_mib = {self._options.memory_mib}\naccel = "{self._accel}"\n'
            f'qemu = "{self._options.qemu}"\nkernel = "{self._image.kernel}"\ninitrd = "{self._image.initrd}"\n'
            f'append = "{self._image.command_line(GUEST_ADDRESS + "/24")}"\n'
            f"[protection]\nself_check = {str(self._options.self_check).lower()}\n"
            f'dirty_pages = "{self._options.dirty_pages}"\n'
            f"{self._disk.vm_toml() if self._disk is not None else ''}"
        )

    def _survivor(self) -> tuple[Role, DaemonProcess]:
        return next((role, daemon) for role, daemon in self._daemons.items() if role != self._victim)

    async def _load_and_kill(self) -> tuple[Round, Series]:
        primary = self._daemons[Role.PRIMARY]
        victim = self._daemons[Role(self._victim)]
        _, survivor = self._survivor()
        workers = WORKERS if self._disk is not None else ""
        self._load = await LoadProcess.start(self._lab.clients, GUEST_ADDRESS, self._folder / "load.log", workers)
        with self._screen.phase("clients at work, VM protected") as phase:
            timer = asyncio.create_task(_checkpoints_by_timer(primary))
            try:
                await self._watch(phase, self._options.load_seconds)
            finally:
                timer.cancel()
        self.qemu_version = str(primary.status["qemu_version"])
        packets = primary.status["packets"]
        with self._screen.phase(f"{self._victim} killed, clients at work") as phase:
            kill_ms = time.monotonic_ns() / 1e6
            victim.kill_all()
            await survivor.wait_for(
                lambda: survivor.first("solo", kill_ms), TAKEOVER_S_MAX, f"going on without the {self._victim}"
            )
            failover = _failover(survivor, kill_ms)
            phase.outcome = f"the survivor spoke {failover.takeover_ms:.0f} ms after the kill"
            await self._watch(phase, SURVIVE_S)
        with self._screen.phase("every answer checked") as phase:
            result = await self._load.finish()
            phase.outcome = f"{result['requests']} requests"
        taken = [event for event in primary.events if event["kind"] == "checkpoint"]
        played = Round(
            killed=self._victim,
            client=client_of(result),
            checkpoints=checkpoints_of([(event["reason"], event["pause_ms"], event["bytes"]) for event in taken]),
            packets=Packets(packets["released_equal"], packets["released_by_checkpoint"], packets["diverged"]),
            failover=failover,
        )
        marks = [(event["t_ms"], event["reason"], event["pause_ms"]) for event in taken]
        takeover_ms = kill_ms + (failover.takeover_ms or 0.0)
        return played, Series(self._load.samples, marks, kill_ms, takeover_ms)

    async def _judge_disk(self, disk: DatabaseDisk, played: Round) -> Disk:
        """Let the guest end in good order, and look at what is on the survivor's image."""
        role, survivor = self._survivor()
        with self._screen.phase("guest shut down, disk checked") as phase:
            await power_off(self._lab.clients, GUEST_ADDRESS, survivor.state_dir / "console.log")
            await survivor.stop()
            found = await asyncio.to_thread(fsck, disk.image(HOST_OF[role]))
            phase.outcome = "e2fsck finds the survivor's image damaged" if found else "e2fsck: clean"
        copied = self._daemons[Role.PRIMARY].first("disks-copied") or {"bytes": 0, "total_ms": 0.0}
        transactions = played.client.requests_by_kind.get("database", 0)
        connect_ms = played.client.longest_gap_ms_by_kind.get(SET_UP, 0.0)
        return Disk(transactions, connect_ms, copied["bytes"], copied["total_ms"], found)

    async def _watch(self, phase: Phase, seconds: float) -> None:
        """Let the load run and show how it goes. Raises DemoFailed when the clients end by themselves."""
        assert self._load is not None
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            latest = self._load.latest
            if latest:
                done = 1 - (ends_at - time.monotonic()) / seconds
                phase.show(f"{latest['requests']} answers verified, {latest['failed']} failed", done)
            if self._load.process.returncode is not None:
                raise DemoFailed(f"the clients ended: {(self._folder / 'load.log').read_text()[-500:]}")
            await asyncio.sleep(0.1)

    async def _end(self, *, keep_survivor: bool) -> None:
        if self._load is not None:
            await self._load.stop()
        # The secondary first: stopping the primary first would be a takeover.
        for role in (Role.SECONDARY, Role.PRIMARY):
            daemon = self._daemons.get(role)
            if daemon is None:
                continue
            if keep_survivor and str(role) != self._victim:
                daemon.forget()
                self.how_to_reach = self._how_to_reach(daemon)
            else:
                await daemon.stop()

    def _how_to_reach(self, daemon: DaemonProcess) -> list[str]:
        holder = self._lab.hold_clients()
        return [
            f"[bold]the survivor runs on[/bold]: daemon {daemon.process.pid}, state in {daemon.state_dir}",
            f"  reach it:  nsenter --net=/proc/{holder}/ns/net curl http://{GUEST_ADDRESS}/",
            f"  ask it:    curl --unix-socket {daemon.state_dir}/api.sock http://copy/status",
            f"  end it:    kill {daemon.process.pid} {holder}; rm -r {self._folder.parent}",
        ]


async def _checkpoints_by_timer(primary: DaemonProcess) -> None:
    """More checkpoints than the load needs, so that their cost shows."""
    while True:
        await asyncio.sleep(CHECKPOINT_EVERY_S)
        with contextlib.suppress(EnvironmentFault, WrongState):
            await primary.checkpoint("demo-timer")


async def _show_sync(phase: Phase, primary: DaemonProcess) -> None:
    while True:
        pages, disks = primary.status.get("pages", 0), primary.status.get("disks", {})
        if disks.get("copied_bytes", 0) < disks.get("copy_bytes", 0):
            done, total = disks["copied_bytes"], disks["copy_bytes"]
            phase.show(f"{done >> 20} of {total >> 20} MiB of disk copied", done / total)
        elif pages:
            sent = primary.status["pages_sent"]
            phase.show(f"{min(sent, pages) * 4096 >> 20} of {pages * 4096 >> 20} MiB copied", min(1.0, sent / pages))
        await asyncio.sleep(0.1)


def _failover(survivor: DaemonProcess, kill_ms: float) -> Failover:
    def since_kill(kind: str, **fields: bool) -> float | None:
        event = survivor.first(kind, kill_ms, **fields)
        return event["t_ms"] - kill_ms if event else None

    return Failover(since_kill("peer-lost"), since_kill("claim", granted=True), since_kill("solo"))


def _save_logs(run_dir: Path, logs: Path) -> None:
    """Keep what the daemons, the guests and the clients said in a demo that did not come to its end."""
    shutil.rmtree(logs, ignore_errors=True)
    with contextlib.suppress(OSError):
        for log in run_dir.glob("**/*.log"):
            kept = logs / log.relative_to(run_dir)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, kept)


def _remove_stale_run_dirs() -> None:
    """What a demo that was itself killed with SIGKILL left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{RUN_DIR_PREFIX}*"):
        pid = folder.name.removeprefix(RUN_DIR_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and not _daemon_uses(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _daemon_uses(folder: Path) -> bool:
    """Whether a survivor that `--keep` left still serves there."""
    for listener in folder.glob("*/*/api.sock"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(listener))
            return True
    return False
