"""A secondary whose disk stands still for a while, under a guest that writes as fast as it can. Needs root."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from disk_pair import MIB, DiskHost, DiskPair, following

from file_systems import run
from pycolo.errors import PeerLost

BUFFER, SIZE, PIECES = 64 * MIB, 64 * MIB, 8


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[Path]:
    """The secondary's folder, on a file system that `fsfreeze` knows; it is thawed and unmounted at the end."""
    backing, folder = tmp_path / "h2.backing", tmp_path / "h2"
    folder.mkdir()
    with backing.open("wb") as file:
        file.truncate(512 * MIB)
    await run("mkfs.ext4", "-q", str(backing))
    await run("mount", "-o", "loop", str(backing), str(folder))
    yield folder
    await asyncio.to_thread(subprocess.run, ["fsfreeze", "-u", str(folder)], check=False, capture_output=True)
    await run("umount", str(folder))


async def write_on(pair: DiskPair, primary: DiskHost, piece: bytes) -> None:
    """Eight requests at a time, for ever; a guest that is paused begins none."""
    for number in range(1 << 30):
        await pair.running.wait()
        at = number % (SIZE // MIB // PIECES) * PIECES * MIB
        await asyncio.gather(*(primary.guest.write(at + n * MIB, piece) for n in range(PIECES)))


async def checkpoints(pair: DiskPair, primary: DiskHost, secondary: DiskHost, seconds: float) -> None:
    """As many as can be, as if the guests' answers always differed: each lets everything through."""
    async with asyncio.timeout(60):
        ends = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends:
            await pair.checkpoint(primary, secondary)


@pytest.mark.parametrize("stands_still_s", [0.3, 1.2])
async def test_no_checkpoint_lets_through_what_there_is_no_room_for(
    tmp_path: Path, frozen: Path, stands_still_s: float
) -> None:
    pair = DiskPair(tmp_path, (SIZE,), buffer_bytes_max=BUFFER, self_check=False)
    writing: asyncio.Task[None] | None = None
    try:
        primary, secondary = await following(pair)
        writing = asyncio.create_task(write_on(pair, primary, random.Random(1).randbytes(MIB)))
        await checkpoints(pair, primary, secondary, 0.5)
        for _ in range(2):
            await run("fsfreeze", "-f", str(frozen))
            going_on = asyncio.create_task(checkpoints(pair, primary, secondary, stands_still_s))
            await asyncio.sleep(stands_still_s)
            assert (await secondary.link.stats()).applied_epoch < pair.epoch
            await run("fsfreeze", "-u", str(frozen))
            await going_on
            await checkpoints(pair, primary, secondary, 0.5)
        assert not secondary.troubles
        assert not primary.lost
        assert BUFFER / 4 < (await secondary.link.stats()).buffered_bytes_max <= BUFFER
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await pair.checkpoint(primary, secondary)
        await pair.applied(primary, secondary, 30)
        assert primary.paths[0].read_bytes() == secondary.paths[0].read_bytes()
    finally:
        if writing is not None:
            writing.cancel()
        await pair.close()


async def test_a_disk_that_stands_still_for_too_long_is_given_up_by_a_checkpoint(tmp_path: Path, frozen: Path) -> None:
    pair = DiskPair(tmp_path, (SIZE,), buffer_bytes_max=BUFFER, self_check=False, stall_ms_max=1000)
    writing: asyncio.Task[None] | None = None
    try:
        primary, secondary = await following(pair)
        await run("fsfreeze", "-f", str(frozen))
        writing = asyncio.create_task(write_on(pair, primary, bytes(MIB)))
        with pytest.raises(PeerLost, match="give no room in 1000 ms"):
            await checkpoints(pair, primary, secondary, 20.0)
        await primary.guest.write(0, b"alone")
        assert not secondary.troubles
        await run("fsfreeze", "-u", str(frozen))
    finally:
        if writing is not None:
            writing.cancel()
        await pair.close()
