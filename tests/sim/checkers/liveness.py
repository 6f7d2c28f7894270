"""Checker 3: nothing wedges and nothing crashes; the service ends only for a reason that is allowed to end it.

Allowed at the end, `F` being the number of faults that struck:
* a protected pair, or one survivor that runs solo, with every client answered within the bound;
* both sides ended, when each has its cause (its host died, its VM was lost, it was denied the claim that the other side
  holds, it was a secondary without a commit), not both by denial, and either F >= 2 or no checkpoint was committed yet.
"""

from __future__ import annotations

from ..history import Ending, History

NAME = "liveness"


def check(history: History) -> list[str]:
    """What contradicts it, in sentences; empty when nothing does."""
    problems = [f"a task crashed: {crash}" for crash in history.crashes]
    if not all(history.converged):
        states = ", ".join(f"{ending.host} {ending.state}" for ending in history.endings)
        problems.append(f"no convergence within the bound ({states}); unanswered clients: {history.unanswered}")
    return [*problems, *_ended(history)]


def _ended(history: History) -> list[str]:
    primary, secondary = history.endings
    if not (primary.cause and secondary.cause):
        return []
    if len(history.faults) < 2 and history.committed_before_end:
        return [f"both sides ended ({primary.cause}, {secondary.cause}) after {len(history.faults)} fault(s)"]
    return [
        f"{own.host} ended without a cause: {own.cause}, while {other.host}: {other.cause}, holder {history.holder}"
        for own, other in ((primary, secondary), (secondary, primary))
        if not _explained(history, own, other)
    ]


def _explained(history: History, own: Ending, other: Ending) -> bool:
    if own.cause == "fenced":
        return other.cause != "fenced" and history.holder == other.host
    if own.cause == "stopped":
        return not history.committed_before_end
    return True
