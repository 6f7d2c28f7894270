"""What is sent less of arrives as if all of it had been sent."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core import wire
from pycolo.core.page_changes import PAGE_WORDS, WORDS_MAX
from pycolo.core.pages import PAGE_BYTES, Contents, PageBatch
from pycolo.core.sent_pages import SentPages

PAGES = 7
WRITES = st.lists(
    st.tuples(
        st.integers(0, PAGES - 1),
        st.integers(0, PAGE_WORDS - 1),
        st.sampled_from([1, 2, 9, WORDS_MAX, WORDS_MAX + 1, PAGE_WORDS]),
        st.sampled_from([0, 0, 1, 2, (1 << 64) - 1]),
    ),
    max_size=6,
)


def written(ram: Contents, writes: list[tuple[int, int, int, int]]) -> PageBatch:
    """The pages that a guest wrote, `count` words from one on, in the order in which a tracker tells them."""
    for page, word, count, value in writes:
        ram[page].view(np.uint64)[word : word + count] = value
    pages = np.unique(np.array([page for page, *_ in writes], np.uint32))
    return PageBatch.of(pages, ram[pages].copy())


@given(
    st.integers(0, PAGES + 2), st.lists(st.tuples(WRITES, st.sampled_from(["arrives", "arrives", "lost"])), max_size=9)
)
def test_the_image_is_the_ram_whenever_all_has_arrived(
    pages_max: int, steps: list[tuple[list[tuple[int, int, int, int]], str]]
) -> None:
    ram, image = np.zeros((PAGES, PAGE_BYTES), np.uint8), np.zeros((PAGES, PAGE_BYTES), np.uint8)
    sent, owed = SentPages(PAGES, pages_max), False
    for writes, fate in steps:
        batch = written(ram, writes)
        if owed:  # after a failure all that is owed comes again; here, everything
            batch = PageBatch.of(np.arange(PAGES, dtype=np.uint32), ram.copy())
        less = sent.reduced(batch)
        assert less.nbytes <= batch.nbytes
        assert less.page_count <= batch.page_count
        if fate == "lost":
            sent.forget()
            owed = True
            continue
        _, arrived = wire.decode_pages(b"".join(wire.encode_pages(1, less))[wire.HEADER.size :])
        arrived.apply_to(image)
        owed = False
        assert np.array_equal(image, ram)


def test_a_page_that_is_written_as_it_was_does_not_travel_again() -> None:
    sent = SentPages(PAGES, PAGES)
    batch = PageBatch.of(np.array([2, 3], np.uint32), np.full((2, PAGE_BYTES), 5, np.uint8))
    assert sent.reduced(batch) is batch
    assert sent.reduced(batch).page_count == 0


def test_a_word_costs_a_word_and_a_mask() -> None:
    sent, contents = SentPages(PAGES, PAGES), np.full((1, PAGE_BYTES), 5, np.uint8)
    sent.reduced(PageBatch.of(np.array([2], np.uint32), contents.copy()))
    contents[0, 100] = 6
    less = sent.reduced(PageBatch.of(np.array([2], np.uint32), contents))
    assert (less.page_count, less.nbytes) == (1, 64 + 8)


def test_what_was_remembered_longest_ago_makes_room() -> None:
    sent = SentPages(PAGES, 2)
    one = [PageBatch.of(np.array([page], np.uint32), np.full((1, PAGE_BYTES), 5, np.uint8)) for page in range(3)]
    for batch in one:
        sent.reduced(batch)
    assert sent.reduced(one[2]).page_count == 0
    assert sent.reduced(one[1]).page_count == 0
    assert sent.reduced(one[0]).page_count == 1
    assert sent.reduced(one[1]).page_count == 1


def test_a_batch_larger_than_the_room_leaves_its_end() -> None:
    sent = SentPages(PAGES, 2)
    batch = PageBatch.of(np.arange(5, dtype=np.uint32), np.full((5, PAGE_BYTES), 5, np.uint8))
    sent.reduced(batch)
    assert sent.reduced(batch).indices.tolist() == [0, 1, 2]
