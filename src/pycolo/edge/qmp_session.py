"""A QMP connection on which every command ends in time.

Guaranteed: a command gives its answer, or raises VmLost with one sentence that names it. A missed deadline or
a broken connection is for good: it resolves `lost` with the reason, and every later command raises VmLost at
once. A refusal by QEMU (a QMP error) raises VmLost too but leaves the connection as it is. After VmLost or a
cancellation the command's outcome is unknown.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from pycolo.edge.patience import wait_for_first
from pycolo.edge.qmp_channel import Event, QmpChannel, Said, command_of
from pycolo.errors import VmLost

T = TypeVar("T")
Arguments = Mapping[str, object] | None

REASON_WAIT_S = 0.5
CLOSE_DEADLINE_S = 1.0


class QmpSession:
    """One QEMU's monitor; `lost` is resolved once, with the reason in one sentence."""

    def __init__(self, name: str, deadline_s: float) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._name = name
        self._deadline_s = deadline_s
        self._channel = QmpChannel(self._hear)
        self._listeners: list[Callable[[Event], None]] = []

    async def connect(self, channel: socket.socket, deadline_s: float) -> None:
        """Greeting and negotiation over a connected socket, taken over. VmLost as for a command."""
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=channel)
        greeting = await self._bounded("greeting", self._channel.greeting, deadline_s)
        # With it QEMU reads on while it carries out a command, and several can be sent at once.
        enabled = {"enable": ["oob"]} if "oob" in greeting.capabilities else None
        await self._answer("qmp_capabilities", self._send("qmp_capabilities", enabled), deadline_s)

    async def execute(self, command: str, arguments: Arguments = None) -> object:
        """The command's `return` value."""
        return await self._answer(command, self._send(command, arguments))

    async def execute_all(self, *commands: tuple[str, Arguments]) -> list[object]:
        """What they return, sent at once: QEMU keeps their order (docs/interop/qmp-spec, Issuing Commands).

        A command that QEMU refuses does not keep it from those behind it.
        """
        sent = [(command, self._send(command, arguments)) for command, arguments in commands]
        return [await self._answer(command, answer) for command, answer in sent]

    async def reset(self, *before: str) -> None:
        """The commands `before`, and a reset by `system_reset`, which has been done when QEMU says so.

        A guest that resets itself in the same moment says so as well.
        """
        done = asyncio.get_running_loop().create_future()

        def hear(event: Event) -> None:
            if event.name == "RESET" and not event.data.get("guest") and not done.done():
                done.set_result(None)

        with self._heard_by(hear):
            await self.execute_all(*((command, None) for command in (*before, "system_reset")))
            await self._bounded("system_reset", done)

    async def run_job(self, command: str, arguments: Mapping[str, object], job_id: str) -> str | None:
        """Start a job and wait until it has ended: the job's own error message, None when it went well.

        The job is dismissed behind it; where QEMU does not do that, it refuses the next one of that name.
        """
        job = _Job(job_id)
        with self._heard_by(job.hear):
            await self.execute(command, {"job-id": job_id, **arguments})
            await self._bounded(command, job.ended)
        error = _error_of(job_id, await self.execute("query-jobs")) if job.failed else None
        self._send("job-dismiss", {"id": job_id})
        return error

    def notice(self, listener: Callable[[Event], None]) -> None:
        """`listener` is told of every event from now on, before any answer that QEMU gives after it."""
        self._listeners.append(listener)

    def lose(self, reason: str) -> None:
        """Nothing more can be expected of this QEMU. Only the first reason counts."""
        if not self.lost.done():
            self.lost.set_result(reason)

    async def watch(self) -> None:
        """Runs until the connection ends, and reports that as a loss unless a better reason comes first."""
        await self._reason(await asyncio.shield(self._channel.ended))

    async def close(self) -> None:
        """Ends the connection, which may have ended long before. Never fails."""
        self.lose(f"QEMU {self._name} was given up")
        if self._channel.close():
            await asyncio.wait({self._channel.ended}, timeout=CLOSE_DEADLINE_S)

    def _hear(self, event: Event) -> None:
        for listener in tuple(self._listeners):
            listener(event)

    @contextlib.contextmanager
    def _heard_by(self, listener: Callable[[Event], None]) -> Iterator[None]:
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _send(self, command: str, arguments: Arguments = None) -> asyncio.Future[Said]:
        if self.lost.done():
            raise VmLost(self.lost.result())
        return self._channel.send(command_of(command, arguments))

    async def _answer(self, command: str, answer: asyncio.Future[Said], deadline_s: float | None = None) -> object:
        said = await self._bounded(command, answer, deadline_s)
        if said.error is not None:
            raise VmLost(f"QEMU {self._name} refused {command}: {said.error.desc}")
        return said.result

    async def _bounded(self, what: str, answer: asyncio.Future[T], deadline_s: float | None = None) -> T:
        """The answer, unless the deadline or the end of QEMU comes first."""
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        await wait_for_first((answer, self.lost, self._channel.ended), limit_s)
        if answer.done() and not answer.cancelled():
            return answer.result()
        if self._channel.ended.done():
            raise VmLost(await self._reason(f"{self._channel.ended.result()} at {what}"))
        self.lose(f"QEMU {self._name} did not answer {what} within {limit_s:g} s")
        raise VmLost(self.lost.result())

    async def _reason(self, otherwise: str) -> str:
        """Why QEMU is lost: a moment later its end is known, and with it the last line of its log."""
        await asyncio.wait({self.lost}, timeout=REASON_WAIT_S)
        self.lose(f"QEMU {self._name} {otherwise}")
        return self.lost.result()


class _Job:
    """What QEMU says of one job (qapi/job.json, JobStatus): one that fails is `aborting` before it is `concluded`."""

    def __init__(self, job_id: str) -> None:
        self.failed = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._id = job_id

    def hear(self, event: Event) -> None:
        if event.name != "JOB_STATUS_CHANGE" or event.data.get("id") != self._id:
            return
        status = event.data.get("status")
        self.failed |= status == "aborting"
        if status == "concluded" and not self.ended.done():
            self.ended.set_result(None)


def _error_of(job_id: str, jobs: object) -> str:
    """That failed job's error in the answer to `query-jobs`."""
    for job in jobs if isinstance(jobs, list) else []:
        if isinstance(job, dict) and job.get("id") == job_id and job.get("error") is not None:
            return str(job["error"])
    return "QEMU does not say why the job failed"
