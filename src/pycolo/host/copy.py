"""One VM copy on this host: its manager process, its folder, and what it reports.

Guarantees: the process dies with this daemon (the kernel sees to it); what it said last is kept when it is gone, with
its exit status and reason; every wait has a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycolo.api import Client
from pycolo.config import CopyConfig, CopyDocument
from pycolo.edge.logs import begin_log, bound_log, last_line
from pycolo.edge.processes import send_signal
from pycolo.edge.replace_file import replace_file
from pycolo.errors import EnvironmentFault, PycoloError, WrongState
from pycolo.events import EventLog
from pycolo.host.counters import Counters
from pycolo.host.record import Record

STOP_S_MAX = 60.0  # what is committed goes to the images
POLL_S = 0.25
SILENT_S_MAX = 5.0
LOG_NAME = "manager.log"
POLL_AT_ONCE = {"decision", "solo", "paired", "peer-lost", "listening", "started", "running", "ended"}


class Copy:
    """A VM of this host's table; `process` is None while no copy of it runs here.

    `offer` is the number of the offer by which another host has its secondary here; `asked` the host that was asked
    last to hold ours, and the number of that offer; `latest` the manager's newest event of each kind; `unprotected_why`
    what keeps the VM from having a second copy.
    """

    def __init__(self, record: Record, folder: Path, host_name: str) -> None:
        self.record, self.folder = record, folder
        self.events = EventLog(host_name, record.vm.name)
        self.counters = Counters()
        self.process: asyncio.subprocess.Process | None = None
        self.status: dict[str, Any] = {}
        self.since_s = time.time()
        self.taps: tuple[str, ...] = ()
        self.offer = ""
        self.asked: tuple[str, str] | None = None
        self.latest: dict[str, dict[str, Any]] = {}
        self.unprotected_why = ""
        self.on_change: Callable[[Copy], None] = lambda _: None
        self._silent = False
        self._heard_s = 0.0
        self._last: tuple[str, str] = ("", "")
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._poll = asyncio.Event()
        self._client: Client | None = None

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.record.vm.name

    @property
    def running(self) -> bool:
        """Whether a process runs the copy."""
        return self.process is not None

    @property
    def role(self) -> str:
        """As the manager says, which may become primary during its life."""
        return str(self.status.get("role", self.record.role)) if self.running else self.record.role

    @property
    def state(self) -> str:
        """The manager's; "starting" before it says one, "silent" when it says none any more, "stopped" without it."""
        if not self.running:
            return "stopped"
        return "silent" if self._silent else self.last_state

    @property
    def last_state(self) -> str:
        """What the manager said last, however long ago."""
        return str(self.status.get("state", "starting"))

    @property
    def reason(self) -> str:
        """Why it is in this state, in a sentence."""
        if self.running and self._silent:
            return f"its process does not answer for {SILENT_S_MAX:.0f} s: see `colo logs {self.name}`"
        if self.running:
            reason = str(self.status.get("reason", "the copy is being started"))
            return f"{reason}; {self.unprotected_why}" if self.unprotected_why and self.state == "solo" else reason
        return self.record.ended or "no copy runs here"

    # ---- life

    async def start(self, config: CopyConfig, *, no_copy_lives: bool = False, older_disk: bool = False) -> None:
        """Start the manager process; how it goes on is seen in `status`. Raises EnvironmentFault."""
        record = self.record
        document = CopyDocument(
            host=config, vm=record.vm, role=record.role, no_copy_lives=no_copy_lives, older_disk=older_disk
        )
        path = self.folder / "copy.json"
        record.ended, record.exit_status = "", None
        record.save(self.folder)
        try:
            replace_file(path, document.model_dump_json().encode())
            log = begin_log(self.folder / LOG_NAME)
        except OSError as problem:
            raise EnvironmentFault(
                f"{self.folder} can't be written ({problem.strerror}): make room in `state_dir`"
            ) from None
        try:
            self.process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "pycolo.manager", str(path)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the daemon, which ends its copies in order
                cwd="/",
            )
        finally:
            os.close(log)
        self.taps, self.status, self.asked = config.taps, {}, None
        self.latest, self.unprotected_why, self._silent = {}, "", False
        self.counters.begin(record.role)
        self._client = Client(self.folder)
        self._tasks = [asyncio.create_task(work) for work in (self._poll_status(), self._poll_events())]
        self._tasks.append(asyncio.create_task(self._wait_for_end(self.process)))
        self._noted()

    async def stop(self) -> None:
        """End the manager in good order, or by force when it takes too long."""
        process = self.process
        if process is None:
            return
        send_signal(process, signal.SIGTERM)
        await self._gone(process)

    async def kill(self) -> None:
        """SIGKILL, as a real death: what the manager owns dies with it."""
        if self.process is not None:
            send_signal(self.process, signal.SIGKILL)
            await self._gone(self.process)

    async def _gone(self, process: asyncio.subprocess.Process) -> None:
        if not await self.until(lambda: self.process is not process, STOP_S_MAX):
            send_signal(process, signal.SIGKILL)
            await self.until(lambda: self.process is not process, STOP_S_MAX)

    # ---- asking

    def manager(self) -> Client:
        """Who carries out commands. Raises WrongState when no copy runs here."""
        if self._client is None:
            raise WrongState(f"no copy of {self.name} runs on this host: {self.reason}")
        return self._client

    async def until(self, condition: Callable[[], Any], wait_s: float) -> bool:
        """Wait until the condition holds; it is looked at whenever something changes. False when the time is over."""
        deadline = time.monotonic() + wait_s
        while not condition():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            news = self._news
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):  # unlike wait_for of Python 3.11, it never swallows a cancellation
                    await news.wait()
        return True

    def note(self, kind: str, **fields: Any) -> None:
        """An event of the host's own about this VM."""
        self.events.add(kind, **fields)
        self._noted()

    # ---- hearing

    async def _poll_status(self) -> None:
        while True:
            client = self._client
            assert client is not None
            try:
                async with asyncio.timeout(SILENT_S_MAX):
                    self._see(await client.status())
            except (PycoloError, TimeoutError):
                self._hear_nothing()
            with contextlib.suppress(OSError):
                bound_log(self.folder / LOG_NAME)
            self._poll.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._poll.wait()

    def _hear_nothing(self) -> None:
        """A process that has spoken once and hangs now is no longer what it said."""
        if self.status and not self._silent and time.monotonic() - self._heard_s > SILENT_S_MAX:
            self._silent = True
            self.note("copy-silent", reason=self.reason)

    def _see(self, status: dict[str, Any]) -> None:
        self.status, self._silent, self._heard_s = status, False, time.monotonic()
        self.counters.see(status)
        self._noted()

    async def _poll_events(self) -> None:
        client, last_no = self._client, 0
        assert client is not None
        while True:
            try:
                for event in await client.events(last_no):
                    last_no = event["no"]
                    self._hear(event)
            except PycoloError:  # it is not there yet, or no more
                await asyncio.sleep(POLL_S / 5)

    def _hear(self, event: dict[str, Any]) -> None:
        self.latest[event["kind"]] = event
        self.counters.feed(event)
        self.events.relay(event)
        if event["kind"] in POLL_AT_ONCE:
            self._poll.set()
        self._noted()

    async def _wait_for_end(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        pollers, client = self._tasks[:2], self._client
        for poller in pollers:
            poller.cancel()
        await asyncio.gather(*pollers, return_exceptions=True)
        if client is not None:
            await client.close()
        last_reason = str(self.status.get("reason", ""))
        said = last_line(self.folder / LOG_NAME, "colo: ")
        killed = f"it was killed by signal {-code}" if code < 0 else "it was stopped"
        self.record.ended = said or (last_reason if code == 0 and last_reason else killed)
        self.record.exit_status = code
        self.record.role = "primary" if self.role == "primary" else "secondary"
        self.process, self._client, self.status = None, None, {}
        self.events.add("copy-ended", exit_status=code, reason=self.record.ended)
        self.save()
        self._noted()

    def change_role(self) -> None:
        """A secondary has taken over: who asked whom for the second copy turns round with it."""
        self.record.role, self.asked, self.offer = "primary", (self.record.partner, self.offer), ""
        self.save()

    def save(self) -> None:
        """Write the record; a VM goes on when the host's disk is full."""
        try:
            self.record.save(self.folder)
        except EnvironmentFault as problem:
            self.events.add("record-not-written", reason=str(problem))

    def _noted(self) -> None:
        """Something changed: whoever waits looks again."""
        now = (self.role, self.state)
        if now != self._last:
            self._last, self.since_s = now, time.time()
        self._news.set()
        self._news = asyncio.Event()
        self.on_change(self)

    async def close(self) -> None:
        """End everything of it, for good."""
        await self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
