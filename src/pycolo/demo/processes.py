"""The demo's processes: the VM copies on their hosts and the load, each dead when the demo is.

Guarantees: every process was started by us, is ended by pid, and gets SIGKILL from the kernel when the demo dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycolo.api import Client
from pycolo.core.failover import Role
from pycolo.edge.namespaces import Namespace
from pycolo.edge.processes import send_signal
from pycolo.errors import DemoFailed, EnvironmentFault
from pycolo.toml_file import read_toml

STOP_S_MAX = 10.0
LOAD_RESULT_S_MAX = 45.0
LINE_BYTES_MAX = 8 << 20
POLL_S = 0.25
LOG_TAIL_LINES = 3


def _with_owner(namespace: Namespace, *, outlives_us: bool) -> list[str]:
    owner = [] if outlives_us else ["setpriv", "--pdeathsig", "KILL"]
    return [*owner, *namespace.prefix(), sys.executable, "-m"]


class DaemonProcess:
    """The process of one VM copy in its host's namespace; status and events outlive its death here."""

    def __init__(self, role: Role, state_dir: Path, process: asyncio.subprocess.Process) -> None:
        self.role, self.state_dir, self.process = role, state_dir, process
        self.status: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self._pollers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, namespace: Namespace, role: Role, host_toml: Path, vm_toml: Path, state_dir: Path, *, outlives_us: bool
    ) -> DaemonProcess:
        """Start it; it is reachable as soon as `status` is filled. Raises EnvironmentFault for a bad file."""
        state_dir.mkdir(mode=0o700)
        document = {"host": read_toml(host_toml), "vm": read_toml(vm_toml), "role": str(role)}
        (state_dir / "copy.json").write_text(json.dumps(document))
        with (state_dir / "daemon.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *_with_owner(namespace, outlives_us=outlives_us),
                *("pycolo.manager", str(state_dir / "copy.json")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        daemon = cls(role, state_dir, process)
        daemon._pollers = [asyncio.create_task(daemon._poll_status()), asyncio.create_task(daemon._poll_events())]
        return daemon

    def first(self, kind: str, after_ms: float = 0.0, **fields: Any) -> dict[str, Any] | None:
        """The first event of a kind after a time, with these fields."""
        for event in self.events:
            if event["kind"] == kind and event["t_ms"] >= after_ms and fields.items() <= event.items():
                return event
        return None

    async def wait_for(self, condition: Callable[[], Any], wait_s: float, what: str) -> None:
        """Wait until `condition` holds. Raises DemoFailed when the daemon ends before or it takes too long."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while not condition():
            if self.process.returncode is not None:
                raise self._ended()
            if asyncio.get_running_loop().time() > deadline:
                raise DemoFailed(f"{what} did not happen on the {self.role} in {wait_s:.0f} s: see {self.state_dir}")
            await asyncio.sleep(0.05)

    async def checkpoint(self, reason: str) -> None:
        """Ask for a checkpoint. Raises EnvironmentFault when the daemon does not take it."""
        async with Client(self.state_dir) as client:
            await client.checkpoint(reason)

    def kill_all(self) -> None:
        """SIGKILL to daemon, agent and QEMU at once, as when a host dies."""
        pids = self.status.get("pids", {})
        for pid in (self.process.pid, *pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End it in good order, or by force when it takes too long."""
        self.forget()
        if self.process.returncode is None:
            send_signal(self.process, signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_S_MAX)
            except TimeoutError:
                self.kill_all()
        await self.process.wait()

    def forget(self) -> None:
        """Stop asking it."""
        for poller in self._pollers:
            poller.cancel()

    async def _poll_status(self) -> None:
        async with Client(self.state_dir) as client:
            while True:
                with contextlib.suppress(EnvironmentFault):
                    self.status = await client.status()
                await asyncio.sleep(POLL_S)

    async def _poll_events(self) -> None:
        async with Client(self.state_dir) as client:
            while True:
                try:
                    self.events += await client.events(self.events[-1]["no"] if self.events else 0)
                except EnvironmentFault:
                    await asyncio.sleep(POLL_S / 5)

    def _ended(self) -> DemoFailed | EnvironmentFault:
        """The daemon's own last words say it best."""
        lines = (self.state_dir / "daemon.log").read_text(errors="replace").strip().splitlines()
        last = " / ".join(lines[-LOG_TAIL_LINES:]) or "it said nothing"
        if self.process.returncode == EnvironmentFault.exit_status:
            return EnvironmentFault(last.rpartition("colo: ")[2])
        return DemoFailed(f"the {self.role}'s daemon ended with status {self.process.returncode}: {last}")


class LoadProcess:
    """The clients, in their namespace."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.latest: dict[str, Any] = {}
        self.result: dict[str, Any] | None = None
        self.samples: list[tuple[float, float, str]] = []
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, namespace: Namespace, target: str, log: Path, workers: str = "", *options: str) -> LoadProcess:
        """Start the load, its default without `workers`; it ends by `finish` or with the demo."""
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *_with_owner(namespace, outlives_us=False),
                *("pycolo.demo.load", "--target", target, "--seconds-max", "inf"),
                *(["--workers", workers] if workers else []),
                *options,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=LINE_BYTES_MAX,
                cwd="/",
            )
        return cls(process)

    async def finish(self) -> dict[str, Any]:
        """Let it finish what it began; returns its result. Raises DemoFailed when it gives none."""
        send_signal(self.process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reader), LOAD_RESULT_S_MAX)
        await self.stop()
        if self.result is None:
            raise DemoFailed("the clients ended without a result: they hang or crashed")
        return self.result

    async def stop(self) -> None:
        """End it now."""
        send_signal(self.process, signal.SIGKILL)
        self._reader.cancel()
        await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            message = json.loads(line)
            if message["type"] == "result":
                self.result = message
            else:
                self.latest = message
                self.samples += [(at, latency, kind) for at, latency, kind in message["samples"]]
