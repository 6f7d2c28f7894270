"""A QMP connection on which every command ends in time.

Guaranteed: a command gives its answer, or raises VmLost with one sentence that names it. A missed deadline or
a broken connection is for good: it resolves `lost` with the reason, and every later command raises VmLost at
once. A refusal by QEMU (a QMP error) raises VmLost too but leaves the connection as it is. After VmLost or a
cancellation the command's outcome is unknown.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from pycolo.edge.patience import wait_for_first
from pycolo.errors import VmLost

T = TypeVar("T")

REASON_WAIT_S = 0.5
CLOSE_DEADLINE_S = 1.0
# The last three come out of the library as they are: no UTF-8, nested too deep, and gone right behind the greeting.
_BROKEN = (QMPError, OSError, EOFError, UnicodeDecodeError, RecursionError, AssertionError)


class QmpSession:
    """One QEMU's monitor; `lost` is resolved once, with the reason in one sentence."""

    def __init__(self, name: str, deadline_s: float) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._name = name
        self._deadline_s = deadline_s
        self._client = _QuietClient(name)
        self._numbers = itertools.count(1)

    async def connect(self, channel: socket.socket, deadline_s: float) -> None:
        """Greeting and negotiation over a connected socket, taken over. VmLost as for a command."""
        await self._bounded("greeting", self._client.connect(channel), deadline_s)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """The command's `return` value."""
        return await self._bounded(command, self._client.execute(command, arguments))

    async def execute_all(self, *commands: tuple[str, Mapping[str, object] | None]) -> list[object]:
        """What they return, sent at once: QEMU keeps their order (docs/interop/qmp-spec, Issuing Commands).

        A command that QEMU refuses does not keep it from those behind it.
        """
        return await asyncio.gather(*(self.execute(command, arguments) for command, arguments in commands))

    async def reset(self, *before: str) -> None:
        """The commands `before`, and a reset by `system_reset`, which has been done when QEMU says so.

        A guest that resets itself in the same moment says so as well.
        """
        done = EventListener("RESET", _is_by_command)
        with self._client.listen(done):
            await self.execute_all(*((command, None) for command in (*before, "system_reset")))
            await self._bounded("system_reset", done.get())

    async def run_job(self, command: str, arguments: Mapping[str, object]) -> str | None:
        """Start a job, wait until it has ended, dismiss it: the job's own error message, None when it went
        well.
        """
        job_id = f"{command}-{next(self._numbers)}"
        ended = _JobEnded(job_id)
        with self._client.listen(ended):
            await self.execute(command, {**arguments, "job-id": job_id})
            await self._bounded(command, ended.get())
        jobs, _ = await self.execute_all(("query-jobs", None), ("job-dismiss", {"id": job_id}))
        return _error_of(job_id, jobs)

    def notice(self, listener: EventListener) -> None:
        """`listener.accept` sees every event from now on, before any answer that QEMU gives after it."""
        self._client.register_listener(listener)

    def lose(self, reason: str) -> None:
        """Nothing more can be expected of this QEMU. Only the first reason counts."""
        if not self.lost.done():
            self.lost.set_result(reason)

    async def watch(self) -> None:
        """Runs until the connection ends, and reports that as a loss unless a better reason comes first."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        await self._reason("its QMP connection broke")

    async def close(self) -> None:
        """Ends the connection, which may have ended long before. Never fails."""
        self.lose(f"QEMU {self._name} was given up")
        if self._client.runstate is Runstate.IDLE:
            return
        with contextlib.suppress(TimeoutError, *_BROKEN):
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await self._client.disconnect()

    async def _bounded(self, what: str, answer: Coroutine[Any, Any, T], deadline_s: float | None = None) -> T:
        """The answer, unless the deadline or the end of QEMU comes first."""
        if self.lost.done():
            answer.close()
            raise VmLost(self.lost.result())
        task = asyncio.ensure_future(answer)
        task.add_done_callback(_taken_note_of)
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        try:
            await wait_for_first((task, self.lost), limit_s)
            if task.done():
                return task.result()
        except ExecuteError as refusal:
            raise VmLost(f"QEMU {self._name} refused {what}: {refusal}") from refusal
        except _BROKEN as problem:
            raise VmLost(await self._reason(f"its QMP connection broke at {what}")) from problem
        finally:
            task.cancel()
        self.lose(f"QEMU {self._name} did not answer {what} within {limit_s:g} s")
        raise VmLost(self.lost.result())

    async def _reason(self, otherwise: str) -> str:
        """Why QEMU is lost: a moment later its end is known, and with it the last line of its log."""
        await asyncio.wait({self.lost}, timeout=REASON_WAIT_S)
        self.lose(f"QEMU {self._name} is lost: {otherwise}")
        return self.lost.result()


def _taken_note_of(task: asyncio.Future[Any]) -> None:
    """What an answer that nobody waits for any more ends with is no news: a reason has been given."""
    if not task.cancelled():
        task.exception()


class _QuietClient(QMPClient):
    """A client that runs for years: it neither formats each message for the log nor keeps every event it ever
    got.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.events.names = {"no event has this name"}

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class _JobEnded(EventListener):
    """Hears when one job has ended, well or badly."""

    def __init__(self, job_id: str) -> None:
        super().__init__("JOB_STATUS_CHANGE")
        self._ended = {"id": job_id, "status": "concluded"}

    def accept(self, event: Message) -> bool:
        return super().accept(event) and event.get("data") == self._ended


def _is_by_command(reset: Message) -> bool:
    data = reset["data"]
    return isinstance(data, dict) and not data.get("guest")


def _error_of(job_id: str, jobs: object) -> str | None:
    """That job's error in the answer to `query-jobs`; an answer without the job is an error as well."""
    for job in jobs if isinstance(jobs, list) else []:
        if isinstance(job, dict) and job.get("id") == job_id:
            error = job.get("error")
            return None if error is None else str(error)
    return "QEMU does not know the job any more"
