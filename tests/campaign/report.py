"""The report of a campaign: every round with its seed and its verdict, and the logs of those that failed. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from .judge import Round, figure
from .page import card, page, picture, table

HEADS = (
    "round",
    "seed",
    "verdict",
    "what went wrong",
    "promised",
    "gap ms",
    "protected again s",
    "operations",
    "spoke",
)


def report(rounds: Sequence[Round], seconds: float, ended_by: str) -> str:
    """The page. `ended_by` says what ended the campaign before its last round, "" if nothing did."""
    failed = [one for one in rounds if one.problems]
    good = bool(rounds) and not failed
    title = f"{len(rounds)} rounds, {len(failed)} failed" if rounds else "no round was played"
    lead = f"{seconds / 60:.1f} minutes. {ended_by or 'All rounds that were asked for.'} {summary(rounds)}"
    body = [card("Each round", _table(rounds))]
    body += [card("First answer to a request begun after the fault", _picture(rounds, "gap_ms", "ms"))]
    body += [card("The slowest request", _picture(rounds, "slowest_ms", "ms"))]
    body += [card("Protected again after", _picture(rounds, "again_s", "s"))]
    body += [card(f"Round {one.number}, seed {one.plan.seed}: {one.plan}", _failure(one)) for one in failed]
    return page(title, lead, "".join(body), good=good)


def summary(rounds: Sequence[Round]) -> str:
    """Medians and ranges of what was kept; "" without any."""
    gaps = [one.gap_ms for one in rounds if one.gap_ms is not None]
    again = [one.again_s for one in rounds if one.again_s is not None]
    parts = []
    slowest = [one.slowest_ms for one in rounds if one.slowest_ms is not None]
    if gaps:
        parts.append(f"gap {statistics.median(gaps):.0f} ms ({min(gaps):.0f} to {max(gaps):.0f})")
    if slowest:
        parts.append(f"slowest request {statistics.median(slowest):.0f} ms ({min(slowest):.0f} to {max(slowest):.0f})")
    if again:
        parts.append(f"protected again after {statistics.median(again):.1f} s ({min(again):.1f} to {max(again):.1f})")
    operations = sum(one.operations for one in rounds)
    return "; ".join([*parts, f"{operations} operations on registers checked"]) + "."


def _table(rounds: Sequence[Round]) -> str:
    rows = [
        (
            str(one.number),
            str(one.plan.seed),
            one.verdict,
            str(one.plan),
            one.plan.promise,
            figure(one.gap_ms),
            figure(one.slowest_ms),
            figure(one.again_s, digits=1),
            str(one.operations),
            " → ".join(one.turns),
        )
        for one in rounds
    ]
    return table(HEADS, rows, ["bad" if one.problems else "good" for one in rounds])


def _picture(rounds: Sequence[Round], name: str, unit: str) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for one in rounds:
        value = getattr(one, name)
        if value is not None:
            lines.setdefault(one.plan.kind, []).append((one.number, value))
    return picture(dict(sorted(lines.items())), unit, "rounds", dots=True)


def _failure(one: Round) -> str:
    problems = "".join(f'<li class="bad">{escape(problem)}</li>' for problem in one.problems)
    logs = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        for name, text in one.logs.items()
    )
    return f"<ul>{problems}</ul><p>make campaign ROUNDS=1 ARGS=&quot;--seed {one.plan.seed}&quot;</p>{logs}"
