"""Who is measured, seen from outside: where clients are, which processes work for the guest, when it stood still."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycolo.edge.namespaces import Namespace
from pycolo.guest.builder import GuestImage
from upload_guests import cpu_s

from .monitor import Pauses

Row = dict[str, Any]


class DeadError(Exception):
    """A contestant ended, or does not do what it has to; the text says how."""


async def nothing() -> None:
    """What a guest that nobody protects is asked for."""


async def no_checkpoints() -> list[Row]:
    """It takes none that it could tell of."""
    return []


@dataclass
class Subject:
    """One contestant at work.

    `checkpoints` tells of those so far: `at_s` (since the epoch), `reason`, `bytes` on the wire and `pages`, as far as
    it knows. `request` asks for one. `kill` ends all of the primary's processes, does what makes the secondary go on
    where it does not do so by itself, and returns when it killed (time.monotonic()).
    """

    clients: Namespace
    primary: dict[str, int]
    pauses: Pauses = field(default_factory=Pauses)
    secondary: dict[str, int] = field(default_factory=dict)
    checkpoints: Callable[[], Awaitable[list[Row]]] = no_checkpoints
    request: Callable[[], Awaitable[None]] = nothing
    kill: Callable[[], Awaitable[float]] | None = None
    first_sync_s: float = 0.0

    def cpu_s(self) -> dict[str, float]:
        """Processor time so far of each process."""
        return {name: cpu_s(pid) for name, pid in (self.primary | self.secondary).items() if not _is_dead(pid)}

    def secondary_mib(self) -> float:
        """Memory of the secondary's processes, what they share with others in proportion."""
        return sum(_pss_mib(pid) for pid in self.secondary.values())

    def check(self) -> None:
        """Raises DeadError when a process is gone."""
        for name, pid in (self.primary | self.secondary).items():
            if _is_dead(pid):
                raise DeadError(f"{name} has ended")


Start = Callable[[GuestImage, Path, Path | None], AbstractAsyncContextManager[Subject]]
"""Boots a guest whose files are in a folder, with a copy of that disk if there is one."""


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except FileNotFoundError:
        return True


def _pss_mib(pid: int) -> float:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0
