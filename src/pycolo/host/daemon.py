"""The host daemon: the table of VM copies on this host, and who looks after each.

Guarantees: a VM has at most one copy here; no copy is started that does not fit; a primary that wants protection has a
Protector as long as it runs; nothing that runs here outlives the daemon.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pycolo import __version__
from pycolo.config import HostConfig, VmConfig
from pycolo.core.placement import HostReport, room_problem
from pycolo.edge.preflight import memory_total_mib
from pycolo.edge.replace_file import replace_file
from pycolo.errors import EnvironmentFault, UnknownVm, WrongState
from pycolo.host.copy import Copy
from pycolo.host.models import HostReportBody, VmBrief, VmStatus
from pycolo.host.peers import Peers, for_placement
from pycolo.host.protector import Protector
from pycolo.host.record import FILE_NAME, Record, load_record
from pycolo.host.security import Security

VMS_MAX = 256
REPORTS_AGE_S_MAX = 2.0


class _Remembered(BaseModel):
    """What a host remembers of itself."""

    draining: bool = False


class HostDaemon:
    """One host; `boot` tells this life of the daemon from others."""

    def __init__(self, config: HostConfig, security: Security) -> None:
        self.config = config
        self.boot = secrets.token_hex(4)
        self.peers = Peers(config, security)
        self.copies: dict[str, Copy] = {}
        self.cpus = config.cpus or os.cpu_count() or 1
        self.memory_mib = config.memory_mib or memory_total_mib()
        self.starting = asyncio.Lock()
        self._draining = False
        self._protectors: dict[str, asyncio.Task[None]] = {}
        self._reports: dict[str, HostReportBody | str] = {}
        self._reports_at_s = float("-inf")
        self._ending: set[asyncio.Task[None]] = set()
        self._closing = False

    # ---- what is remembered

    def load(self) -> None:
        """Read the records of an earlier life; no VM is started by that. Raises EnvironmentFault."""
        path = self._folder("x").parent
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            folders = sorted(folder for folder in path.iterdir() if (folder / FILE_NAME).exists())
        except OSError as problem:
            raise EnvironmentFault(f"{path} can't be used ({problem.strerror}): choose another `state_dir`") from None
        for folder in folders:
            record = load_record(folder)
            record.ended = record.ended or "the daemon of this host ended while a copy ran here"
            self.copies[record.vm.name] = self._new_copy(record, folder)
        try:
            if self._host_file.exists():
                self._draining = _Remembered.model_validate_json(self._host_file.read_bytes()).draining
        except (OSError, ValidationError):
            raise EnvironmentFault(f"{self._host_file} can't be understood: remove it, then drain again") from None

    @property
    def draining(self) -> bool:
        """Whether this host takes no new copies."""
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        try:
            replace_file(self._host_file, _Remembered(draining=value).model_dump_json().encode())
        except OSError as problem:
            raise EnvironmentFault(f"{self._host_file} can't be written ({problem.strerror}): make room") from None
        self._draining = value

    @property
    def _host_file(self) -> Path:
        return self.config.state_dir / "host.json"

    def _folder(self, vm: str) -> Path:
        return self.config.state_dir / "vms" / vm

    # ---- the table

    def copy(self, vm: str) -> Copy:
        """Raises UnknownVm."""
        found = self.copies.get(vm)
        if found is None:
            raise UnknownVm(f"{self.config.name} knows no VM {vm}: see `colo status`, or ask its other host")
        return found

    def running(self) -> list[Copy]:
        """Copies that run here."""
        return [copy for copy in self.copies.values() if copy.running]

    def check_room(self, record: Record) -> None:
        """Raises WrongState when one more copy does not fit."""
        vm = record.vm
        problem = room_problem(vm.name, vm.cpus, vm.memory_mib, self.own_report())
        problem = problem or self._nic_problem(vm)
        if not problem and len(self.copies) >= VMS_MAX and vm.name not in self.copies:
            problem = f"{self.config.name} knows {VMS_MAX} VMs already"
        if problem:
            raise WrongState(f"{problem}: choose another host or change vm.toml")

    def _nic_problem(self, vm: VmConfig) -> str:
        """What keeps the VM's network cards from being here; empty when nothing does."""
        macs = {card.mac for card in vm.cards}
        for copy in self.running():
            for card in copy.record.vm.cards:
                if copy.name != vm.name and card.mac in macs:
                    return f"{copy.name} has the MAC address {card.mac} of {vm.name} already"
        networks = self.config.networks
        missing = [card.network for card in vm.cards if card.network and card.network not in networks]
        return f"[networks] in host.toml of {self.config.name} has no {missing[0]}" if missing else ""

    async def start(self, record: Record, *, no_copy_lives: bool = False, older_disk: bool = False) -> Copy:
        """Start a copy that fits (`check_room`; hold `starting` for both). Raises EnvironmentFault, WrongState."""
        if self._closing:
            raise WrongState(f"the daemon of {self.config.name} ends: choose another host, or wait until it is back")
        name = record.vm.name
        folder = self._folder(name)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            raise EnvironmentFault(f"{folder} can't be made ({problem.strerror}): mend `state_dir`") from None
        copy = self.copies.get(name)
        if copy is None:
            copy = self.copies[name] = self._new_copy(record, folder)
        copy.record, copy.offer = record, ""
        taken = [tap for other in self.running() for tap in other.taps]
        taps = free_taps(taken, len(record.vm.cards))
        primary = record.partner if record.role == "secondary" else ""
        config = self.config.for_copy(folder, taps, primary)
        await copy.start(config, no_copy_lives=no_copy_lives, older_disk=older_disk)
        return copy

    def _new_copy(self, record: Record, folder: Path) -> Copy:
        copy = Copy(record, folder, self.config.name)
        copy.on_change = self._changed
        return copy

    def _changed(self, copy: Copy) -> None:
        """Keep the record and the protector as the copy's role is now."""
        if copy.running and copy.role != copy.record.role:
            copy.change_role()
        wanted = not self._closing and copy.running and copy.role == "primary" and copy.record.protect
        if wanted and copy.name not in self._protectors:
            protector = Protector(copy, self.peers, self.config.name)
            self._protectors[copy.name] = asyncio.create_task(protector.run())
        elif not wanted and copy.name in self._protectors:
            self.leave(copy.name)

    def leave(self, vm: str) -> None:
        """Nobody looks for a secondary of that VM any more."""
        task = self._protectors.pop(vm, None)
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    # ---- what is told

    def own_report(self) -> HostReport:
        """For the decision about placement."""
        return for_placement(self.report())

    def report(self) -> HostReportBody:
        """What this host says of itself."""
        running = self.running()
        return HostReportBody(
            name=self.config.name,
            version=__version__,
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            cpus_used=sum(copy.record.vm.cpus for copy in running),
            memory_mib_used=sum(copy.record.vm.memory_mib for copy in running),
            draining=self.draining,
            vms=[_brief(copy) for copy in self.copies.values()],
        )

    async def reports(self) -> dict[str, HostReportBody | str]:
        """Of every peer its report or why there is none, at most REPORTS_AGE_S_MAX old."""
        if time.monotonic() - self._reports_at_s > REPORTS_AGE_S_MAX:
            self._reports = await self.peers.reports()
            self._reports_at_s = time.monotonic()
        return self._reports

    def forget_reports(self) -> None:
        """What the peers said is not true any more."""
        self._reports_at_s = float("-inf")

    async def status(self, copy: Copy) -> VmStatus:
        """What is told of one VM."""
        elsewhere = "" if copy.running else await self.where_it_runs(copy.name)
        status = copy.status
        return VmStatus(
            name=copy.name,
            host=self.config.name,
            role="primary" if copy.role == "primary" else "secondary",
            state=copy.state,
            partner=copy.record.partner,
            epoch=int(status.get("epoch") or status.get("committed_epoch") or 0),
            since=datetime.fromtimestamp(copy.since_s, UTC).isoformat(timespec="seconds"),
            reason=copy.reason,
            protect=copy.record.protect,
            running=copy.running,
            elsewhere=elsewhere,
            exit_status=copy.record.exit_status,
            manager=status,
        )

    async def where_it_runs(self, vm: str, role: str = "") -> str:
        """The peer that says so (in that role, if one is named), a primary if there is one; empty when none does."""
        running = [
            (brief.role, name)
            for name, report in (await self.reports()).items()
            if isinstance(report, HostReportBody)
            for brief in report.vms
            if brief.name == vm and brief.running and role in ("", brief.role)
        ]
        return min(running)[1] if running else ""

    async def close(self) -> None:
        """End all copies, secondaries first: a primary that ends while its secondary lives is a takeover."""
        self._closing = True
        for name in list(self._protectors):
            self.leave(name)
        await asyncio.gather(*self._ending, return_exceptions=True)
        for copy in sorted(self.copies.values(), key=lambda one: one.role == "primary"):
            await copy.close()
        await self.peers.close()


def _brief(copy: Copy) -> VmBrief:
    spoke_ms = copy.counters.spoke_alone_at_ms
    return VmBrief(
        name=copy.name,
        role="primary" if copy.role == "primary" else "secondary",
        state=copy.state,
        running=copy.running,
        partner=copy.record.partner,
        may_claim=copy.status.get("arbiter") == "answers",
        spoke_alone_ms_ago=None if spoke_ms is None else time.monotonic_ns() / 1e6 - spoke_ms,
    )


def free_taps(taken: Sequence[str], count: int) -> list[str]:
    """Names that no network device here has, nor a copy that is being started."""
    in_use = {name for _, name in socket.if_nameindex()} | set(taken)
    free = (name for name in (f"colo{number}" for number in range(100_000)) if name not in in_use)
    return list(islice(free, count))
