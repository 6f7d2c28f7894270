"""The daemon's end of a real agent process: every answer belongs to its command, and a lost agent is said at once."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from pycolo.agent import __main__ as program
from pycolo.agent import protocol
from pycolo.edge import agent_link, child_link
from pycolo.edge.agent_link import AgentLink
from pycolo.edge.guest_tap import guest_tap
from pycolo.errors import EnvironmentFault, VmLost

PORT = protocol.Port("52:54:00:00:00:02", "colotest0", "no-such-bridge")
START = protocol.Start("primary", (PORT,), "127.0.0.1", "", 50, 1000, 200.0, protocol.Terms(1, [], [], True), None)


@contextlib.asynccontextmanager
async def agent() -> AsyncIterator[AgentLink]:
    ours, theirs = guest_tap()
    link = await AgentLink.start([(ours, theirs)])
    try:
        yield link
    finally:
        await link.close()
        ours.close()
        theirs.close()


async def test_an_agent_that_was_not_started_says_so() -> None:
    async with agent() as link:
        for _ in range(3):
            with pytest.raises(EnvironmentFault, match="has not been started"):
                await link.stats()


async def test_a_bridge_that_is_not_there_is_named_and_another_try_is_possible() -> None:
    async with agent() as link:
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match="no-such-bridge"):
                await link.command(START)
        assert not link.gone.done()


def test_uplinks_are_opened_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[str] = []

    class FakeTap:
        def __init__(self, name: str, bridge: str) -> None:
            if bridge == "none":
                raise EnvironmentFault("no such bridge")
            self.name = name
            there.append(name)

        def close(self) -> None:
            there.remove(self.name)

    monkeypatch.setattr(program, "Tap", FakeTap)
    ports = [protocol.Port("", f"colo{number}", "br0") for number in range(3)]
    with pytest.raises(EnvironmentFault):
        program._open_taps([*ports, protocol.Port("", "colo3", "none")])
    assert there == []
    assert [tap.name for tap in program._open_taps(ports)] == there == ["colo0", "colo1", "colo2"]


async def test_commands_of_many_tasks_get_their_own_answers() -> None:
    async with agent() as link:
        answers = await asyncio.gather(
            *(link.command(START if number % 2 else protocol.GetStats()) for number in range(20)),
            return_exceptions=True,
        )
        for number, answer in enumerate(answers):
            assert isinstance(answer, EnvironmentFault)
            assert ("no-such-bridge" if number % 2 else "not been started") in str(answer)


async def test_the_answer_to_a_command_that_was_given_up_is_nobody_elses() -> None:
    async with agent() as link:
        with pytest.raises(EnvironmentFault):
            await link.stats()  # it has come up
        os.kill(link.pid, signal.SIGSTOP)
        given_up = asyncio.create_task(link.command(START))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await asyncio.wait((given_up,))
        os.kill(link.pid, signal.SIGCONT)
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match="has not been started"):
                await link.stats()


async def test_a_dead_agent_is_lost_at_once() -> None:
    async with agent() as link:
        os.kill(link.pid, signal.SIGKILL)
        assert await asyncio.wait_for(asyncio.shield(link.gone), 10) == "the agent process has ended"
        with pytest.raises(VmLost, match="the agent process has ended"):
            await link.stats()


async def test_an_agent_that_dies_at_work() -> None:
    async with agent() as link:
        os.kill(link.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(link.stats())
        await asyncio.sleep(0.05)
        os.kill(link.pid, signal.SIGKILL)
        with pytest.raises(VmLost, match="has ended"):
            await asyncio.wait_for(waiting, 10)


async def test_a_hanging_agent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "STATS_S_MAX", 0.2)
    async with agent() as link:
        with pytest.raises(EnvironmentFault):
            await link.command(START)  # it has come up
        os.kill(link.pid, signal.SIGSTOP)
        with pytest.raises(VmLost, match=r"did not answer GetStats in 0.2 s"):
            await asyncio.wait_for(link.stats(), 10)
        assert "did not answer" in await asyncio.wait_for(link.gone, 0.1)  # nor by whoever comes next


async def test_an_agent_that_takes_its_time_to_come_up_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "STATS_S_MAX", 0.01)
    async with agent() as link:
        os.kill(link.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.3, os.kill, link.pid, signal.SIGCONT)
        with pytest.raises(EnvironmentFault, match="has not been started"):
            await link.stats()


async def test_an_agent_that_never_comes_up_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_link, "COME_UP_S_MAX", 0.3)
    monkeypatch.setattr(agent_link, "STATS_S_MAX", 0.2)
    async with agent() as link:
        os.kill(link.pid, signal.SIGSTOP)
        with pytest.raises(VmLost, match=r"did not answer GetStats in 0.3 s"):
            await asyncio.wait_for(link.stats(), 5)


async def test_an_agent_ends_with_its_daemon() -> None:
    async with agent() as link:
        with pytest.raises(EnvironmentFault):
            await link.stats()
        link._reader.cancel()
        link._control.close()
        assert await asyncio.wait_for(link.process.wait(), 5) == 0
