"""Checker 3: nothing wedges and nothing crashes; the service ends only for a reason that is allowed to end it.

Allowed at the end, `F` being the number of last acts and of those faults that could end a copy:
* a protected pair, or one survivor that runs solo, with every client answered within the bound;
* no copy at all, when each of the newest pair has its cause (its host died, its VM was lost, it was denied the claim
  that another host holds, it was a secondary without a commit), not all by denial, and either F >= 2 or no checkpoint
  was committed yet.

Never allowed: that nobody survives a last act, which strikes a whole pair, unless a fault that could end a copy has
struck since; and that a manager takes its VM for lost to which nothing has happened.
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
    problems += [
        f"{ending.name} took its VM for lost, to which nothing had happened"
        for ending in history.endings
        if ending.cause == "vm-lost-unharmed"
    ]
    problems += [
        f"nobody survived when {act.victim}, one of a whole pair, was killed"
        for act in history.last_acts
        if not act.survived and not act.deadly_since
    ]
    return [*problems, *_ended(history)]


def _ended(history: History) -> list[str]:
    if any(not ending.cause for ending in history.endings):
        return []
    last_pair = [ending for ending in history.endings if ending.name in history.pairs[-1]]
    causes = ", ".join(ending.cause for ending in last_pair)
    blows = history.deadly + len(history.last_acts)
    if blows < 2 and history.committed_before_end:
        return [f"all copies ended ({causes}) after {blows} blow(s)"]
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
