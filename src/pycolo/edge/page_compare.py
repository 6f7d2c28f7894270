"""Which pages of two images of RAM differ: compiled, or in Python where nothing could be compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pycolo.edge.guest_ram import PAGE_BYTES, PageIndices, Pages

COMPARED_PAGES = (2 << 20) // PAGE_BYTES
"""Comparison goes in steps that stay in the processor's cache."""


def differing(left: Pages, right: Pages, indices: PageIndices) -> PageIndices:
    """Those of the pages `indices` that are not alike in both images. IndexError for a page that isn't there."""
    return indices[np.frombuffer(_marks(left, right, indices), np.bool_)]


def alike(left: Pages, right: Pages, indices: PageIndices) -> PageIndices:
    """The others of them."""
    return indices[~np.frombuffer(_marks(left, right, indices), np.bool_)]


def marks_twin(left: Pages, right: Pages, indices: PageIndices) -> bytearray:
    """A byte for each of the pages `indices`: whether they differ. As `_pages.marks`, which is ten times as fast."""
    marks = bytearray()
    for start in range(0, len(indices), COMPARED_PAGES):
        part = indices[start : start + COMPARED_PAGES]
        marks += differing_pages(left[part], right[part]).tobytes()
    return marks


try:
    from pycolo.edge._pages import marks as _marks
except ImportError:
    _marks = marks_twin


def differing_pages(left: Pages, right: Pages) -> NDArray[np.bool_]:
    """For each page whether the two differ, shape (n,). ValueError when they are not the same number of
    pages.
    """
    if left.shape != right.shape:
        raise ValueError(f"{len(left)} pages can't be compared with {len(right)}")
    differs = np.empty(len(left), np.bool_)
    left_words, right_words = left.view(np.uint64), right.view(np.uint64)
    for start in range(0, len(left), COMPARED_PAGES):
        part = slice(start, start + COMPARED_PAGES)
        np.any(left_words[part] != right_words[part], axis=1, out=differs[part])
    return differs
