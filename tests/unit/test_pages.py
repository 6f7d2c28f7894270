"""Page batches and the debt: a page whose content has not provably arrived stays owed (rule 7)."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from written_memory import written_kib

from pycolo.core.pages import PAGE_BYTES, Contents, Indices, PageBatch, PageDebt


def pages(*indices: int) -> Indices:
    return np.array(indices, np.uint32)


def contents(*values: int) -> Contents:
    return np.stack([np.full(PAGE_BYTES, value, np.uint8) for value in values])


def test_zero_pages_travel_without_content() -> None:
    batch = PageBatch.of(pages(3, 5, 8), contents(1, 0, 2))
    assert batch.indices.tolist() == [3, 8]
    assert batch.zeros.tolist() == [5]
    assert batch.contents.shape == (2, PAGE_BYTES)
    assert batch.page_count == 3


def test_one_byte_makes_a_page_no_zero_page() -> None:
    page = np.zeros((1, PAGE_BYTES), np.uint8)
    page[0, -1] = 1
    assert PageBatch.of(pages(0), page).zeros.tolist() == []


def test_an_empty_batch_is_a_batch() -> None:
    batch = PageBatch.of(pages(), np.empty((0, PAGE_BYTES), np.uint8))
    image = contents(7, 7)
    batch.apply_to(image)
    assert batch.page_count == 0
    assert (image == 7).all()


def test_applying_writes_contents_and_zeros_and_nothing_else() -> None:
    image = contents(9, 9, 9, 9)
    PageBatch.of(pages(1, 2), contents(4, 0)).apply_to(image)
    assert image[:, 0].tolist() == [9, 4, 0, 9]
    assert (image == image[:, :1]).all()


def test_pages_of_zeros_take_no_memory_that_nobody_has_written() -> None:
    memory = mmap.mmap(-1, 64 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # so that it is a line of its own in the kernel's list as well
    image = np.frombuffer(memory, np.uint8).reshape(64, PAGE_BYTES)
    PageBatch.of(np.arange(64, dtype=np.uint32), np.zeros((64, PAGE_BYTES), np.uint8)).apply_to(image)
    assert written_kib(image) == 0
    PageBatch.of(pages(3, 5), contents(4, 0)).apply_to(image)
    assert written_kib(image) == 4


@pytest.mark.parametrize(("all_owed", "owed"), [(True, [0, 1, 2]), (False, [])])
def test_what_is_owed_at_first(all_owed: bool, owed: list[int]) -> None:
    assert PageDebt(3, all_owed=all_owed).owed().tolist() == owed


def test_taken_pages_are_owed_again_when_they_may_not_have_arrived() -> None:
    debt = PageDebt(5, all_owed=False)
    debt.add(pages(1, 3))
    assert debt.take().tolist() == [1, 3]
    debt.add(pages(4))
    assert debt.take().tolist() == [4]
    assert debt.owed_count == 0
    debt.put_back()
    assert debt.owed().tolist() == [1, 3, 4]


def test_settled_pages_do_not_come_back() -> None:
    debt = PageDebt(5, all_owed=True)
    debt.take()
    debt.add(pages(2))
    debt.settle()
    debt.put_back()
    assert debt.owed().tolist() == [2]


def test_an_answer_adds_to_what_was_owed() -> None:
    debt = PageDebt(5, all_owed=False)
    debt.add(pages(0))
    debt.expect_answer()
    debt.answered(pages(4))
    assert debt.owed().tolist() == [0, 4]


def test_an_answer_that_is_lost_leaves_every_page_owed() -> None:
    debt = PageDebt(5, all_owed=False)
    debt.expect_answer()
    assert debt.owed_count == 5
    debt.expect_answer()  # asked again: what the lost answer said is still unknown
    debt.answered(pages())
    assert debt.owed_count == 5


def test_a_lost_answer_survives_a_failed_checkpoint() -> None:
    debt = PageDebt(4, all_owed=False)
    debt.add(pages(1))
    debt.take()
    debt.expect_answer()
    debt.put_back()
    assert debt.owed_count == 4
