"""Epoch numbers are never used twice; what a failed checkpoint sent is owed again."""

from __future__ import annotations

import numpy as np
import pytest

from pycolo.core.epochs import EpochLedger


def test_everything_is_owed_to_a_new_secondary() -> None:
    ledger = EpochLedger(4)
    assert ledger.debt.owed_count == 4
    assert (ledger.running, ledger.committed) == (0, 0)


@pytest.mark.parametrize("last_used", [0, 17])
def test_numbers_go_up_whatever_becomes_of_the_checkpoints(last_used: int) -> None:
    ledger = EpochLedger(4, last_used)
    numbers = []
    for ends_well in (True, False, False, True):
        numbers.append(ledger.begin())
        if ends_well:
            ledger.commit(numbers[-1])
        else:
            ledger.fail()
    assert numbers == [last_used + n for n in (1, 2, 3, 4)]
    assert ledger.last_used == numbers[-1]
    assert ledger.committed == numbers[-1]


def test_output_belongs_to_the_sealed_epoch_even_when_its_checkpoint_fails() -> None:
    ledger = EpochLedger(4)
    epoch = ledger.begin()
    ledger.sealed(epoch)
    ledger.fail()
    assert (ledger.running, ledger.committed) == (epoch, 0)


def test_pages_are_settled_by_a_commit_and_owed_again_after_a_failure() -> None:
    ledger = EpochLedger(4)
    ledger.debt.take()
    ledger.commit(ledger.begin())
    assert ledger.debt.owed_count == 0
    ledger.debt.add(np.array([2], np.uint32))
    ledger.debt.take()
    ledger.fail()
    assert ledger.debt.owed().tolist() == [2]
