"""QEMU's monitor on the wire: what is told ahead, whose answer is whose, and how a bad peer ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.edge import qmp_session
from pycolo.edge.patience import wait_for_first
from pycolo.edge.qmp_channel import FOLLOWED_MAX, LINE_BYTES_MAX, Event
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
            assert command.encode() in told or told == b""  # the first `stop` was not told
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
                asked = await monitor.commands()
                wanted = [c for c in asked if not c["execute"].endswith("-not")]
                for command in (c for c in asked if c not in wanted):
                    monitor.say({"id": command["id"], "error": {"class": "CommandNotFound", "desc": "no such command"}})
                assert [(c["execute"], c.get("arguments")) for c in wanted] == at_once
                assert await monitor.commands() == []  # what is told ahead is not whole
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
        (b'{"event": "X", "timestamp": {"seconds": %s}}\n' % (b"9" * 400), "says what nobody understands"),
        (b'{"id": 2}\n', "says what nobody understands .neither an event nor an answer"),
        (b'{"return": 1}\n', "says what nobody understands .an answer without a number"),
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


async def test_a_missed_deadline_is_for_good() -> None:
    async with connected(deadline_s=0.01) as (session, monitor):
        with pytest.raises(VmLost, match=r"did not answer status within 0\.01 s"):
            await session.execute("status")
        await monitor.answer()
        with pytest.raises(VmLost, match="did not answer status"):
            await session.execute("cont")


async def test_commands_sent_at_once_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(deadline_s=0.2) as (session, monitor):
        limits_s: list[float] = []

        async def noted(futures: Iterable[asyncio.Future[Any]], limit_s: float) -> None:
            limits_s.append(limit_s)
            await wait_for_first(futures, limit_s)

        monkeypatch.setattr(qmp_session, "wait_for_first", noted)
        executing = asyncio.ensure_future(session.execute_all(("stop", None), ("cont", None)))
        await asyncio.sleep(0)
        stop, _ = await monitor.commands()
        monitor.say({"id": stop["id"], "return": {}})
        with pytest.raises(VmLost, match=r"did not answer cont within 0\.2 s"):
            await executing
        assert limits_s == [0.2]


async def test_the_answer_to_a_command_that_was_cancelled_is_nobodys() -> None:
    async with connected() as (session, monitor):
        given_up = asyncio.ensure_future(session.execute("query-status"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait((given_up,))
        executing = asyncio.ensure_future(session.execute("query-name"))
        await asyncio.sleep(0)
        assert await monitor.answer("the late one", "its own") == ["query-status", "query-name"]
        assert await executing == "its own"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "QEMU web did not answer greeting within 0.2 s"),
        (b'{"QMP": {"capabilities": []}}\r\n', "QEMU web did not answer greeting within 0.2 s"),
        (b'{"QMP": {}}\r\n{"id": 1, "error": {"desc": "no"}}\r\n', "QEMU web did not answer greeting"),
        (b'{"QMP": 3}\r\n', "QEMU web says what nobody understands .* at greeting"),
        (None, "QEMU web has ended its QMP connection at greeting"),
    ],
)
async def test_a_connection_that_does_not_come_about_says_why(
    said: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp_session, "REASON_WAIT_S", 0.0)
    ours, theirs = socket.socketpair()
    session = QmpSession("web", 5.0)
    ours.setblocking(False)
    with theirs:
        if said is None:
            theirs.shutdown(socket.SHUT_RDWR)
        else:
            theirs.sendall(said)
        with pytest.raises(VmLost, match=why):
            await session.connect(ours, 0.2)
        await session.close()


async def test_a_negotiation_that_is_refused_is_told() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    session, monitor = QmpSession("web", 5.0), Monitor(theirs)
    with theirs:
        connecting = asyncio.ensure_future(session.connect(ours, 5.0))
        monitor.say({"QMP": {"capabilities": []}})
        while not (asked := await monitor.commands()):
            pass
        assert asked == [{"id": 1, "execute": "qmp_capabilities"}]
        monitor.say({"id": 1, "error": {"class": "GenericError", "desc": "not now"}})
        with pytest.raises(VmLost, match="QEMU web refused qmp_capabilities: not now"):
            await connecting
        await session.close()


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


async def job(session: QmpSession, monitor: Monitor, name: str) -> tuple[str | None, list[dict[str, Any]]]:
    """Run one that goes well; its error, and what the monitor was asked for."""
    running = asyncio.ensure_future(session.run_job("snapshot-load", {"tag": "t"}, name))
    asked: list[dict[str, Any]] = []
    while not running.done():
        for command in await monitor.commands():
            if command["execute"].endswith("-not"):
                continue
            asked.append(command)
            monitor.say({"id": command["id"], "return": {}})
            if command["execute"] == "snapshot-load":
                monitor.say(*status_of(command["arguments"]["job-id"], "created", "running", "concluded"))
    return await running, asked


async def test_jobs_of_one_name_are_told_ahead_and_each_is_dismissed() -> None:
    async with connected() as (session, monitor):
        for turn in range(3):
            assert (b"snapshot-load" in monitor.ahead) == (turn > 1)
            error, asked = await job(session, monitor, "t")
            assert error is None
            assert [command["execute"] for command in asked] == ["snapshot-load", "job-dismiss"]
            assert asked[0]["arguments"]["job-id"] == asked[1]["arguments"]["id"] == "t"


async def test_a_job_that_was_given_up_does_not_stand_in_the_way_of_the_next() -> None:
    async with connected() as (session, monitor):
        given_up = asyncio.ensure_future(session.run_job("snapshot-load", {"tag": "t"}, "t"))
        await asyncio.sleep(0)
        await monitor.answer()
        given_up.cancel()
        await asyncio.wait((given_up,))
        monitor.say(*status_of("t", "aborting", "concluded"))  # of the old one, while the next is under way
        error, asked = await job(session, monitor, "t")
        assert error is None
        assert asked[0]["arguments"]["job-id"] == asked[1]["arguments"]["id"] == "t-1"


async def test_a_job_that_is_refused_says_so_at_once() -> None:
    async with connected() as (session, monitor):
        running = asyncio.ensure_future(session.run_job("snapshot-load", {"tag": "t"}, "t"))
        await asyncio.sleep(0)
        (command,) = await monitor.commands()
        monitor.say({"id": command["id"], "error": {"class": "GenericError", "desc": "no such device"}})
        with pytest.raises(VmLost, match="QEMU web refused snapshot-load: no such device"):
            await asyncio.wait_for(running, 10)


async def test_what_follows_what_is_not_kept_without_a_bound() -> None:
    async with connected() as (session, monitor):
        for number in range(3 * FOLLOWED_MAX):
            assert await carried_out(session, monitor, f"query-{number}") == [f"query-{number}"]
        assert len(session._channel._followed) <= FOLLOWED_MAX


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
