"""QEMU's monitor: commands to it, and how long the guest stood still by its STOP and RESUME events.

Guarantee: a pause is measured in the same way for every contestant: by QEMU's own time stamps, from the moment when the
vCPUs are parked to the one before they run again (qapi/run-state.json).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from pycolo.edge.qmp_channel import Event
from pycolo.edge.qmp_session import QmpSession
from pycolo.errors import VmLost

ANSWER_S_MAX = 30.0


@dataclass
class Pauses:
    """When the guest stood still: (since the epoch in seconds, how long in ms) for each pause that is over."""

    over: list[tuple[float, float]] = field(default_factory=list)
    _since_s: float | None = None

    def note(self, event: Event) -> None:
        """A STOP or RESUME event; others are nothing to us."""
        if event.name == "STOP":
            self._since_s = event.at_s
        elif event.name == "RESUME" and self._since_s is not None:
            self.over.append((self._since_s, (event.at_s - self._since_s) * 1000))
            self._since_s = None


@contextlib.asynccontextmanager
async def monitor(path: Path, pauses: Pauses) -> AsyncIterator[QmpSession]:
    """A monitor that is listened to. Raises VmLost when there is none."""
    session = QmpSession(path.name, ANSWER_S_MAX)
    with socket.socket(socket.AF_UNIX) as channel:
        try:
            channel.connect(str(path))
        except OSError as problem:
            raise VmLost(f"QEMU's monitor can't be reached: {problem.strerror}") from None
        channel.setblocking(False)
        try:
            session.notice(pauses.note)
            await session.connect(channel, ANSWER_S_MAX)
            yield session
        finally:
            await session.close()
