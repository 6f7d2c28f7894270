"""`make bench`: the same guest and the same clients, unprotected, ours, QEMU's own COLO, and checkpoints alone.

Each measurement boots its contestant anew, which is the only one that runs. For each workload all contestants take
turns, in the opposite order every other round. Rows are added to those in the file, which is written after each, so
that many short runs make one table: `--rounds 0` only shows it. Ctrl-C loses one measurement at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from pycolo.guest.builder import GuestImage
from pycolo.guest.disk_image import build_disk

from .guest import bench_guest
from .measure import measure
from .ours import CHECKPOINTS_ALONE, ours
from .page import write_page
from .qemu_colo import colo, plain
from .subject import Row, Start
from .table import show
from .workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent.parent
NEWER = ROOT / ".cache/qemu/11.1"
OLDER = "qemu-system-x86_64"
FOLDER = Path("bench")
FETCH_S_MAX = 900.0


def contestants() -> dict[str, Start]:
    """Name -> how it starts. The first is what all others are compared with."""
    newer = str(NEWER / "usr/bin/qemu-system-x86_64")
    return {
        "unprotected": plain(newer),
        "ours": ours(newer),
        "ours, no TLS": ours(newer, tls=False),
        "checkpoints": ours(newer, CHECKPOINTS_ALONE),
        "qemu unix": colo(newer, "unix"),
        "qemu tcp": colo(newer, "tcp"),
        "qemu patient": colo(newer, "unix", patient=True),
        "unprotected 7.2": plain(OLDER),
        "ours 7.2": ours(OLDER),
    }


def main() -> int:
    """The exit status: 1 when a column of ours failed."""
    options = _options()
    FOLDER.mkdir(exist_ok=True)
    out = FOLDER / "report.json"
    found: dict[str, dict[str, list[Row]]] = json.loads(out.read_text()) if out.exists() else {}
    if options.rounds:
        _fetch()
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        image = bench_guest(Path(name))
        disk = build_disk()
        for turn in range(options.rounds):
            for workload in options.workload or WORKLOADS:
                for contestant in options.only if turn % 2 == 0 else options.only[::-1]:
                    began_s = time.monotonic()
                    row = _run(contestant, workload, image, disk, options.seconds)
                    found.setdefault(workload, {}).setdefault(contestant, []).append(row)
                    out.write_text(json.dumps(found, indent=1))
                    print(f"{workload}, {contestant}: {_line(row)} [{time.monotonic() - began_s:.0f} s]", flush=True)
    show(found, Console(width=options.width))
    write_page(found, FOLDER / "report.html")
    print(f"the page with pictures: {FOLDER / 'report.html'}")
    return int(any(row["problem"] for columns in found.values() for name in ("ours",) for row in columns.get(name, [])))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--only", choices=contestants(), action="append", help="this contestant (may be repeated)")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="this workload (may be repeated)")
    parser.add_argument("--width", type=int, default=160, help="of the table")
    options = parser.parse_args()
    options.only = options.only or list(contestants())
    return options


def _fetch() -> None:
    print("looking for QEMU 11.1; half a minute the first time", flush=True)
    subprocess.run([ROOT / "scripts/fetch-qemu", "11.1", NEWER], check=True, timeout=FETCH_S_MAX)


def _run(contestant: str, workload: str, image: GuestImage, disk: Path, seconds: float) -> Row:
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as folder:
        return asyncio.run(measure(contestants()[contestant], WORKLOADS[workload], image, Path(folder), disk, seconds))


def _line(row: dict[str, Any]) -> str:
    if row["problem"]:
        return f"FAILED: {row['problem']}"
    pauses = f", pause p50 {row['pause_ms_p50']:.1f} ms" if row.get("pause_ms_p50") else ""
    gap = f", gap {row['gap_ms']:.0f} ms" if "gap_ms" in row else ""
    return f"{row['rate']:.1f} {row['unit']}, {row['checkpoints']} checkpoints{pauses}{gap}"


if __name__ == "__main__":
    sys.exit(main())
