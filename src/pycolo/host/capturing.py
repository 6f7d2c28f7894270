"""`colo capture`: waiting for a capture's end, saying what it came to, and moving its file.

Guarantees: no file is ever overwritten; whatever becomes of the VM meanwhile, the file that was begun is named.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from pycolo.errors import EnvironmentFault, PycoloError
from pycolo.host import models as m
from pycolo.host.client import DaemonClient

POLL_S = 0.5
BY_VERDICT = {
    "equal": "equal",
    "checkpoint": "by checkpoints",
    "policy": "by policy",
    "link control": "link control",
    "solo": "solo",
}


def refuse_existing(out: Path | None) -> None:
    """Before anything is recorded. Raises EnvironmentFault."""
    if out is not None and os.path.lexists(out):
        raise _taken(out)


class Capturing:
    """A capture that was begun; `latest` is what was last heard of it."""

    def __init__(self, vm: str, begun: m.CaptureReport) -> None:
        self._vm, self.latest = vm, begun

    async def wait_for_end(self, client: DaemonClient) -> None:
        """Until it has ended, or nobody knows of it any more."""
        while self.latest.running:
            await asyncio.sleep(POLL_S)
            await self._hear(client.capture)

    async def stop(self, client: DaemonClient) -> None:
        """End it, if it has not ended by itself."""
        await self._hear(client.capture)
        if self.latest.running:
            await self._hear(client.stop_capture)

    async def _hear(self, asking: Callable[[str], Awaitable[m.CaptureReport]]) -> None:
        """One whose copy has ended meanwhile has a file, and the figures that were heard last."""
        if not self.latest.running:
            return
        try:
            now = await asking(self._vm)
        except PycoloError as problem:
            self.latest = self.latest.model_copy(update={"running": False, "ended": str(problem)})
            return
        if now.path != self.latest.path:
            now = self.latest.model_copy(update={"running": False, "ended": "another one has been begun since"})
        self.latest = now


def move(file: Path, out: Path) -> Path:
    """To where the user wants it, readable for its owner alone. Raises EnvironmentFault: the file stays then."""
    try:
        target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise _taken(out, f" (it is in {file} still)") from None
    except OSError as problem:
        raise _not_moved(file, out, problem) from None
    try:
        with open(target, "wb") as copy, file.open("rb") as source:
            shutil.copyfileobj(source, copy)
        file.unlink()
    except OSError as problem:
        out.unlink()
        raise _not_moved(file, out, problem) from None
    return out


def summary(report: m.CaptureReport, file: Path) -> list[str]:
    """For the user."""
    frames = report.frames
    verdicts = [f"{frames[key]} {words}" for key, words in BY_VERDICT.items() if key in frames]
    released = f" ({', '.join(verdicts)})" if verdicts else ""
    primary = sum(frames.get(key, 0) for key in BY_VERDICT)
    lines = [
        str(file),
        f"the capture has ended: {report.ended}",
        f"{frames.get('clients', 0)} frames of clients, {primary} of the primary{released}, "
        f"{frames.get('secondary', 0)} of the secondary; divergences: {report.divergences}",
    ]
    if report.held or report.not_written:
        lines.append(f"not in it: {report.held} frames that have not left yet, {report.not_written} without room")
    return lines


def _taken(out: Path, besides: str = "") -> EnvironmentFault:
    return EnvironmentFault(f"{out} is there already{besides}: name a new file for the capture")


def _not_moved(file: Path, out: Path, problem: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"the capture can't be moved from {file} to {out} ({problem.strerror}): it is left there, so copy it by hand"
    )
