"""Room for disk blocks that are not on the disk yet: numbered slots, in memory first and behind it in a spill file.

Guarantees: never more slots than the two limits allow; a slot keeps its content until it is freed; when nothing is kept
any more, memory and file are given back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

BLOCK_BYTES = 4096
ZEROS = -1  # instead of a slot: the block is all zero and takes no room


def blocks_touched(offset: int, length: int) -> int:
    """How many blocks a range of bytes lies in."""
    return (offset % BLOCK_BYTES + length + BLOCK_BYTES - 1) // BLOCK_BYTES


class StoreFull(Exception):
    """There is no room for so many blocks."""


class Spill(Protocol):
    """A file for the slots that memory has no room for; may raise OSError."""

    def write(self, offset_bytes: int, data: memoryview) -> None: ...
    def read(self, offset_bytes: int, length_bytes: int) -> bytes: ...
    def reset(self) -> None:
        """Nothing in it is needed any more. Never raises."""


class BlockStore:
    """Slots `0 .. memory_blocks_max - 1` are in memory, those from there on in `spill`."""

    def __init__(self, memory_blocks_max: int, spill_blocks_max: int = 0, spill: Spill | None = None) -> None:
        self._memory_blocks_max, self._spill = memory_blocks_max, spill
        self.blocks_max = memory_blocks_max + (spill_blocks_max if spill is not None else 0)
        self.used = 0
        self._forget()

    def _forget(self) -> None:
        # numpy takes zeroed memory from the kernel page by page, as it is first written.
        self._memory = np.zeros(self._memory_blocks_max * BLOCK_BYTES, np.uint8)
        self._never_used = 0
        self._freed: list[int] = []
        self._freed_spilled: list[int] = []

    def put(self, data: memoryview) -> Sequence[int]:
        """Keep whole blocks; returns the slot of each, in order. Raises StoreFull, and OSError of the spill file."""
        count = len(data) // BLOCK_BYTES
        if self.used + count > self.blocks_max:
            raise StoreFull
        slots = self._take(count)
        self.used += count
        at = 0
        try:
            for first, run in runs_of(slots):
                self._write(first, data[at : at + run * BLOCK_BYTES])
                at += run * BLOCK_BYTES
        except OSError:
            self.free(slots)
            raise
        return slots

    def _take(self, count: int) -> Sequence[int]:
        """Memory before the spill file; side by side while there is memory that was never used."""
        fresh = self._fresh(count, self._memory_blocks_max)
        if len(fresh) == count:
            return fresh
        taken = list(fresh)
        for freed in (self._freed, self._freed_spilled):
            start = max(0, len(freed) - (count - len(taken)))
            taken += freed[start:]
            del freed[start:]
        return [*taken, *self._fresh(count - len(taken), self.blocks_max)]

    def _fresh(self, count: int, end: int) -> range:
        """Up to `count` slots below `end` that were never used."""
        first = self._never_used
        self._never_used = max(first, min(first + count, end))
        return range(first, self._never_used)

    def _write(self, first: int, data: memoryview) -> None:
        in_memory = max(0, min(len(data), (self._memory_blocks_max - first) * BLOCK_BYTES))
        at = first * BLOCK_BYTES
        self._memory[at : at + in_memory] = np.frombuffer(data[:in_memory], np.uint8)
        if in_memory < len(data):
            assert self._spill is not None
            self._spill.write(at + in_memory - self._memory.nbytes, data[in_memory:])

    def read(self, first: int, count: int) -> list[bytes | memoryview]:
        """Content of `count` slots side by side; a view is good until the slots are freed. Raises OSError."""
        at, end = first * BLOCK_BYTES, (first + count) * BLOCK_BYTES
        memory_end = self._memory.nbytes
        parts: list[bytes | memoryview] = []
        if at < memory_end:
            parts.append(self._memory[at : min(end, memory_end)].data)
        if end > memory_end:
            assert self._spill is not None
            start = max(at, memory_end)
            parts.append(self._spill.read(start - memory_end, end - start))
        return parts

    def free(self, slots: Sequence[int]) -> None:
        """These slots are not needed any more."""
        self._freed += [slot for slot in slots if slot < self._memory_blocks_max]
        self._freed_spilled += [slot for slot in slots if slot >= self._memory_blocks_max]
        self.used -= len(slots)
        if self.used == 0 and self._never_used:
            if self._spill is not None and self._never_used > self._memory_blocks_max:
                self._spill.reset()
            self._forget()


def runs_of(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of slots side by side."""
    if not slots:
        return
    if isinstance(slots, range):
        yield slots[0], len(slots)
        return
    first = last = slots[0]
    for slot in slots[1:]:
        if slot != last + 1:
            yield first, last + 1 - first
            first = slot
        last = slot
    yield first, last + 1 - first
