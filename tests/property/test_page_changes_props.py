"""What has changed in pages: the compiled functions say what their Python twins say, and both what is so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core import _page_changes as compiled
from pycolo.core import page_changes
from pycolo.core.page_changes import (
    MASK_BYTES,
    PAGE_WORDS,
    WORDS_MAX,
    Bytes,
    Kind,
    Words,
    apply_twin,
    filled_twin,
    sift_twin,
)

ROWS = 5
counts = st.sampled_from([0, 0, 1, 2, 8, 63, 64, 65, WORDS_MAX, WORDS_MAX + 1, PAGE_WORDS])
pages = st.lists(st.tuples(counts, st.integers(0, PAGE_WORDS - 1), st.booleans()), max_size=ROWS)


def scene(
    drawn: list[tuple[int, int, bool]], seed: int
) -> tuple[Words, Words, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """Contents, what is remembered, and the places: of each page `count` words from one on are others, or it is new."""
    random = np.random.default_rng(seed)
    remembered = random.integers(0, 3, (ROWS, PAGE_WORDS), np.uint64)
    rows = random.permutation(ROWS)[: len(drawn)].astype(np.int32)
    contents = remembered[rows]
    for page, (count, first, _) in zip(contents, drawn, strict=True):
        page[(first + np.arange(count)) % PAGE_WORDS] += np.uint64(5)
    places = np.where([new for *_, new in drawn], np.int32(-1), rows) if drawn else rows
    return contents, remembered, places.astype(np.int32)


@given(pages, st.integers(0, 1 << 32))
def test_pages_are_sifted_by_how_much_has_changed(drawn: list[tuple[int, int, bool]], seed: int) -> None:
    contents, remembered, places = scene(drawn, seed)
    twins = remembered.copy()
    kinds, masks, words = compiled.sift(contents, remembered, places)
    expected = [
        Kind.NEW if new else Kind.SAME if count == 0 else Kind.FEW if count <= WORDS_MAX else Kind.MANY
        for count, _, new in drawn
    ]
    assert kinds.tolist() == expected
    known = places >= 0
    assert np.array_equal(remembered[places[known]], contents[known])
    assert int(np.bitwise_count(masks).sum()) == len(words)
    of_twin = sift_twin(contents, twins, places)
    assert [part.dtype for part in (kinds, masks, words)] == [part.dtype for part in of_twin]
    assert np.array_equal(kinds, of_twin[0])
    assert np.array_equal(masks, of_twin[1])
    assert np.array_equal(words, of_twin[2])
    assert np.array_equal(remembered, twins)


@given(pages, st.integers(0, 1 << 32))
def test_what_was_sifted_makes_of_the_old_the_new(drawn: list[tuple[int, int, bool]], seed: int) -> None:
    contents, remembered, places = scene(drawn, seed)
    images = [remembered.copy(), remembered.copy()]
    kinds, masks, words = page_changes.sift(contents, remembered, places)
    few = kinds == Kind.FEW
    for image, apply in zip(images, (compiled.apply, apply_twin), strict=True):
        apply(image, places[few].astype(np.uint32), masks, words)
        assert np.array_equal(image[places[few]], contents[few])
    assert np.array_equal(images[0], images[1])


@given(st.lists(st.one_of(st.none(), st.integers(0, PAGE_WORDS - 1)), max_size=ROWS))
def test_a_page_is_filled_by_one_word(words: list[int | None]) -> None:
    contents = np.zeros((len(words), PAGE_WORDS), np.uint64)
    for page, word in zip(contents, words, strict=True):
        if word is not None:
            page[word] = 1
    expected = [word is not None for word in words]
    assert compiled.filled(contents).tolist() == filled_twin(contents).tolist() == expected


WHOLE = np.ones((1, PAGE_WORDS), np.uint64)
MASK = np.full((1, MASK_BYTES), 1, np.uint8)  # of 64 words


@pytest.mark.parametrize(
    ("index", "masks", "words", "image", "error"),
    [
        (2, MASK, 64, np.zeros((2, PAGE_WORDS), np.uint64), IndexError),
        (0, MASK, 63, np.zeros((2, PAGE_WORDS), np.uint64), ValueError),
        (0, MASK, 65, np.zeros((2, PAGE_WORDS), np.uint64), ValueError),
        (0, np.concatenate([MASK, MASK]), 128, np.zeros((2, PAGE_WORDS), np.uint64), ValueError),
        (0, MASK[:, 1:], 63, np.zeros((2, PAGE_WORDS), np.uint64), ValueError),
        (0, MASK, 64, np.zeros((2, PAGE_WORDS // 2), np.uint64), ValueError),
    ],
)
@pytest.mark.parametrize("apply", [compiled.apply, apply_twin])
def test_changes_that_do_not_fit_change_nothing(
    apply: Callable[..., None], index: int, masks: Bytes, words: int, image: Words, error: type[Exception]
) -> None:
    with pytest.raises(error):
        apply(image, np.array([index], np.uint32), np.ascontiguousarray(masks), np.ones(words, np.uint64))
    assert not image.any()


@pytest.mark.parametrize(
    ("contents", "remembered", "places"),
    [(WHOLE, WHOLE, 2), (WHOLE[:, :8], WHOLE, 1), (WHOLE, WHOLE[:, :8], 1), (WHOLE[:, :8], WHOLE[:, :8], 1)],
)
@pytest.mark.parametrize("sift", [compiled.sift, sift_twin])
def test_pages_that_do_not_fit_are_an_error(
    sift: Callable[..., object], contents: Words, remembered: Words, places: int
) -> None:
    with pytest.raises(ValueError, match="fit together"):
        sift(contents.copy(), remembered.copy(), np.zeros(places, np.int32))


def test_places_beyond_what_is_remembered_are_no_place() -> None:
    contents, remembered = np.ones((1, PAGE_WORDS), np.uint64), np.zeros((1, PAGE_WORDS), np.uint64)
    for sift in (compiled.sift, sift_twin):
        assert sift(contents, remembered, np.array([1], np.int32))[0].tolist() == [Kind.NEW]
    assert not remembered.any()


def test_the_compiled_ones_are_those_that_are_used() -> None:
    assert (page_changes.sift, page_changes.apply, page_changes.filled) == (
        compiled.sift,
        compiled.apply,
        compiled.filled,
    )
