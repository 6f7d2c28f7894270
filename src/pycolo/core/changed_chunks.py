"""Which chunks of a disk may be different from the partner's image: what a returning partner has to be sent.

Guarantees: a chunk is marked before it is written and stays marked until the partner has said that every epoch which
wrote it is safely on its image (rule 7 for disks). Marks are bits of a buffer that the caller persists; they are never
cleared but by `applied` and `clear`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES_MIN = 64 << 10
EPOCHS_MAX = 64  # not applied yet, each with a set of its own
CHUNKS_MAX = 1 << 23  # a bitmap of 1 MiB at most; larger disks get larger chunks

Bits = NDArray[np.uint8]


def chunk_bytes_of(size_bytes: int) -> int:
    """The size of a chunk of a disk of that size."""
    chunk = CHUNK_BYTES_MIN
    while size_bytes > chunk * CHUNKS_MAX:
        chunk *= 2
    return chunk


def bitmap_bytes_of(size_bytes: int) -> int:
    """The size of the bitmap of a disk of that size; bit i of byte j is chunk 8 j + i."""
    chunks = -(-size_bytes // chunk_bytes_of(size_bytes))
    return -(-chunks // 8)


class ChangedChunks:
    """Marks in `bits`, shape (bitmap_bytes_of(size_bytes),), shared with whoever persists them."""

    def __init__(self, size_bytes: int, bits: Bits) -> None:
        self._size_bytes, self._bits = size_bytes, bits
        self._chunk_bytes = chunk_bytes_of(size_bytes)
        self._running: set[int] = set()  # marked since the last seal
        self._sealed: deque[tuple[int, set[int]]] = deque()
        self._followed = False  # there is a partner; without one the sets would only grow
        self._level = False  # the partner's image lacks nothing but what these sets hold

    def note(self, offset: int, length: int) -> None:
        """This range is about to be written."""
        first, last = offset // self._chunk_bytes, (offset + length - 1) // self._chunk_bytes
        for chunk in range(first, last + 1):
            if chunk in self._running:  # and marked; empty while nobody follows
                continue
            if self._followed:
                self._running.add(chunk)
            self._mark(chunk)

    def _mark(self, chunk: int) -> None:
        self._bits[chunk >> 3] |= 1 << (chunk & 7)

    def seal(self, epoch: int) -> None:
        """What was written up to here belongs to the checkpoint that starts `epoch`."""
        if len(self._sealed) >= EPOCHS_MAX:
            self._running |= self._sealed.pop()[1]  # marked longer than need be
        self._sealed.append((epoch, self._running))
        self._running = set()

    def applied(self, epoch: int) -> None:
        """The partner's image safely has everything up to the checkpoint that starts `epoch`."""
        there: set[int] = set()
        while self._sealed and self._sealed[0][0] <= epoch:
            there |= self._sealed.popleft()[1]
        if not self._level:
            return  # an older write to the same chunk may be missing there; `clear` comes when it is not
        for _, chunks in self._sealed:
            there -= chunks
        for chunk in there - self._running:
            self._bits[chunk >> 3] &= 0xFF ^ (1 << (chunk & 7))

    def clear(self) -> None:
        """The partner's image equals ours but for what has been noted since `begin`."""
        self._bits[:] = 0
        self._level = True
        for chunks in (self._running, *(chunks for _, chunks in self._sealed)):
            for chunk in chunks:
                self._mark(chunk)

    def begin(self) -> None:
        """A partner's image is being brought up to ours: what is noted from here on is not part of that."""
        self._running = set()
        self._sealed.clear()
        self._level, self._followed = False, True

    def lost(self) -> None:
        """The partner is gone: what is marked stays marked until the next one has it."""
        self.begin()
        self._followed = False


def ranges_of(bits: Bits, size_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the marked ranges, ascending, clipped to the disk."""
    chunk_bytes = chunk_bytes_of(size_bytes)
    chunks = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    for run in np.split(chunks, np.flatnonzero(np.diff(chunks) != 1) + 1):
        if len(run):
            offset = int(run[0]) * chunk_bytes
            end = min(size_bytes, (int(run[-1]) + 1) * chunk_bytes)
            if end > offset:
                yield offset, end - offset
