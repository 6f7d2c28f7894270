"""Which pages differ: the compiled comparison says what the Python twin says, and both what is so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.edge import _pages
from pycolo.edge.guest_ram import PAGE_BYTES, PageIndices, Pages
from pycolo.edge.page_compare import COMPARED_PAGES, alike, differing, differing_pages, marks_twin

PAGES = 2 * COMPARED_PAGES + 3
changes = st.lists(st.tuples(st.integers(0, PAGES - 1), st.sampled_from([0, 1, 7, 8, 4088, 4095])), max_size=20)


def images(changed: list[tuple[int, int]]) -> tuple[Pages, Pages]:
    left = np.zeros((PAGES, PAGE_BYTES), np.uint8)
    right = left.copy()
    for page, place in changed:
        right[page, place] ^= 1
    return left, right


@given(changes, st.sets(st.integers(0, PAGES - 1), max_size=40), st.booleans())
def test_those_differ_that_were_changed(changed: list[tuple[int, int]], asked: set[int], everything: bool) -> None:
    left, right = images(changed)
    indices: PageIndices = np.array(sorted(range(PAGES) if everything else asked), np.uint32)
    expected = [page for page in indices.tolist() if (left[page] != right[page]).any()]
    assert differing(left, right, indices).tolist() == expected
    assert alike(left, right, indices).tolist() == [page for page in indices.tolist() if page not in expected]
    assert marks_twin(left, right, indices) == _pages.marks(left, right, indices)


@pytest.mark.parametrize("marks", [_pages.marks, marks_twin])
def test_a_page_that_is_not_there_is_an_error(marks: object) -> None:
    left, right = images([])
    assert callable(marks)
    with pytest.raises(IndexError):
        marks(left, right, np.array([0, PAGES], np.uint32))


def test_differing_pages_wants_equal_sizes() -> None:
    left, right = images([])
    with pytest.raises(ValueError, match="can't be compared"):
        differing_pages(left, right[1:])
