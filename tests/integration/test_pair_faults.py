"""A real pair under load loses one side: how each side ends and what it says; every fault is in test_fault_matrix."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from pair import AS_SHIPPED, Pair, Wiretap, log_of, now_ms, protected_under_load
from pycolo.core.failover import Role
from pycolo.errors import Fenced, VmLost
from pycolo.guest.builder import GuestImage

P, S = Role.PRIMARY, Role.SECONDARY
EVERYTHING = ("daemon", "agent", "qemu")
QMP_DEADLINE_MS = 1000
NOTICED_S_MAX = 1.0  # a closed socket or three lost heartbeats, the claim and the takeover, on a busy machine


@pytest.fixture
async def pair(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A protected pair under load."""
    async with protected_under_load(
        Pair(
            guest_image,
            tmp_path_factory.mktemp("pair"),
            qmp_deadline_ms=QMP_DEADLINE_MS,
            heartbeat_lost_max=AS_SHIPPED,
        )
    ) as pair:
        yield pair


async def test_the_primary_host_dies(pair: Pair) -> None:
    died_ms = pair.signal(P, EVERYTHING, signal.SIGKILL)
    result = await pair.goes_on(pair.secondary, died_ms, NOTICED_S_MAX)
    assert result["requests"] > 200
    assert pair.secondary.status["state"] == "solo"
    assert pair.secondary.first("claim", died_ms, granted=True)


async def test_a_secondary_that_is_stopped_in_order_ends_well_and_the_primary_goes_on(pair: Pair) -> None:
    stopped_ms = pair.signal(S, ("daemon",), signal.SIGTERM)
    primary = pair.primary
    await primary.wait_for(lambda: primary.first("solo", stopped_ms), 20.0, "going on alone")
    assert await pair.exit_status(pair.secondary) == 0
    assert [event["term"] for event in primary.events if event["kind"] == "claim"] == [2]
    await pair.load_off()


async def test_a_primary_without_its_agent_ends_and_says_so(pair: Pair) -> None:
    died_ms = pair.signal(P, ("agent",), signal.SIGKILL)
    await pair.goes_on(pair.secondary, died_ms, NOTICED_S_MAX)
    assert await pair.exit_status(pair.primary) == VmLost.exit_status


@pytest.mark.parametrize("frozen", [("daemon",), EVERYTHING], ids=["daemon", "host"])
async def test_a_frozen_primary_never_speaks_again(pair: Pair, frozen: tuple[str, ...]) -> None:
    frozen_ms = pair.signal(P, frozen, signal.SIGSTOP)
    secondary = pair.secondary
    await secondary.wait_for(lambda: secondary.first("solo", frozen_ms), 20.0, "taking over")
    wiretap = Wiretap(pair, P)
    try:
        await pair.serves(2.0)
        assert wiretap.frames() == []
        pair.signal(P, frozen, signal.SIGCONT)
        assert await pair.exit_status(pair.primary) == Fenced.exit_status
        assert pair.primary.process.returncode == Fenced.exit_status
        await pair.serves(1.0)
        assert wiretap.frames() == []
    finally:
        wiretap.close()
    assert "the other side holds the claim" in log_of(pair.primary)
    await pair.load_off()


async def test_a_cut_between_two_living_hosts_leaves_exactly_one(pair: Pair) -> None:
    cut_ms = now_ms()
    pair.host(P).ip("link", "set", "peer0", "down")
    waits = {asyncio.ensure_future(daemon.process.wait()): daemon for daemon in (pair.primary, pair.secondary)}
    done, others = await asyncio.wait(waits, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    for waiting in others:
        waiting.cancel()
    assert len(done) == 1
    fenced = waits[done.pop()]
    survivor = pair.primary if fenced is pair.secondary else pair.secondary
    assert fenced.process.returncode == Fenced.exit_status
    await pair.goes_on(survivor, cut_ms, 2.0)
    assert survivor.process.returncode is None
    claims = [event for event in survivor.events if event["kind"] == "claim" and event["t_ms"] > cut_ms]
    assert [claim["granted"] for claim in claims] == [True]


async def test_stopping_the_primary_in_order_is_a_takeover(pair: Pair) -> None:
    stopped_ms = pair.signal(P, ("daemon",), signal.SIGTERM)
    await pair.goes_on(pair.secondary, stopped_ms, NOTICED_S_MAX)
    assert await pair.exit_status(pair.primary) == 0
    assert "the operator stops this side" in log_of(pair.primary)
