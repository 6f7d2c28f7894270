"""The daemon's HTTP interface, on a real socket: what it answers, whom it lets in, what it leaves."""

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pycolo.agent import protocol
from pycolo.api import SOCKET_NAME, Client, serving
from pycolo.config import CopyConfig, FileArbiterConfig, VmConfig
from pycolo.core.failover import Role, State
from pycolo.errors import EnvironmentFault, WrongState
from pycolo.manager.manager import Manager


def manager(folder: Path, role: Role = Role.PRIMARY, arbiter: Path | None = None) -> Manager:
    """A manager that has not been started: it knows its events and its role."""
    host = CopyConfig(
        name="h1",
        listen="127.0.0.1:7700",
        peer="127.0.0.1:7701",
        state_dir=folder,
        arbiter=FileArbiterConfig(kind="file", path=arbiter or folder),
        bridge="br0",
        insecure=True,
        taps=("colo0",),
    )
    return Manager(host, VmConfig(name="vm", kernel=Path("k"), initrd=Path("i"), accel="tcg", memory_mib=32), role)


class Primary:
    """The primary's story, as far as the interface goes."""

    def __init__(self) -> None:
        self.wanted: list[str] = []

    def want_checkpoint(self, reason: str) -> None:
        self.wanted.append(reason)

    def unprotect(self) -> None:
        self.wanted.append("unprotect")

    def hand_over(self) -> None:
        self.wanted.append("hand-over")

    def call_peer(self, address: str) -> None:
        self.wanted.append(address)


@contextlib.asynccontextmanager
async def served(one: Manager) -> AsyncIterator[Client]:
    async with serving(one, one._copy.host.state_dir), Client(one._copy.host.state_dir) as client:
        yield client


async def test_a_daemon_that_starts_says_so(tmp_path: Path) -> None:
    async with served(manager(tmp_path)) as client:
        with pytest.raises(EnvironmentFault, match="the daemon is starting"):
            await client.status()


async def test_events_come_as_they_happen(tmp_path: Path) -> None:
    one = manager(tmp_path)
    one.events.add("first")
    async with served(one) as client:
        assert [event["kind"] for event in await client.events(0)] == ["first"]
        waiting = asyncio.create_task(client.events(1))
        await asyncio.sleep(0.05)
        one.events.add("second", answer=42)
        (event,) = await asyncio.wait_for(waiting, 5)
        assert (event["no"], event["kind"], event["answer"]) == (2, "second", 42)


async def test_who_waits_for_events_is_answered_at_the_end_and_does_not_hold_it_up(tmp_path: Path) -> None:
    async with Client(tmp_path) as client:
        async with serving(manager(tmp_path), tmp_path):
            waiting = asyncio.create_task(client.events(0))
            await asyncio.sleep(0.05)
        assert await waiting == []


async def test_a_checkpoint_by_hand_needs_a_protected_primary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, primary = manager(tmp_path), Primary()
    async with served(one) as client:
        for state, story in ((State.PROTECTED, None), (State.SOLO, primary)):
            one._copy.failover.state = state
            monkeypatch.setattr(one, "_primary", story)
            with pytest.raises(WrongState, match="not the primary of a protected VM: ask the primary"):
                await client.checkpoint()
        assert primary.wanted == []
        one._copy.failover.state = State.PROTECTED
        await client.checkpoint()
        assert primary.wanted == ["by-hand"]


async def test_what_an_operator_wants_reaches_the_primary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, primary = manager(tmp_path), Primary()
    monkeypatch.setattr(one, "_primary", primary)
    one._copy.failover.state = State.PROTECTED
    async with served(one) as client:
        await client.call_peer("10.0.0.2:7700")
        await client.unprotect()
        await client.switchover()
        await client.end("the operator stops the VM")
        assert primary.wanted == ["10.0.0.2:7700", "unprotect", "hand-over"]
        assert one._copy.ending == "the operator stops the VM"
        with pytest.raises(WrongState, match="no partner here that could be lost"):
            await client.peer_lost("says the cluster manager")
        with pytest.raises(EnvironmentFault, match="is not HOST:PORT"):
            await client.call_peer("nowhere")


async def test_without_an_arbiter_nobody_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VM could not go on alone without the claim."""
    one, primary = manager(tmp_path, arbiter=tmp_path / "no-such-folder"), Primary()
    monkeypatch.setattr(one, "_primary", primary)
    async with served(one) as client:
        with pytest.raises(WrongState, match="wait until the arbiter answers"):
            await client.unprotect()
        assert primary.wanted == []


async def test_a_secondary_refuses_what_only_a_primary_can(tmp_path: Path) -> None:
    async with served(manager(tmp_path, Role.SECONDARY)) as client:
        for asking in (client.unprotect(), client.end("x"), client.switchover(), client.call_peer("h:1")):
            with pytest.raises(WrongState, match="ask the primary"):
                await asking


class Agent:
    """The agent of a primary, as far as captures go."""

    def __init__(self) -> None:
        self.path = Path()

    async def start_capture(self, path: Path, bytes_max: int, seconds: int) -> protocol.Capture:
        if seconds == 13:
            raise EnvironmentFault("the disk is full: make room")
        self.path = path
        return protocol.Capture(str(path), running=True, held=seconds, not_written=bytes_max)

    async def capture(self) -> protocol.Capture:
        raise WrongState("no capture has been taken here")

    async def stop_capture(self) -> protocol.Capture:
        return protocol.Capture(str(self.path), ended="it was stopped", frames={"link control": 3})


async def test_captures_are_the_primarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, agent = manager(tmp_path), Agent()
    monkeypatch.setattr(one._copy, "agent", agent, raising=False)
    async with served(one) as client:
        for asking in (client.start_capture(1, 1), client.capture(), client.stop_capture()):
            with pytest.raises(WrongState, match="ask the primary"):
                await asking
        monkeypatch.setattr(one, "_primary", Primary())
        begun = await client.start_capture(2, 60)
        assert begun == protocol.Capture(str(agent.path), running=True, held=60, not_written=2 << 20)
        assert re.fullmatch(r"capture-\d{8}T\d{6}-\d{3}\.pcapng", agent.path.name)
        assert agent.path.parent == tmp_path
        (event,) = await client.events(0)
        assert (event["kind"], event["path"], event["mib"], event["seconds"]) == ("capture", begun.path, 2, 60)
        assert (await client.stop_capture()).frames == {"link control": 3}
        with pytest.raises(WrongState, match="no capture has been taken"):
            await client.capture()
        with pytest.raises(EnvironmentFault, match=r"^the disk is full: make room$"):
            await client.start_capture(1, 13)
        for limits in ("0 1", "1", "1 2 3", "10000 1", "-1 1", "x y"):
            with pytest.raises(EnvironmentFault, match=r"give two numbers|at most 9"):
                await client._call("POST", "/capture", {"limits": limits})


@pytest.mark.parametrize("since", ["x", "-1", "1.5", "²", "", "9" * 5000])
async def test_a_number_that_is_none_is_refused(tmp_path: Path, since: str) -> None:
    async with served(manager(tmp_path)) as client:
        with pytest.raises(EnvironmentFault, match="give the number of an event"):
            await client._call("GET", f"/events?since={since}")


@pytest.mark.parametrize(
    "said", [b"", b"\0\xff" * 3000, b"GET /status HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-"]
)
async def test_garbage_on_the_socket_does_no_harm(tmp_path: Path, said: bytes) -> None:
    one = manager(tmp_path)
    one.events.add("still here")
    async with served(one) as client:
        _, writer = await asyncio.open_unix_connection(tmp_path / SOCKET_NAME)
        writer.write(said)
        await writer.drain()
        assert len(await client.events(0)) == 1
        writer.close()


async def test_the_socket_is_the_owners_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    path = folder / SOCKET_NAME
    async with serving(manager(folder), folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not path.exists()
    async with Client(folder) as client:
        with pytest.raises(EnvironmentFault, match=r"no daemon answers on .*start one with `colo daemon HOST_TOML`"):
            await client.status()


async def test_what_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    server = await asyncio.start_unix_server(lambda reader, writer: None, path)
    server.close()
    await server.wait_closed()
    assert path.exists()
    one = manager(tmp_path)
    one.events.add("new")
    async with served(one) as client:
        assert len(await client.events(0)) == 1


async def test_a_living_daemon_keeps_its_socket(tmp_path: Path) -> None:
    first = manager(tmp_path)
    first.events.add("first")
    async with served(first) as client:
        with pytest.raises(EnvironmentFault, match="another daemon serves"):
            async with serving(manager(tmp_path), tmp_path):
                pass
        assert [event["kind"] for event in await client.events(0)] == ["first"]


async def test_a_file_that_is_no_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    path.write_text("somebody's")
    with pytest.raises(EnvironmentFault, match="exists and is not a socket: choose another path"):
        async with serving(manager(tmp_path), tmp_path):
            pass
    assert path.read_text() == "somebody's"


@pytest.mark.parametrize("folder", ["/proc/none/state", "/dev/null/state", "/tmp/" + "long" * 60])
async def test_a_folder_that_will_not_do(tmp_path: Path, folder: str) -> None:
    try:
        with pytest.raises(EnvironmentFault, match=r"can't serve .*: choose another `state_dir` in host.toml"):
            async with serving(manager(tmp_path), Path(folder)):
                pass
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


async def test_a_failure_of_the_daemon_is_not_blamed_on_the_socket(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="something else"):
        async with serving(manager(tmp_path), tmp_path):
            raise OSError("something else")
