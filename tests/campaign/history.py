"""What the clients of registers saw, as the checker of linearizability wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from pycolo.demo.processes import LINE_BYTES_MAX
from pycolo.edge.namespaces import Namespace

from .linearizability import Operation, TooManyOrders, contradiction

HERE = Path(__file__)
TESTS, SOURCES = HERE.parents[1], HERE.parents[2] / "src"
READY_S_MAX = 20.0


class History:
    """Of the registers with one name. `errors`: what clients were told instead of an outcome."""

    def __init__(self, name: str = "") -> None:
        self._keys = f"{name}:"
        self.operations: dict[str, dict[str, Any]] = {}
        self.errors: list[str] = []

    def hear(self, line: dict[str, Any]) -> None:
        """A line of the program; what belongs to other registers is ignored."""
        if "store" in line:
            if line["key"].startswith(self._keys):
                self.operations[line["id"]] = line
        elif line["id"] in self.operations:
            self.operations[line["id"]].update(line)
            if "error" in line:
                self.errors.append(f"{line['id']}: {line['error']}")

    def answered(self, store: str, since_ms: float = 0.0) -> int:
        """How many operations on that store that began since then have an outcome."""
        ours = (line for line in self.operations.values() if line["store"] == store and "until_ms" in line)
        return sum(line["from_ms"] >= since_ms for line in ours)

    def contradictions(self, redis_until_ms: float = math.inf) -> list[str]:
        """What no order of the operations explains, in sentences. Redis forgets when its guest starts again: what was
        asked of it from then on is left out.
        """
        registers: dict[str, list[Operation]] = {}
        for line in self.operations.values():
            if line["store"] != "redis" or line["from_ms"] < redis_until_ms:
                registers.setdefault(f"{line['store']} {line['key']}", []).append(_operation(line))
        found = []
        for name, operations in sorted(registers.items()):
            try:
                why = contradiction(operations)
            except TooManyOrders as problem:
                why = str(problem)
            if why:
                found.append(f"{name}: {why}")
        return found


def _operation(line: dict[str, Any]) -> Operation:
    until_ms = line.get("until_ms", math.inf)
    done = line.get("done", True)
    return Operation(line["kind"], line["value"], line["from_ms"], until_ms, line["expected"], done, line["id"])


class RegisterClients:
    """The program, in the clients' namespace; dead when we are."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.history = History()
        self._begun = 0
        self._ready = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, namespace: Namespace, target: str, log: Path) -> RegisterClients:
        """Start it; its clients wait for the first round. Raises TimeoutError when the database does not answer."""
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *namespace.prefix()),
                *(sys.executable, "-m", "campaign.registers", target),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=LINE_BYTES_MAX,
                env=os.environ | {"PYTHONPATH": f"{SOURCES}:{TESTS}"},
                cwd="/",
            )
        clients = cls(process)
        try:
            await asyncio.wait_for(clients._ready.wait(), READY_S_MAX)
        except BaseException:
            await clients.close()
            raise
        return clients

    async def begin(self) -> History:
        """From now on operations go to registers that nobody has used yet; returns their history."""
        self._begun += 1
        name = f"r{self._begun}"
        self.history = History(name)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n".encode())
        await self._process.stdin.drain()
        return self.history

    async def close(self) -> None:
        """End it."""
        self._reader.cancel()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.history.hear(json.loads(line))
            self._ready.set()
