"""`colo disk watch`: the copy of the disks to the secondary as a bar, or as lines where there is no terminal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pycolo.api import Client
from pycolo.core.failover import State
from pycolo.errors import EnvironmentFault

POLL_S = 0.25


async def watch_copy(state_dir: Path) -> None:
    """Return once the VM is protected. Raises EnvironmentFault when there is nothing to watch, or no daemon."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    async with Client(state_dir) as client:
        status = await client.status()
        _check(status)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task, said = bar.add_task("", total=None), ""
            while status["state"] != State.PROTECTED:
                what = _what(status)
                if what != said and not console.is_terminal:
                    console.print(what, highlight=False, soft_wrap=True)
                said = what
                disks = status["disks"]
                description = f"{what}{_amount(disks)}"
                bar.update(task, description=description, total=disks["copy_bytes"] or None, completed=_done(disks))
                await asyncio.sleep(POLL_S)
                status = await client.status()
        console.print(f"protected{_amount(status['disks'])}", highlight=False)


def _check(status: dict[str, Any]) -> None:
    if status["role"] != "primary":
        raise EnvironmentFault("this daemon was started as secondary, and only a primary copies disks: ask the primary")
    if "disks" not in status:
        raise EnvironmentFault("the VM has no disks: add them to vm.toml as [[disks]]")


def _what(status: dict[str, Any]) -> str:
    if status["state"] == State.SOLO:
        return str(status.get("refused") or "waiting for a secondary")
    disks = status["disks"]
    return "copying memory" if _done(disks) == disks["copy_bytes"] else "copying disks"


def _amount(disks: dict[str, Any]) -> str:
    if not disks["copy_bytes"]:
        return ""
    return f": {_done(disks) >> 20} of {disks['copy_bytes'] >> 20} MiB of disks looked at"


def _done(disks: dict[str, Any]) -> int:
    return int(disks["copied_bytes"])
