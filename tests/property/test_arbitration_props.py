"""Any interleaving of the claims of two hosts grants a term at most once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pycolo.core.arbitration import ClaimRecord, decide_claim

CLAIMS = st.lists(st.tuples(st.sampled_from(("alpha", "beta")), st.integers(1, 6)), max_size=40)
RECORDS = st.none() | st.builds(ClaimRecord, st.just("vm"), st.integers(0, 6), st.sampled_from(("alpha", "beta")))


@given(RECORDS, CLAIMS)
def test_a_term_is_granted_to_one_host_only(record: ClaimRecord | None, claims: list[tuple[str, int]]) -> None:
    holders = {record.term: record.holder} if record else {}
    for host, term in claims:
        answer = decide_claim(record, "vm", term, host)
        if answer.record is not None:
            assert answer.granted
            assert answer.record.term == (record.term if record else 0) + 1
            record = answer.record
        if answer.granted:
            assert holders.setdefault(term, host) == host
            assert record == ClaimRecord("vm", term, host), "a yes is what is stored"


@given(RECORDS, st.sampled_from(("alpha", "beta")), st.integers(1, 8))
def test_asking_again_gives_the_same_answer(record: ClaimRecord | None, host: str, term: int) -> None:
    first = decide_claim(record, "vm", term, host)
    again = decide_claim(first.record or record, "vm", term, host)
    assert again.granted is first.granted
    assert again.record is None
