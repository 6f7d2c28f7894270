"""The page debt against its model: a page is owed unless it provably arrived after its last write."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pycolo.core.pages import PAGE_BYTES, PageBatch, PageDebt

PAGES = 6
WRITTEN = st.sets(st.integers(0, PAGES - 1))


class DebtMachine(RuleBasedStateMachine):
    """`_owed` and `_sent` are the least that the debt has to know; it may owe more after a lost answer."""

    def __init__(self) -> None:
        super().__init__()
        self._debt = PageDebt(PAGES, all_owed=False)
        self._written: set[int] = set()  # what the tracker knows and nobody has asked for yet
        self._owed: set[int] = set()
        self._sent: set[int] = set()

    @rule(pages=WRITTEN)
    def write(self, pages: set[int]) -> None:
        """The guest writes."""
        self._written |= pages

    @rule()
    def ask(self) -> None:
        """The tracker answers."""
        self._debt.expect_answer()
        self._debt.answered(np.array(sorted(self._written), np.uint32))
        self._owed |= self._written
        self._written.clear()

    @rule()
    def ask_in_vain(self) -> None:
        """The tracker re-arms, and its answer is lost."""
        self._debt.expect_answer()
        self._owed |= self._written
        self._written.clear()

    @rule()
    def send(self) -> None:
        """What is owed leaves."""
        taken = set(self._debt.take().tolist())
        assert taken >= self._owed
        self._sent |= self._owed
        self._owed.clear()

    @rule()
    def arrive(self) -> None:
        """The checkpoint is committed."""
        self._debt.settle()
        self._sent.clear()

    @rule()
    def fail(self) -> None:
        """The checkpoint is given up."""
        self._debt.put_back()
        self._owed |= self._sent
        self._sent.clear()

    @invariant()
    def no_page_is_forgotten(self) -> None:
        """Rule 7."""
        assert set(self._debt.owed().tolist()) >= self._owed
        assert self._debt.owed_count == len(self._debt.owed())


TestDebt = DebtMachine.TestCase


@given(
    st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(0, 3)), unique_by=lambda page: page[0], max_size=PAGES)
)
def test_a_batch_carries_exactly_the_pages_it_was_made_of(pages: list[tuple[int, int]]) -> None:
    contents = np.zeros((len(pages), PAGE_BYTES), np.uint8)
    contents[:, -1] = [value for _, value in pages]
    batch = PageBatch.of(np.array([page for page, _ in pages], np.uint32), contents)
    image = np.full((PAGES, PAGE_BYTES), 9, np.uint8)
    batch.apply_to(image)
    assert batch.page_count == len(pages)
    expected = dict(pages)
    for page in range(PAGES):
        assert image[page, -1] == expected.get(page, 9)
        assert image[page, 0] == (0 if page in expected else 9)
