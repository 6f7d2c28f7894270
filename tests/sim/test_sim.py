"""The simulator as a test: fixed seeds, one fault at every await, and mutants that must not survive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from .faults import Plan
from .history import Ending, History
from .mutant import Mutant
from .mutants import MUTANTS
from .sweep import one_fault_plans, plans_with
from .verdict import finders, problems_of
from .world import Scenario, drawn, play

SWEPT = (
    Scenario("sweep", steps=300),
    Scenario("sweep the other way", steps=220, kill_primary_last=False, interrupts=False),
)
HUNTED_SEEDS_MAX = 60


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_seeds(first: int) -> None:
    for seed in range(first, first + 40):
        assert problems_of(play(*drawn(seed)).history) == [], f"seed {seed}"


@pytest.mark.parametrize("seed", [3, 11, 42])
def test_a_run_is_a_function_of_its_seed(seed: int) -> None:
    first, second = play(*drawn(seed)), play(*drawn(seed))
    assert first.trace == second.trace
    assert first.history.emissions == second.history.emissions
    assert play(*drawn(seed + 1)).trace != first.trace


@pytest.mark.parametrize("scenario", SWEPT, ids=lambda scenario: scenario.seed)
def test_one_fault_at_every_await(scenario: Scenario) -> None:
    runs = 0
    for description, plan in one_fault_plans(scenario):
        problems = problems_of(play(scenario, plan).history)
        assert problems == [], description
        runs += 1
    assert runs > 1_000


def test_without_faults_clients_are_answered_by_comparison_and_by_commit() -> None:
    history = play(Scenario("calm", steps=1_000), Plan()).history
    assert problems_of(history) == []
    reasons = {emission.why for emission in history.emissions}
    assert {"unprotected", "equal", "commit", "takeover"} <= reasons
    assert len(history.receptions) > 20


def _hunts(mutant: Mutant) -> Iterator[tuple[Scenario, Plan]]:
    for seed in range(HUNTED_SEEDS_MAX):
        scenario = Scenario(f"hunt {seed}", steps=600)
        for plan in plans_with(scenario, mutant.ports, mutant.faults):
            yield scenario, plan


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_no_mutant_survives(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        mutant.apply(patch)
        caught_in = next(
            (scenario, plan)
            for scenario, plan in _hunts(mutant)
            if mutant.checker in finders(play(scenario, plan).history)
        )
    scenario, plan = caught_in
    assert problems_of(play(scenario, plan.again()).history) == [], "the same run must be clean without the mutant"


def _ended(primary: str, secondary: str, faults: int, holder: str | None, committed: bool) -> set[str]:
    history = History(faults=["fault"] * faults, converged=[True], holder=holder, committed_before_end=committed)
    history.endings = [Ending("alpha", "", primary), Ending("beta", "", secondary)]
    return finders(history)


@pytest.mark.parametrize(
    ("primary", "secondary", "faults", "holder", "committed", "allowed"),
    [
        ("died", "died", 2, None, True, True),
        ("died", "died", 1, None, True, False),
        ("died", "stopped", 1, None, False, True),
        ("died", "stopped", 2, None, True, False),
        ("fenced", "died", 2, "beta", True, True),
        ("fenced", "died", 2, "alpha", True, False),
        ("fenced", "fenced", 3, "beta", True, False),
        ("vm-lost", "", 1, "beta", True, True),
    ],
)
def test_which_ends_are_allowed(
    primary: str, secondary: str, faults: int, holder: str | None, committed: bool, allowed: bool
) -> None:
    assert (_ended(primary, secondary, faults, holder, committed) == set()) is allowed


def test_the_scenario_is_part_of_the_run() -> None:
    scenario = Scenario("one")
    assert play(scenario, Plan()).trace != play(replace(scenario, kill_primary_last=False), Plan()).trace
