"""What has changed in pages, word by word: compiled, or in Python where nothing could be compiled.

Pages are (n, 512) uint64. Masks are (n, 64) uint8: a bit for each word of a page, the first word the highest bit of the
first byte.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MASK_BYTES",
    "PAGE_WORDS",
    "WORDS_MAX",
    "WORD_BYTES",
    "Bytes",
    "Kind",
    "Marks",
    "Words",
    "apply",
    "apply_twin",
    "filled",
    "filled_twin",
    "sift",
    "sift_twin",
]

WORD_BYTES = 8
PAGE_WORDS = 512
MASK_BYTES = PAGE_WORDS // 8
WORDS_MAX = PAGE_WORDS - MASK_BYTES // WORD_BYTES  # more of them, with their mask, are as long as the page

Words = NDArray[np.uint64]
Marks = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


class Kind(IntEnum):
    """How a page is different from what is remembered of it."""

    NEW = 0  # nothing is
    SAME = 1
    FEW = 2  # at most WORDS_MAX words are others
    MANY = 3


def filled_twin(pages: Words) -> Marks:
    """For each page whether it has a word that is not zero, shape (n,)."""
    marks = np.zeros(len(pages), np.bool_)
    np.any(pages, axis=1, out=marks)
    return marks


def sift_twin(contents: Words, remembered: Words, places: NDArray[np.int32]) -> tuple[Bytes, Bytes, Words]:
    """The Kind of each page of `contents` (n,), and of those with FEW changes their masks and words, in order.

    `places` (n,) says which row of `remembered` a page has, each its own; one that does not exist: none. Those rows are
    brought up to date. Raises ValueError when the shapes do not fit together.
    """
    if len(contents) != len(places) or contents.shape[1] != PAGE_WORDS or remembered.shape[1] != PAGE_WORDS:
        raise ValueError("pages and places don't fit together")
    kinds = np.full(len(places), Kind.NEW, np.uint8)
    known = np.flatnonzero((places >= 0) & (places < len(remembered)))
    changed = contents[known] != remembered[places[known]]
    counts = np.count_nonzero(changed, axis=1)
    kinds[known] = np.where(counts == 0, Kind.SAME, np.where(counts <= WORDS_MAX, Kind.FEW, Kind.MANY))
    remembered[places[known]] = contents[known]
    few = kinds[known] == Kind.FEW
    return kinds, np.packbits(changed[few], axis=1), contents[known][changed & few[:, None]]


def apply_twin(image: Words, indices: NDArray[np.uint32], masks: Bytes, words: Words) -> None:
    """Write `words` to the places in the pages `indices` of an image that `masks` name; of a page that comes twice
    the last may be all that is written.

    Raises IndexError for a page that isn't there, ValueError when there are not as many words as bits or the shapes do
    not fit together; nothing is written then.
    """
    if len(masks) != len(indices) or masks.shape[1] != MASK_BYTES or image.shape[1] != PAGE_WORDS:
        raise ValueError("pages and masks don't fit together")
    pages = image[indices]
    pages[np.unpackbits(masks, axis=1).view(np.bool_)] = words
    image[indices] = pages


try:
    from pycolo.core._page_changes import apply, filled, sift
except ImportError:
    apply, filled, sift = apply_twin, filled_twin, sift_twin
