"""Whatever is staged, discarded and committed in any order, what is committed is never lost (rule 3)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.memory_cache import MemoryCache, Stage, StageDigest
from pycolo.core.page_changes import MASK_BYTES
from pycolo.core.pages import PAGE_BYTES, Contents, PageBatch, PageDeltas

PAGES = 12
pages = st.lists(st.integers(0, PAGES - 1), max_size=2, unique=True).map(lambda some: np.array(some, np.uint32))


@st.composite
def batches(draw: st.DrawFn) -> PageBatch:
    """Each page in one of the three ways, as a primary sends it, or in several."""
    indices, zeros, changed = draw(pages), draw(pages), draw(pages)
    contents = np.full((len(indices), PAGE_BYTES), draw(st.integers(1, 255)), np.uint8)
    masks = np.zeros((len(changed), MASK_BYTES), np.uint8)
    masks[:, 3] = 1  # one word of each page
    words = np.full(len(changed), draw(st.integers(0, 255)), np.uint64)
    return PageBatch(indices, contents, zeros, PageDeltas(changed, masks, words))


def kept(cache: MemoryCache) -> Contents:
    """What restoring would come to."""
    image = cache.image.copy()
    for past in (*cache._restoring, *cache._past):
        past.apply_to(image)
    return image


Step = PageBatch | str
steps = st.lists(st.one_of(batches(), st.sampled_from(["discard", "restore", "commit"])), max_size=12)


@given(steps)
def test_what_is_committed_is_never_lost(taken: list[Step]) -> None:
    cache, committed, staged = MemoryCache(PAGES), np.zeros((PAGES, PAGE_BYTES), np.uint8), None
    epoch, digest = 1, StageDigest(1)
    for step in ("commit", *taken):
        if isinstance(step, PageBatch):
            if step.page_count == 0:
                continue
            staged = committed.copy() if staged is None else staged
            step.apply_to(staged)
            digest.add(step)
            cache.stage(epoch, step)
            assert np.array_equal(cache.image, staged)
        elif step == "commit":
            stage = Stage(epoch, 0, b"", digest.batch_count, digest.finish(0, b""))
            assert cache.problem(stage) is None
            cache.commit(stage)
            committed = committed if staged is None else staged
            epoch, digest, staged = epoch + 1, StageDigest(epoch + 1), None
        elif step == "discard":
            cache.discard()
            epoch, digest, staged = epoch + 1, StageDigest(epoch + 1), None
        else:
            cache.restore_next()
        assert np.array_equal(kept(cache), committed)
    cache.discard()
    while cache.restore_next():
        pass
    assert np.array_equal(cache.image, committed)


@given(st.lists(batches(), min_size=1, max_size=4))
def test_of_pages_without_content_nothing_is_kept_but_their_numbers(taken: list[PageBatch]) -> None:
    """A guest that begins to use memory changes many of them, and copies of zeros would take as much again."""
    cache = MemoryCache(PAGES)
    cache.commit(Stage(1, 0, b"", 0, StageDigest(1).finish(0, b"")))
    for batch in taken:
        if batch.page_count:
            cache.stage(2, batch)
    assert not any(len(past.contents) for past in cache._past), "nothing had content when it was committed"
    changed = np.unique(np.concatenate([indices for batch in taken for indices in batch.all_indices()]))
    assert sum(past.page_count for past in cache._past) == len(changed)
