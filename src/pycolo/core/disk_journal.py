"""How committed writes reach the secondary's image, so that a crash at any instant leaves one epoch or the other.

    1  journal: every record, then the header with the digest over them; sync
    2  image: every record; sync
    3  journal: the header cleared; sync

Guarantees: whatever instant the process is killed at or the power fails, `replay` leaves the image as it was before the
batch or as it is after it, never between. A journal that is not whole is ignored: then step 2 had not begun. Step 2
can be repeated, and nothing else writes to the image before step 3 is durable. Memory is bounded by one record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Protocol

import xxhash

from pycolo.core.disk_epochs import Buffers

_MAGIC = b"COLOJRN1"
_HEADER = struct.Struct("<8sQ16s")  # magic, bytes of all records, digest
HEADER_BYTES = 4096
_ENTRY = struct.Struct("<QQB7x")  # offset, length, 1 for zeros; the content follows
READ_BYTES = 1 << 20
SYNC_BYTES = 16 << 20  # no sync takes long, so that others see that it gets on

Record = tuple[int, int, Buffers | None]
"""(offset, length, content) of one write; content is None for zeros."""


class Storage(Protocol):
    """A file or device. Every method may raise OSError; what was not synced may be lost or torn when power fails."""

    def read(self, offset: int, length: int) -> bytes:
        """Shorter than asked for only at the end of a file."""

    def write(self, offset: int, data: bytes | memoryview) -> None: ...

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None: ...

    def sync(self) -> None: ...


def apply(journal: Storage, image: Storage, records: Iterable[Record]) -> None:
    """Bring a batch to the image, by way of the journal; `records` is gone through twice, so it is no iterator.

    Raises OSError; `replay` or a repetition mends it.
    """
    assert iter(records) is not records
    _write_journal(journal, records)
    _write_image(image, records)
    _clear(journal)


def replay(journal: Storage, image: Storage) -> bool:
    """Finish a batch that a crash interrupted; False when there was none to finish. Raises OSError.

    Once it has returned, nothing that is left in the journal can undo a later write to the image.
    """
    size = _whole_size(journal)
    if size is not None:
        _write_again(journal, HEADER_BYTES + size)
        _write_image(image, _records(journal, size))
    _clear(journal)  # also when none was found: what a killed process has cleared may not be durable
    return size is not None


def _write_journal(journal: Storage, records: Iterable[Record]) -> None:
    digest = xxhash.xxh3_128()
    at = synced = HEADER_BYTES
    for offset, length, content in records:
        for part in (_ENTRY.pack(offset, length, content is None), *(content or ())):
            digest.update(part)
            journal.write(at, part)
            at += len(part)
        if at - synced >= SYNC_BYTES:
            journal.sync()
            synced = at
    header = _HEADER.pack(_MAGIC, at - HEADER_BYTES, digest.digest())
    journal.write(0, header.ljust(HEADER_BYTES, b"\0"))
    journal.sync()


def _write_again(journal: Storage, size: int) -> None:
    """What we read may be in a cache only: its writer was killed before the sync, or the sync failed."""
    for at in range(0, size, READ_BYTES):
        journal.write(at, journal.read(at, min(READ_BYTES, size - at)))
    journal.sync()


def _write_image(image: Storage, records: Iterable[Record]) -> None:
    unsynced = 0
    for offset, length, content in records:
        if content is None:
            image.zero(offset, length, may_trim=True)
            continue
        for part in content:
            image.write(offset, part)
            offset += len(part)
        unsynced += length
        if unsynced >= SYNC_BYTES:
            image.sync()
            unsynced = 0
    image.sync()


def _clear(journal: Storage) -> None:
    """Durably; where nothing is to be cleared no room is needed either."""
    if journal.read(0, HEADER_BYTES).strip(b"\0"):
        journal.write(0, bytes(HEADER_BYTES))
    journal.sync()


def _whole_size(journal: Storage) -> int | None:
    """The bytes of all records of a journal that is whole."""
    header = journal.read(0, HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    magic, size, expected = _HEADER.unpack_from(header)
    if magic != _MAGIC:
        return None
    digest = xxhash.xxh3_128()
    for at in range(0, size, READ_BYTES):
        wanted = min(READ_BYTES, size - at)
        part = journal.read(HEADER_BYTES + at, wanted)
        if len(part) < wanted:
            return None
        digest.update(part)
    return size if digest.digest() == expected else None


def _records(journal: Storage, size: int) -> Iterator[Record]:
    at, end = HEADER_BYTES, HEADER_BYTES + size
    while at < end:
        offset, length, zeros = _ENTRY.unpack(journal.read(at, _ENTRY.size))
        at += _ENTRY.size
        if zeros:
            yield offset, length, None
            continue
        for start in range(0, length, READ_BYTES):
            part = journal.read(at + start, min(READ_BYTES, length - start))
            yield offset + start, len(part), [part]
        at += length
