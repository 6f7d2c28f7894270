"""What a pair settles besides checkpoints: who is sent away, which term comes next, and how it finds itself again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
import pytest
from test_peer_link import HEARTBEAT_MS, HELLO, LOST_MAX, OURS, free_port, ignore, lost, paired

from pycolo.core import wire
from pycolo.edge import peer_greeting, peer_link
from pycolo.edge.peer_greeting import Listener, connect, listening
from pycolo.edge.peer_link import Connection, SessionWithSecondary
from pycolo.errors import EnvironmentFault, PeerLost

PACKETS, DISKS = (1234, "packets"), (0, "")


async def test_a_secondary_that_is_sent_away_promises_by_its_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_link, "DISMISSAL_S_MAX", 10.0)
    async with paired() as pair:
        dismissal = asyncio.create_task(pair.primary.dismiss("the guest has powered off"))
        assert await asyncio.wait_for(pair.secondary.dismissed, 5) == "the guest has powered off"
        await pair.secondary.leave("nobody takes over")
        assert await dismissal is True


async def test_a_secondary_that_is_just_gone_has_promised_nothing() -> None:
    async with paired() as pair:
        dismissal = asyncio.create_task(pair.primary.dismiss("stop"))
        await asyncio.wait_for(pair.secondary.dismissed, 5)
        pair.secondary.close("its process was killed")
        assert await dismissal is False


async def test_who_is_sent_away_and_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_link, "DISMISSAL_S_MAX", 0.1)
    async with paired() as pair:
        assert await pair.primary.dismiss("stop") is False


@pytest.mark.parametrize("agrees", [True, False])
async def test_a_base_counts_when_the_secondary_has_agreed(monkeypatch: pytest.MonkeyPatch, agrees: bool) -> None:
    monkeypatch.setattr(peer_link, "REBASE_S_MAX", 10.0 if agrees else 0.3)
    async with paired() as pair:
        asked: list[int] = []

        def on_rebase(term: int) -> bool:
            asked.append(term)
            return agrees

        pair.secondary.on_rebase = on_rebase
        assert await pair.primary.rebase(7) is agrees
        assert asked == [7]
        assert not pair.primary.lost.done()


async def test_a_base_is_not_agreed_on_with_a_peer_that_is_lost() -> None:
    async with paired() as pair:
        asking = asyncio.create_task(pair.primary.rebase(7))
        await asyncio.sleep(0)
        pair.secondary.close("gone")
        assert await asking is False
        assert await pair.primary.rebase(8) is False


@pytest.mark.parametrize("message", [wire.Dismiss("x"), wire.Rebase(1)])
async def test_a_secondary_does_not_send_what_a_primary_sends(message: wire.Control) -> None:
    async with paired() as pair:
        await pair.secondary.tell(message)
        assert type(message).__name__ in await lost(pair.primary)


# ---------------------------------------------------------------- finding itself again


def end(connections: tuple[Connection, Connection] | None) -> None:
    assert connections is not None
    for connection in connections:
        connection.abort()


@dataclass
class Secondary:
    """One that has had a primary of term 5, which is lost."""

    where: str
    listener: Listener

    async def called(self, **hello: object) -> SessionWithSecondary:
        session, _ = await connect(self.where, msgspec.structs.replace(HELLO, **hello), HEARTBEAT_MS, LOST_MAX, None)
        return session

    async def refuses(self, says: str, **hello: object) -> None:
        with pytest.raises(EnvironmentFault, match=says):
            await self.called(**hello)


@pytest.fixture
async def bereft(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Secondary]:
    monkeypatch.setattr(peer_greeting, "REUNION_S_MAX", 0.2)
    secondary = Secondary(f"127.0.0.1:{free_port()}", Listener(OURS, PACKETS, DISKS, ignore))
    async with listening(secondary.where, secondary.listener, None):
        first = await secondary.called()
        end(await asyncio.wait_for(secondary.listener.accepted(), 5))
        first.close("the link is cut")
        yield secondary
    await asyncio.sleep(0.02)  # connections that were ended are closed in the loop's next turns


async def test_a_primary_that_was_ours_comes_back_through_the_window(bereft: Secondary) -> None:
    waiting = asyncio.create_task(bereft.listener.returned((4321, "anew"), DISKS, 5.0))
    await asyncio.sleep(0.05)
    session = await bereft.called(resume=True)
    end(await asyncio.wait_for(waiting, 5))
    session.close("the test ends")


async def test_who_comes_a_little_early_waits_for_the_window(
    bereft: Secondary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_greeting, "REUNION_S_MAX", 10.0)
    calling = asyncio.create_task(bereft.called(resume=True))
    await asyncio.sleep(0.1)
    returned = await bereft.listener.returned(PACKETS, DISKS, 5.0)
    (await calling).close("the test ends")
    end(returned)


async def test_outside_of_the_window_nobody_comes_back(bereft: Secondary) -> None:
    await bereft.refuses("does not look for the primary that it had", resume=True)
    assert await bereft.listener.returned(PACKETS, DISKS, 0.01) is None
    await bereft.refuses("does not look for the primary that it had", resume=True)
    assert not bereft.listener.superseded


async def test_the_window_is_for_the_old_primary_only(bereft: Secondary) -> None:
    waiting = asyncio.create_task(bereft.listener.returned(PACKETS, DISKS, 3.0))
    await asyncio.sleep(0.05)
    await bereft.refuses("was a pair with a primary of term 5, not 6", resume=True, term=6)
    await bereft.refuses("paired already")
    assert not bereft.listener.superseded
    assert await waiting is None


async def test_a_primary_of_a_newer_term_ends_the_waiting(bereft: Secondary) -> None:
    await bereft.refuses("paired already", term=6)
    assert bereft.listener.superseded


async def test_a_greeting_that_was_under_way_when_the_window_closed_pairs_nobody(
    bereft: Secondary, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = peer_greeting._dial
    dialled: list[str] = []

    async def slow_second(peer_address: str, tls: object) -> peer_link.Connection:
        dialled.append(peer_address)
        if len(dialled) == 2:
            await asyncio.wait([waiting])  # the bulk connection comes too late, however busy the machine is
        return await real(peer_address, None)

    monkeypatch.setattr(peer_greeting, "_dial", slow_second)
    waiting = asyncio.create_task(bereft.listener.returned(PACKETS, DISKS, 3.0))
    await asyncio.sleep(0.02)
    with contextlib.suppress(PeerLost):
        session = await bereft.called(resume=True)
        session.open(lambda: True)
        assert await lost(session)
    assert await waiting is None
