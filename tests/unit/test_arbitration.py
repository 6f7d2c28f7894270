"""The claim: one host per term, asking again is safe, and what was given up helps nobody."""

from __future__ import annotations

import pytest

from pycolo.core.arbitration import ClaimRecord, checked_vm_name, decide_claim, decide_end

HELD = ClaimRecord("vm", 3, "alpha", "now")


@pytest.mark.parametrize(
    ("record", "term", "host", "granted"),
    [
        (None, 1, "alpha", True),
        (None, 2, "alpha", False),
        (HELD, 3, "alpha", True),  # the answer to the first question was lost
        (HELD, 3, "beta", False),
        (HELD, 4, "beta", True),
        (HELD, 4, "alpha", True),
        (HELD, 5, "beta", False),
        (HELD, 2, "alpha", True),  # gone on from what a claim given up had got, and the answer was lost
        (HELD, 1, "alpha", False),
    ],
)
def test_who_is_granted(record: ClaimRecord | None, term: int, host: str, granted: bool) -> None:
    answer = decide_claim(record, "vm", term, host, "now")
    assert answer.granted is granted
    assert host in answer.reason
    if answer.record is not None:
        assert granted
        assert answer.record == ClaimRecord("vm", term, host, "now")


def test_a_repeated_grant_stores_nothing_new() -> None:
    assert decide_claim(HELD, "vm", 3, "alpha", "now").record is None


def test_whose_claim_was_granted_after_it_had_given_it_up_goes_on_to_the_next_term() -> None:
    """Nobody else can have acted upon it."""
    answer = decide_claim(HELD, "vm", 3, "alpha", "later")
    assert (answer.granted, answer.term, answer.record) == (True, 4, ClaimRecord("vm", 4, "alpha", "later"))
    again = decide_claim(answer.record, "vm", 3, "alpha", "later")
    assert (again.granted, again.term, again.record) == (True, 4, None), "the answer was lost"
    assert not decide_claim(answer.record, "vm", 3, "beta", "later").granted
    assert not decide_claim(answer.record, "vm", 4, "beta", "later").granted
    assert not decide_claim(HELD, "vm", 2, "alpha", "now-and-then").granted


def test_the_record_of_another_vm_grants_nothing() -> None:
    answer = decide_claim(HELD, "other", 4, "alpha")
    assert (answer.granted, answer.record, answer.usable) == (False, None, False)


@pytest.mark.parametrize(
    ("record", "term", "usable"), [(None, 2, False), (HELD, 5, False), (HELD, 3, True), (HELD, 1, True)]
)
def test_only_a_newer_holder_is_a_no(record: ClaimRecord | None, term: int, usable: bool) -> None:
    answer = decide_claim(record, "vm", term, "beta")
    assert (answer.granted, answer.usable) == (False, usable)


@pytest.mark.parametrize("term", [0, -1])
def test_a_term_below_one_is_a_bug(term: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        decide_claim(None, "vm", term, "alpha")


def test_only_the_holder_of_the_newest_term_may_end_it() -> None:
    ended = decide_end(HELD, "vm", 3, "alpha")
    assert ended == ClaimRecord("vm", 3, "alpha", "now", ended=True)
    assert decide_end(ended, "vm", 3, "alpha") == ended
    for record, vm, term, host in (
        (HELD, "vm", 3, "beta"),
        (HELD, "vm", 2, "alpha"),
        (HELD, "x", 3, "alpha"),
        (None, "vm", 1, "alpha"),
    ):
        assert decide_end(record, vm, term, host) is None
    assert decide_claim(ended, "vm", 4, "beta").record == ClaimRecord("vm", 4, "beta")


@pytest.mark.parametrize("vm", ["", ".", "..", "a/b", "-a", "a\n", "a b", "é", "a" * 64])
def test_a_name_that_is_none(vm: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a VM"):
        checked_vm_name(vm)


@pytest.mark.parametrize("vm", ["a", "web-1.example_x", "a" * 63])
def test_a_name(vm: str) -> None:
    assert checked_vm_name(vm) == vm
