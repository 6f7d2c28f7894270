"""The copy of disks: every byte that counts once, zeros without content, never above the rate. The clock is ours."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.changed_chunks import CHUNK_BYTES_MIN, ChangedChunks, bitmap_bytes_of
from pycolo.disk import copying
from pycolo.disk.copying import BURST_S, PIECE_BYTES, Copying, CopyTask
from pycolo.edge.disk_image import DiskImage

KIB = 1 << 10
MIB = 1 << 20
Piece = tuple[int, int, int, bytes | None]


class Partner:
    """Receiver of the pieces, in order; `content` is what the partner's images become."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = [bytearray(content) for content in contents]
        self.pieces: list[Piece] = []

    def wrote(self, disk: int, offset: int, data: bytes) -> None:
        self.pieces.append((disk, offset, len(data), data))
        self.contents[disk][offset : offset + len(data)] = data

    def zeroed(self, disk: int, offset: int, length: int) -> None:
        self.pieces.append((disk, offset, length, None))
        self.contents[disk][offset : offset + length] = bytes(length)

    def ranges(self, disk: int = 0) -> list[tuple[int, int]]:
        return [(offset, length) for number, offset, length, _ in self.pieces if number == disk]


def sparse_image(path: Path, size: int, parts: Sequence[tuple[int, bytes]]) -> DiskImage:
    """Holes wherever `parts` has nothing."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in parts:
            file.seek(offset)
            file.write(content)
    assert path.stat().st_size == size
    return DiskImage(path, image_format="raw")


@pytest.fixture
def images(tmp_path: Path) -> Iterator[list[DiskImage]]:
    """Random, hole, written zeros, random at an odd end; and a second, small one."""
    first = [(0, random.Random(1).randbytes(512 * KIB)), (2 * MIB, bytes(512 * KIB)), (3 * MIB, b"end" * 333)]
    images = [
        sparse_image(tmp_path / "a", 3 * MIB + 999, first),
        sparse_image(tmp_path / "b", 777, [(0, b"small" * 155 + b"!!")]),
    ]
    yield images
    for image in images:
        image.close()


def whole(images: list[DiskImage]) -> list[CopyTask]:
    return [CopyTask(number, image, None) for number, image in enumerate(images)]


def copy_all(copy: Copying) -> None:
    while copy.step(0.0) is not None:
        pass


def adjoining(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that follow on from each other, as one."""
    joined: list[tuple[int, int]] = []
    for offset, length in ranges:
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return joined


def test_everything_is_passed_once_and_in_order(images: list[DiskImage]) -> None:
    partner = Partner(b"\xee" * images[0].size_bytes, b"\xee" * images[1].size_bytes)
    copy = Copying(whole(images), partner, 0, 0.0)
    copy_all(copy)
    assert [bytes(content) for content in partner.contents] == [image.path.read_bytes() for image in images]
    for number, image in enumerate(images):
        assert adjoining(partner.ranges(number)) == [(0, image.size_bytes)]
    assert [piece[0] for piece in partner.pieces] == sorted(piece[0] for piece in partner.pieces)
    assert copy.looked_at_bytes == copy.total_bytes == sum(image.size_bytes for image in images)
    assert copy.done


def test_holes_and_zeros_travel_without_content(images: list[DiskImage]) -> None:
    partner = Partner(bytes(images[0].size_bytes), bytes(images[1].size_bytes))
    copy = Copying(whole(images), partner, 0, 0.0)
    copy_all(copy)
    content = [(offset, length) for disk, offset, length, data in partner.pieces if data is not None and not disk]
    assert all(length <= PIECE_BYTES for _, length in content)
    assert adjoining(content) == [(0, 512 * KIB), (3 * MIB, 999)]
    assert copy.sent_bytes == 512 * KIB + 999 + 777
    assert max(length for _, length in partner.ranges()) > MIB  # a hole is one piece, however long


def test_a_long_hole_is_cut(images: list[DiskImage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "ZEROS_BYTES_MAX", 512 * KIB)
    partner = Partner(bytes(images[0].size_bytes))
    copy_all(Copying(whole(images[:1]), partner, 0, 0.0))
    assert max(length for _, length in partner.ranges()) == 512 * KIB
    assert adjoining(partner.ranges()) == [(0, images[0].size_bytes)]


def test_a_disk_of_zeros_and_no_disk_at_all(tmp_path: Path) -> None:
    image = sparse_image(tmp_path / "z", 5 * MIB + 1, [])
    partner = Partner(b"\xee" * image.size_bytes)
    copy = Copying(whole([image]), partner, 1, 0.0)  # one byte a second: what has no content is free
    copy_all(copy)
    assert partner.pieces == [(0, 0, 5 * MIB + 1, None)]
    assert Copying([], partner, 0, 0.0).step(0.0) is None
    image.close()


def test_only_marked_chunks_are_looked_at(images: list[DiskImage]) -> None:
    size = images[0].size_bytes
    bits = np.zeros(bitmap_bytes_of(size), np.uint8)
    for chunk in (1, 2, size // CHUNK_BYTES_MIN):
        ChangedChunks(size, bits).note(chunk * CHUNK_BYTES_MIN, 1)
    partner = Partner(b"\xee" * size)
    copy = Copying([CopyTask(0, images[0], bits)], partner, 0, 0.0)
    copy_all(copy)
    end = size // CHUNK_BYTES_MIN * CHUNK_BYTES_MIN
    expected = [(CHUNK_BYTES_MIN, 2 * CHUNK_BYTES_MIN), (end, size - end)]
    assert adjoining(partner.ranges()) == expected
    assert copy.total_bytes == copy.looked_at_bytes == sum(length for _, length in expected)
    ours = images[0].path.read_bytes()
    assert all(partner.contents[0][at : at + length] == ours[at : at + length] for at, length in expected)


def test_nothing_marked_is_nothing_passed(images: list[DiskImage]) -> None:
    partner = Partner(b"")
    copy = Copying([CopyTask(0, images[1], np.zeros(1, np.uint8))], partner, 0, 0.0)
    assert copy.step(0.0) is None
    assert (copy.done, partner.pieces, copy.total_bytes) == (True, [], 0)


def test_what_the_guest_does_before_a_piece_is_passed_counts(images: list[DiskImage]) -> None:
    """The first piece has been passed; then a hole is filled, and data becomes zeros."""
    image = images[0]
    partner = Partner(b"\xee" * image.size_bytes)
    copy = Copying(whole(images[:1]), partner, 0, 0.0)
    assert copy.step(0.0) == 0.0
    image.write(MIB, b"filled" * 1000)
    image.zero(3 * MIB, 999, may_trim=True)
    copy_all(copy)
    assert partner.contents[0] == image.path.read_bytes()
    assert b"filled" in partner.contents[0]


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 30), size=st.integers(1, 1500 * KIB), incremental=st.booleans())
def test_a_copy_under_writes_ends_with_equal_disks(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, incremental: bool
) -> None:
    """Every write also goes to the partner when it happens; before the copy only marked chunks differ."""
    dice = random.Random(seed)
    before = dice.randbytes(size)
    image = sparse_image(tmp_path_factory.mktemp("copy") / "disk", size, [(0, before)])
    bits = np.zeros(bitmap_bytes_of(size), np.uint8)
    partner = Partner(before if incremental else dice.randbytes(size))

    def write() -> tuple[int, int]:
        offset = dice.randrange(size)
        length = min(dice.choice((1, 4096, 200 * KIB)), size - offset)
        if dice.random() < 0.5:
            image.write(offset, dice.randbytes(length))
        else:
            image.zero(offset, length, may_trim=True)
        return offset, length

    for _ in range(4):
        ChangedChunks(size, bits).note(*write())
    copy = Copying([CopyTask(0, image, bits if incremental else None)], partner, 0, 0.0)
    while copy.step(0.0) is not None:
        offset, length = write()
        partner.wrote(0, offset, image.read(offset, length))
    assert partner.contents[0] == image.path.read_bytes()
    image.close()


@pytest.mark.parametrize("seed", range(4))
def test_the_rate_is_kept_over_every_window_whatever_the_pauses(tmp_path: Path, seed: int) -> None:
    rate = 4 * MIB
    dice = random.Random(seed)
    image = sparse_image(tmp_path / "disk", 6 * MIB, [(0, dice.randbytes(6 * MIB))])
    copy = Copying(whole([image]), Partner(bytes(6 * MIB)), rate, 100.0)
    now_s, sent = 100.0, [(100.0, 0)]
    while (wait_s := copy.step(now_s)) is not None:
        sent.append((now_s, copy.sent_bytes))
        now_s += wait_s * dice.choice((0.1, 1.0, 1.0)) + dice.choice((0.0, 0.0, 0.0, 0.7))
    for (began_s, before), (ended_s, after) in itertools.combinations(sent, 2):
        assert after - before <= rate * (ended_s - began_s + BURST_S) + PIECE_BYTES + 1
    assert copy.sent_bytes == 6 * MIB
    image.close()


def test_the_rate_is_used_up(tmp_path: Path) -> None:
    rate = 4 * MIB
    image = sparse_image(tmp_path / "disk", 6 * MIB, [(0, random.Random(1).randbytes(6 * MIB))])
    copy = Copying(whole([image]), Partner(bytes(6 * MIB)), rate, 0.0)
    now_s = 0.0
    while (wait_s := copy.step(now_s)) is not None:
        now_s += wait_s
    assert now_s == pytest.approx(6 * MIB / rate, abs=PIECE_BYTES / rate)
    image.close()


def test_an_image_that_can_not_be_read_is_no_zeros(images: list[DiskImage]) -> None:
    partner = Partner(bytes(images[0].size_bytes))
    copy = Copying(whole(images[:1]), partner, 0, 0.0)
    with images[0].path.open("r+b") as file:
        file.truncate(100 * KIB)
    with pytest.raises(OSError, match="the image has become shorter"):
        copy_all(copy)
    assert not copy.done
