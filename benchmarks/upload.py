"""Bulk data into a guest and out of it: unprotected, ours, and through the filters of QEMU's own COLO.

`make bench-upload`. An upload is where the rule on acknowledgements costs most: what the PVM acknowledges leaves only
once the SVM has acknowledged as much. Contestants alternate, in the opposite order every other round; each is booted
anew and the only one that runs. Prints tables of medians and ranges and writes them as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import bulk_client
from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.guest.builder import GuestImage, build_guest
from upload_guests import Guest, Start, cpu_s, filters, pair, plain, solo

DIRECTIONS = ("upload", "download")
CONTESTANTS: dict[str, Start] = {
    "plain": plain,
    "ours solo": solo,
    "ours": pair,
    "qemu": filters(offload=False),
    "qemu offload": filters(offload=True),
}
OURS = "ours"
CLIENT_S_MAX = 120.0

Row = dict[str, Any]


def main() -> int:
    """The exit status."""
    options = _options()
    image = build_guest()
    found: dict[str, dict[str, list[Row]]] = {name: {way: [] for way in DIRECTIONS} for name in options.only}
    for turn in range(options.rounds):
        for name in options.only if turn % 2 == 0 else options.only[::-1]:
            rows = asyncio.run(_run(CONTESTANTS[name], image, options))
            for direction, row in zip(DIRECTIONS, rows, strict=True):
                found[name][direction].append(row)
                print(f"round {turn + 1}, {name}, {direction}: {_line(row)}", file=sys.stderr)
            options.out.write_text(json.dumps(found, indent=2))
    _show(found, Console(width=140))
    return int(any(row["complaint"] for rows in found.get(OURS, {}).values() for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--buffer", type=int, default=0, help="bytes of the client's socket buffers; 0: as they grow")
    parser.add_argument("--only", choices=CONTESTANTS, action="append", help="this contestant (may be repeated)")
    parser.add_argument("--out", type=Path, default=Path("bench-upload.json"))
    options = parser.parse_args()
    options.only = options.only or list(CONTESTANTS)
    return options


async def _run(start: Start, image: GuestImage, options: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="colo-upload-") as folder:
        async with start(image, Path(folder)) as guest:
            return [await _measure(guest, direction, options) for direction in DIRECTIONS]


async def _measure(guest: Guest, direction: str, options: argparse.Namespace) -> Row:
    """What the client got, and the processor time of the processes that served it meanwhile, its own not included."""
    before, load, idle_s = _cpu_s(guest.pids), os.getloadavg()[0], _idle_s()
    began_s = time.monotonic()
    checkpoints = await guest.checkpoints()
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *guest.clients.prefix()),
        *(sys.executable, bulk_client.__file__, GUEST_ADDRESS, direction, str(options.seconds), str(options.buffer)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await asyncio.wait_for(process.communicate(), CLIENT_S_MAX)
    spent = _cpu_s(guest.pids)
    cpu = {name: spent[name] - before[name] for name in spent}
    idle = (_idle_s() - idle_s) / (time.monotonic() - began_s) / (os.cpu_count() or 1)
    rates = json.loads(said) if process.returncode == 0 else [0.0] * options.seconds
    rate = {"mb_per_s": statistics.fmean(rates), "best_second": max(rates), "rates": rates}
    rate["complaint"] = complaint.decode().strip().rpartition("\n")[2]
    return rate | {"cpu_s": cpu, "checkpoints": await guest.checkpoints() - checkpoints, "load": load, "idle": idle}


def _idle_s() -> float:
    """What all processors together had nothing to do for: the rest is ours, the client's, the kernel's and others'."""
    return int(Path("/proc/stat").read_text().split()[4]) / os.sysconf("SC_CLK_TCK")


def _cpu_s(pids: dict[str, int]) -> dict[str, float]:
    return {name: cpu_s(pid) for name, pid in pids.items()}


def _line(row: Row) -> str:
    rates = ", ".join(f"{rate:.0f}" for rate in row["rates"])
    cpu = ", ".join(f"{name} {value:.1f}" for name, value in row["cpu_s"].items())
    machine = f"load {row['load']:.1f}, idle {row['idle']:.0%} {row['complaint']}"
    return f"{row['mb_per_s']:.1f} MB/s ({rates}); CPU s: {cpu}; checkpoints {row['checkpoints']}; {machine}"


def _show(found: dict[str, dict[str, list[Row]]], console: Console) -> None:
    table = Table(title="MB/s, best second, requests for a checkpoint, CPU ms per MB: median (lowest - highest)")
    for heading in ("", "MB/s", "best second", "checkpoints", "CPU ms/MB", "idle %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for direction in DIRECTIONS:
        for name, ways in found.items():
            table.add_row(f"{direction}, {name}", *_cells(ways[direction]))
    console.print(table)


def _cells(rows: list[Row]) -> list[str]:
    seconds = len(rows[0]["rates"])
    megabytes = [row["mb_per_s"] * seconds for row in rows]
    cpu = [
        1e3 * sum(row["cpu_s"].values()) / (moved * (1 + bulk_client.WARM_S / seconds))
        for row, moved in zip(rows, megabytes, strict=True)
        if moved
    ]
    kinds = [[row[kind] for row in rows] for kind in ("mb_per_s", "best_second", "checkpoints")]
    return [*map(_spread, kinds), _spread(cpu or [0.0]), _spread([100 * row["idle"] for row in rows])]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
