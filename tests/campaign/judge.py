"""What a round has come to, and whether that is what was promised. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from .nemesis import Plan, Promise

TROUBLES = ("failed", "reset", "wrong_bytes")
GIVES_UP = ("udp", "icmp")


@dataclass
class Round:
    """One line of the report. `problems` is empty when everything promised was kept; `logs` has texts by name.

    `gap_ms`: from the fault to the first answer to a request begun after it; `slowest_ms`: the slowest request.
    """

    number: int
    plan: Plan
    problems: list[str] = field(default_factory=list)
    gap_ms: float | None = None
    slowest_ms: float | None = None
    again_s: float | None = None
    turns: list[str] = field(default_factory=list)
    operations: int = 0
    went_down: bool = False
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """In one word."""
        return "FAILED" if self.problems else "down" if self.went_down else "good"

    def __str__(self) -> str:
        gap, slowest, again = figure(self.gap_ms, 5), figure(self.slowest_ms, 5), figure(self.again_s, 5, 1)
        spoke = " -> ".join(self.turns) or "nobody"
        said = "".join(f"\n     {problem}" for problem in self.problems)
        who = f"{self.number:4} seed {self.plan.seed:<6} {self.verdict:6}"
        return f"{who} gap {gap} ms  slowest {slowest} ms  protected {again} s  {spoke:20} {self.plan}{said}"


def figure(value: float | None, width: int = 0, digits: int = 0) -> str:
    """As text; what is not known is a dash."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def counts(tick: Mapping[str, Any]) -> dict[str, int]:
    """What clients have noticed so far, by `kind trouble`, and the acknowledged writes that are gone."""
    by_kind: Mapping[str, Mapping[str, int]] = tick.get("by_kind", {})
    noticed = {f"{kind} {name}": figures[name] for kind, figures in by_kind.items() for name in TROUBLES}
    return noticed | {"acknowledged writes lost": tick.get("lost_acknowledged", 0)}


def clients_noticed(before: Mapping[str, int], after: Mapping[str, int], promise: Promise, down: bool) -> list[str]:
    """What clients may not have seen under that promise, in sentences."""
    forgiven: set[str] = set()
    if promise == "held":
        forgiven |= {f"{kind} failed" for kind in GIVES_UP}
    if down:
        forgiven |= {name for name in after if name.endswith((" failed", " reset"))}
    more = {name: after[name] - before.get(name, 0) for name in after if name not in forgiven}
    return [f"clients: {count} x {name}" for name, count in more.items() if count]


def speakers(turns: Sequence[str]) -> list[str]:
    """Each host speaks in one stretch: who has been relieved never speaks again."""
    stretches = [host for host, _ in groupby(turns)]
    return [] if len(stretches) == len(set(stretches)) else [f"two speakers: {' -> '.join(stretches)}"]
