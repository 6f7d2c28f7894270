"""Any interleaving of the claims of two hosts grants a term at most once, and at most one side of a pair goes alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.arbitration import ClaimRecord, decide_claim

HOSTS = ("alpha", "beta")
PRIMARY, SECONDARY = HOSTS
CLAIM_IDS = st.sampled_from(("one", "two"))
CLAIMS = st.lists(st.tuples(st.sampled_from(HOSTS), st.integers(1, 8), CLAIM_IDS), max_size=40)
RECORDS = st.none() | st.builds(ClaimRecord, st.just("vm"), st.integers(0, 6), st.sampled_from(HOSTS), CLAIM_IDS)


@given(RECORDS, CLAIMS)
def test_a_term_is_granted_to_one_host_only(record: ClaimRecord | None, claims: list[tuple[str, int, str]]) -> None:
    """The list is the order in which the arbiter sees the claims; which answers are lost makes no difference to it."""
    holders = {record.term: record.holder} if record else {}
    for host, term, claim_id in claims:
        answer = decide_claim(record, "vm", term, host, claim_id)
        if answer.record is not None:
            assert answer.granted
            assert answer.record.term == (record.term if record else 0) + 1, "each term is stored once, in order"
            record = answer.record
        if answer.granted:
            assert holders.setdefault(answer.term, host) == host
            assert record == ClaimRecord("vm", answer.term, host, claim_id), "a yes is what is stored"


@given(RECORDS, st.sampled_from(HOSTS), st.integers(1, 8), CLAIM_IDS)
def test_asking_again_gives_the_same_answer(record: ClaimRecord | None, host: str, term: int, claim_id: str) -> None:
    first = decide_claim(record, "vm", term, host, claim_id)
    again = decide_claim(first.record or record, "vm", term, host, claim_id)
    assert again.granted is first.granted
    assert again.record is None


@dataclass
class OneHost:
    """One side of a pair: its base, and the loss that it claims for."""

    base: int
    loss: int = 0
    claiming: bool = False  # it has seen its peer lost
    alone: bool = False
    fenced: bool = False

    @property
    def ended(self) -> bool:
        return self.alone or self.fenced


@dataclass
class PairOfHosts:
    """A pair: its questions may arrive late, twice or never, and it may lose and find itself again and again."""

    record: ClaimRecord | None
    hosts: dict[str, OneHost]
    asked: list[tuple[str, int, str]] = field(default_factory=list)  # on their way to the arbiter
    answered: list[tuple[str, str, bool, bool]] = field(default_factory=list)  # on their way back
    offered: int | None = None  # a new base on its way to the secondary
    taken: int | None = None  # the secondary has taken it, the primary does not know yet

    def step(self, what: str, name: str, which: int) -> None:
        """One thing happens; `which` picks the message that it happens to."""
        host = self.hosts[name]
        match what:
            case "ask" if not host.ended:
                host.claiming = True
                self.asked.append((name, host.base + 1, f"{name}-{host.loss}"))
            case "arrive" if self.asked:
                asker, term, claim_id = self.asked.pop(which % len(self.asked))
                answer = decide_claim(self.record, "vm", term, asker, claim_id)
                self.record = answer.record or self.record
                self.answered.append((asker, claim_id, answer.granted, answer.usable))
            case "repeat" if self.asked:  # a request that is sent again by another way
                self.asked.append(self.asked[which % len(self.asked)])
            case "answer" if self.answered:
                self._take(*self.answered.pop(which % len(self.answered)))
            case "lose" if self.answered:
                self.answered.pop(which % len(self.answered))
            case "meet" if all(one.claiming and not one.ended for one in self.hosts.values()):
                self.offered = self.taken = None  # what was said in the old session is gone with it
                for one in self.hosts.values():
                    one.claiming, one.loss = False, one.loss + 1
            case "offer" if self.in_session(PRIMARY) and self.record is not None:
                self.offered = self.record.term
            case "take" if self.offered is not None and self.in_session(SECONDARY):
                self.hosts[SECONDARY].base = self.taken = self.offered
                self.offered = None
            case "taken" if self.taken is not None and self.in_session(PRIMARY):
                self.hosts[PRIMARY].base, self.taken = self.taken, None

    def in_session(self, name: str) -> bool:
        """Whether the host has not seen its peer lost; the other may have."""
        return not self.hosts[name].claiming and not self.hosts[name].ended

    def _take(self, name: str, claim_id: str, granted: bool, usable: bool) -> None:
        host = self.hosts[name]
        if host.claiming and not host.ended and claim_id == f"{name}-{host.loss}":
            host.alone, host.fenced = granted, usable and not granted


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("ask", "ask", "arrive", "arrive", "repeat", "answer", "answer", "lose", "meet", "offer", "take", "taken")
        ),
        st.sampled_from(HOSTS),
        st.integers(0, 5),
    ),
    max_size=80,
)


@settings(max_examples=1000)
@given(st.integers(0, 3), st.sampled_from(HOSTS), STEPS)
def test_a_pair_that_finds_itself_again_never_speaks_with_two_voices(
    base: int, holder: str, steps: list[tuple[str, str, int]]
) -> None:
    record = ClaimRecord("vm", base, holder, "first") if base else None
    pair = PairOfHosts(record, {name: OneHost(base) for name in HOSTS})
    for step in steps:
        pair.step(*step)
        assert sum(host.alone for host in pair.hosts.values()) <= 1
