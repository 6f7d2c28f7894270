"""How often the outputs of two copies differ under load, and which settings of a guest help.

`make bench-divergences`. Each setting of divergence_settings.py boots a protected pair anew, which is the only one that
runs. The order turns round every other round. Rows are added to those in the file, which is written after each, so that
many short runs make one table: `--only NAME --rounds 1`. Prints tables per minute: median (lowest-highest).
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
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import divergence_clients
from divergence_settings import SETTINGS, Setting, altered
from pycolo.api import Client
from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.demo.processes import DaemonProcess
from pycolo.edge.namespaces import Namespace
from pycolo.errors import EnvironmentFault
from pycolo.guest.builder import GuestImage, build_guest
from upload_guests import protected

REASONS = ("divergence", "policy", "late", "limit", "epoch")
CLIENTS_S_MAX = 30.0  # beyond the time that they are told
LOG_LINES = 8
EVENTS_S = 0.5  # until the last events have been fetched

Row = dict[str, Any]


def main() -> int:
    """The exit status."""
    options = _options()
    found: dict[str, list[Row]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    image = build_guest()
    for turn in range(options.rounds):
        for name in options.only if turn % 2 == 0 else options.only[::-1]:
            row = asyncio.run(_run(SETTINGS[name], image, options.seconds))
            found.setdefault(name, []).append(row)
            print(f"{name}: {_line(row)}", file=sys.stderr)
            options.out.write_text(json.dumps(found, indent=2))
    _show(found, Console(width=180))
    return int(any(row["failed"] for rows in found.values() for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="0: only show what the file has")
    parser.add_argument("--seconds", type=int, default=60, help="of each measurement")
    parser.add_argument("--only", choices=SETTINGS, action="append", help="this setting (may be repeated)")
    parser.add_argument("--out", type=Path, default=Path("bench-divergences.json"))
    options = parser.parse_args()
    options.only = options.only or list(SETTINGS)
    return options


async def _run(setting: Setting, image: GuestImage, seconds: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="colo-divergences-") as name:
        folder = Path(name)
        guest = altered(image, setting, folder)
        async with protected(guest, folder, setting.vm_toml) as (lab, primary, secondary):
            try:
                return await _measure(lab.clients, primary, setting, seconds)
            except EnvironmentFault as gone:
                raise SystemExit(f"{gone}\n{_last_words(primary)}\n{_last_words(secondary)}") from None


async def _measure(clients: Namespace, primary: DaemonProcess, setting: Setting, seconds: int) -> Row:
    """What happened while the clients counted."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *clients.prefix(), sys.executable, divergence_clients.__file__),
        *(GUEST_ADDRESS, setting.load, str(setting.connections), str(setting.pace_ms), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), CLIENTS_S_MAX)
    began_s, began, load = time.monotonic(), await _status(primary), os.getloadavg()[0]
    said = await asyncio.wait_for(process.stdout.read(), seconds + CLIENTS_S_MAX)
    ended_s, ended = time.monotonic(), await _status(primary)
    await process.wait()
    await asyncio.sleep(EVENTS_S)
    events = [event for event in primary.events if began_s <= event["t_ms"] / 1000 <= ended_s]
    diverged = ended["packets"]["diverged"] - began["packets"]["diverged"]
    row: Row = {"seconds": ended_s - began_s, "load": load, "diverged": diverged, "mode": ended["packets"]["mode"]}
    row |= json.loads(said)
    return row | _told(events)


def _last_words(copy: DaemonProcess) -> str:
    """Why a copy ended is in its log."""
    return "\n".join((copy.state_dir / "daemon.log").read_text(errors="replace").splitlines()[-LOG_LINES:])


async def _status(copy: DaemonProcess) -> Row:
    async with Client(copy.state_dir) as client:
        status: Row = await client.status()
        return status


def _told(events: list[Row]) -> Row:
    """Checkpoints by reason with what they cost, where outputs differed, and how the pair paced itself."""
    checkpoints = [event for event in events if event["kind"] == "checkpoint"]
    differences = [event for event in events if event["kind"] == "divergence"]
    return {
        "checkpoints": Counter(event["reason"] for event in checkpoints),
        "pause_ms": sum(event["pause_ms"] for event in checkpoints),
        "pages": statistics.median([event["pages"] for event in checkpoints] or [0]),
        "where": Counter(f"{one['protocol']} {_port(one['source'])} {one['what']}" for one in differences),
        "offsets": [one["offset"] for one in differences][:20],
        "sentences": [one["reason"] for one in differences][:5],
        "paced": Counter(event["mode"] for event in events if event["kind"] == "pace"),
    }


def _port(end: str) -> str:
    return end.rpartition(":")[2]


def _line(row: Row) -> str:
    told = ", ".join(f"{reason} {count}" for reason, count in row["checkpoints"].items()) or "none"
    served = f"{row['answered'] / row['seconds']:.0f} answers/s, {row['failed']} failed {row['complaints'] or ''}"
    return f"{row['seconds']:.0f} s: {served}; diverged {row['diverged']}; checkpoints: {told}; where: {row['where']}"


def _show(found: dict[str, list[Row]], console: Console) -> None:
    table = Table(title="Per minute: median (lowest-highest)")
    for heading in ("", "rounds", "diverged", *REASONS, "answers/s", "paused %", "pages"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in [name for name in SETTINGS if name in found]:
        rows = found[name]
        reasons = [_spread([_per_minute(row, row["checkpoints"].get(reason, 0)) for row in rows]) for reason in REASONS]
        costs = [
            _spread([row["answered"] / row["seconds"] for row in rows]),
            _spread([row["pause_ms"] / row["seconds"] / 10 for row in rows]),
            _spread([row["pages"] for row in rows]),
        ]
        diverged = _spread([_per_minute(row, row["diverged"]) for row in rows])
        table.add_row(name, str(len(rows)), diverged, *reasons, *costs)
    console.print(table)


def _per_minute(row: Row, count: int) -> float:
    return 60.0 * count / float(row["seconds"])


def _spread(values: list[float]) -> str:
    if not any(values):
        return "0"
    span = f" ({min(values):.0f}-{max(values):.0f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.0f}{span}"


if __name__ == "__main__":
    sys.exit(main())
