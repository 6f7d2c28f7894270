"""Many seeds: what each tells, and what is said of all."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass

from .history import History
from .verdict import problems_of
from .world import drawn, play


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a seed; `faults` are those that struck, without where, `events` how often what happened."""

    seed: int
    problems: list[str]
    faults: list[str]
    events: dict[str, int]


def run_seed(what: tuple[int, int]) -> Told:
    """Play a seed for so many steps; what the model or the core raises is a finding as well."""
    seed, steps = what
    try:
        history = play(*drawn(seed, steps)).history
    except Exception:  # noqa: BLE001 - whatever it is, the seed has to be told
        return Told(seed, [f"it crashed: {traceback.format_exc()}"], [], {})
    faults = [fault.split()[0] for fault in history.faults]
    return Told(seed, problems_of(history), faults, _events_of(history))


def _events_of(history: History) -> dict[str, int]:
    return {
        "commits": sum(image.moment == "commit" for image in history.images),
        "takeovers": len(history.takeovers),
        "reunions": history.reunions,
        "rebases": history.rebases,
        "failed disks": history.disks_failed,
    }


def said(seeds: int, steps: int, failed: int, struck: Counter[str], events: Counter[str], seconds: float) -> str:
    """The last lines of a campaign."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(struck.items()))
    happened = ", ".join(f"{count} {what}" for what, count in events.items())
    return (
        f"{seeds} seeds of {steps} steps in {seconds:.0f} s, {failed} with a finding; {happened}\n"
        f"faults: {kinds or 'none'}"
    )
