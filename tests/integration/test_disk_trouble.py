"""A secondary whose file system fills up in the middle of a batch: its image is whole, and no guest hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from disk_pair import MIB, DiskHost, DiskPair

from file_systems import run, small_file_system
from pair import until
from pycolo.core.failover import Role

SIZE = 16 * MIB
P, S = Role.PRIMARY, Role.SECONDARY


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[DiskPair]:
    """The second host has 8 MiB."""
    pair = DiskPair(tmp_path, (SIZE,))
    await small_file_system(tmp_path / "h2", 8)
    try:
        yield pair
    finally:
        await pair.close()
        await run("umount", str(tmp_path / "h2"))


async def stamp(pair: DiskPair, primary: DiskHost, secondary: DiskHost, mib: int, text: bytes) -> None:
    """An epoch that writes the same text to the first MiBs of the disk."""
    await asyncio.gather(*(primary.guest.write(at * MIB, text * MIB) for at in range(mib)))
    await pair.checkpoint(primary, secondary)


@pytest.mark.parametrize("end", ["finish", "close"])
async def test_a_batch_that_is_on_the_image_in_part_is_finished_at_the_next_start(
    pair: DiskPair, tmp_path: Path, end: str
) -> None:
    primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
    await pair.join(primary, secondary)
    await stamp(pair, primary, secondary, 2, b"1")
    await pair.applied(primary, secondary)
    await stamp(pair, primary, secondary, 5, b"2")  # its journal has room, but not the image as well
    await until(lambda: secondary.troubles, 10.0, "the news")
    await (secondary.finish() if end == "finish" else secondary.close())
    torn = secondary.paths[0].read_bytes()[: 5 * MIB]
    assert torn[:MIB] == b"2" * MIB
    assert torn[-MIB:] == bytes(MIB)
    await run("mount", "-o", "remount,size=64m", str(tmp_path / "h2"))
    survivor = await pair.start("h2", P, older_disk=True)
    assert await survivor.guest.read(0, 5 * MIB) == b"2" * (5 * MIB)


async def test_after_a_takeover_without_room_the_guest_gets_errors_and_is_not_left_waiting(pair: DiskPair) -> None:
    primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
    await pair.join(primary, secondary)
    await stamp(pair, primary, secondary, 2, b"1")
    await pair.applied(primary, secondary)
    await stamp(pair, primary, secondary, 5, b"2")
    await until(lambda: secondary.troubles, 10.0, "the news")
    primary.kill()
    await secondary.link.take_over()
    with pytest.raises(OSError, match="Input/output error"):
        await asyncio.wait_for(secondary.guest.flush(), 5)
    assert await secondary.guest.read(0, 5 * MIB) == b"2" * (5 * MIB)
