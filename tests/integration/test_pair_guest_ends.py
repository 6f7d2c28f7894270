"""The guest reboots, powers off or panics, or the operator ends something: both copies follow, nobody fails over."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pair import BOOT_S_MAX, Pair, failures_in, now_ms, until
from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.demo.processes import DaemonProcess
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.guest.control import CONTROL_PORT

END_S_MAX = 15.0


@pytest_asyncio.fixture
async def pair(guest_image: GuestImage, tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(guest_image, tmp_path / "pair")
    try:
        await pair.protect()
        yield pair
    finally:
        await pair.close()


async def tell_guest(pair: Pair, command: str) -> None:
    program = [sys.executable, "-m", "pycolo.guest.control", GUEST_ADDRESS, str(CONTROL_PORT), command]
    done = await asyncio.to_thread(
        subprocess.run, [*pair.lab.clients.prefix(), *program], check=False, timeout=30, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


async def both_end(pair: Pair, why: str) -> None:
    """Both daemons end in good order, for that reason, and neither has claimed anything."""
    for daemon in (pair.primary, pair.secondary):
        assert await asyncio.wait_for(daemon.process.wait(), END_S_MAX) == 0
        assert failures_in(daemon) == []
        log = (daemon.state_dir / "daemon.log").read_text()
        assert '"event": "claim"' not in log
        assert '"event": "solo"' not in log
    assert why in (pair.primary.state_dir / "daemon.log").read_text()
    assert '"event": "end-noted"' in (pair.primary.state_dir / "daemon.log").read_text()
    assert "sends this side away" in (pair.secondary.state_dir / "daemon.log").read_text()


@pytest.mark.parametrize(("command", "why"), [("poweroff", "powered off"), ("panic", "panicked")])
async def test_a_guest_that_ends_is_not_failed_over(pair: Pair, command: str, why: str) -> None:
    await tell_guest(pair, command)
    await both_end(pair, f"the guest has {why}")
    if command == "poweroff":
        await pair.boot_primary()  # nobody has to say that no copy lives


def boots(daemon: DaemonProcess) -> int:
    """How often the guest has come up, as the console of that copy shows."""
    return (daemon.state_dir / "console.log").read_bytes().count(READY_LINE.encode())


async def test_a_reboot_is_followed_by_both_copies(pair: Pair) -> None:
    """The pair stays protected through it, and a takeover afterwards serves the rebooted guest."""
    primary, secondary = pair.primary, pair.secondary
    before = boots(primary)
    await tell_guest(pair, "reboot")
    await until(lambda: boots(primary) > before, BOOT_S_MAX, "the second boot")
    await pair.load_on()
    for daemon in (primary, secondary):
        assert daemon.process.returncode is None
        assert daemon.status["state"] == "protected"
    killed_ms = now_ms()
    primary.kill_all()
    await pair.goes_on(secondary, killed_ms, 1.0)
    assert failures_in(secondary) == []


async def test_a_guest_that_ends_while_it_is_alone_ends_its_only_copy(pair: Pair) -> None:
    killed_ms = now_ms()
    pair.primary.kill_all()
    survivor = pair.secondary
    await survivor.wait_for(lambda: survivor.first("solo", killed_ms), 5.0, "the takeover")
    await tell_guest(pair, "poweroff")
    assert await asyncio.wait_for(survivor.process.wait(), END_S_MAX) == 0
    assert "the guest has powered off" in (survivor.state_dir / "daemon.log").read_text()
