"""A real pair whose guest runs PostgreSQL on its disk: memory and disk move together, whatever dies or fails."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from disk_pair import MIB

from file_systems import run, small_file_system
from pair import Pair, failures_in, log_of, now_ms, output_of, until
from pycolo.api import Client
from pycolo.core.failover import Role
from pycolo.demo.disk_round import fsck, power_off
from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.demo.processes import DaemonProcess, LoadProcess
from pycolo.errors import VmLost
from pycolo.guest.builder import GuestImage
from pycolo.guest.disk_image import build_disk, copy_disk

P, S = Role.PRIMARY, Role.SECONDARY
EVERYTHING = ("daemon", "agent", "qemu", "disks")
DISK = {"name": "data", "path": "data.img", "size_mib": 512}
CHECKPOINTS, CHECKPOINTS_MAX = 100, 300
WORKERS = "database=2,tcp=1"


@pytest.fixture(scope="session")
def template() -> Path:
    return build_disk()


@pytest.fixture
async def pair(guest_image: GuestImage, template: Path, tmp_path: Path) -> AsyncIterator[Pair]:
    """Not started yet; the primary's image is there."""
    pair = Pair(guest_image, tmp_path / "pair", disks=[DISK])
    copy_disk(template, pair.disk(P, "data.img"))
    try:
        yield pair
    finally:
        await pair.close()


async def transact(pair: Pair, seconds: float) -> None:
    """Clients commit transactions and verify them."""
    if pair.load is None:
        pair.load = await LoadProcess.start(pair.lab.clients, GUEST_ADDRESS, pair.folder / "load.log", WORKERS)
    load = pair.load

    def committed() -> int:
        return int(load.latest.get("by_kind", {}).get("database", {}).get("requests", 0))

    before = committed()
    await asyncio.sleep(seconds)
    await until(lambda: committed() > before + 3, 20.0, "progress of the transactions")
    assert load.process.returncode is None
    assert (load.latest["failed"], load.latest["reset"], load.latest["wrong_bytes"]) == (0, 0, 0), load.latest


async def judge(pair: Pair, daemon: DaemonProcess, host: str) -> None:
    """Every acknowledged transaction is there, the guest ends in good order, and its file system is clean."""
    result = await pair.load_off()
    assert result["by_kind"]["database"]["requests"] > 10
    assert "not properly shut down" not in (daemon.state_dir / "console.log").read_text(errors="replace")
    await power_off(pair.lab.clients, GUEST_ADDRESS, daemon.state_dir / "console.log")
    await daemon.stop()
    assert fsck(pair.folder / f"disks-{host}" / "data.img") == ""


async def loads_checked(pair: Pair, secondary: Client) -> int:
    """How many loads of the SVM have been compared; one that is no secondary any more is what the test is about."""
    status = await secondary.status()
    assert "loads_checked" in status, "\n".join(log_of(daemon)[-3000:] for daemon in (pair.primary, pair.secondary))
    return int(status["loads_checked"])


async def test_100_checkpoints_under_transactions_are_exact_copies(pair: Pair) -> None:
    """With the self-check: at each commit every MiB of both disks is compared, and all of memory at each load.

    A slow machine writes less in so many checkpoints: there it takes some more, until a MiB has been written.
    """
    pair.protection["self_check"] = True
    await pair.protect()
    async with Client(pair.primary.state_dir) as client, Client(pair.secondary.state_dir) as other:
        await transact(pair, 1.0)
        taken = written = 0
        while taken < CHECKPOINTS or (written <= MIB and taken < CHECKPOINTS_MAX):
            loaded = await loads_checked(pair, other)
            await client.checkpoint("test")
            deadline_ms = now_ms() + 15_000
            while await loads_checked(pair, other) == loaded:
                assert now_ms() < deadline_ms, log_of(pair.secondary)[-2000:]
                await asyncio.sleep(0.02)
            taken, written = taken + 1, (await client.status())["disks"]["written_bytes"]
        await transact(pair, 0.5)
    assert written > MIB
    for daemon in (pair.primary, pair.secondary):
        assert failures_in(daemon) == []
    killed_ms = pair.signal(P, EVERYTHING, signal.SIGKILL)
    await pair.secondary.wait_for(lambda: pair.secondary.first("solo", killed_ms), 20.0, "taking over")
    await transact(pair, 1.0)
    await judge(pair, pair.secondary, "h2")


@pytest.mark.parametrize("names", [EVERYTHING, ("disks",)], ids=["host", "disk process"])
async def test_the_primary_dies_and_no_transaction_is_lost(pair: Pair, names: tuple[str, ...]) -> None:
    await pair.protect()
    await transact(pair, 3.0)
    killed_ms = pair.signal(P, names, signal.SIGKILL)
    await pair.secondary.wait_for(lambda: pair.secondary.first("solo", killed_ms), 20.0, "taking over")
    await transact(pair, 2.0)
    assert pair.secondary.status["disks"]["written_bytes"] > 0  # what was in memory is on the image, and it serves
    if names != EVERYTHING:
        assert await pair.exit_status(pair.primary) == VmLost.exit_status
    await judge(pair, pair.secondary, "h2")


async def test_a_secondary_returns_for_what_it_missed_and_takes_over(pair: Pair) -> None:
    """Killed under load, back for the changed blocks only; then the primary dies, and all transactions are there."""
    await pair.protect()
    await transact(pair, 2.0)
    lost_ms = pair.signal(S, EVERYTHING, signal.SIGKILL)
    await pair.primary.wait_for(lambda: pair.primary.first("solo", lost_ms), 20.0, "going on alone")
    await transact(pair, 1.0)
    joining_ms = now_ms()
    await pair.join_secondary()
    copied = pair.primary.first("disks-copied", joining_ms)
    assert copied is not None
    assert not copied["whole"]
    assert 0 < copied["bytes"] < 30 * MIB
    await transact(pair, 2.0)
    killed_ms = pair.signal(P, EVERYTHING, signal.SIGKILL)
    await pair.secondary.wait_for(lambda: pair.secondary.first("solo", killed_ms), 20.0, "taking over")
    await transact(pair, 1.0)
    await judge(pair, pair.secondary, "h2")


async def test_a_pair_that_has_lost_link_and_arbiter_finds_itself_again(pair: Pair) -> None:
    """Disks, too, go on from where they were; then the primary dies, and every transaction is there."""
    await pair.protect()
    await transact(pair, 1.0)
    primary, secondary = pair.primary, pair.secondary
    pair.cut_arbiter("h1", "h2")
    pair.link("down")
    waiting = ["waiting-for-arbiter"] * 2
    await until(lambda: [one.status["state"] for one in (primary, secondary)] == waiting, 8.0, "waiting")
    await asyncio.sleep(0.5)
    back_ms = now_ms()
    pair.link("up")
    await primary.wait_for(lambda: primary.first("checkpoint", back_ms), 15.0, "the pair")
    copied = primary.first("disks-copied", back_ms)
    assert copied is not None
    assert not copied["whole"]
    await transact(pair, 1.0)
    pair.join_arbiter("h1", "h2")
    killed_ms = pair.signal(P, EVERYTHING, signal.SIGKILL)
    await secondary.wait_for(lambda: secondary.first("solo", killed_ms), 20.0, "taking over")
    await transact(pair, 1.0)
    await judge(pair, secondary, "h2")


async def test_one_host_dies_and_then_the_other(pair: Pair) -> None:
    """The survivor is protected again on the dead one's host, with the changed blocks only, and dies in its turn."""
    await pair.protect()
    await transact(pair, 2.0)
    survivor = pair.secondary
    killed_ms = pair.signal(P, EVERYTHING, signal.SIGKILL)
    await survivor.wait_for(lambda: survivor.first("solo", killed_ms), 20.0, "taking over")
    await transact(pair, 1.0)
    last = await pair.protect_again(survivor, on="h1")
    copied = survivor.first("disks-copied", killed_ms)
    assert copied is not None
    assert not copied["whole"]
    assert 0 < copied["bytes"] < 30 * MIB
    await transact(pair, 2.0)
    killed_ms = now_ms()
    survivor.kill_all()
    await last.wait_for(lambda: last.first("solo", killed_ms), 20.0, "taking over")
    await transact(pair, 1.0)
    await judge(pair, last, "h1")


async def test_no_room_on_the_secondary_ends_the_pair_and_room_brings_it_back(pair: Pair) -> None:
    folder = pair.disk(S, "data.img").parent
    await small_file_system(folder, 400)
    try:
        await pair.protect()
        primary, secondary = pair.primary, pair.secondary
        await run("fallocate", "-l", str(free_bytes(folder)), str(folder / "ballast"))
        async with asyncio.timeout(30.0):
            while not primary.first("peer-lost"):
                await transact(pair, 0.5)
        lost = primary.first("peer-lost")
        assert lost is not None
        assert "No space left on device" in lost["reason"]
        await until(lambda: primary.status["state"] == "solo", 5.0, "solo")
        await until(lambda: "waits-for-room" in log_of(secondary), 15.0, "the wait for room")
        await transact(pair, 1.0)
        await run("mount", "-o", "remount,size=700m", str(folder))
        room_ms = now_ms()
        await primary.wait_for(lambda: primary.first("checkpoint", room_ms), 90.0, "protection again")
        await transact(pair, 2.0)
        killed_ms = pair.signal(P, EVERYTHING, signal.SIGKILL)
        await secondary.wait_for(lambda: secondary.first("solo", killed_ms), 20.0, "taking over")
        await transact(pair, 1.0)
        await judge(pair, pair.secondary, "h2")
    finally:
        await pair.close()
        await run("umount", str(folder))


async def test_a_full_disk_pauses_a_vm_without_a_partner_and_room_lets_it_go_on(
    guest_image: GuestImage, template: Path, tmp_path: Path
) -> None:
    pair = Pair(guest_image, tmp_path / "pair", disks=[DISK])
    folder = pair.disk(P, "data.img").parent
    await small_file_system(folder, 112)
    try:
        copy_disk(template, pair.disk(P, "data.img"))
        await pair.boot_primary()
        ballast = folder / "ballast"
        await run("fallocate", "-l", str(free_bytes(folder)), str(ballast))
        load = await LoadProcess.start(pair.lab.clients, GUEST_ADDRESS, tmp_path / "load.log", "database=2")
        primary = pair.primary
        await primary.wait_for(lambda: primary.first("disk-paused"), 60.0, "the pause")
        trouble = primary.first("disk-trouble")
        assert trouble is not None
        assert "No space left on device" in trouble["reason"]
        ballast.unlink()
        await primary.wait_for(lambda: primary.first("disk-resumed"), 20.0, "the end of the pause")
        pair.load = load
        await transact(pair, 1.0)
        await judge(pair, pair.primary, "h1")
    finally:
        await pair.close()
        await run("umount", str(folder))


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


async def test_a_failing_disk_of_a_protected_primary_hands_over_to_the_partner(
    guest_image: GuestImage, template: Path, tmp_path: Path
) -> None:
    """`werror` pauses the PVM; its partner has a healthy disk and goes on."""
    pair = Pair(guest_image, tmp_path / "pair", disks=[{**DISK, "werror": "stop"}])
    folder = pair.disk(P, "data.img").parent
    await small_file_system(folder, 112)
    try:
        copy_disk(template, pair.disk(P, "data.img"))
        await pair.protect()
        await run("fallocate", "-l", str(free_bytes(folder)), str(folder / "ballast"))
        filled_ms = now_ms()
        pair.load = await LoadProcess.start(pair.lab.clients, GUEST_ADDRESS, tmp_path / "load.log", "database=2")
        secondary = pair.secondary
        await secondary.wait_for(lambda: secondary.first("solo", filled_ms), 60.0, "taking over")
        assert await pair.exit_status(pair.primary) == VmLost.exit_status
        assert "No space left on device" in log_of(pair.primary)
        await transact(pair, 1.0)
        await judge(pair, pair.secondary, "h2")
    finally:
        await pair.close()
        await run("umount", str(folder))


async def test_images_of_other_sizes_are_refused_with_both_sizes(pair: Pair) -> None:
    pair.disks[0] = {"name": "data", "path": "data.img"}  # without size_mib, which each host would look at itself
    pair.disk(S, "data.img").write_bytes(b"")
    with pair.disk(S, "data.img").open("r+b") as image:
        image.truncate(100 * MIB)
    await pair.boot_primary()
    await pair.start(S)
    await pair.primary.wait_for(lambda: pair.primary.status.get("refused"), 10.0, "the refusal")
    assert pair.primary.status["refused"].endswith(
        f"the disk data has {512 * MIB} bytes on the primary and {100 * MIB} on the secondary: "
        "give both images the same size"
    )
    assert pair.primary.status["state"] == "solo"


async def test_a_stalled_disk_process_of_the_secondary_never_stalls_the_guest(pair: Pair) -> None:
    await pair.protect()
    await transact(pair, 1.0)
    stalled_ms = pair.signal(S, ("disks",), signal.SIGSTOP)
    primary = pair.primary
    await primary.wait_for(lambda: primary.first("solo", stalled_ms), 30.0, "going on alone")
    await transact(pair, 1.0)
    await judge(pair, pair.primary, "h1")


async def test_an_image_in_use_or_missing_is_said_in_a_sentence(pair: Pair) -> None:
    pair.disks[0] = {"name": "data", "path": "nowhere.img"}
    primary = await pair.start(P)
    assert await pair.exit_status(primary) == 2
    assert "nowhere.img does not exist" in log_of(primary).splitlines()[-1]
    pair.disks[0] = DISK
    await pair.boot_primary()
    second = await pair.start(P)
    assert await pair.exit_status(second) == 2
    assert failures_in(second) == []
    assert output_of(pair.host(P), "true") == []
