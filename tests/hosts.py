"""Real hosts for tests: `colo daemon` in each of the lab's namespaces, asked by the real command line.

Guarantees: `close` ends every process that was started, by pid; it raises LeftBehind when the end of a daemon left
something: a process, a tap device, a namespace, a file in /dev/shm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pair import (
    BOOT_S_MAX,
    END_S_MAX,
    PATIENT,
    LeftBehind,
    environment_of_pair,
    files_in_shm,
    namespaces_of_processes,
    output_of,
    processes_of,
    stayed_in_shm,
    until,
    vm_values,
)
from pycolo.demo.lab import HOSTS, build_lab, host_address, make_pki
from pycolo.edge.namespaces import Namespace
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.guest.console import console_says
from tested_qemu import CPUS

COMMAND_S_MAX = 90.0


class Hosts:
    """`daemons` by host name; commands are asked of one of them."""

    def __init__(
        self, image: GuestImage, folder: Path, names: Sequence[str] = HOSTS, arbiter: dict[str, Any] | None = None
    ) -> None:
        """`arbiter`: its table in host.toml; without it there is a folder for all."""
        self.image, self.folder, self.names = image, folder, names
        self.pki = folder / "pki"
        make_pki(self.pki, names)
        (folder / "arbiter").mkdir()
        self._arbiter = arbiter or {"kind": "file", "path": str(folder / "arbiter")}
        self.lab = build_lab(names)
        self.daemons: dict[str, asyncio.subprocess.Process] = {}
        self.environments: dict[str, dict[str, str]] = {}  # of daemons, beside ours
        self._shm_before = files_in_shm()

    def address(self, host: str) -> str:
        """Where the other hosts reach it."""
        return host_address(self.names.index(host) + 1)

    def state_dir(self, host: str) -> Path:
        return self.folder / host

    def disk_dir(self, host: str) -> Path:
        """Where the images of its disks are."""
        path = self.folder / f"disks-{host}"
        path.mkdir(exist_ok=True)
        return path

    def socket(self, host: str) -> Path:
        return self.state_dir(host) / "api.sock"

    def log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text(errors="replace")

    async def start(self, host: str, **changed: Any) -> None:
        """Start the daemon of a host; returns when it serves."""
        others = [name for name in self.names if name != host]
        values = {
            "name": host,
            "listen": f"{self.address(host)}:7700",
            "state_dir": str(self.state_dir(host)),
            "bridge": "br0",
            "cpus": 2 * CPUS,
            "memory_mib": 1024,
            "disk_dir": str(self.disk_dir(host)),
            "arbiter": self._arbiter,
            "tls": {"ca": f"{self.pki}/ca.crt", "cert": f"{self.pki}/{host}.crt", "key": f"{self.pki}/{host}.key"},
            "peers": [{"name": name, "address": f"{self.address(name)}:7700"} for name in others],
            **changed,
        }
        path = self.folder / f"{host}.toml"
        path.write_text(as_toml(values))
        (self.folder / f"{host}.log").touch()
        served = self.log(host).count('"serving"')
        with (self.folder / f"{host}.log").open("ab") as log, environment_of_pair(self.folder):
            self.daemons[host] = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *self.lab.hosts[host].prefix()),
                *(sys.executable, "-m", "pycolo", "daemon", str(path)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | self.environments.get(host, {}),
                cwd="/",
            )
        await until(lambda: self.log(host).count('"serving"') > served, 20.0, f"the daemon of {host}")

    def vm_toml(self, **changed: Any) -> Path:
        values: dict[str, Any] = {
            "name": "web",
            "memory_mib": 128,
            # A busy machine's stalls are no deaths: a takeover during a boot makes roles others than a test expects.
            "protection": {"heartbeat_lost_max": PATIENT},
            **vm_values(self.image),
            **changed,
        }
        path = self.folder / f"vm{len(list(self.folder.glob('vm*.toml')))}.toml"
        path.write_text(as_toml({key: value for key, value in values.items() if value is not None}))
        return path

    async def command(self, host: str, *arguments: str | Path) -> asyncio.subprocess.Process:
        """Begin a command that asks the daemon of a host."""
        with environment_of_pair(self.folder):
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pycolo", *map(str, arguments)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | {"COLO_SOCKET": str(self.socket(host))},
                cwd="/",
            )

    async def colo(self, host: str, *arguments: str | Path) -> tuple[int, str, str]:
        """(exit status, stdout, stderr) of a command that asks the daemon of a host."""
        process = await self.command(host, *arguments)
        try:
            out, err = await asyncio.wait_for(process.communicate(), COMMAND_S_MAX)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def status(self, host: str, vm: str = "web") -> dict[str, Any]:
        code, out, err = await self.colo(host, "status", vm, "--json")
        assert code == 0, err
        (found,) = json.loads(out)
        assert isinstance(found, dict)
        return found

    async def becomes(
        self, host: str, wait_s: float, condition: Callable[[dict[str, Any]], Any], vm: str = "web"
    ) -> None:
        """Wait until the VM's status on that host is as it should be. Raises TimeoutError."""
        async with asyncio.timeout(wait_s):
            while not condition(await self.status(host, vm)):  # noqa: ASYNC110 - another process is asked
                await asyncio.sleep(0.2)

    async def boots(self, *hosts: str, vm: str = "web") -> None:
        """Wait for the end of its guest's boot on one of these. Raises TimeoutError with what the VM and its guest did
        instead.
        """
        folders = [self.state_dir(host) / "vms" / vm for host in hosts]
        consoles = [folder / "console.log" for folder in folders]
        try:
            await until(lambda: any(console_says(one, READY_LINE) for one in consoles), BOOT_S_MAX, "the guest's boot")
        except TimeoutError as error:
            logs = [*consoles, *(folder / "manager.log" for folder in folders)]
            told = [log.read_text(errors="replace")[-3000:] for log in logs if log.exists()]
            events = [(await self.colo(name, "events", vm))[1][-3000:] for name in self.names]
            raise TimeoutError("\n".join([str(error), *told, *events])) from error

    async def kill(self, host: str) -> None:
        """SIGKILL to a daemon: what it owns has to go by itself."""
        process = self.daemons.pop(host)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()

    async def close(self) -> None:
        """End everything. Raises LeftBehind."""
        try:
            for host in list(self.daemons):
                await self.kill(host)
            await self._nothing_left()
        finally:
            for pid in processes_of(self.folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            spaces = {os.fstat(space.fd).st_ino for space in (*self.lab.hosts.values(), self.lab.clients)}
            self.lab.close()
        with contextlib.suppress(TimeoutError):
            await until(lambda: not _in(spaces), END_S_MAX, "the end of the namespaces")
        if _in(spaces):
            raise LeftBehind(f"processes {_in(spaces)} keep the namespaces alive")

    async def _nothing_left(self) -> None:
        with contextlib.suppress(TimeoutError):
            await until(lambda: not processes_of(self.folder) and not self.taps(), END_S_MAX, "the end of all")
        left = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in processes_of(self.folder)]
        stayed = await stayed_in_shm(self._shm_before)
        if left or self.taps() or stayed:
            raise LeftBehind(f"left are processes {left}, taps {self.taps()}, files in /dev/shm {stayed}")

    def taps(self, host: str = "") -> list[str]:
        hosts: list[Namespace] = [self.lab.hosts[host]] if host else list(self.lab.hosts.values())
        return [line for space in hosts for line in output_of(space, "ip", "-o", "link", "show", "type", "tun")]


def as_toml(values: dict[str, Any]) -> str:
    """A document; tables and lists of tables may stand at its top only."""
    lines, tables = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            tables += [f"[{key}]\n", as_toml(value)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables += [text for table in value for text in (f"[[{key}]]\n", as_toml(table))]
        else:
            lines.append(f"{key} = {json.dumps(value)}\n")
    return "".join(lines + tables)


def _in(spaces: set[int]) -> set[int]:
    return {pid for pid, inode in namespaces_of_processes() if inode in spaces}
