"""The simulator as a test: fixed seeds, one fault at every await, and mutants that must not survive."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest

from .campaign import run_seed, said
from .checkers import liveness
from .faults import Exactly, Fault, Kind, Plan
from .history import Ending, History, LastAct
from .mutant import Mutant
from .mutants import MUTANTS, seal_forgotten
from .sweep import SWEPT, awaits_of, one_fault_plans
from .verdict import CHECKERS, finders, problems_of
from .world import STEPS, Scenario, drawn, play

SEEDS = 300
HAPPENS_AT_LEAST = {"commits": 1000, "takeovers": 100, "reunions": 10, "rebases": 1, "failed disks": 5}
SWEEP_EVERY = 5  # `make sim ARGS=--sweep` leaves nothing out


def test_no_seed_violates_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    began_s, struck, events = time.monotonic(), Counter[str](), Counter[str]()
    for seed in range(SEEDS):
        told = run_seed((seed, STEPS))
        assert told.problems == [], f"seed {seed}"
        struck.update(told.faults)
        events.update(told.events)
    with capsys.disabled():
        print(f"\n  {said(SEEDS, STEPS, 0, struck, events, time.monotonic() - began_s)}")
    assert set(Kind) - set(struck) == set(), "faults that never struck"
    assert {what: events[what] for what, least in HAPPENS_AT_LEAST.items() if events[what] < least} == {}


@pytest.mark.parametrize("seed", [3, 11, 42])
def test_a_run_is_a_function_of_its_seed(seed: int) -> None:
    first, second = play(*drawn(seed)), play(*drawn(seed))
    assert first.trace == second.trace
    assert first.history.emissions == second.history.emissions
    assert play(*drawn(seed + 1)).trace != first.trace


@pytest.mark.parametrize("scenario", SWEPT, ids=lambda scenario: scenario.seed)
def test_one_fault_at_every_await(scenario: Scenario) -> None:
    runs = 0
    for description, plan in islice(one_fault_plans(scenario), 0, None, SWEEP_EVERY):
        problems = problems_of(play(scenario, plan).history)
        assert problems == [], description
        runs += 1
    assert runs > 400


@pytest.mark.parametrize("compiled", [False, True])
def test_without_faults_clients_are_answered_and_roles_move(compiled: bool) -> None:
    history = play(Scenario("calm", steps=5_000, hosts=3, pairs_max=3, last_acts=2, compiled=compiled), Plan()).history
    assert problems_of(history) == []
    assert len(history.receptions) > 60
    assert len({emission.speaker for emission in history.emissions}) == 3


def _played(seed: int) -> History:
    """With the Python engine, which is the one that mutants are made of."""
    scenario, plan = drawn(seed)
    return play(replace(scenario, compiled=False), plan).history


def _hunts(mutant: Mutant) -> Iterator[int]:
    yield mutant.seed
    yield from range(SEEDS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_no_mutant_survives(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        mutant.apply(patch)
        caught_in = next((seed for seed in _hunts(mutant) if _catches(mutant, finders(_played(seed)))), None)
    assert caught_in is not None, f"not caught in {SEEDS} seeds"
    assert problems_of(_played(caught_in)) == [], "the same run must be clean without the mutant"


def _catches(mutant: Mutant, found_by: set[str]) -> bool:
    return found_by == {mutant.checker} if mutant.only else mutant.checker in found_by


def test_every_checker_is_needed() -> None:
    """Each has a mutant that, in its seed, no other one catches."""
    assert {mutant.checker for mutant in MUTANTS if mutant.only} == {checker.NAME for checker in CHECKERS}


def test_what_a_failed_first_seal_held_leaves_when_the_secondary_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two faults in a row, which seeds seldom draw: the first checkpoint is refused after its seal, the peer goes."""
    scenario = Scenario("first seal", steps=400)
    sealed = awaits_of(scenario).index("output.seal")
    then = [(later, kind) for later in range(1, 12) for kind in (Kind.PEER_DIES, Kind.CUT)]

    def problems() -> set[str]:
        plans = [
            Exactly({sealed: Fault(Kind.REFUSED, after=True), sealed + later: Fault(kind, after=False)})
            for later, kind in then
        ]
        return set().union(*(finders(play(scenario, plan).history) for plan in plans))

    assert problems() == set()
    seal_forgotten(monkeypatch)
    assert problems() == {liveness.NAME}


def _ended(primary: str, secondary: str, deadly: int, holder: str | None, committed: bool) -> History:
    history = History(deadly=deadly, converged=[True], holder=holder, committed_before_end=committed)
    history.pairs = [("alpha/0", "beta/1")]
    history.endings = [
        Ending("alpha/0", "alpha", "", primary, committed=True),
        Ending("beta/1", "beta", "", secondary, committed),
    ]
    return history


@pytest.mark.parametrize(
    ("primary", "secondary", "deadly", "holder", "committed", "allowed"),
    [
        ("died", "died", 2, None, True, True),
        ("died", "died", 1, None, True, False),
        ("died", "stopped", 1, None, False, True),
        ("died", "stopped", 2, None, True, False),
        ("fenced", "died", 2, "beta", True, True),
        ("fenced", "died", 2, "alpha", True, False),
        ("fenced", "fenced", 3, "beta", True, False),
        ("vm-lost", "", 1, "beta", True, True),
        ("vm-lost-unharmed", "", 1, "beta", True, False),
    ],
)
def test_which_ends_are_allowed(
    primary: str, secondary: str, deadly: int, holder: str | None, committed: bool, allowed: bool
) -> None:
    assert (finders(_ended(primary, secondary, deadly, holder, committed)) == set()) is allowed


@pytest.mark.parametrize(("third", "allowed"), [("died", True), ("fenced", False)])
def test_the_newest_pair_is_judged(third: str, allowed: bool) -> None:
    """A primary with its second partner: the first one's death is no reason for both to be fenced."""
    history = _ended("fenced", "died", 3, "delta", committed=True)
    history.pairs.append(("alpha/0", "gamma/2"))
    history.endings.append(Ending("gamma/2", "gamma", "", third, committed=True))
    assert (finders(history) == set()) is allowed


@pytest.mark.parametrize(
    ("survived", "deadly_since", "allowed"), [(True, 0, True), (False, 0, False), (False, 1, True)]
)
def test_a_whole_pair_survives_a_death(survived: bool, deadly_since: int, allowed: bool) -> None:
    """Whatever had struck before it was whole."""
    history = _ended("died", "" if survived else "vm-lost", 3, None, committed=True)
    history.last_acts = [LastAct("alpha/0", survived, deadly_since)]
    assert (finders(history) == set()) is allowed


def test_the_scenario_is_part_of_the_run() -> None:
    scenario = Scenario("one")
    assert play(scenario, Plan()).trace != play(replace(scenario, kill_primary_last=False), Plan()).trace
