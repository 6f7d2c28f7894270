"""Protected again after a takeover, and again: connections live through the death of one host after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from pair import Pair, failures_in, now_ms
from pycolo.api import Client
from pycolo.demo.processes import DaemonProcess
from pycolo.guest.builder import GuestImage


@pytest_asyncio.fixture
async def pair(guest_image: GuestImage, tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(guest_image, tmp_path / "pair", self_check=True)
    try:
        yield pair
    finally:
        await pair.close()


async def dies(pair: Pair, dying: DaemonProcess, survivor: DaemonProcess) -> dict[str, Any]:
    """All of one side is killed under load; returns the survivor's status once the clients have gone on with it."""
    killed_ms = now_ms()
    dying.kill_all()
    await survivor.wait_for(lambda: survivor.first("solo", killed_ms), 5.0, "going on alone")
    await pair.serves(1.0)
    async with Client(survivor.state_dir) as client:
        return await client.status()


async def test_each_survivor_is_protected_again_and_dies_in_its_turn(pair: Pair) -> None:
    """Four deaths, primaries and a secondary; the same connections from the first to the last."""
    await pair.protect()
    await pair.load_on()
    primary, secondary = pair.primary, pair.secondary
    primaries = [primary]
    for name in ("h1", "h2", "h1"):
        status = await dies(pair, primary, secondary)
        assert (status["role"], status["state"]) == ("primary", "solo")
        primary, secondary = secondary, await pair.protect_again(secondary, on=name)
        primaries.append(primary)
        await pair.serves(1.5)
        async with Client(primary.state_dir) as client:
            status = await client.status()
        assert (status["role"], status["state"], status["term"]) == ("primary", "protected", len(primaries))
    await dies(pair, secondary, primary)
    result = await pair.load_off()
    assert result["requests"] > 500
    assert [failures_in(daemon) for daemon in primaries] == [[]] * 4
    epochs = [event["epoch"] for each in primaries for event in each.events if event["kind"] == "checkpoint"]
    assert epochs == sorted(set(epochs)), "an epoch number was used twice"
