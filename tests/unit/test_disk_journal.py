"""The journal on whole files: what it writes, what it reads again, and what it takes for no journal at all."""

from __future__ import annotations

import random

import pytest

from pycolo.core.disk_journal import HEADER_BYTES, READ_BYTES, Record, apply, replay
from sim.storage import FaultyStorage

IMAGE = bytes(range(250)) * 80
RECORDS: list[Record] = [
    (0, 700, [b"a" * 300, memoryview(b"b" * 400)]),
    (4096, 5000, None),
    (19_990, 10, [b"end of it."]),
]


def storage(content: bytes = b"", size_bytes: int | None = None) -> FaultyStorage:
    return FaultyStorage(content, random.Random(1), size_bytes)


def expected(image: bytes, records: list[Record]) -> bytes:
    changed = bytearray(image)
    for offset, length, content in records:
        changed[offset : offset + length] = bytes(length) if content is None else b"".join(content)
    return bytes(changed)


def journal_of(records: list[Record]) -> FaultyStorage:
    """A journal as a crash right before the image is written leaves it."""
    journal, image = storage(), storage(IMAGE)
    image.steps.fail_at, image.steps.error = 0, OSError("scripted")
    with pytest.raises(OSError, match="scripted"):
        apply(journal, image, records)
    return journal.after_kill()


def test_a_batch_reaches_the_image_and_leaves_no_journal() -> None:
    journal, image = storage(), storage(IMAGE, len(IMAGE))
    apply(journal, image, RECORDS)
    assert image.content == expected(IMAGE, RECORDS)
    assert not replay(journal, image)
    assert image.after_power_loss().content == expected(IMAGE, RECORDS)


def test_a_whole_journal_is_replayed_once() -> None:
    journal, image = journal_of(RECORDS), storage(IMAGE, len(IMAGE))
    assert replay(journal, image)
    assert image.content == expected(IMAGE, RECORDS)
    assert not replay(journal, image)


def test_contents_longer_than_one_read_are_replayed_whole() -> None:
    content = random.Random(2).randbytes(2 * READ_BYTES + 77)
    records: list[Record] = [(5, len(content), [content]), (len(content) + 5, 9, [b"and after"])]
    journal, image = journal_of(records), storage(bytes(len(content) + 14))
    assert replay(journal, image)
    assert image.content == bytes(5) + content + b"and after"


def test_an_empty_batch_changes_nothing() -> None:
    journal, image = storage(), storage(IMAGE)
    apply(journal, image, [])
    assert image.content == IMAGE


@pytest.mark.parametrize("length", [0, 1, 40, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 100])
def test_a_truncated_journal_is_none(length: int) -> None:
    image = storage(IMAGE)
    assert not replay(storage(journal_of(RECORDS).content[:length]), image)
    assert image.content == IMAGE


@pytest.mark.parametrize("at", [0, 9, 17, 30, HEADER_BYTES, HEADER_BYTES + 30, HEADER_BYTES + 80, -1])
def test_a_journal_with_a_wrong_byte_is_none(at: int) -> None:
    content = bytearray(journal_of(RECORDS).content)
    content[at] ^= 0x40
    image = storage(IMAGE)
    assert not replay(storage(bytes(content)), image)
    assert image.content == IMAGE


@pytest.mark.parametrize("content", [b"", bytes(HEADER_BYTES), bytes(9 * HEADER_BYTES), b"\xff" * 9000])
def test_what_was_never_a_journal_is_none(content: bytes) -> None:
    image = storage(IMAGE)
    assert not replay(storage(content), image)
    assert image.content == IMAGE
