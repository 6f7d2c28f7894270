"""The report of a demo: `report.json` for programs, `report.html` for people, a table for the terminal.

Guarantees: the keys of report.json are the fields below, in this order; the page stands alone (no script, font or
picture from elsewhere); files appear whole or not at all; the verdict forgives nothing and is never good by default.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.table import Table

from pycolo.errors import EnvironmentFault

GAP_MS_MAX = 500.0
"""The longest gap that the demo promises to stay under."""


@dataclass(frozen=True)
class Guest:
    memory_mib: int
    cpus: int


@dataclass(frozen=True)
class Client:
    """What the clients of one round saw, from outside."""

    requests: int
    failed: int
    reset: int
    wrong_bytes: int
    lost_acknowledged: int
    connections_kept: bool
    longest_gap_ms: float
    connections_opened: int = 0
    longest_gap_ms_by_kind: Mapping[str, float] = field(default_factory=dict)
    requests_by_kind: Mapping[str, int] = field(default_factory=dict)
    errors: Sequence[str] = ()


@dataclass(frozen=True)
class PauseMs:
    p50: float
    p99: float
    max: float


@dataclass(frozen=True)
class SizeBytes:
    p50: float
    max: float


@dataclass(frozen=True)
class Checkpoints:
    count: int
    reasons: Mapping[str, int]
    pause_ms: PauseMs
    bytes: SizeBytes


@dataclass(frozen=True)
class Packets:
    released_equal: int
    released_by_checkpoint: int
    diverged: int


@dataclass(frozen=True)
class Failover:
    """Since the kill: death noticed, claim won, output flowing again (after a killed secondary: primary solo).

    None for a step that never came.
    """

    detect_ms: float | None
    claim_ms: float | None
    takeover_ms: float | None


@dataclass(frozen=True)
class Disk:
    """The database's disk in a round that has one: its first copy, and the survivor's image after the shutdown."""

    transactions: int
    copied_bytes: int
    copy_ms: float
    fsck: str
    """What e2fsck finds wrong; empty when nothing is."""


@dataclass(frozen=True)
class Round:
    killed: Literal["primary", "secondary"]
    client: Client
    checkpoints: Checkpoints
    packets: Packets
    failover: Failover
    disk: Disk | None = None

    @property
    def title(self) -> str:
        return f"{self.killed} killed" + (", database on disk" if self.disk is not None else "")


@dataclass(frozen=True)
class Report:
    qemu_version: str
    accel: str
    guest: Guest
    rounds: Sequence[Round]


@dataclass(frozen=True)
class Series:
    """What one round's plots show; all times are CLOCK_MONOTONIC ms, as in the ticks of `load`."""

    samples: Sequence[tuple[float, float, str]]
    """(asked at, latency ms, kind)"""
    checkpoints: Sequence[tuple[float, str, float]]
    """(at, reason, pause ms)"""
    kill_ms: float
    takeover_ms: float | None
    """When output flowed again, not how long it took."""


def client_of(result: Mapping[str, object]) -> Client:
    """The figures in the `result` line of `load`; EnvironmentFault when a figure is missing or no number."""
    try:
        return _client_of(result)
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFault(
            f"The load clients' last line is not a result ({error!r}): run the demo again."
        ) from error


def _client_of(result: Mapping[str, object]) -> Client:
    by_kind, errors, kept = result["by_kind"], result["errors"], result["connections_kept"]
    if not isinstance(by_kind, Mapping) or not isinstance(errors, list) or not isinstance(kept, bool):
        raise TypeError("by_kind, errors or connections_kept")
    return Client(
        requests=_number(result["requests"]),
        failed=_number(result["failed"]),
        reset=_number(result["reset"]),
        wrong_bytes=_number(result["wrong_bytes"]),
        lost_acknowledged=_number(result["lost_acknowledged"]),
        connections_kept=kept,
        longest_gap_ms=float(str(result["longest_gap_ms"])),
        connections_opened=_number(result["connections_opened"]),
        longest_gap_ms_by_kind={str(k): float(v["longest_gap_ms"]) for k, v in by_kind.items()},
        requests_by_kind={str(k): _number(v["requests"]) for k, v in by_kind.items()},
        errors=[str(error) for error in errors],
    )


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that a share `q` of all do not exceed; 0 for none."""
    ordered = sorted(values)
    return float(ordered[max(math.ceil(q * len(ordered)) - 1, 0)]) if ordered else 0.0


def checkpoints_of(taken: Sequence[tuple[str, float, int]]) -> Checkpoints:
    """The figures of checkpoints given as (reason, pause ms, bytes)."""
    pauses, sizes = [pause for _, pause, _ in taken], [size for _, _, size in taken]
    return Checkpoints(
        count=len(taken),
        reasons=dict(Counter(reason for reason, _, _ in taken).most_common()),
        pause_ms=PauseMs(quantile(pauses, 0.5), quantile(pauses, 0.99), max(pauses, default=0.0)),
        bytes=SizeBytes(quantile(sizes, 0.5), max(sizes, default=0)),
    )


def verdict(report: Report) -> tuple[bool, list[str]]:
    """(True, []) when no client noticed anything, else the reasons, one sentence each. No load is no proof."""
    reasons = [] if report.rounds else ["no round was run"]
    for round_ in report.rounds:
        noticed = [*_noticed(round_.client), *_damaged(round_.disk)]
        reasons += [f"{reason} when the {round_.killed} died" for reason in noticed]
    return not reasons, reasons


def _noticed(client: Client) -> list[str]:
    counts = {
        "request failed": client.failed,
        "request was reset": client.reset,
        "answer had wrong bytes": client.wrong_bytes,
        "acknowledged write was lost": client.lost_acknowledged,
    }
    reasons = [f"{count} {_plural(count, what)}" for what, count in counts.items() if count != 0]
    if not client.connections_kept:
        reasons.append("a connection did not stay open")
    if client.requests <= 0:
        reasons.append("no client asked anything")
    return reasons


def _damaged(disk: Disk | None) -> list[str]:
    if disk is None:
        return []
    reasons = ["the survivor's file system was damaged"] if disk.fsck else []
    return reasons if disk.transactions > 0 else [*reasons, "no transaction was committed"]


def _plural(count: int, what: str) -> str:
    if count == 1:
        return what
    noun, _, rest = what.partition(" ")
    if noun == "acknowledged":
        return "acknowledged writes were lost"
    return f"{noun}s {rest}".replace(" was ", " were ")


def number(value: float | None) -> str:
    """For people: thin spaces between thousands, at most three figures that matter, a dash for what never came."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def size(bytes_: float) -> str:
    """Bytes for people."""
    if bytes_ >= 1 << 20:
        return f"{bytes_ / (1 << 20):.1f} MiB"
    return f"{bytes_ / 1024:.0f} KiB" if bytes_ >= 1024 else f"{bytes_:.0f} B"


@dataclass(frozen=True)
class Figure:
    """One line of the table of figures; `good` is None where there is nothing to judge."""

    group: str
    name: str
    value: str
    good: bool | None = None


def figures(round_: Round) -> list[Figure]:
    """All figures of a round for people, in reading order; the same groups and names for every round."""
    return [
        *_client_figures(round_.client),
        *_failover_figures(round_),
        *_machine_figures(round_),
        *_disk_figures(round_.disk),
    ]


def _client_figures(client: Client) -> list[Figure]:
    counted = {
        "failed": client.failed,
        "reset": client.reset,
        "wrong bytes": client.wrong_bytes,
        "acknowledged writes lost": client.lost_acknowledged,
    }
    return [
        Figure("Clients", "requests", number(client.requests), None if client.requests else False),
        *(Figure("Clients", name, number(value), value == 0) for name, value in counted.items()),
        Figure("Clients", "connections kept", "all" if client.connections_kept else "no", client.connections_kept),
        Figure(
            "Clients",
            "longest gap",
            f"{number(client.longest_gap_ms)} ms",
            client.longest_gap_ms < GAP_MS_MAX,
        ),
    ]


def outcome(killed: str, went_on: bool) -> str:
    """What followed a kill, in three words."""
    if not went_on:
        return "nobody went on"
    return "secondary took over" if killed == "primary" else "primary went solo"


def _failover_figures(round_: Round) -> list[Figure]:
    steps = {
        "death noticed": round_.failover.detect_ms,
        "claim won": round_.failover.claim_ms,
        "output flows again": round_.failover.takeover_ms,
    }
    return [
        Figure("Failover", "what happened", outcome(round_.killed, round_.failover.takeover_ms is not None)),
        *(Figure("Failover", f"{n} after", "–" if v is None else f"{number(v)} ms") for n, v in steps.items()),
    ]


def _machine_figures(round_: Round) -> list[Figure]:
    taken, packets, pause = round_.checkpoints, round_.packets, round_.checkpoints.pause_ms
    released = packets.released_equal + packets.released_by_checkpoint
    share = f" ({100 * packets.released_equal / released:.1f} %)" if released else ""
    reasons = ", ".join(f"{reason} ×{count}".replace(" ", "\u00a0") for reason, count in taken.reasons.items()) or "–"
    return [
        Figure("Checkpoints", "taken", number(taken.count)),
        Figure("Checkpoints", "reasons", reasons),
        Figure("Checkpoints", "pause p50 / p99 / max", f"{' / '.join(map(number, asdict(pause).values()))} ms"),
        Figure("Checkpoints", "size p50 / max", f"{size(taken.bytes.p50)} / {size(taken.bytes.max)}"),
        Figure("Packets", "released as equal", number(packets.released_equal) + share),
        Figure("Packets", "released by a checkpoint", number(packets.released_by_checkpoint)),
        Figure("Packets", "diverged", number(packets.diverged)),
    ]


def _disk_figures(disk: Disk | None) -> list[Figure]:
    if disk is None:
        return [Figure("Disk", name, "–") for name in ("transactions", "first copy", "survivor's file system")]
    copied = f"{size(disk.copied_bytes)} in {number(disk.copy_ms / 1000)} s"
    return [
        Figure("Disk", "transactions", number(disk.transactions), None if disk.transactions else False),
        Figure("Disk", "first copy", copied),
        Figure("Disk", "survivor's file system", "damaged" if disk.fsck else "clean", not disk.fsck),
    ]


def summary_table(report: Report) -> Table:
    """The figures for the terminal, a column per round."""
    ok, reasons = verdict(report)
    title = "[bold green]No client noticed" if ok else f"[bold red]A client noticed: {'; '.join(reasons)}"
    table = Table(title=title, caption=f"QEMU {report.qemu_version} ({report.accel})", title_justify="left")
    table.add_column("", style="dim")
    table.add_column("")
    for round_ in report.rounds:
        table.add_column(round_.title, justify="right")
    group = ""
    for line in zip(*map(figures, report.rounds), strict=True):
        first = line[0].group != group
        if first and group:
            table.add_section()
        group = line[0].group
        table.add_row(group if first else "", line[0].name, *map(_colored, line))
    return table


def _colored(figure: Figure) -> str:
    if figure.good is None:
        return figure.value
    return f"[green]{figure.value}[/]" if figure.good else f"[bold red]{figure.value}[/]"


def report_json(report: Report) -> str:
    """report.json: the fields of `Report`, then the verdict."""
    ok, reasons = verdict(report)
    return json.dumps({**asdict(report), "ok": ok, "noticed": reasons}, indent=2, allow_nan=False) + "\n"


def write_report(out_dir: Path, report: Report, series: Sequence[Series]) -> None:
    """Write report.json and report.html; `series` has one item per round, in order.

    Raises EnvironmentFault when the folder can't be written, ValueError when rounds and series don't match.
    """
    from pycolo.demo.report_page import page  # it builds on the types above

    if len(series) != len(report.rounds):
        raise ValueError(f"{len(report.rounds)} rounds but {len(series)} series")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        _write_whole(out_dir / "report.json", report_json(report))
        _write_whole(out_dir / "report.html", page(report, series))
    except OSError as error:
        raise EnvironmentFault(
            f"The report can't be written to {out_dir} ({error}): choose another folder or make room."
        ) from error


def _write_whole(path: Path, text: str) -> None:
    new = path.with_suffix(f"{path.suffix}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
