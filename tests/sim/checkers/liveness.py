"""Checker 3: nothing wedges and nothing crashes; the service ends only for a reason that is allowed to end it.

Allowed at the end, `F` being the number of faults that struck:
* a protected pair, or one survivor that runs solo, with every client answered within the bound;
* no copy at all, when each has its cause (its host died, its VM was lost, it was denied the claim that another host
  holds, it was a secondary without a commit), not all by denial, and either F >= 2 or no checkpoint was committed yet.
"""

from __future__ import annotations

from ..history import Ending, History

NAME = "liveness"


def check(history: History) -> list[str]:
    """What contradicts it, in sentences; empty when nothing does."""
    problems = [f"a task crashed: {crash}" for crash in history.crashes]
    if not all(history.converged):
        states = ", ".join(f"{ending.name} {ending.state}" for ending in history.endings)
        problems.append(f"no convergence within the bound ({states}); unanswered clients: {history.unanswered}")
    return [*problems, *_ended(history)]


def _ended(history: History) -> list[str]:
    if any(not ending.cause for ending in history.endings):
        return []
    last_pair = history.endings[-2:]
    causes = ", ".join(ending.cause for ending in last_pair)
    if len(history.faults) < 2 and history.committed_before_end:
        return [f"all copies ended ({causes}) after {len(history.faults)} fault(s)"]
    return [
        f"{ending.name} ended without a reason: {ending.cause}, while the holder is {history.holder}: {causes}"
        for ending in last_pair
        if not _explained(history, ending, last_pair)
    ]


def _explained(history: History, own: Ending, pair: list[Ending]) -> bool:
    if own.cause == "fenced":
        return history.holder != own.host and any(other.cause != "fenced" for other in pair)
    if own.cause == "stopped":
        return not own.committed
    return True
