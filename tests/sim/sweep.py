"""The exhaustive sweep: the same scenario once per await and fault, with exactly that one fault."""

from __future__ import annotations

from collections.abc import Iterator

from .faults import Exactly, Plan, faults_of
from .world import Scenario, play


def awaits_of(scenario: Scenario) -> list[str]:
    """The port at every await of the scenario when nothing fails; its last act included."""
    plan = Plan()
    play(scenario, plan)
    return plan.ports


SWEPT = (
    Scenario("sweep", steps=350),
    Scenario("sweep the other way", steps=250, kill_primary_last=False, interrupts=False, pairs_max=2, compiled=True),
)


def one_fault_plans(scenario: Scenario) -> Iterator[tuple[str, Plan]]:
    """Every (description, plan) with one fault."""
    for number, port in enumerate(awaits_of(scenario)):
        for fault in faults_of(port):
            yield f"{fault} {port} (await {number})", Exactly({number: fault})
