"""Slots for blocks: bounds, memory before the spill file, and both given back when nothing is kept."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from pycolo.core.block_store import BLOCK_BYTES, BlockStore, StoreFull, runs_of
from sim.storage import MemorySpill


def blocks(*values: int) -> memoryview:
    return memoryview(b"".join(bytes([value]) * BLOCK_BYTES for value in values))


def values_in(store: BlockStore, slots: Sequence[int]) -> list[int]:
    content = b"".join(part for first, count in runs_of(slots) for part in store.read(first, count))
    assert len(content) == len(slots) * BLOCK_BYTES
    assert all(len(set(content[at : at + BLOCK_BYTES])) == 1 for at in range(0, len(content), BLOCK_BYTES))
    return list(content[::BLOCK_BYTES])


def test_slots_keep_their_content_across_memory_and_spill() -> None:
    spill = MemorySpill()
    store = BlockStore(2, 3, spill)
    slots = store.put(blocks(1, 2, 3, 4))
    assert values_in(store, slots) == [1, 2, 3, 4]
    assert len(spill.content) == 2 * BLOCK_BYTES
    assert (store.used, store.blocks_max) == (4, 5)


def test_a_full_store_refuses_all_and_changes_nothing() -> None:
    store = BlockStore(2, 1, MemorySpill())
    slots = store.put(blocks(1, 2))
    with pytest.raises(StoreFull):
        store.put(blocks(3, 4))
    assert (store.used, values_in(store, slots)) == (2, [1, 2])
    assert values_in(store, store.put(blocks(5))) == [5]


def test_spill_blocks_do_not_count_without_a_spill_file() -> None:
    assert BlockStore(2, 100).blocks_max == 2


def test_a_store_without_memory_spills_everything() -> None:
    spill = MemorySpill()
    store = BlockStore(0, 2, spill)
    assert values_in(store, store.put(blocks(7, 8))) == [7, 8]


def test_freed_memory_is_used_before_the_spill_file() -> None:
    spill = MemorySpill()
    store = BlockStore(4, 4, spill)
    kept = store.put(blocks(1))
    for value in range(2, 12):
        store.free(store.put(blocks(value, value)))
    assert store.used == 1
    assert not spill.content
    slots = store.put(blocks(20, 21, 22))
    assert (values_in(store, slots), values_in(store, kept)) == ([20, 21, 22], [1])
    assert not spill.content


def test_everything_is_given_back_when_nothing_is_kept() -> None:
    spill = MemorySpill()
    store = BlockStore(1, 2, spill)
    slots = store.put(blocks(1, 2, 3))
    store.free(slots[:2])
    assert spill.resets == 0
    store.free(slots[2:])
    assert (store.used, spill.resets, len(spill.content)) == (0, 1, 0)
    assert values_in(store, store.put(blocks(4, 5, 6))) == [4, 5, 6]


def test_an_unused_spill_file_is_left_alone() -> None:
    spill = MemorySpill()
    store = BlockStore(2, 2, spill)
    store.free(store.put(blocks(1, 2)))
    assert spill.resets == 0


@pytest.mark.parametrize("kept_before", [0, 1])
def test_a_spill_file_that_fails_loses_no_slots(kept_before: int) -> None:
    spill = MemorySpill()
    store = BlockStore(2, 2, spill)
    kept = store.put(blocks(*[9] * kept_before))
    spill.fails = True
    for _ in range(5):
        with pytest.raises(OSError, match="scripted"):
            store.put(blocks(1, 2, 3))
        assert store.used == kept_before
    spill.fails = False
    rest = store.blocks_max - kept_before
    slots = store.put(blocks(*range(10, 10 + rest)))
    assert (values_in(store, slots), values_in(store, kept)) == ([*range(10, 10 + rest)], [9] * kept_before)


def test_any_order_of_puts_and_frees_keeps_what_is_kept() -> None:
    dice = random.Random(5)
    store = BlockStore(6, 10, MemorySpill())
    kept: list[tuple[Sequence[int], list[int]]] = []
    for _ in range(2_000):
        values = [dice.randrange(256) for _ in range(dice.randint(1, 5))]
        if dice.random() < 0.55 and store.used + len(values) <= store.blocks_max:
            kept.append((store.put(blocks(*values)), values))
        elif kept:
            store.free(kept.pop(dice.randrange(len(kept)))[0])
        assert store.used == sum(len(slots) for slots, _ in kept)
        assert len({slot for slots, _ in kept for slot in slots}) == store.used
        assert all(values_in(store, slots) == values for slots, values in kept)


def test_runs_of_slots() -> None:
    assert list(runs_of([3, 4, 5, 9, 1, 2])) == [(3, 3), (9, 1), (1, 2)]
    assert list(runs_of(range(4, 7))) == [(4, 3)]
    assert list(runs_of([])) == list(runs_of(range(0))) == []
