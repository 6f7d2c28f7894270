"""`colo disk watch`: the copy of the disks to the secondary as a bar, for people."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pycolo.api import Client
from pycolo.core.failover import State
from pycolo.errors import EnvironmentFault

POLL_S = 0.25


async def watch_copy(state_dir: Path) -> None:
    """Return once the VM is protected. Raises EnvironmentFault when there is nothing to watch, or no daemon."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    async with Client(state_dir) as client:
        status = await client.status()
        _check(status)
        with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=None)
            while status["state"] != State.PROTECTED:
                disks = status["disks"]
                bar.update(task, description=_what(status), total=disks["copy_bytes"] or None, completed=_done(disks))
                await asyncio.sleep(POLL_S)
                status = await client.status()
            disks = status["disks"]
            bar.update(task, description="protected", total=disks["copy_bytes"] or None, completed=_done(disks))


def _check(status: dict[str, Any]) -> None:
    if status["role"] != "primary":
        raise EnvironmentFault("this host is not the primary: ask the primary")
    if "disks" not in status:
        raise EnvironmentFault("the VM has no disks: add them to vm.toml as [[disks]]")


def _what(status: dict[str, Any]) -> str:
    if status["state"] == State.SOLO:
        return "waiting for a secondary"
    disks = status["disks"]
    return "copying memory" if _done(disks) == disks["copy_bytes"] else "copying disks"


def _done(disks: dict[str, Any]) -> int:
    return int(disks["copied_bytes"])
