"""Two living hosts that lose each other, the arbiter, or both: never two that speak, and none that ends needlessly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from pair import AS_SHIPPED, Pair, Wiretap, log_of, now_ms, protected_under_load, until
from pycolo.core.failover import Role
from pycolo.demo.lab import HOSTS
from pycolo.demo.load_echo import TIMEOUT_S
from pycolo.demo.processes import DaemonProcess
from pycolo.errors import Fenced
from pycolo.guest.builder import GuestImage

P, S = Role.PRIMARY, Role.SECONDARY
WAITING = "waiting-for-arbiter"
NOTICED_S_MAX = 5.0


@pytest_asyncio.fixture
async def pair(guest_image: GuestImage, tmp_path: Path) -> AsyncIterator[Pair]:
    """A protected pair under load."""
    pair = Pair(guest_image, tmp_path / "pair", heartbeat_lost_max=AS_SHIPPED)
    pair.ask_s = TIMEOUT_S
    async with protected_under_load(pair):
        yield pair


@contextmanager
def nobody_speaks(pair: Pair) -> Iterator[None]:
    """Neither host puts a frame of the guest on the clients' network meanwhile."""
    taps = [Wiretap(pair, role) for role in Role]
    try:
        yield
        assert [tap.frames() for tap in taps] == [[], []]
    finally:
        for tap in taps:
            tap.close()


async def both_wait(pair: Pair) -> None:
    both = (pair.primary, pair.secondary)
    await until(lambda: [daemon.status["state"] for daemon in both] == [WAITING] * 2, NOTICED_S_MAX, "waiting")


async def one_goes_on(pair: Pair, since_ms: float) -> tuple[DaemonProcess, DaemonProcess]:
    """(the one that speaks, the other)."""
    both = (pair.primary, pair.secondary)
    await until(lambda: any(one.first("solo", since_ms) for one in both), NOTICED_S_MAX, "going on alone")
    speaks = [one for one in both if one.first("solo", since_ms)]
    assert len(speaks) == 1
    return speaks[0], both[0] if speaks[0] is both[1] else both[1]


async def paired_again(pair: Pair, since_ms: float) -> None:
    primary, secondary = pair.primary, pair.secondary
    await primary.wait_for(lambda: primary.first("checkpoint", since_ms), NOTICED_S_MAX, "the pair")
    await pair.serves(1.0)
    assert (primary.status["state"], secondary.status["state"]) == ("protected", "protected")
    assert primary.first("paired", since_ms, again=True)


async def test_no_link_and_no_arbiter_nobody_speaks_and_the_link_brings_the_pair_back(pair: Pair) -> None:
    """Twice, since what the first time leaves behind must not harm the second; then one dies as in any pair."""
    for _ in range(2):
        pair.cut_arbiter(*HOSTS)
        await pair.serves(0.5)  # a pair that has each other needs no arbiter
        pair.link("down")
        await both_wait(pair)
        await asyncio.sleep(0.1)  # frames that were on their way
        with nobody_speaks(pair):
            await asyncio.sleep(1.0)
        back_ms = now_ms()
        pair.link("up")
        await paired_again(pair, back_ms)
        pair.join_arbiter(*HOSTS)
    claims = [event for one in (pair.primary, pair.secondary) for event in one.events if event["kind"] == "claim"]
    assert claims
    assert not any(claim["granted"] for claim in claims)
    killed_ms = now_ms()
    pair.primary.kill_all()
    await pair.goes_on(pair.secondary, killed_ms, 1.0)


async def test_the_arbiter_is_back_before_the_link_one_goes_on(pair: Pair) -> None:
    pair.cut_arbiter(*HOSTS)
    pair.link("down")
    await both_wait(pair)
    back_ms = now_ms()
    pair.join_arbiter(*HOSTS)
    speaks, other = await one_goes_on(pair, back_ms)
    assert await pair.exit_status(other) == Fenced.exit_status
    await pair.goes_on(speaks, back_ms, 3.0)


async def test_who_reaches_the_arbiter_goes_on_and_the_other_learns_of_it_by_the_link(pair: Pair) -> None:
    """The primary has the arbiter; the secondary waits, until a primary of a newer term calls."""
    pair.cut_arbiter("h2")
    cut_ms = now_ms()
    pair.link("down")
    speaks, other = await one_goes_on(pair, cut_ms)
    assert speaks is pair.primary
    await pair.serves(1.0)
    assert other.status["state"] == WAITING
    pair.link("up")
    assert await pair.exit_status(other) == Fenced.exit_status
    assert "the other side holds the claim" in log_of(other)
    await pair.serves(0.5)
    await pair.load_off()


async def test_the_secondary_has_the_arbiter_and_the_primary_has_not(pair: Pair) -> None:
    pair.cut_arbiter("h1")
    cut_ms = now_ms()
    pair.link("down")
    speaks, other = await one_goes_on(pair, cut_ms)
    assert speaks is pair.secondary
    await pair.serves(1.0)
    assert other.status["state"] == WAITING
    pair.join_arbiter("h1")
    assert await pair.exit_status(other) == Fenced.exit_status
    await pair.load_off()


@pytest.mark.parametrize("mute", HOSTS)
async def test_a_link_that_is_cut_one_way_leaves_exactly_one(pair: Pair, mute: str) -> None:
    """One host hears the other and can't answer."""
    cut_ms = now_ms()
    pair.lab.hosts[mute].ip("route", "add", "blackhole", f"10.78.0.{2 - HOSTS.index(mute)}/32")
    speaks, other = await one_goes_on(pair, cut_ms)
    tap = Wiretap(pair, P if other is pair.primary else S)
    try:
        assert await pair.exit_status(other) == Fenced.exit_status
        await pair.goes_on(speaks, cut_ms, NOTICED_S_MAX)
        assert tap.frames() == []
    finally:
        tap.close()
