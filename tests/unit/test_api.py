"""The daemon's HTTP interface, on a real socket: what it answers, whom it lets in, what it leaves."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pycolo.api import SOCKET_NAME, Client, serving
from pycolo.config import HostConfig, VmConfig
from pycolo.core.failover import State
from pycolo.errors import EnvironmentFault
from pycolo.manager.common import Manager
from pycolo.manager.primary import PrimaryManager
from pycolo.manager.secondary import SecondaryManager


def manager(folder: Path, kind: type[Manager] = PrimaryManager) -> Manager:
    """A manager that has not been started: it knows its events and its role."""
    host = HostConfig(
        name="h1",
        listen="127.0.0.1:7700",
        peer="127.0.0.1:7701",
        state_dir=folder,
        arbiter_file=folder / "arbiter.json",
        bridge="br0",
    )
    return kind(host, VmConfig(name="vm", kernel=Path("k"), initrd=Path("i"), accel="tcg", memory_mib=32))


@contextlib.asynccontextmanager
async def served(one: Manager) -> AsyncIterator[Client]:
    async with serving(one, one.host.state_dir), Client(one.host.state_dir) as client:
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


async def test_a_checkpoint_by_hand_needs_a_protected_primary(tmp_path: Path) -> None:
    one = manager(tmp_path)
    assert isinstance(one, PrimaryManager)
    async with served(one) as client:
        with pytest.raises(EnvironmentFault, match="not the primary of a protected VM: ask the primary"):
            await client.checkpoint()
        assert one._wanted.empty()
        one.failover.state = State.PROTECTED
        await client.checkpoint()
        assert one._wanted.get_nowait() == "by-hand"


async def test_a_secondary_takes_no_checkpoint(tmp_path: Path) -> None:
    one = manager(tmp_path, SecondaryManager)
    one.failover.state = State.PROTECTED
    async with served(one) as client:
        with pytest.raises(EnvironmentFault, match="ask the primary"):
            await client.checkpoint()


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
        with pytest.raises(EnvironmentFault, match=r"no daemon answers on .*start one with `colo daemon`"):
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
