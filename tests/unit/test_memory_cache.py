"""Staged and committed: a checkpoint counts only when it is whole (rule 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pycolo.core import memory_cache
from pycolo.core.memory_cache import MemoryCache, Stage, StageDigest
from pycolo.core.pages import PAGE_BYTES, PageBatch
from pycolo.errors import PeerViolation

PAGES = 6


def batch(*pages: tuple[int, int]) -> PageBatch:
    indices = np.array([page for page, _ in pages], np.uint32)
    contents = np.repeat(np.array([[value] for _, value in pages], np.uint8), PAGE_BYTES, axis=1)
    return PageBatch.of(indices, contents)


def stage_of(epoch: int, *batches: PageBatch, boundary: int = 7, state: bytes = b"registers") -> Stage:
    digest = StageDigest(epoch)
    for one in batches:
        digest.add(one)
    return Stage(epoch, boundary, state, len(batches), digest.finish(boundary, state))


def restored(cache: MemoryCache) -> list[int]:
    while cache.restore_next():
        pass
    return [int(value) for value in cache.image[:, 0]]


def committed(cache: MemoryCache, epoch: int, *batches: PageBatch) -> None:
    for one in batches:
        cache.stage(epoch, one)
    stage = stage_of(epoch, *batches)
    assert cache.problem(stage) is None
    cache.commit(stage)


def test_a_whole_checkpoint_becomes_the_image() -> None:
    cache = MemoryCache(PAGES)
    cache.debt.take()
    committed(cache, 1, batch((0, 5), (1, 6)), batch((1, 0), (4, 9)))
    assert cache.committed_epoch == 1
    assert restored(cache) == [5, 0, 0, 0, 9, 0]
    assert cache.debt.owed().tolist() == [0, 1, 4]


def test_who_goes_on_alone_needs_no_image() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((2, 1)))
    cache.stage(2, batch((2, 2)))
    cache.drop_image()
    assert (cache.image.nbytes, cache.image.base, cache.committed_epoch) == (0, None, 1)
    assert not cache.restore_next()


def test_later_batches_win() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((2, 1)), batch((2, 2)), batch((2, 3)))
    assert restored(cache)[2] == 3


def test_a_checkpoint_without_pages_is_a_checkpoint() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((0, 1)))
    committed(cache, 2)
    assert cache.committed_epoch == 2
    assert restored(cache)[0] == 1


def test_discarding_leaves_no_trace() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((0, 1)))
    before = restored(cache)
    cache.stage(2, batch((0, 77), (3, 78)))
    cache.discard()
    assert restored(cache) == before
    assert cache.committed_epoch == 1
    committed(cache, 3, batch((5, 4)))
    assert restored(cache) == [1, 0, 0, 0, 0, 4]


def test_what_is_discarded_twice_goes_back_to_what_is_committed() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((0, 1)), batch((1, 2)))
    cache.stage(2, batch((0, 50), (2, 51)))
    cache.stage(2, batch((0, 52), (1, 53)))
    cache.discard()
    assert cache.restore_next()
    cache.stage(3, batch((1, 60), (2, 61)))
    cache.discard()
    assert restored(cache) == [1, 2, 0, 0, 0, 0]


def test_a_discard_goes_back_to_the_newest_commit() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((0, 1)), batch((1, 2)))
    committed(cache, 2, batch((1, 3)))
    cache.stage(3, batch((0, 4), (1, 5)))
    cache.discard()
    assert restored(cache)[:2] == [1, 3]
    cache.forget_spent()
    assert restored(cache)[:2] == [1, 3]


def test_what_the_svm_was_found_to_have_is_owed_again_once_it_is_discarded() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((0, 1)))
    cache.debt.take()
    cache.debt.settle()
    assert cache.stage(2, batch((3, 7), (0, 2))).tolist() == [0, 3]
    assert cache.debt.owed().tolist() == [0, 3]
    cache.debt.paid(cache.debt.owed())
    cache.discard()
    assert cache.debt.owed().tolist() == [0, 3]


def test_a_new_epoch_replaces_what_was_staged_of_an_older_one() -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 1, batch((0, 1)))
    cache.stage(2, batch((0, 50)))
    committed(cache, 3, batch((1, 2)))
    assert restored(cache)[:2] == [1, 2]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda stage: replace(stage, batch_count=3), "2 of 3"),
        (lambda stage: replace(stage, boundary=8), "digest"),
        (lambda stage: replace(stage, device_state=b"other"), "digest"),
        (lambda stage: replace(stage, digest=bytes(16)), "digest"),
        (lambda stage: replace(stage, digest=b""), "digest"),
        (lambda stage: replace(stage, epoch=4), "staged"),
        (lambda stage: replace(stage, epoch=2), "not newer"),
        (lambda stage: replace(stage, epoch=0), "not newer"),
        (lambda stage: replace(stage, epoch=-1), "not newer"),
    ],
)
def test_what_is_not_whole_has_a_problem(change: Callable[[Stage], Stage], why: str) -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 2, batch((0, 1)))
    batches = batch((1, 1)), batch((2, 2))
    for one in batches:
        cache.stage(3, one)
    good = stage_of(3, *batches)
    assert why in str(cache.problem(change(good)))
    assert cache.problem(good) is None


def test_a_lost_batch_and_a_changed_byte_are_noticed() -> None:
    sent = batch((1, 1)), batch((2, 2))
    stage = stage_of(1, *sent)
    short, spoilt = MemoryCache(PAGES), MemoryCache(PAGES)
    short.stage(1, sent[0])
    assert short.problem(stage) == "1 of 2 page batches arrived"
    spoilt.stage(1, sent[0])
    spoilt.stage(1, batch((2, 3)))
    assert spoilt.problem(stage) == "the digest of what arrived is wrong"


def test_a_zero_page_is_not_mistaken_for_a_page_with_content() -> None:
    assert stage_of(1, batch((1, 0), (2, 1))).digest != stage_of(1, batch((2, 1), (1, 0), (3, 0))).digest


def test_a_huge_device_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_cache, "DEVICE_STATE_BYTES_MAX", 4)
    assert "more than 4" in str(MemoryCache(PAGES).problem(stage_of(1)))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_pages_of_an_old_epoch_are_a_violation(epoch: int) -> None:
    cache = MemoryCache(PAGES)
    committed(cache, 2, batch((0, 1)))
    with pytest.raises(PeerViolation):
        cache.stage(epoch, batch((0, 2)))


@pytest.mark.parametrize("value", [0, 1])
def test_a_page_beyond_ram_is_a_violation(value: int) -> None:
    with pytest.raises(PeerViolation, match="page 6 of a VM that has 6"):
        MemoryCache(PAGES).stage(1, batch((PAGES, value)))


def test_what_may_be_staged_has_a_limit() -> None:
    cache = MemoryCache(PAGES)
    whole = batch(*((page, 1) for page in range(PAGES)))
    for _ in range(memory_cache.STAGED_RAM_MULTIPLE_MAX):
        cache.stage(1, whole)
    with pytest.raises(PeerViolation, match="staged"):
        cache.stage(1, batch((0, 1)))
