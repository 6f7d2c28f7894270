"""Changed chunks against the writes themselves: a chunk with a write that the partner may not have is marked."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pycolo.core.changed_chunks import (
    CHUNK_BYTES_MIN,
    CHUNKS_MAX,
    ChangedChunks,
    bitmap_bytes_of,
    chunk_bytes_of,
    ranges_of,
)

TIB = 1 << 40
SIZES = (1, 513, CHUNK_BYTES_MIN, CHUNK_BYTES_MIN + 1, 9 * CHUNK_BYTES_MIN - 7, 20 * CHUNK_BYTES_MIN, 3 * TIB + 512)
OLD, RUNNING = -1, 0  # besides the epochs, from 1


class ChunksMachine(RuleBasedStateMachine):
    """`_missing` says of each chunk which of its writes the partner's image may lack: by epoch, or from before it."""

    @initialize(size=st.sampled_from(SIZES), marked=st.sets(st.integers(0, 30)))
    def begin_with(self, size: int, marked: set[int]) -> None:
        """The marks of an earlier run are still there."""
        self._size, self._chunk = size, chunk_bytes_of(size)
        bits = np.zeros(bitmap_bytes_of(size), np.uint8)
        self._missing: dict[int, set[int]] = {}
        for chunk in marked:
            if chunk * self._chunk < size:
                bits[chunk // 8] |= 1 << chunk % 8
                self._missing[chunk] = {OLD}
        self._bits, self._chunks = bits, ChangedChunks(size, bits)
        self._epoch = 0
        self._partner, self._level = False, False

    def _rename(self, was: set[int], to: int | None) -> None:
        for chunk, writes in self._missing.items():
            if writes & was:
                self._missing[chunk] = (writes - was) | ({to} if to is not None else set())

    @rule(place=st.floats(0, 1), near=st.integers(0, 9), length=st.integers(1, 3 * CHUNK_BYTES_MIN))
    def note(self, place: float, near: int, length: int) -> None:
        """The guest writes, often where it wrote before."""
        offset = min(self._size - 1, near % 3 * 40_000) if near else int(place * (self._size - 1))
        self._note(offset, min(length, self._size - offset))

    def _note(self, offset: int, length: int) -> None:
        self._chunks.note(offset, length)
        for chunk in range(offset // self._chunk, (offset + length - 1) // self._chunk + 1):
            self._missing.setdefault(chunk, set()).add(RUNNING)

    @rule(near=st.integers(0, 2))
    def write_in_two_epochs(self, near: int) -> None:
        """The same place, and nothing of it in the running epoch."""
        for _ in range(2):
            self._note(min(self._size - 1, near * 40_000), 1)
            self.seal()

    @rule()
    def seal(self) -> None:
        """A checkpoint begins."""
        self._epoch += 1
        self._chunks.seal(self._epoch)
        self._rename({RUNNING}, self._epoch)

    @precondition(lambda self: self._partner)
    @rule(back=st.integers(0, 3))
    def applied(self, back: int) -> None:
        """The partner's image has all up to an epoch; sometimes it says so twice."""
        epoch = max(0, self._epoch - back)
        self._chunks.applied(epoch)
        self._rename(set(range(1, epoch + 1)), None)

    @rule(what=st.sampled_from(["level", "level", "level", "begin", "lost"]))
    def partner(self, what: str) -> None:
        """It has all from before `begin`, or it comes (back), or it is gone."""
        if what == "level" and self._partner:
            self._chunks.clear()
            self._level = True
            self._rename({OLD}, None)
            return
        (self._chunks.lost if what == "lost" else self._chunks.begin)()
        self._partner, self._level = what != "lost", False
        self._rename({RUNNING, *range(1, self._epoch + 1)}, OLD)

    @invariant()
    def what_may_differ_is_marked(self) -> None:
        """And once the partner is level nothing else is."""
        if not hasattr(self, "_chunks"):
            return
        filled = np.flatnonzero(self._bits)
        marked = {int(byte) * 8 + bit for byte in filled for bit in range(8) if self._bits[byte] >> bit & 1}
        missing = {chunk for chunk, writes in self._missing.items() if writes}
        assert missing <= marked
        if self._level:
            assert marked == missing


ChunksMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=30)
TestChunks = ChunksMachine.TestCase


@given(st.one_of(st.integers(1, 40 * CHUNK_BYTES_MIN), st.integers(1, 600 * TIB)))
def test_the_bitmap_is_bounded_and_has_a_bit_for_every_byte(size: int) -> None:
    chunk = chunk_bytes_of(size)
    chunks = -(-size // chunk)
    assert chunks <= CHUNKS_MAX
    assert chunks <= bitmap_bytes_of(size) * 8 < chunks + 8
    assert chunk == CHUNK_BYTES_MIN or -(-size // (chunk // 2)) > CHUNKS_MAX


@given(st.sampled_from(SIZES), st.sets(st.floats(0, 1), max_size=12), st.sets(st.integers(0, 40)))
@settings(max_examples=60)
def test_ranges_cover_the_marked_chunks_exactly(size: int, far: set[float], near: set[int]) -> None:
    chunk, chunks = chunk_bytes_of(size), -(-size // chunk_bytes_of(size))
    bits = np.zeros(bitmap_bytes_of(size), np.uint8)
    marked = {min(chunks - 1, int(place * chunks)) for place in far} | {number for number in near if number < chunks}
    for number in marked | set(range(chunks, len(bits) * 8)):  # bits behind the end mean nothing
        bits[number // 8] |= 1 << number % 8
    ranges = list(ranges_of(bits, size))
    covered = {offset // chunk + i for offset, length in ranges for i in range(-(-length // chunk))}
    assert covered == marked
    assert all(offset % chunk == 0 and length > 0 for offset, length in ranges)
    assert all(length % chunk == 0 or offset + length == size for offset, length in ranges)
    assert all(offset + length < following for (offset, length), (following, _) in pairwise(ranges))
    assert all(offset + length <= size for offset, length in ranges)


@pytest.mark.parametrize(("size", "chunk"), [(1, 1 << 16), (512 << 30, 1 << 16), ((512 << 30) + 1, 1 << 17)])
def test_chunks_grow_with_the_disk(size: int, chunk: int) -> None:
    assert chunk_bytes_of(size) == chunk
