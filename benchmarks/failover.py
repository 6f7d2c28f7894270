"""Two daemons, a VM under load, hosts that die one after the other: how long clients wait, how soon it is safe again.

`make bench-failover`; each round kills all processes of the primary's host with SIGKILL. Measured from there
* to the first answer to a request that was begun after the kill (a bound from above on the first new byte at a client),
* to protection again, once the dead host's daemon is back (nobody types a command), and how long the guest is paused
  for that.

Prints medians and ranges and writes them as JSON. Exits with 1 when a client noticed anything or a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pycolo.config import ProtectionConfig, VmConfig
from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, PEER_PORT, Lab, build_lab, make_pki
from pycolo.demo.processes import LoadProcess
from pycolo.errors import PycoloError
from pycolo.guest.builder import READY_LINE, build_guest
from pycolo.guest.console import console_says
from pycolo.host.client import DaemonClient
from pycolo.host.models import ProtectRequest, VmStatus

VM = "bench"
MEMORY_MIB = 256
WAIT_S_MAX = 90.0
LOAD_S = 3.0
GOALS_MS = {"gap_ms_p50": 250.0, "gap_ms_max": 600.0, "sync_pause_ms_p50": 20.0}


def now_ms() -> float:
    """The clock of events and clients."""
    return time.monotonic_ns() / 1e6


class Host:
    """One host's daemon, in its namespace."""

    def __init__(self, lab: Lab, name: str, folder: Path) -> None:
        self._lab, self.name, self._folder = lab, name, folder
        self.state_dir = folder / name
        self._process: asyncio.subprocess.Process | None = None
        number = HOSTS.index(name) + 1
        other, pki = HOSTS[2 - number], folder / "pki"
        self._toml = folder / f"{name}.toml"
        self._toml.write_text(
            f'name = "{name}"\nlisten = "10.78.0.{number}:{PEER_PORT}"\n'
            f'state_dir = "{self.state_dir}"\nbridge = "br0"\n'
            f'arbiter = {{ kind = "file", path = "{folder / "arbiter"}" }}\n'
            f'[tls]\nca = "{pki}/ca.crt"\ncert = "{pki}/{name}.crt"\nkey = "{pki}/{name}.key"\n'
            f'[[peers]]\nname = "{other}"\naddress = "10.78.0.{3 - number}:{PEER_PORT}"\n'
        )

    async def start(self) -> None:
        """Start the daemon; it serves some time after."""
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *self._lab.hosts[self.name].prefix()),
                *(sys.executable, "-m", "pycolo", "daemon", str(self._toml)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def status(self) -> VmStatus | None:
        """What the daemon says of the VM; None when it says nothing."""
        async with DaemonClient(self.state_dir / "api.sock") as client:
            with contextlib.suppress(PycoloError):
                return await client.vm(VM)
        return None

    async def pids(self) -> list[int]:
        """The manager's processes of the VM, and the manager itself."""
        status = await self.status()
        children = list(status.manager.get("pids", {}).values()) if status is not None else []
        return [*children, *_children_of(self._process.pid if self._process else 0)]

    async def die(self, pids: list[int]) -> float:
        """SIGKILL to everything of this host at once; returns when that was."""
        assert self._process is not None
        for pid in (self._process.pid, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        at_ms = now_ms()
        await self._process.wait()
        return at_ms

    async def end(self) -> None:
        """End the daemon and with it all that it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def first(self, kind: str, since_ms: float) -> dict[str, Any]:
        """The first event of a kind since then."""
        async with DaemonClient(self.state_dir / "api.sock") as client:
            async for _, event in client.events(VM, follow=False):
                if event["kind"] == kind and event["t_ms"] > since_ms:
                    return event
        raise SystemExit(f"{self.name} has no event {kind} although the VM is protected")


def _children_of(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


async def until(what: str, condition: Callable[[], Any]) -> None:
    """Wait, or end with a sentence."""
    ends_s = time.monotonic() + WAIT_S_MAX
    while not await condition():
        if time.monotonic() > ends_s:
            raise SystemExit(f"{what} did not come in {WAIT_S_MAX:.0f} s")
        await asyncio.sleep(0.05)


def is_protected(host: Host) -> Callable[[], Any]:
    """Whether the VM is, with its primary there."""

    async def look() -> bool:
        status = await host.status()
        return status is not None and (status.role, status.state) == ("primary", "protected")

    return look


async def start_vm(host: Host) -> None:
    """Returns when the guest serves and is protected."""
    image = build_guest()
    vm = VmConfig(
        name=VM,
        memory_mib=MEMORY_MIB,
        accel="tcg",
        kernel=image.kernel,
        initrd=image.initrd,
        append=image.command_line(f"{GUEST_ADDRESS}/24"),
        protection=ProtectionConfig(),
    )

    async def serves() -> bool:
        return (host.state_dir / "api.sock").exists()

    async def booted() -> bool:
        return console_says(host.state_dir / "vms" / VM / "console.log", READY_LINE)

    await until("the daemon", serves)
    async with DaemonClient(host.state_dir / "api.sock") as client:
        await client.protect(ProtectRequest(vm=vm, secondary="", no_copy_lives=False, older_disk=False))
    await until("the guest", booted)
    await until("protection", is_protected(host))


async def one_round(dies: Host, survives: Host, load: LoadProcess) -> dict[str, float]:
    """One death, and protection again."""
    await asyncio.sleep(LOAD_S)
    pids = await dies.pids()
    died_ms = await dies.die(pids)

    def answers() -> list[float]:
        return [at + latency for at, latency, _ in load.samples if at > died_ms]

    async def answered() -> bool:
        return bool(answers())

    await until("an answer after the kill", answered)
    await asyncio.sleep(0.5)  # samples come in no order
    gap_ms = min(answers()) - died_ms
    back_ms = now_ms()
    await dies.start()
    await until("protection again", is_protected(survives))
    again_ms = now_ms()
    sync = await survives.first("checkpoint", back_ms)
    await asyncio.sleep(LOAD_S)  # the secondary loads it
    load_ms = (await dies.first("loaded", back_ms))["after_ms"]
    return {
        "gap_ms": gap_ms,
        "again_s": (again_ms - back_ms) / 1000,
        "sync_pause_ms": sync["pause_ms"],
        "sync_s": sync["total_ms"] / 1000,
        "load_ms": load_ms,
    }


async def measure(rounds: int, folder: Path, console: Console) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """All rounds, and what the clients say of them."""
    make_pki(folder / "pki")
    (folder / "arbiter").mkdir()
    lab = build_lab()
    hosts = [Host(lab, name, folder) for name in HOSTS]
    load: LoadProcess | None = None
    found: list[dict[str, float]] = []
    try:
        for host in hosts:
            await host.start()
        await start_vm(hosts[0])
        load = await LoadProcess.start(lab.clients, GUEST_ADDRESS, folder / "load.log")
        for number in range(rounds):
            found.append(await one_round(hosts[number % 2], hosts[1 - number % 2], load))
            console.print(f"round {number + 1}: " + ", ".join(f"{key} {value:.1f}" for key, value in found[-1].items()))
        result, load = await load.finish(), None
        return found, result
    finally:
        if load is not None:
            await load.stop()
        for host in hosts:
            await host.end()
        lab.close()


def summary(found: list[dict[str, float]], result: dict[str, Any]) -> dict[str, Any]:
    """Medians, ranges and what the clients noticed."""
    figures: dict[str, Any] = {"rounds": len(found)}
    for key in found[0]:
        values = [one[key] for one in found]
        figures |= {f"{key}_p50": statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
    noticed = ("failed", "reset", "wrong_bytes", "lost_acknowledged")
    return figures | {
        "requests": result["requests"],
        "errors": result["errors"],
        **{key: result[key] for key in noticed},
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """The table."""
    table = Table(title=f"{figures['rounds']} deaths under load, {figures['requests']} requests")
    for column in ("", "median", "range", "goal"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {
        "kill to first new answer, ms": ("gap_ms", "p50 at most 250, max 600"),
        "daemon back to protected again, s": ("again_s", ""),
        "pause at the end of the first sync, ms": ("sync_pause_ms", "p50 at most 20"),
        "first sync in all, s": ("sync_s", ""),
        "the secondary's first load, ms": ("load_ms", ""),
    }
    for name, (key, goal) in rows.items():
        low, high = figures[f"{key}_min"], figures[f"{key}_max"]
        table.add_row(name, f"{figures[f'{key}_p50']:.1f}", f"{low:.1f} to {high:.1f}", goal)
    console.print(table)
    noticed = {key: figures[key] for key in ("failed", "reset", "wrong_bytes", "lost_acknowledged")}
    for error in figures["errors"]:
        console.print(f"  {error}")
    console.print("clients noticed: " + ", ".join(f"{key} {value}" for key, value in noticed.items()))


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("bench-failover.json"))
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="colo-failover-") as folder:
        found, result = asyncio.run(measure(options.rounds, Path(folder), console))
    figures = summary(found, result)
    options.out.write_text(json.dumps(figures, indent=2))
    show(figures, console)
    noticed = any(figures[key] for key in ("failed", "reset", "wrong_bytes", "lost_acknowledged"))
    missed = [key for key, goal in GOALS_MS.items() if figures[key] > goal]
    if missed:
        console.print(f"goals missed: {', '.join(missed)}")
    return 1 if noticed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
