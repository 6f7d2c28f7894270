"""The disks of a pair, with real disk processes: copy, epochs, takeover, an old partner's return, every trouble."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import xxhash
from disk_pair import FUA, MIB, TRIM, WRITE, DiskHost, DiskPair, Guest, following

from file_systems import run, small_file_system
from pair import until
from pycolo.core import disk_wire
from pycolo.core.failover import Role
from pycolo.edge.disk_meta import HEADER_BYTES
from pycolo.errors import EnvironmentFault, PeerLost, PeerUntrusted
from pycolo.pki.authority import issue

P, S = Role.PRIMARY, Role.SECONDARY
SIZE = 8 * MIB
CHECKPOINTS = 100


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[DiskPair]:
    pair = DiskPair(tmp_path, (SIZE,))
    try:
        yield pair
    finally:
        await pair.close()


class Writer:
    """Random writes of all kinds, several at a time."""

    def __init__(self, pair: DiskPair, guest: Guest, seed: int, size: int) -> None:
        self._pair, self._guest, self._dice, self._size = pair, guest, random.Random(seed), size
        self.writes = 0
        self._stopped = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopped:
            await self._pair.running.wait()
            await asyncio.gather(*(self._one() for _ in range(8)))
            await asyncio.sleep(0.001)

    async def _one(self) -> None:
        dice = self._dice
        length = dice.choice((512, 4096, 4096, 4096, 5000, 65536, 131072))
        offset = dice.randrange(self._size - length)
        if dice.random() < 0.7:
            offset -= offset % 4096
        kind = dice.random()
        if kind < 0.1:
            await self._guest.zero(offset, length)
        elif kind < 0.15:
            await self._guest.begin(TRIM, offset, length)
        else:
            await self._guest.write(offset, dice.randbytes(length), FUA if kind > 0.97 else 0)
        self.writes += 1

    async def stop(self) -> None:
        """No more of it; as when a VM is paused, what is under way is answered first."""
        self._stopped = True
        await self._task


def blocks_that_differ(ours: bytes, theirs: bytes) -> list[int]:
    assert len(ours) == len(theirs)
    return [at // 4096 for at in range(0, len(ours), 4096) if ours[at : at + 4096] != theirs[at : at + 4096]]


async def test_after_each_of_100_checkpoints_under_load_both_disks_are_the_same(tmp_path: Path) -> None:
    """Under a barrier: the PVM stands still at the cut, the SVM after the commit; compared block by block.

    The second disk has an odd size. The SVM writes too, and other things: they must be gone at the commit.
    """
    sizes = (SIZE, 3 * MIB + 1536)
    pair = DiskPair(tmp_path, sizes)
    try:
        primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
        await asyncio.gather(*(guest.write(4096, b"before" * 1000) for guest in primary.guests))
        await pair.join(primary, secondary)
        images: list[bytes] = []

        async def cut() -> None:
            images[:] = [path.read_bytes() for path in primary.paths]

        guests = list(zip(primary.guests, sizes, strict=True))
        writers = [Writer(pair, guest, n, size) for n, (guest, size) in enumerate(guests)]
        for _ in range(CHECKPOINTS):
            theirs = [Writer(pair, g, 9, size) for g, size in zip(secondary.guests, sizes, strict=True)]
            await asyncio.sleep(0.01)
            for writer in (*writers, *theirs):
                await writer.stop()
            await pair.checkpoint(primary, secondary, cut)
            for number, size in enumerate(sizes):
                assert blocks_that_differ(images[number], await secondary.guests[number].read_all(size)) == []
            writers = [Writer(pair, guest, pair.epoch * 10 + n, size) for n, (guest, size) in enumerate(guests)]
        for writer in writers:
            await writer.stop()
        assert (await primary.link.stats()).written_bytes > 20 * MIB
        await pair.checkpoint(primary, secondary, cut)
        await pair.applied(primary, secondary)
        assert [path.read_bytes() for path in secondary.paths] == images
    finally:
        await pair.close()


async def test_copy_under_load_then_the_images_agree(pair: DiskPair) -> None:
    primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
    await primary.guest.write(0, random.Random(1).randbytes(SIZE // 2))
    writer = Writer(pair, primary.guest, 2, SIZE)
    copied = await pair.join(primary, secondary)
    await asyncio.sleep(0.1)
    await writer.stop()
    assert copied.whole
    await pair.checkpoint(primary, secondary)
    await pair.applied(primary, secondary)
    for host in (primary, secondary):
        await host.finish()
    compare = await asyncio.create_subprocess_exec(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", str(primary.paths[0]), str(secondary.paths[0])
    )
    assert await compare.wait() == 0


async def test_only_allocated_blocks_travel_and_the_rate_is_kept(pair: DiskPair) -> None:
    primary = await pair.start("h1", P, copy_bytes_per_s_max=4 * MIB)
    secondary = await pair.start("h2", S)
    await primary.guest.write(MIB, random.Random(1).randbytes(2 * MIB))
    await primary.guest.write(5 * MIB, bytes(MIB))  # allocated, and all zero
    began = asyncio.get_running_loop().time()
    copied = await pair.join(primary, secondary)
    assert copied.copied_bytes == 2 * MIB
    assert asyncio.get_running_loop().time() - began > 0.3  # 2 MiB at 4 MiB/s, less the burst
    assert secondary.paths[0].stat().st_blocks * 512 < 3 * MIB


async def test_what_the_svm_writes_is_thrown_away_at_the_checkpoint(pair: DiskPair) -> None:
    primary, secondary = await following(pair)
    await primary.guest.write(0, b"P" * 4096)
    await secondary.guest.write(0, b"S" * 4096)
    await secondary.guest.write(8192, b"S" * 4096)
    assert await secondary.guest.read(0, 4096) == b"S" * 4096
    await pair.checkpoint(primary, secondary)
    assert await secondary.guest.read(0, 12288) == b"P" * 4096 + bytes(8192)


async def test_what_is_not_committed_stays_unseen_and_a_takeover_forgets_it(pair: DiskPair) -> None:
    primary, secondary = await following(pair)
    await primary.guest.write(0, b"1" * 4096)
    await pair.checkpoint(primary, secondary)
    await secondary.guest.write(4096, b"own" * 100)
    await primary.guest.write(0, b"2" * 4096)
    await primary.link.seal(pair.epoch + 1)
    await secondary.link.staged(pair.epoch + 1)
    assert await secondary.guest.read(0, 4096) == b"1" * 4096
    primary.kill()
    await until(lambda: secondary.lost, 10.0, "the news")
    await secondary.link.take_over()
    expected = b"1" * 4096 + b"own" * 100
    assert await secondary.guest.read(0, len(expected)) == expected
    await secondary.guest.write(SIZE - 4096, b"later" * 100)
    await asyncio.wait_for(secondary.guest.flush(), 5)
    await secondary.finish()
    image = secondary.paths[0].read_bytes()
    assert image[: len(expected)] == expected
    assert image[SIZE - 4096 :][:500] == b"later" * 100
    assert not image[len(expected) : SIZE - 4096].strip(b"\0")


async def test_a_takeover_under_load_loses_nothing_that_was_answered(pair: DiskPair) -> None:
    """The SVM's guest writes before, during and after the takeover; what was answered is on the image at the end."""
    _, secondary = await following(pair)
    model = bytearray(SIZE)
    dice = random.Random(5)

    async def write() -> None:
        offset = dice.randrange(SIZE // 4096) * 4096
        data = dice.randbytes(4096)
        model[offset : offset + 4096] = data
        await secondary.guest.write(offset, data)

    for _ in range(300):
        await write()
    taking_over = asyncio.create_task(secondary.link.take_over())
    for number in range(600):
        await write()
        if number % 100 == 0:
            await asyncio.wait_for(secondary.guest.flush(), 5)
    await taking_over
    assert blocks_that_differ(bytes(model), await secondary.guest.read_all(SIZE)) == []
    await secondary.finish()
    assert blocks_that_differ(bytes(model), secondary.paths[0].read_bytes()) == []


# ---------------------------------------------------------------- the return of a partner


async def test_a_killed_secondary_returns_for_what_it_missed(pair: DiskPair) -> None:
    primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
    await primary.guest.write(0, random.Random(1).randbytes(4 * MIB))
    assert (await pair.join(primary, secondary)).whole
    await pair.checkpoint(primary, secondary)
    await primary.guest.write(0, b"a" * 4096)
    await pair.checkpoint(primary, secondary)
    await pair.applied(primary, secondary)
    await primary.guest.write(MIB, b"b" * 4096)  # streamed, never committed
    secondary.kill()
    await until(lambda: primary.lost, 10.0, "the news")
    await primary.link.leave_pair()
    await primary.guest.write(2 * MIB, b"c" * 4096)  # while alone

    again = await pair.returned(primary)
    assert blocks_that_differ(primary.paths[0].read_bytes(), await again.guest.read_all(SIZE)) == []


async def test_a_copy_that_was_cut_short_leaves_no_image_that_looks_good(pair: DiskPair) -> None:
    primary = await pair.start("h1", P, copy_bytes_per_s_max=MIB)
    secondary = await pair.start("h2", S)
    await primary.guest.write(0, random.Random(1).randbytes(4 * MIB))
    await primary.call(secondary)
    await asyncio.sleep(0.5)
    assert 0 < (await primary.link.stats()).sent_bytes < 2 * MIB
    secondary.kill()
    await secondary.close()
    with pytest.raises(EnvironmentFault, match="is an unfinished copy"):
        await pair.start("h2", P)
    await primary.link.leave_pair()
    again = await pair.start("h2", S)
    assert (await pair.join(primary, again)).whole
    await pair.checkpoint(primary, again)
    assert blocks_that_differ(primary.paths[0].read_bytes(), await again.guest.read_all(SIZE)) == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_old_primary_returns_to_the_survivor(pair: DiskPair, restarted: bool) -> None:
    """Its image has writes that the survivor never got: they must go, and not the whole disk travel for that."""
    primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
    await primary.guest.write(0, random.Random(1).randbytes(6 * MIB))
    await pair.join(primary, secondary)
    for _ in range(2):  # when the second one is there the primary has noted that the first copy is
        await pair.checkpoint(primary, secondary)
        await pair.applied(primary, secondary)
    await primary.guest.write(0, b"lost" * 1024)
    await secondary.guest.write(MIB, b"kept" * 1024)
    primary.kill()
    await primary.close()
    await secondary.link.take_over()
    await secondary.guest.write(2 * MIB, b"more" * 1024)
    await secondary.guest.flush()
    if restarted:
        await secondary.finish()
    survivor = await pair.start("h2", P) if restarted else secondary
    old = await pair.start("h1", S)
    await pair.folded(survivor)
    copied = await pair.join(survivor, old)
    assert not copied.whole
    assert 0 < copied.copied_bytes <= 6 * 65536
    await pair.checkpoint(survivor, old)
    assert blocks_that_differ(survivor.paths[0].read_bytes(), await old.guest.read_all(SIZE)) == []
    assert (await old.guest.read(0, 4)) != b"lost"


async def test_a_pair_that_loses_itself_as_the_secondary_adopts_the_first_copy_copies_no_second_one(
    pair: DiskPair,
) -> None:
    """The primary has not heard of it; that it sealed an epoch of that session is enough to know the image."""
    pair.path("h1").parent.mkdir()
    pair.path("h1").write_bytes(random.Random(1).randbytes(SIZE))
    primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
    await pair.join(primary, secondary)
    pair.epoch += 1
    await primary.link.seal(pair.epoch)
    await primary.guest.write(0, b"later" * 1024)
    await secondary.link.staged(pair.epoch)
    await primary.link.leave_pair()
    await pair.reached(secondary)
    copied = await pair.reunite(primary, secondary)
    assert not copied.whole
    assert 0 < copied.copied_bytes <= 65536
    await pair.checkpoint(primary, secondary)
    await pair.applied(primary, secondary)
    assert blocks_that_differ(primary.paths[0].read_bytes(), secondary.paths[0].read_bytes()) == []


async def test_a_pair_that_has_lost_itself_goes_on_and_could_take_over_all_the_time(pair: DiskPair) -> None:
    """What is copied at a reunion is staged: the secondary's image stays that of its memory until the commit."""
    primary, secondary = await following(pair)
    for turn in range(4):
        await primary.guest.write(turn * MIB, b"before" * 1024)
        await pair.checkpoint(primary, secondary)
        committed = await primary.guest.read_all(SIZE)
        await primary.guest.write(MIB // 2, turn.to_bytes(2) * 2048)  # staged, never committed
        await primary.link.leave_pair()
        await primary.guest.write(3 * MIB + turn * 4096, b"alone!" * 1024)
        copied = await pair.reunite(primary, secondary)
        assert not copied.whole
        assert 0 < copied.copied_bytes <= MIB
        assert blocks_that_differ(committed, await secondary.guest.read_all(SIZE)) == []
        if turn % 2:
            await pair.checkpoint(primary, secondary)
            assert blocks_that_differ(await primary.guest.read_all(SIZE), await secondary.guest.read_all(SIZE)) == []
            await pair.applied(primary, secondary)
    await primary.guest.write(0, b"lost" * 1024)
    expected = await secondary.guest.read_all(SIZE)
    primary.kill()
    await primary.close()
    await secondary.link.take_over()
    await pair.folded(secondary)
    assert blocks_that_differ(expected, await secondary.guest.read_all(SIZE)) == []
    old = await pair.start("h1", S)
    copied = await pair.join(secondary, old)
    assert not copied.whole, "both have adopted the last session"
    await pair.checkpoint(secondary, old)
    assert blocks_that_differ(expected, await old.guest.read_all(SIZE)) == []


async def test_one_takeover_after_the_other_under_load(pair: DiskPair) -> None:
    """Each survivor becomes a primary as it is, gets a new secondary, and dies in its turn."""
    primary, secondary = await following(pair)
    for turn, name in enumerate(("h1", "h2", "h1", "h2")):
        load = Writer(pair, primary.guest, turn, SIZE)
        for _ in range(3):
            await asyncio.sleep(0.05)
            await pair.checkpoint(primary, secondary)
        await load.stop()
        await pair.checkpoint(primary, secondary)
        expected = await primary.guest.read_all(SIZE)
        primary.kill()
        await primary.close()
        await secondary.link.take_over()
        assert blocks_that_differ(expected, await secondary.guest.read_all(SIZE)) == []
        load = Writer(pair, secondary.guest, turn, SIZE)
        await until(lambda: load.writes > 0, 20, "a write")  # noqa: B023 - it is waited for here
        await load.stop()
        primary, secondary = secondary, await pair.start(name, S)
        await pair.folded(primary)
        copied = await pair.join(primary, secondary)
        assert not copied.whole
        await pair.checkpoint(primary, secondary)
        assert blocks_that_differ(await primary.guest.read_all(SIZE), await secondary.guest.read_all(SIZE)) == []


@pytest.mark.parametrize("spoil", ["touched", "rebooted", "no file"])
async def test_where_the_marks_can_not_be_trusted_all_is_copied(pair: DiskPair, spoil: str) -> None:
    primary, secondary = await following(pair)
    await primary.guest.write(0, random.Random(1).randbytes(MIB))
    await pair.checkpoint(primary, secondary)
    await secondary.finish()
    meta = primary.paths[0].with_name("disk0.img.colo")
    if spoil == "rebooted":  # killed, and another boot since: what was in the page cache may be gone
        primary.kill()
        content = meta.read_bytes()
        head, body = content[:20], content[20:HEADER_BYTES]
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip().encode()
        changed = body.replace(boot_id, boot_id[::-1])
        assert changed != body
        length = int.from_bytes(head[16:20], "big")
        digest = xxhash.xxh3_64_intdigest(changed[:length]).to_bytes(8, "big")
        meta.write_bytes(head[:8] + digest + head[16:] + changed + content[HEADER_BYTES:])
    else:
        await primary.finish()
    if spoil == "touched":
        with primary.paths[0].open("r+b") as image:
            image.write(b"by somebody else")
    if spoil == "no file":
        meta.unlink()
    again, other = await pair.start("h1", P), await pair.start("h2", S)
    assert (await pair.join(again, other)).whole
    await pair.checkpoint(again, other)
    assert blocks_that_differ(again.paths[0].read_bytes(), await other.guest.read_all(SIZE)) == []


async def test_a_damaged_file_beside_the_image_is_said(pair: DiskPair) -> None:
    primary = await pair.start("h1", P)
    await primary.finish()
    meta = primary.paths[0].with_name("disk0.img.colo")
    meta.write_bytes(b"x" * 100)
    with pytest.raises(EnvironmentFault, match="is damaged, so nobody knows whether"):
        await pair.start("h1", P)


async def test_a_disk_that_was_a_secondarys_is_no_primarys_by_mistake(pair: DiskPair) -> None:
    primary, secondary = await following(pair)
    await primary.guest.write(0, b"old" * 1000)
    await pair.checkpoint(primary, secondary)
    await pair.applied(primary, secondary)
    await secondary.finish()
    await primary.guest.write(0, b"new" * 1000)
    await primary.finish()
    with pytest.raises(EnvironmentFault, match=r"so the primary's disk is newer.*or give --older-disk"):
        await pair.start("h2", P)
    older = await pair.start("h2", P, older_disk=True)
    assert await older.guest.read(0, 3000) == b"old" * 1000


@pytest.mark.parametrize("length", [0, 100, HEADER_BYTES])
async def test_a_file_beside_the_image_that_is_too_short_is_damaged(pair: DiskPair, length: int) -> None:
    primary, secondary = await following(pair)
    secondary.kill()
    await secondary.close()
    meta = secondary.paths[0].with_name("disk0.img.colo")
    meta.write_bytes(meta.read_bytes()[:length])
    for role in (P, S):
        with pytest.raises(EnvironmentFault, match="is damaged, so nobody knows whether"):
            await pair.start("h2", role)
    await primary.finish()


async def test_a_size_that_is_not_the_images_is_refused(pair: DiskPair) -> None:
    await (await pair.start("h1", P)).finish()
    pair.sizes = (SIZE + MIB,)
    with pytest.raises(EnvironmentFault, match=f"has {SIZE} bytes and `size_mib` says {SIZE + MIB}"):
        await pair.start("h1", P)


async def test_a_secondary_killed_while_it_applies_holds_a_whole_epoch(pair: DiskPair) -> None:
    """Every epoch writes its number all over the disk: after SIGKILL at any time the image has one number only."""
    primary, secondary = await following(pair)
    dice = random.Random(3)
    for _ in range(12):
        for _ in range(4):
            number = pair.epoch + 1
            stamp = number.to_bytes(4, "big") * 1024
            await asyncio.gather(*(primary.guest.write(at, stamp) for at in range(0, SIZE, 65536)))
            await pair.checkpoint(primary, secondary)
            await asyncio.sleep(dice.random() * 0.1)
        secondary.kill()
        await secondary.close()
        await primary.link.leave_pair()
        secondary = await pair.start("h2", S)  # replays the journal
        image = secondary.paths[0].read_bytes()
        stamps = {image[at : at + 4096] for at in range(0, SIZE, 65536)}
        assert len(stamps) == 1
        assert not (await pair.join(primary, secondary)).whole
        await pair.checkpoint(primary, secondary)


async def test_a_secondary_killed_while_it_applies_holds_one_epoch_on_all_its_disks(tmp_path: Path) -> None:
    """As above, with three disks: no image may be of another epoch than the others."""
    sizes = (SIZE, 2 * MIB, 4 * MIB + 512)
    pair = DiskPair(tmp_path, sizes)
    try:
        primary, secondary = await following(pair)
        dice = random.Random(4)
        for _ in range(10):
            for _ in range(3):
                stamp = (pair.epoch + 1).to_bytes(4, "big") * 128
                places = [
                    (guest, at)
                    for guest, size in zip(primary.guests, sizes, strict=True)
                    for at in range(0, size, 65536)
                ]
                await asyncio.gather(*(guest.write(at, stamp) for guest, at in places))
                await pair.checkpoint(primary, secondary)
                await asyncio.sleep(dice.random() * 0.1)
            secondary.kill()
            await secondary.close()
            await primary.link.leave_pair()
            secondary = await pair.start("h2", S)
            images = [path.read_bytes() for path in secondary.paths]
            stamps = {image[at : at + 512] for image in images for at in range(0, len(image), 65536)}
            assert len(stamps) == 1
            await pair.join(primary, secondary)
            await pair.checkpoint(primary, secondary)
    finally:
        await pair.close()


async def test_disks_in_another_order_are_refused_while_a_journal_may_be_unfinished(tmp_path: Path) -> None:
    pair = DiskPair(tmp_path, (SIZE, SIZE))
    try:
        primary, secondary = await following(pair)
        await asyncio.gather(*(guest.write(0, b"x" * 4096) for guest in primary.guests))
        await pair.checkpoint(primary, secondary)
        await pair.applied(primary, secondary)
        secondary.kill()
        await secondary.close()
        pair.order = (1, 0)
        with pytest.raises(EnvironmentFault, match="start once with these disks in this order"):
            await pair.start("h2", S)
        pair.order = (0, 1)
        again = await pair.start("h2", S)
        await again.finish()
        pair.order = (1, 0)
        await pair.start("h2", S)  # ended in good order, the journal is empty
    finally:
        await pair.close()


# ---------------------------------------------------------------- trouble


async def test_a_stalled_secondary_is_given_up_and_the_guest_never_hangs(pair: DiskPair) -> None:
    primary, secondary = await following(pair)
    os.kill(secondary.link.pid, signal.SIGSTOP)
    try:
        began = asyncio.get_running_loop().time()
        longest_s = 0.0
        for number in range(60):
            asked = asyncio.get_running_loop().time()
            await asyncio.wait_for(primary.guest.write(number % 8 * MIB, bytes([number]) * MIB), 10)
            longest_s = max(longest_s, asyncio.get_running_loop().time() - asked)
        assert primary.lost in (
            ["the secondary's disks give no room in 2000 ms"],
            ["the disk channel broke: Connection timed out"],  # the kernel's own limit may come first
        )
        assert 1.0 < longest_s < 3.5
        assert asyncio.get_running_loop().time() - began < 8
        with pytest.raises(PeerLost):
            await primary.link.seal(pair.epoch + 1)
        await primary.guest.flush()
    finally:
        os.kill(secondary.link.pid, signal.SIGCONT)


async def test_a_pause_never_waits_for_a_stalled_secondary(pair: DiskPair) -> None:
    primary, secondary = await following(pair)
    os.kill(secondary.link.pid, signal.SIGSTOP)
    try:
        writes = [primary.guest.begin(WRITE, n % 8 * MIB, MIB, bytes(MIB)) for n in range(40)]
        await asyncio.sleep(0.5)
        assert not all(write.done() for write in writes)  # the peer's slowness is felt
        await primary.link.expect_pause()
        await asyncio.wait_for(asyncio.gather(*writes, primary.guest.flush()), 10)
        assert not primary.lost, "not because the peer was given up"
        await primary.link.expect_requests()
    finally:
        os.kill(secondary.link.pid, signal.SIGCONT)


async def test_a_flush_does_not_wait_for_the_self_check_of_a_seal(tmp_path: Path) -> None:
    """QEMU flushes its disks while it saves the paused VM, and is taken for dead when it does not come to its end."""
    pair = DiskPair(tmp_path, (512 * MIB,))
    try:
        primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
        await pair.join(primary, secondary)
        await primary.link.expect_pause()
        sealing = asyncio.create_task(primary.link.seal(1))
        await asyncio.sleep(0.02)
        await primary.guest.flush()
        assert not sealing.done()
        await sealing
        await primary.link.expect_requests()
    finally:
        await pair.close()


async def test_2_gib_in_one_epoch_force_checkpoints_and_memory_stays_bounded(tmp_path: Path) -> None:
    """On a file system in memory: what is tested are our own limits, not the machine's disk."""
    buffer, size, total = 64 * MIB, 256 * MIB, 2048 * MIB
    await small_file_system(tmp_path, 1024)
    pair = DiskPair(tmp_path, (size,), buffer_bytes_max=buffer, self_check=False)
    try:
        primary, secondary = await following(pair)
        piece = random.Random(1).randbytes(MIB)

        async def load() -> None:
            for at in range(0, total, 8 * MIB):
                await pair.running.wait()
                await asyncio.gather(*(primary.guest.write((at + n * MIB) % size, piece) for n in range(8)))

        loading = asyncio.create_task(load())
        checkpoints = 0
        while not loading.done():
            if primary.wanted:
                assert set(primary.wanted) == {"disk_backlog"}
                primary.wanted.clear()
                await pair.checkpoint(primary, secondary)
                checkpoints += 1
            await asyncio.sleep(0.002)
        await loading
        assert checkpoints >= total // buffer
        assert (await secondary.link.stats()).buffered_bytes_max <= buffer
        assert (await primary.link.stats()).backlog_bytes_max <= buffer
        for host, limit in ((primary, buffer), (secondary, 2 * buffer)):
            assert resident_bytes(host) < limit + 96 * MIB
        assert not primary.lost
        assert not secondary.troubles
        await pair.checkpoint(primary, secondary)
        await pair.applied(primary, secondary, 30)
        with primary.paths[0].open("rb") as ours, secondary.paths[0].open("rb") as theirs:
            for _ in range(size // MIB):
                assert ours.read(MIB) == theirs.read(MIB)
    finally:
        await pair.close()
        await run("umount", str(tmp_path))


def resident_bytes(host: DiskHost) -> int:
    """Anonymous memory of the process, page cache apart."""
    for line in Path(f"/proc/{host.link.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel does not say")


async def test_zeros_on_all_of_a_large_disk_take_checkpoints_and_no_more_room_than_there_is(tmp_path: Path) -> None:
    size = 1024 * MIB
    pair = DiskPair(tmp_path, (size,), buffer_bytes_max=64 * MIB, self_check=False)
    try:
        primary, secondary = await following(pair)
        await primary.guest.write(size // 2, b"x" * 4096)

        async def load() -> None:
            for at in range(0, size, 32 * MIB):
                await pair.running.wait()
                await primary.guest.zero(at, 32 * MIB)

        loading = asyncio.create_task(load())
        while not loading.done():
            if primary.wanted:
                primary.wanted.clear()
                await pair.checkpoint(primary, secondary)
            await asyncio.sleep(0.002)
        await loading
        await pair.checkpoint(primary, secondary)
        assert not secondary.troubles
        assert not primary.lost
        assert not (await secondary.guest.read(size // 2, 4096)).strip(b"\0")
    finally:
        await pair.close()


def is_done(write: asyncio.Future[bytes]) -> bool:
    return write.done()


async def test_an_svm_that_writes_too_much_waits_for_a_checkpoint(tmp_path: Path) -> None:
    pair = DiskPair(tmp_path, (64 * MIB,), buffer_bytes_max=16 * MIB)
    try:
        primary, secondary = await following(pair)
        writes = [secondary.guest.begin(WRITE, n * MIB, MIB, bytes([n + 1]) * MIB) for n in range(12)]
        await until(lambda: "disk_backlog" in secondary.wanted and sum(map(is_done, writes)) >= 5, 20, "a full buffer")
        await asyncio.sleep(0.3)
        assert sum(map(is_done, writes)) in range(5, 10)
        await pair.checkpoint(primary, secondary)
        await asyncio.wait_for(asyncio.gather(*writes), 20)
        assert not (await secondary.guest.read(0, 12 * MIB)).strip(b"\0")
    finally:
        await pair.close()


async def test_an_svm_that_had_to_wait_loses_nothing_at_a_takeover(tmp_path: Path) -> None:
    pair = DiskPair(tmp_path, (64 * MIB,), buffer_bytes_max=16 * MIB)
    try:
        _, secondary = await following(pair)
        writes = [secondary.guest.begin(WRITE, n * MIB, MIB, bytes([n + 1]) * MIB) for n in range(12)]
        await asyncio.sleep(0.3)
        assert not all(write.done() for write in writes)
        await secondary.link.take_over()
        await asyncio.wait_for(asyncio.gather(*writes), 20)
        await asyncio.wait_for(secondary.guest.flush(), 20)
        expected = b"".join(bytes([n + 1]) * MIB for n in range(12))
        assert await secondary.guest.read(0, 12 * MIB) == expected
        await secondary.finish()
        assert secondary.paths[0].read_bytes()[: 12 * MIB] == expected
    finally:
        await pair.close()


async def test_no_space_on_the_secondary_is_its_trouble_and_not_the_guests(tmp_path: Path) -> None:
    pair = DiskPair(tmp_path, (32 * MIB,))
    await small_file_system(tmp_path / "h2", 8)
    try:
        primary, secondary = await following(pair)
        for n in range(16):
            await asyncio.wait_for(primary.guest.write(n * MIB, random.Random(n).randbytes(MIB)), 5)
        await pair.checkpoint(primary, secondary)
        await until(lambda: secondary.troubles, 10.0, "the news")
        assert secondary.troubles[0].fatal
        assert "No space left on device" in secondary.troubles[0].why
        await asyncio.wait_for(primary.guest.write(0, b"on" * 2048), 5)
        await secondary.close()
        await primary.link.leave_pair()
        # Still no room: the same again. With room: it comes back, for what it missed.
        again = await pair.start("h2", S)
        await primary.call(again)
        await until(lambda: again.troubles, 10.0, "the news")
        await again.close()
        await primary.link.leave_pair()
        await run("mount", "-o", "remount,size=64m", str(tmp_path / "h2"))
        again = await pair.start("h2", S)
        await pair.join(primary, again)
        await pair.checkpoint(primary, again)
        assert blocks_that_differ(primary.paths[0].read_bytes(), await again.guest.read_all(32 * MIB)) == []
    finally:
        await pair.close()
        await run("umount", str(tmp_path / "h2"))


async def test_a_full_disk_on_the_primary_is_an_error_for_the_guest_and_both_sides_stay_alike(tmp_path: Path) -> None:
    pair = DiskPair(tmp_path, (32 * MIB,))
    await small_file_system(tmp_path / "h1", 8)
    try:
        primary, secondary = await following(pair)
        results = await asyncio.gather(
            *(primary.guest.write(n * MIB, random.Random(n).randbytes(MIB)) for n in range(16)), return_exceptions=True
        )
        errors = [result for result in results if isinstance(result, OSError)]
        assert errors
        assert {error.errno for error in errors} == {28}
        await pair.checkpoint(primary, secondary)  # with the self-check: the disks are still alike
        assert primary.troubles
        assert "No space left on device" in primary.troubles[0].why
        assert not primary.troubles[0].fatal
        assert (await primary.link.stats()).write_errors == len(errors)
        assert blocks_that_differ(primary.paths[0].read_bytes(), await secondary.guest.read_all(32 * MIB)) == []
    finally:
        await pair.close()
        await run("umount", str(tmp_path / "h1"))


async def test_spilling_to_disk_works_and_is_given_back(tmp_path: Path) -> None:
    pair = DiskPair(tmp_path, (64 * MIB,), buffer_bytes_max=16 * MIB, spill_bytes_max=128 * MIB)
    try:
        primary, secondary = await following(pair)
        for n in range(40):
            await primary.guest.write(n * MIB, random.Random(n).randbytes(MIB))
        await pair.checkpoint(primary, secondary)
        assert (await secondary.link.stats()).buffered_bytes_max > 32 * MIB
        assert blocks_that_differ(primary.paths[0].read_bytes(), await secondary.guest.read_all(64 * MIB)) == []
        await pair.applied(primary, secondary)
        assert (await secondary.link.stats()).buffered_bytes == 0
    finally:
        await pair.close()


STRANGERS = {
    "garbage": random.Random(1).randbytes(5000),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "huge": b"\xff\xff\xff\xff\x01",
    "long": (1 << 20).to_bytes(4, "big") + b"\x01" + bytes(5000),
    "data first": (9 + 512).to_bytes(4, "big") + b"\x02" + bytes(9 + 512),
    "wrong token": b"",
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
async def test_strangers_on_the_disk_channel_do_no_harm(pair: DiskPair, said: bytes) -> None:
    secondary = await pair.start("h2", S)
    await asyncio.to_thread(secondary.paths[0].write_bytes, b"untouched" * 100 + bytes(SIZE - 900))
    with socket.create_connection(("127.0.0.1", secondary.port), timeout=5) as stranger:
        stranger.sendall(said or disk_wire.encode_control(disk_wire.Greeting("guess")))
        stranger.settimeout(5)
        assert await asyncio.to_thread(ended, stranger)
    assert secondary.paths[0].read_bytes()[:900] == b"untouched" * 100
    primary = await pair.start("h1", P)
    await pair.join(primary, secondary)
    await pair.checkpoint(primary, secondary)
    assert secondary.lost == []  # a stranger's end is not the partner's


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes the connection."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    return True


async def test_silent_strangers_do_not_stand_in_the_primarys_way(pair: DiskPair) -> None:
    secondary, primary = await pair.start("h2", S), await pair.start("h1", P)
    silent = [socket.create_connection(("127.0.0.1", secondary.port), timeout=5) for _ in range(30)]
    try:
        await pair.join(primary, secondary)
        await pair.checkpoint(primary, secondary)
    finally:
        for stranger in silent:
            stranger.close()


async def test_only_the_host_that_the_token_is_for_comes_in(pair: DiskPair) -> None:
    secondary, primary = await pair.start("h2", S), await pair.start("h1", P)
    issue(pair.folder / "pki", "h3", pair.folder / "pki")
    with pytest.raises(PeerUntrusted, match="shows a certificate of h2 instead of h4"):
        await primary.call(secondary, peer_name="h4")
    await primary.call(secondary, tls=pair.tls("h3"))  # with the token of h1
    await until(lambda: primary.lost and secondary.refusals, 5.0, "the refusal")
    assert secondary.refusals == ["somebody called for the disk channel without the token of this pair"]
    await primary.link.leave_pair()
    await pair.join(primary, secondary)
    await pair.checkpoint(primary, secondary)
