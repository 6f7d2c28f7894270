"""The hosts of a campaign: those of the fault matrix, with disks that can be full and clocks that can be wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from fault_matrix import NAMES, VM, Cluster, Moves, Seen, has_moved
from file_systems import run, small_file_system
from pair import BOOT_S_MAX, failures_in_text, socket_in, until
from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.errors import PycoloError, UnknownVm
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.host.models import VmStatus

from .history import SOURCES, RegisterClients
from .wall_clock import WallClock, build_library

DISK_MIB = 640  # for an image of 512 MiB, which has holes, and its journal
SILENT_S = 1.0
DOWN_S_MAX = 90.0  # a copy that was offered and not claimed ends after 50 s
LOGS_EVERY_S = 1.0
PORTS = (7, 80, 6379, 5432)


class CampaignCluster(Cluster):
    """Beside the load it has the clients whose history is checked."""

    settle_s_max = 60.0  # it may run where others work too

    def __init__(self, image: GuestImage, folder: Path, **protection: Any) -> None:
        super().__init__(image, folder, **protection)
        self.clocks: dict[str, WallClock] = {}
        self.registers: RegisterClients
        self.counted: dict[str, int] = {}  # what the clients of the load had noticed when they were asked last
        self._read: dict[int, int] = {}  # of each log, by its inode, how many bytes
        self._failures: list[str] = []
        self._pids: dict[str, dict[str, int]] = {}

    async def _prepare(self, stack: contextlib.AsyncExitStack) -> None:
        library = build_library(self.folder)
        for name in NAMES:
            folder = self.hosts.disk_dir(name)
            await small_file_system(folder, DISK_MIB)
            stack.push_async_callback(run, "umount", "--lazy", str(folder))
            clock = self.clocks[name] = WallClock(library, self.folder / f"{name}.clock")
            self.hosts.environments[name] = clock.environment

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        await super()._start(stack)
        log = self.folder / "registers.log"
        self.registers = await RegisterClients.start(self.hosts.lab.clients, GUEST_ADDRESS, log)
        stack.push_async_callback(self.registers.close)
        reading = asyncio.create_task(self._read_logs())
        stack.callback(reading.cancel)

    # ---- looking

    async def statuses(self) -> list[VmStatus | None]:
        """What each host says."""
        return [await self.status(name) for name in NAMES]

    async def pids(self, name: str) -> dict[str, int]:
        """As far as they were known last, when nobody tells any more."""
        try:
            self._pids[name] = await super().pids(name)
        except (AssertionError, ValueError, KeyError, FileNotFoundError):  # no daemon, no manager, no status
            if name not in self._pids:
                raise
        return self._pids[name]

    async def settled(self, was: Seen, moves: Moves) -> Seen | None:
        """Wait until the VM is protected as `moves` says, or is down; None when it is. Raises TimeoutError."""
        deadline_s = time.monotonic() + DOWN_S_MAX
        while time.monotonic() < deadline_s:
            now = await self.seen()
            if now is not None and has_moved(was, now, moves):
                return now
            if await self.is_down():
                return None
            await asyncio.sleep(0.1)
        raise TimeoutError(f"neither protected nor down in {DOWN_S_MAX:.0f} s: {await self.statuses()}")

    async def is_down(self) -> bool:
        """All daemons answer, none runs a copy, and those that had one say why; that stays so."""
        for _ in range(2):
            known = [one for one in await self.statuses() if one is not None]
            if not known or any(one.running or not one.reason for one in known):
                return False
            if not all([await self._answers(name) for name in NAMES]):
                return False
            await asyncio.sleep(SILENT_S / 2)
        return True

    async def _answers(self, name: str) -> bool:
        """Whether the daemon does, also one that has never heard of the VM."""
        try:
            async with asyncio.timeout(1.0), self.client(name) as client:
                await client.vm(VM)
        except UnknownVm:
            return True
        except (PycoloError, TimeoutError):
            return False
        return True

    def news_of_failures(self) -> list[str]:
        """What must never stand in a log, as far as it is new since the last call."""
        self._look_at_logs()
        found, self._failures = self._failures, []
        return found

    async def _read_logs(self) -> None:
        """A copy's log is kept once when the next copy begins, and lost when the one after that does."""
        while True:
            self._look_at_logs()
            await asyncio.sleep(LOGS_EVERY_S)

    def _look_at_logs(self) -> None:
        for log in self.logs():
            with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
                status = os.fstat(file.fileno())
                start = self._read.get(status.st_ino, 0)
                file.seek(start if start <= status.st_size else 0)
                text = file.read()
                whole = text.rfind(b"\n") + 1  # the rest of a line may come
                self._failures += failures_in_text(text[:whole].decode(errors="replace"))
                self._read[status.st_ino] = file.tell() - len(text) + whole

    def logs(self) -> list[Path]:
        """Of the daemons and of the copies that they have."""
        here = [self.folder / f"{name}.log" for name in NAMES]
        return [path for path in (*here, *sorted(self.folder.glob(f"h*/vms/{VM}/manager.log*"))) if path.exists()]

    def tails(self, chars_max: int) -> dict[str, str]:
        """The ends of all logs, of the guest's consoles and of what the clients complain about too."""
        more = [*self.folder.glob("h*/vms/*/console.log"), *self.folder.glob("*.log"), *self.folder.glob("etcd/m*.log")]
        paths = sorted({*self.logs(), *more})
        return {str(path.relative_to(self.folder)): path.read_text(errors="replace")[-chars_max:] for path in paths}

    # ---- doing

    async def load_on(self) -> None:
        self.counted = {}
        await super().load_on()

    async def reboot(self, primary: str) -> None:
        """From inside, without a word to the hosts. Raises TimeoutError, AssertionError."""
        console = self.console(primary)
        boots = _boots(console)
        await run(
            *(*self.hosts.lab.clients.prefix(), "env", f"PYTHONPATH={SOURCES}"),
            *(sys.executable, "-m", "pycolo.guest.control", GUEST_ADDRESS, "9", "reboot"),
        )
        await until(lambda: _boots(console) > boots, BOOT_S_MAX, "the second boot")

    async def start_after_loss(self, name: str) -> None:
        """The operator's word that no copy lives; returns when the guest serves. Raises PycoloError, TimeoutError."""
        await self.protect(name, no_copy_lives=True)
        deadline_s = time.monotonic() + BOOT_S_MAX
        for port in PORTS:
            while not await asyncio.to_thread(self._accepts, port):
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"the guest does not serve port {port} in {BOOT_S_MAX:.0f} s")
                await asyncio.sleep(0.2)

    def _accepts(self, port: int) -> bool:
        with socket_in(self.hosts.lab.clients, socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(1.0)
            return client.connect_ex((GUEST_ADDRESS, port)) == 0


def _boots(console: Path) -> int:
    return console.read_bytes().count(READY_LINE.encode())
