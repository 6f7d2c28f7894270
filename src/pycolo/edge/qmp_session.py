"""A QMP connection on which every command ends in time.

Guaranteed: a command gives its answer, or raises VmLost with one sentence that names it. A missed deadline or
a broken connection is for good: it resolves `lost` with the reason, and every later command raises VmLost at
once. A refusal by QEMU (a QMP error) raises VmLost too but leaves the connection as it is. After VmLost or a
cancellation the command's outcome is unknown.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        self._jobs_left = 0  # begun and not dismissed

    async def connect(self, channel: socket.socket, deadline_s: float) -> None:
        """Greeting and negotiation over a connected socket, taken over. VmLost as for a command."""
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=channel)
        negotiation = asyncio.ensure_future(self._negotiate())
        try:
            (said,) = await self._bounded([("greeting", negotiation)], deadline_s)
        finally:
            negotiation.cancel()
        self._result_of("qmp_capabilities", said)

    async def execute(self, command: str, arguments: Arguments = None) -> object:
        """The command's `return` value."""
        (said,) = await self._bounded([(command, self._send(command, arguments))])
        return self._result_of(command, said)

    async def execute_all(self, *commands: tuple[str, Arguments]) -> list[object]:
        """What they return, sent at once: QEMU keeps their order (docs/interop/qmp-spec, Issuing Commands).

        A command that QEMU refuses does not keep it from those behind it.
        """
        sent = [(command, self._send(command, arguments)) for command, arguments in commands]
        said = await self._bounded(sent)
        return [self._result_of(command, answer) for (command, _), answer in zip(commands, said, strict=True)]

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
            await self._bounded([("system_reset", done)])

    async def run_job(self, command: str, arguments: Mapping[str, object], name: str) -> str | None:
        """Start a job, wait until it has ended, dismiss it: the job's own error message, None when it went well.

        Jobs of one `name` have one id, as commands that are the same each time are told ahead, until one of them has
        not come to its end here: it may still be under way, so that QEMU would refuse another of its id.
        """
        job = _Job(f"{name}-{self._jobs_left}" if self._jobs_left else name)
        self._jobs_left += 1
        with self._heard_by(job.hear):
            await self.execute(command, {"job-id": job.id, **arguments})
            await self._bounded([(command, job.ended)])
        error = _error_of(job.id, await self.execute("query-jobs")) if job.failed else None
        # Its answer is waited for as what the job has left to be done later is done by then, too.
        await self.execute("job-dismiss", {"id": job.id})
        self._jobs_left -= 1
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
        self.notice(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _send(self, command: str, arguments: Arguments = None) -> asyncio.Future[Said]:
        if self.lost.done():
            raise VmLost(self.lost.result())
        return self._channel.send(command_of(command, arguments))

    async def _negotiate(self) -> Said:
        greeting = await self._channel.greeting
        # With it QEMU reads on while it carries out a command, and several can be sent at once.
        enabled = {"enable": ["oob"]} if "oob" in greeting.capabilities else None
        return await self._channel.send(command_of("qmp_capabilities", enabled))

    def _result_of(self, command: str, said: Said) -> object:
        if said.error is not None:
            raise VmLost(f"QEMU {self._name} refused {command}: {said.error.desc}")
        return said.result

    async def _bounded(
        self, awaited: Sequence[tuple[str, asyncio.Future[T]]], deadline_s: float | None = None
    ) -> list[T]:
        """What comes of all of them, unless the deadline or the end of QEMU comes first."""
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        answers = [answer for _, answer in awaited]
        everything = answers[0] if len(answers) == 1 else asyncio.gather(*answers, return_exceptions=True)
        await wait_for_first((everything, self.lost, self._channel.ended), limit_s)
        missing = [what for what, answer in awaited if not answer.done() or answer.cancelled()]
        if not missing:
            return [answer.result() for answer in answers]
        if self._channel.ended.done():
            raise VmLost(await self._reason(f"{self._channel.ended.result()} at {missing[0]}"))
        self.lose(f"QEMU {self._name} did not answer {missing[0]} within {limit_s:g} s")
        raise VmLost(self.lost.result())

    async def _reason(self, otherwise: str) -> str:
        """Why QEMU is lost: a moment later its end is known, and with it the last line of its log."""
        await asyncio.wait({self.lost}, timeout=REASON_WAIT_S)
        self.lose(f"QEMU {self._name} {otherwise}")
        return self.lost.result()


class _Job:
    """What QEMU says of one job (qapi/job.json, JobStatus): one that fails is `aborting` before it is `concluded`."""

    def __init__(self, job_id: str) -> None:
        self.id = job_id
        self.failed = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(self, event: Event) -> None:
        if event.name != "JOB_STATUS_CHANGE" or event.data.get("id") != self.id:
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
