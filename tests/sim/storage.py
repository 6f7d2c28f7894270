"""A model file behind a volatile cache, for everything that has to survive a crash.

`write` and `zero` reach the cache; only `sync` makes them durable. When power fails any subset of what was not synced
survives, each write possibly torn at sectors. When only the process is killed, the cache survives. A step may fail
instead; a sync that failed may have dropped what it should have written, as Linux does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

SECTOR_BYTES = 512


class Crashed(Exception):
    """The host or the process ends at this step."""


class OutOfBounds(Exception):
    """A write beyond the end of a device."""


@dataclass(slots=True)
class Steps:
    """Counts the steps of all storages it is given to; step `fail_at` does not happen, or only in part."""

    fail_at: int | None = None
    error: Exception = field(default_factory=Crashed)
    count: int = 0

    def next(self) -> bool:
        """Whether this step is the one to fail."""
        self.count += 1
        return self.count - 1 == self.fail_at

    def fail_soon(self, steps: int, error: Exception) -> None:
        """After so many more steps one fails with `error`."""
        self.fail_at, self.error = self.count + steps, error


class FaultyStorage:
    """Storage of disk_journal. `size_bytes` bounds what may be written: a device does not grow."""

    def __init__(self, durable: bytes, dice: random.Random, size_bytes: int | None = None) -> None:
        self._durable, self._dice, self._size_bytes = bytearray(durable), dice, size_bytes
        self._cached = bytearray(durable)
        self._unsynced: list[tuple[int, bytes]] = []
        self.steps = Steps()

    @property
    def content(self) -> bytes:
        """What a reader sees now."""
        return bytes(self._cached)

    def read(self, offset: int, length: int) -> bytes:
        """See Storage."""
        return bytes(self._cached[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """See Storage; when it fails, some of its first sectors may be written all the same."""
        content = bytes(data)
        failing = self.steps.next()
        if failing:
            content = content[: self._dice.randint(0, len(content) // SECTOR_BYTES) * SECTOR_BYTES]
        self._put(offset, content)
        if failing:
            raise self.steps.error

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """See Storage."""
        self._check(offset + length)
        self.write(offset, bytes(length))

    def _put(self, offset: int, content: bytes) -> None:
        self._check(offset + len(content))
        _put(self._cached, offset, content)
        self._unsynced.append((offset, content))

    def _check(self, end: int) -> None:
        if self._size_bytes is not None and end > self._size_bytes:
            raise OutOfBounds(f"a write up to {end} on a device of {self._size_bytes} bytes")

    def sync(self) -> None:
        """See Storage."""
        if self.steps.next():
            if not isinstance(self.steps.error, Crashed) and self._dice.random() < 0.5:
                self._unsynced.clear()  # it never reaches the disk, and nobody will try again
            raise self.steps.error
        self._reach_disk(self._unsynced)
        self._unsynced.clear()

    def _reach_disk(self, writes: list[tuple[int, bytes]]) -> None:
        for offset, content in writes:
            _put(self._durable, offset, content)

    def after_kill(self) -> FaultyStorage:
        """The same file for the next process: what was written is there, synced or not."""
        after = FaultyStorage(bytes(self._durable), self._dice, self._size_bytes)
        after._cached, after._unsynced = bytearray(self._cached), list(self._unsynced)
        return after

    def after_power_loss(self) -> FaultyStorage:
        """The same file after a restart of the host."""
        kept = self._dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        self._reach_disk([part for part in self._sectors() if self._dice.random() < kept])
        return FaultyStorage(bytes(self._durable), self._dice, self._size_bytes)

    def _sectors(self) -> Iterator[tuple[int, bytes]]:
        """What was not synced, some of it whole and some of it sector by sector."""
        for offset, content in self._unsynced:
            if self._dice.random() < 0.5:
                yield offset, content
                continue
            at = 0
            while at < len(content):
                end = min(len(content), at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES)
                yield offset + at, content[at:end]
                at = end


def _put(target: bytearray, offset: int, content: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(content)] = content


class MemorySpill:
    """Spill of a block store; it can be told to fail."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.fails = False
        self.full = False  # only writes fail
        self.resets = 0

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """See Spill."""
        self._fail(self.fails or self.full)
        _put(self.content, offset_bytes, bytes(data))

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """See Spill."""
        self._fail(self.fails)
        return bytes(self.content[offset_bytes : offset_bytes + length_bytes])

    def _fail(self, fails: bool) -> None:
        if fails:
            raise OSError(28, "scripted")

    def reset(self) -> None:
        """See Spill."""
        self.resets += 1
        self.content.clear()
