"""What a report says of rows: medians and ranges, and each contestant beside the one that nobody protects. Pure.

Guarantees
* A ratio compares rows of the same round, so that a machine that is slow for a while is slow for both.
* A measurement that failed has no figure, and is counted; a figure that nobody could take is absent, never zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Found = dict[str, dict[str, list[Row]]]
"""Workload -> contestant -> a row for each round."""

BASES = {"unprotected 7.2": "unprotected 7.2", "ours 7.2": "unprotected 7.2"}
"""Who is compared with whom; everybody else with "unprotected"."""


@dataclass(frozen=True)
class Spread:
    """A median and the range it comes from."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without any value."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int) -> str:
        """As in "0.78 (0.70-0.81)"."""
        middle = f"{self.median:.{digits}f}"
        return middle if self.count == 1 else f"{middle} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def ratios(found: Found, workload: str, contestant: str) -> Spread | None:
    """Its rate as a share of the unprotected guest's, round by round."""
    columns = found[workload]
    base = columns.get(BASES.get(contestant, "unprotected"), [])
    pairs = zip(columns.get(contestant, []), base, strict=False)
    return Spread.of(
        [one["rate"] / other["rate"] for one, other in pairs if not one["problem"] and other.get("rate", 0.0)]
    )


def spread(found: Found, workload: str, contestant: str, figure: Callable[[Row], float | None]) -> Spread | None:
    """A figure over all rounds that have it."""
    rows = found[workload].get(contestant, [])
    values = [figure(row) for row in rows if not row["problem"]]
    return Spread.of([value for value in values if value is not None])


def key(name: str) -> Callable[[Row], float | None]:
    """A figure that a row has by that name, or has not."""
    return lambda row: row.get(name)


def checkpoints_per_s(row: Row) -> float | None:
    """By the guest's pauses."""
    return float(row["checkpoints"]) / float(row["took_s"])


def kib_per_checkpoint(row: Row) -> float | None:
    """What went over the wire."""
    return row["bytes"] / 1024 if "bytes" in row else None


def share_of_dirty_pages(row: Row) -> float | None:
    """Bytes on the wire for each byte of the pages that were sent."""
    return row["bytes"] / (4096 * row["pages"]) if row.get("pages") else None


def cpu_ms_per_request(row: Row) -> float | None:
    """Of all processes that work for the guest, QEMU and both hosts included."""
    return 1e3 * sum(row["cpu_s"].values()) / row["requests"] if row.get("requests") else None


def helpers_cpu_ms_per_request(row: Row) -> float | None:
    """Of those among them that are no QEMU."""
    spent = [seconds for name, seconds in row["cpu_s"].items() if not name.startswith("qemu")]
    return 1e3 * sum(spent) / row["requests"] if spent and row.get("requests") else None


def failures(found: Found, workload: str, contestant: str) -> list[str]:
    """Why measurements have no figure."""
    return [row["problem"] for row in found[workload].get(contestant, []) if row["problem"]]


def contestants(found: Found) -> list[str]:
    """All that were measured, in the order of their first row."""
    names: dict[str, None] = {}
    for columns in found.values():
        names |= dict.fromkeys(columns)
    return list(names)


@dataclass(frozen=True)
class Figure:
    """One table of the report: a line for each workload, a column for each contestant."""

    title: str
    of: Callable[[Found, str, str], Spread | None]
    digits: int = 1
    log: bool = False


def cells(figure: Figure, found: Found) -> dict[str, list[Spread | None]]:
    """Workload -> a cell for each contestant, without workloads that nobody has a figure for."""
    lines = {workload: [figure.of(found, workload, name) for name in contestants(found)] for workload in found}
    return {workload: line for workload, line in lines.items() if any(line)}


def without_figure(found: Found) -> list[str]:
    """Each reason once, with whose it is."""
    return [
        f"{workload}, {name}: {problem}"
        for workload in found
        for name in contestants(found)
        for problem in dict.fromkeys(failures(found, workload, name))
    ]


def _by(figure: Callable[[Row], float | None]) -> Callable[[Found, str, str], Spread | None]:
    return lambda found, workload, contestant: spread(found, workload, contestant, figure)


FIGURES = (
    Figure("Throughput as a share of the unprotected guest's", ratios, digits=2),
    Figure("Throughput", _by(lambda row: row["rate"] or None)),
    Figure("Latency p50, ms", _by(key("p50_ms")), digits=2),
    Figure("Latency p99, ms", _by(key("p99_ms"))),
    Figure("Pause of the guest p50, ms", _by(key("pause_ms_p50")), log=True),
    Figure("Pause of the guest p99, ms", _by(key("pause_ms_p99"))),
    Figure("Pause of the guest, longest, ms", _by(key("pause_ms_max"))),
    Figure("Checkpoints a second", _by(checkpoints_per_s)),
    Figure("KiB on the wire for each checkpoint", _by(kib_per_checkpoint), digits=0),
    Figure("Bytes on the wire for each byte of dirty pages", _by(share_of_dirty_pages), digits=2),
    Figure("Processor ms for each request, all processes", _by(cpu_ms_per_request), digits=2),
    Figure("Processor ms for each request, without QEMU", _by(helpers_cpu_ms_per_request), digits=2),
    Figure("Memory of the secondary, MiB", _by(lambda row: row.get("secondary_mib") or None), digits=0),
    Figure("First sync, s", _by(lambda row: row.get("first_sync_s") or None), digits=2),
    Figure("Gap at the primary's death, ms", _by(key("gap_ms")), digits=0),
)
