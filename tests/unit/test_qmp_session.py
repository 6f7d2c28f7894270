"""QEMU's monitor on the wire: what is told ahead, whose answer is whose, and how a bad peer ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.edge import qmp_session
from pycolo.edge.qmp_channel import LINE_BYTES_MAX, Event
from pycolo.edge.qmp_session import QmpSession
from pycolo.errors import VmLost

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}


class Monitor:
    """QEMU's end: takes whole commands, and knows what has been said of the next one."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.ahead = b""

    async def commands(self) -> list[dict[str, Any]]:
        """All that have come whole since the last time."""
        await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):
            self.ahead += self._end.recv(1 << 16)
        whole = []
        decoder = json.JSONDecoder()
        while self.ahead:
            try:
                command, length = decoder.raw_decode(self.ahead.decode())
            except json.JSONDecodeError:
                break
            whole.append(command)
            self.ahead = self.ahead[length:]
        return whole

    def say(self, *said: object) -> None:
        """Lines, each a message, or bytes as they are."""
        for each in said:
            self._end.sendall(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\r\n")

    async def answer(self, *values: object) -> list[str]:
        """Answer the next commands, each with its value; returns their names."""
        names: list[str] = []
        for command in await self.commands():
            if command["execute"].endswith("-not"):
                self.say({"id": command["id"], "error": {"class": "CommandNotFound", "desc": "no such command"}})
            else:
                self.say({"id": command["id"], "return": values[len(names) % len(values)] if values else {}})
                names.append(command["execute"])
        return names


@contextlib.asynccontextmanager
async def connected(deadline_s: float = 5.0) -> AsyncIterator[tuple[QmpSession, Monitor]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    session, monitor = QmpSession("web", deadline_s), Monitor(theirs)
    with theirs:
        connecting = asyncio.ensure_future(session.connect(ours, 5.0))
        monitor.say(GREETING)
        while not connecting.done():
            for command in await monitor.commands():
                assert command["arguments"] == {"enable": ["oob"]}
                monitor.say({"id": command["id"], "return": {}})
        await connecting
        try:
            yield session, monitor
        finally:
            await session.close()


async def carried_out(session: QmpSession, monitor: Monitor, command: str) -> list[str]:
    """Execute one; returns what the monitor was asked for."""
    executing = asyncio.ensure_future(session.execute(command))
    await asyncio.sleep(0)
    names = await monitor.answer()
    await executing
    return names


async def test_a_command_that_follows_as_the_last_time_is_told_ahead_but_for_its_end() -> None:
    async with connected() as (session, monitor):
        for command in ("stop", "save", "cont"):
            assert await carried_out(session, monitor, command) == [command]
        assert monitor.ahead == b""  # what comes after `cont` nobody knows yet
        for command, following in (("stop", "save"), ("save", "cont"), ("cont", "stop"), ("stop", "save")):
            told = monitor.ahead
            assert await carried_out(session, monitor, command) == [command]
            assert command.encode() in told or command == "stop"
            assert monitor.ahead.endswith(b'"execute":"' + following.encode())


async def test_what_was_told_ahead_is_called_off_by_another_command() -> None:
    async with connected() as (session, monitor):
        for command in ("stop", "cont", "stop"):
            await carried_out(session, monitor, command)
        assert b"cont" in monitor.ahead
        executing = asyncio.ensure_future(session.execute("query-status"))
        await asyncio.sleep(0)
        called_off, wanted = await monitor.commands()
        assert (called_off["execute"], wanted["execute"]) == ("cont-not", "query-status")
        monitor.say({"id": called_off["id"], "error": {"class": "CommandNotFound", "desc": "no such command"}})
        monitor.say({"id": wanted["id"], "return": {"status": "paused"}})
        assert await executing == {"status": "paused"}


COMMANDS = st.tuples(st.sampled_from(["stop", "cont", "save", "load"]), st.sampled_from([None, {"tag": "a"}]))


@given(script=st.lists(st.lists(COMMANDS, min_size=1, max_size=3), max_size=12))
def test_every_command_is_carried_out_once_in_its_order_and_has_its_own_answer(
    script: list[list[tuple[str, dict[str, str] | None]]],
) -> None:
    async def run() -> None:
        async with connected() as (session, monitor):
            for at_once in script:
                executing = asyncio.ensure_future(session.execute_all(*at_once))
                await asyncio.sleep(0)
                wanted = [c for c in await monitor.commands() if not c["execute"].endswith("-not")]
                assert [(c["execute"], c.get("arguments")) for c in wanted] == at_once
                for number, command in reversed(list(enumerate(wanted))):
                    monitor.say({"id": command["id"], "return": number})
                assert await executing == list(range(len(at_once)))

    asyncio.run(run())


async def test_a_refusal_is_said_and_the_connection_stays() -> None:
    async with connected() as (session, monitor):
        executing = asyncio.ensure_future(session.execute("cont"))
        await asyncio.sleep(0)
        (command,) = await monitor.commands()
        monitor.say({"id": command["id"], "error": {"class": "GenericError", "desc": "the VM is not there"}})
        with pytest.raises(VmLost, match="QEMU web refused cont: the VM is not there"):
            await executing
        assert await carried_out(session, monitor, "stop") == ["stop"]
        assert not session.lost.done()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"nonsense\n", "says what nobody understands"),
        (b'{"event": 3}\n', "says what nobody understands"),
        (b"\xff\n", "says what nobody understands"),
        (b"[" * 100_000 + b"\n", "says what nobody understands"),
        (b'{"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}\n', "did not understand a command"),
    ],
)
async def test_a_monitor_that_talks_nonsense_is_lost(said: bytes, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp_session, "REASON_WAIT_S", 0.0)
    async with connected() as (session, monitor):
        executing = asyncio.ensure_future(session.execute("stop"))
        await asyncio.sleep(0)
        monitor.say(said)
        with pytest.raises(VmLost, match=f"QEMU web {why}.* at stop"):
            await executing
        with pytest.raises(VmLost, match=why):
            await session.execute("cont")


async def test_a_line_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp_session, "REASON_WAIT_S", 0.0)
    async with connected() as (session, monitor):
        watching = asyncio.ensure_future(session.watch())
        monitor._end.setblocking(True)
        with contextlib.suppress(ConnectionError):
            await asyncio.to_thread(monitor.say, b"x" * (2 * LINE_BYTES_MAX))
        await asyncio.wait_for(watching, 5)
        assert session.lost.result() == "QEMU web says too much at a time"


async def test_the_end_of_the_connection_is_told_with_the_better_reason() -> None:
    async with connected() as (session, monitor):
        watching = asyncio.ensure_future(session.watch())
        executing = asyncio.ensure_future(session.execute("stop"))
        await asyncio.sleep(0)
        monitor._end.close()
        await asyncio.sleep(0.05)
        session.lose("QEMU web was killed by signal 9")
        with pytest.raises(VmLost, match="signal 9"):
            await executing
        await asyncio.wait_for(watching, 5)


async def test_a_missed_deadline_is_for_good_and_its_late_answer_nobodys() -> None:
    async with connected(deadline_s=0.01) as (session, monitor):
        with pytest.raises(VmLost, match=r"did not answer status within 0\.01 s"):
            await session.execute("status")
        await monitor.answer()
        await asyncio.sleep(0.01)
        with pytest.raises(VmLost, match="did not answer status"):
            await session.execute("cont")


async def test_events_come_before_the_answer_that_follows_them() -> None:
    async with connected() as (session, monitor):
        heard: list[Event] = []
        session.notice(heard.append)
        executing = asyncio.ensure_future(session.execute("stop"))
        await asyncio.sleep(0)
        monitor.say({"event": "STOP", "timestamp": {"seconds": 7, "microseconds": 500000}})
        await monitor.answer()
        await executing
        assert heard == [Event("STOP", {}, 7.5)]


def status_of(job: str, *statuses: str) -> list[object]:
    return [{"event": "JOB_STATUS_CHANGE", "data": {"id": job, "status": status}} for status in statuses]


@pytest.mark.parametrize(
    ("jobs", "error"),
    [
        ([{"id": "other", "error": "x"}, {"id": "t", "error": "no such tag"}], "no such tag"),
        ([{"id": "t"}], "QEMU does not say why the job failed"),
        ({}, "QEMU does not say why the job failed"),
    ],
)
async def test_a_job_that_fails_says_why_and_is_dismissed(jobs: object, error: str) -> None:
    async with connected() as (session, monitor):
        running = asyncio.ensure_future(session.run_job("snapshot-load", {"tag": "t"}, "t"))
        await asyncio.sleep(0)
        assert await monitor.answer() == ["snapshot-load"]
        monitor.say(*status_of("other", "aborting", "concluded"), *status_of("t", "running", "aborting", "concluded"))
        names: list[str] = []
        while not running.done():
            names += await monitor.answer(jobs)
        assert await running == error
        assert [*names, *await monitor.answer()] == ["query-jobs", "job-dismiss"]


async def test_a_job_that_goes_well_is_dismissed_unasked() -> None:
    async with connected() as (session, monitor):
        running = asyncio.ensure_future(session.run_job("snapshot-load", {"tag": "t"}, "t"))
        await asyncio.sleep(0)
        monitor.say(*status_of("t", "created", "running", "concluded"))
        await monitor.answer()
        assert await running is None
        assert await monitor.answer() == ["job-dismiss"]


async def test_a_reset_is_over_when_it_has_been_done() -> None:
    async with connected() as (session, monitor):
        resetting = asyncio.ensure_future(session.reset("stop"))
        await asyncio.sleep(0)
        assert await monitor.answer() == ["stop", "system_reset"]
        monitor.say({"event": "RESET", "data": {"guest": True, "reason": "guest-reset"}})
        await asyncio.sleep(0.01)
        assert not resetting.done()
        monitor.say({"event": "RESET", "data": {"guest": False, "reason": "host-qmp-system-reset"}})
        await asyncio.wait_for(resetting, 5)


async def test_nothing_can_be_asked_before_there_is_a_connection() -> None:
    session = QmpSession("web", 0.01)
    with pytest.raises(VmLost, match="did not answer stop"):
        await session.execute("stop")
    await session.close()
