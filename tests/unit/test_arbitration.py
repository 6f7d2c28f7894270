"""The claim: one host per term, and asking again is safe."""

from __future__ import annotations

import pytest

from pycolo.core.arbitration import ClaimRecord, decide_claim

HELD = ClaimRecord("vm", 3, "alpha")


@pytest.mark.parametrize(
    ("record", "term", "host", "granted"),
    [
        (None, 1, "alpha", True),
        (None, 2, "alpha", False),
        (HELD, 3, "alpha", True),  # the answer to the first question was lost
        (HELD, 3, "beta", False),
        (HELD, 4, "beta", True),
        (HELD, 4, "alpha", True),
        (HELD, 5, "alpha", False),
        (HELD, 2, "alpha", False),
    ],
)
def test_who_is_granted(record: ClaimRecord | None, term: int, host: str, granted: bool) -> None:
    answer = decide_claim(record, "vm", term, host)
    assert answer.granted is granted
    assert host in answer.reason
    if answer.record is not None:
        assert granted
        assert answer.record == ClaimRecord("vm", term, host)


def test_a_repeated_grant_stores_nothing_new() -> None:
    assert decide_claim(HELD, "vm", 3, "alpha").record is None


def test_the_record_of_another_vm_grants_nothing() -> None:
    answer = decide_claim(HELD, "other", 4, "alpha")
    assert (answer.granted, answer.record, answer.usable) == (False, None, False)


@pytest.mark.parametrize(
    ("record", "term", "usable"), [(None, 2, False), (HELD, 5, False), (HELD, 3, True), (HELD, 2, True)]
)
def test_only_a_newer_holder_is_a_no(record: ClaimRecord | None, term: int, usable: bool) -> None:
    answer = decide_claim(record, "vm", term, "beta")
    assert (answer.granted, answer.usable) == (False, usable)


@pytest.mark.parametrize("term", [0, -1])
def test_a_term_below_one_is_a_bug(term: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        decide_claim(None, "vm", term, "alpha")
