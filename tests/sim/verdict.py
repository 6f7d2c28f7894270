"""All checkers over one history."""

from __future__ import annotations

from .checkers import client_history, committed_state, disks, liveness
from .history import History

CHECKERS = (client_history, committed_state, disks, liveness)


def problems_of(history: History) -> list[str]:
    """What the checkers found, each sentence led by the name of its checker."""
    return [f"{checker.NAME}: {problem}" for checker in CHECKERS for problem in checker.check(history)]


def finders(history: History) -> set[str]:
    """The names of the checkers that found something."""
    return {problem.partition(":")[0] for problem in problems_of(history)}
