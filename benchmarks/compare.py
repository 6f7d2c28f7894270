"""Our comparison beside QEMU's colo-compare: the same frames, alternated in one run, so that ratios mean something.

`make bench-compare`. Both read two streams of frames from sockets and write what may leave to a third. Beside them
stand our engine alone (batches in memory) and the limits: a relay that reads and writes as we do and compares nothing,
and copying the bytes in memory. Before anything is measured, both have to hold back a frame with a single wrong byte;
after each run everything that came out is compared with what went in.

Prints tables of medians and ranges and writes them as JSON.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from compare_engines import ENGINES, frames_per_s_in_memory, make_turns
from compare_frames import Case, Traffic, make_traffic
from compare_lanes import (
    CHUNK_BYTES,
    QEMU,
    WARM_FRAMES,
    Contestant,
    check_that_it_compares,
    measure_latency_us,
    measure_rate,
    open_flows,
    ours,
    qemu,
)

PAYLOADS_BYTES, FLOWS = (64, 512, 1448), (1, 100, 10_000)
CASES = tuple(Case(*one) for one in itertools.product(PAYLOADS_BYTES, FLOWS))
USUAL = "qemu-usual"  # with the system's own socket buffers: what a user gets, frames out of order and all
QEMUS: dict[str, Contestant] = {
    "qemu-unix": qemu,
    "qemu-tcp": functools.partial(qemu, "tcp"),
    USUAL: functools.partial(qemu, buffer_bytes=0),
}
WITHOUT_LATENCY = ("qemu-tcp", USUAL, "relay")  # Nagle's algorithm delays single frames; a relay does not wait

Figures = dict[str, dict[str, list[Any]]]
"""For each kind of figure and each contestant: a value for each round, or all values."""


def main() -> int:
    """The exit status."""
    options = _options()
    if shutil.which(QEMU) is None:
        raise SystemExit(f"{QEMU} is not installed: `make setup` does it")
    contestants: dict[str, Contestant] = dict(QEMUS)
    engines = options.engine or list(ENGINES)
    contestants |= {name: functools.partial(ours, ENGINES[name]) for name in engines}
    check_that_it_compares(functools.partial(qemu, notices=True))
    for name in engines:
        check_that_it_compares(contestants[name])
    contestants["relay"] = functools.partial(ours, None)
    rows: list[dict[str, Any]] = []
    result = {"machine": machine(), "settings": settings(options, engines), "rows": rows}
    for case in CASES:
        figures = measure(case, contestants, engines, options)
        rows.append(summary(case, figures, engines))
        print(f"{case.payload_bytes} bytes, {case.flows} flows: {_line(rows[-1])}", file=sys.stderr)
        options.out.write_text(json.dumps(result, indent=2))  # what is measured is not lost if somebody stops it
    show(result, Console(width=160))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=100_000, help="of each copy, in each run")
    parser.add_argument("--pairs", type=int, default=500, help="single pairs in each run, for the latency")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="measure only this one (may be repeated)")
    parser.add_argument("--out", type=Path, default=Path("bench-compare.json"))
    return parser.parse_args()


# ---------------------------------------------------------------- measuring


def measure(case: Case, contestants: dict[str, Contestant], engines: list[str], options: argparse.Namespace) -> Figures:
    """All rounds of one row."""
    traffic = make_traffic(case, WARM_FRAMES + options.frames + options.pairs)
    kinds = ("frames_per_s", "cpu_us_per_frame", "reordered", "latency_us", "in_memory_frames_per_s")
    figures: Figures = {kind: {} for kind in kinds}
    turns = make_turns(traffic)
    for turn in range(options.rounds):
        order = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]  # nobody always comes second
        for name in order:
            _run(name, contestants[name], traffic, options.frames, figures)
        for name in engines:
            _note(figures, "in_memory_frames_per_s", name, frames_per_s_in_memory(ENGINES[name](), turns))
        _note(figures, "frames_per_s", "memcpy", _copied_per_s(traffic))
    return figures


def _run(name: str, contestant: Contestant, traffic: Traffic, frames: int, figures: Figures) -> None:
    with contestant() as lanes:
        open_flows(lanes, traffic)
        rate = measure_rate(lanes, traffic, WARM_FRAMES, WARM_FRAMES + frames)
        for kind, value in rate._asdict().items():
            _note(figures, kind, name, value)
        if name not in WITHOUT_LATENCY:
            waits_us = measure_latency_us(lanes, traffic, WARM_FRAMES + frames, traffic.count)
            figures["latency_us"].setdefault(name, []).extend(waits_us)


def _note(figures: Figures, kind: str, name: str, value: float) -> None:
    figures[kind].setdefault(name, []).append(value)


def _copied_per_s(traffic: Traffic) -> float:
    """Frames per second when both copies' streams are copied in memory, and nothing else."""
    buffer = np.empty(CHUNK_BYTES, np.uint8)
    streams = traffic.pvm.reshape(-1), traffic.svm.reshape(-1)
    began_s = time.perf_counter()
    for at in range(0, len(streams[0]), CHUNK_BYTES):
        for stream in streams:
            piece = stream[at : at + CHUNK_BYTES]
            buffer[: len(piece)] = piece
    return traffic.count / (time.perf_counter() - began_s)


# ---------------------------------------------------------------- telling


def summary(case: Case, figures: Figures, engines: list[str]) -> dict[str, Any]:
    """One row: the figures, with QEMU at its best, and ours in relation to it."""
    rates = {name: statistics.median(values) for name, values in figures["frames_per_s"].items()}
    best = max(QEMUS, key=lambda name: rates[name])
    latency_us = {
        name: dict(zip(("p50", "p99"), np.percentile(values, (50, 99)).tolist(), strict=True))
        for name, values in figures.pop("latency_us").items()
    }
    cpu_us = {name: statistics.median(values) for name, values in figures["cpu_us_per_frame"].items()}
    ratios = {
        "ratio_to_qemu_best": {name: rates[name] / rates[best] for name in engines},
        "cpu_ratio_to_qemu_best": {name: cpu_us[best] / cpu_us[name] for name in engines},
    }
    return case._asdict() | {"qemu_best": best} | ratios | {"latency_us": latency_us} | figures


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {statistics.median(values):,.0f}/s" for name, values in row["frames_per_s"].items())


def machine() -> dict[str, Any]:
    """What it was measured on."""
    version = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": version,
    }


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def settings(options: argparse.Namespace, engines: list[str]) -> dict[str, Any]:
    """How it was measured."""
    chosen = {key: getattr(options, key) for key in ("rounds", "frames", "pairs")}
    return chosen | {"engines": engines, "chunk_bytes": CHUNK_BYTES}


def show(result: dict[str, Any], console: Console) -> None:
    """The tables."""
    _show_rates(result, console)
    _show_latencies(result, console)
    about = result["machine"]
    console.print(f"{about['cores']} cores, {about['cpu']}, Linux {about['kernel']}, Python {about['python']}")
    console.print(about["qemu"])


def _show_rates(result: dict[str, Any], console: Console) -> None:
    engines = result["settings"]["engines"]
    table = Table(
        title="thousand frames per second: median (lowest - highest); CPU: us per frame; to QEMU: by rate / by CPU"
    )
    for heading in ("payload", "flows", "QEMU", "CPU", "usual (reordered)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in engines:
        for heading in (name, "CPU", "to QEMU", "in memory"):
            table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("relay", "memcpy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        rates, cpu, best = row["frames_per_s"], row["cpu_us_per_frame"], row["qemu_best"]
        cells = [f"{row['payload_bytes']}", f"{row['flows']}", _thousands(rates[best]), _median(cpu[best])]
        share = statistics.median(row["reordered"][USUAL]) / result["settings"]["frames"]
        cells.append(f"{statistics.median(rates[USUAL]) / 1e3:.0f} ({share:.0%})")
        for name in engines:
            ratio = f"{row['ratio_to_qemu_best'][name]:.2f} / {row['cpu_ratio_to_qemu_best'][name]:.2f}"
            cells += [_thousands(rates[name]), _median(cpu[name]), ratio]
            cells.append(_thousands(row["in_memory_frames_per_s"][name]))
        cells += [f"{statistics.median(rates[name]) / 1e3:.0f}" for name in ("relay", "memcpy")]
        table.add_row(*cells)
    console.print(table)


def _show_latencies(result: dict[str, Any], console: Console) -> None:
    names = ["qemu-unix", *result["settings"]["engines"]]
    table = Table(title="from the second frame of a pair in to the frame out, us: p50 / p99")
    for heading in ("payload", "flows", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        cells = [f"{row['latency_us'][name]['p50']:.0f} / {row['latency_us'][name]['p99']:.0f}" for name in names]
        table.add_row(f"{row['payload_bytes']}", f"{row['flows']}", *cells)
    console.print(table)


def _thousands(values: list[float]) -> str:
    low, middle, high = (value / 1e3 for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.0f} ({low:.0f} - {high:.0f})"


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.1f}"


if __name__ == "__main__":
    sys.exit(main())
