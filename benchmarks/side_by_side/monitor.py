"""QEMU's monitor: commands to it, and how long the guest stood still by its STOP and RESUME events.

Guarantees
* A pause is measured in the same way for every contestant: by QEMU's own time stamps, from the moment when the vCPUs
  are parked to the one before they run again (qapi/run-state.json).
* Every answer is waited for with a deadline; a QEMU that has ended is a `GoneError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_S_MAX = 30.0
LINE_BYTES_MAX = 1 << 20


class GoneError(Exception):
    """QEMU has ended, does not answer, or refuses; the text says which."""


@dataclass
class Pauses:
    """When the guest stood still: (since the epoch in seconds, how long in ms) for each pause that is over."""

    over: list[tuple[float, float]] = field(default_factory=list)
    _since_s: float | None = None

    def note(self, event: str, at_s: float) -> None:
        """A STOP or RESUME event; others are nothing to us."""
        if event == "STOP":
            self._since_s = at_s
        elif event == "RESUME" and self._since_s is not None:
            self.over.append((self._since_s, (at_s - self._since_s) * 1000))
            self._since_s = None


class Monitor:
    """One connection to one monitor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._gone = ""
        self.pauses = Pauses()
        self.events: list[str] = []

    async def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns. Raises GoneError."""
        if self._gone:
            raise GoneError(self._gone)
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        words = {"execute": command, "arguments": arguments, "id": number}
        self._writer.write(json.dumps(words).encode() + b"\n")
        try:
            return await asyncio.wait_for(answer, ANSWER_S_MAX)
        except TimeoutError:
            raise GoneError(f"QEMU has not answered {command} for {ANSWER_S_MAX:.0f} s") from None
        finally:
            self._answers.pop(number, None)

    async def read(self) -> None:
        """Take what QEMU says until it ends."""
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                self._take(json.loads(line))
        self._gone = "QEMU has ended"
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(GoneError(self._gone))

    def _take(self, said: dict[str, Any]) -> None:
        if "event" in said:
            stamp = said["timestamp"]
            self.events.append(said["event"])
            self.pauses.note(said["event"], stamp["seconds"] + stamp["microseconds"] / 1e6)
        answer = self._answers.get(said.get("id", 0))
        if answer is None or answer.done():
            return
        if "error" in said:
            answer.set_exception(GoneError(f"QEMU refuses: {said['error'].get('desc', said['error'])}"))
        else:
            answer.set_result(said.get("return"))


@contextlib.asynccontextmanager
async def monitor(path: Path) -> AsyncIterator[Monitor]:
    """A monitor that is listened to. Raises GoneError when there is none."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX)
    except OSError as problem:
        raise GoneError(f"QEMU's monitor can't be reached: {problem.strerror}") from None
    opened = Monitor(reader, writer)
    reading = asyncio.create_task(opened.read())
    try:
        await opened.execute("qmp_capabilities")
        yield opened
    finally:
        reading.cancel()
        writer.close()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await reading
