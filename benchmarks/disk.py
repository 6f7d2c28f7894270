"""The disk server beside qemu-nbd: the same image, the same fio, alternated in one run, so that ratios mean something.

`make bench-disk`; prints a table of medians and ranges and writes them as JSON. Exits with 1 when a write case is below
RATIO_MIN of qemu-nbd.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

RATIO_MIN = 0.7
IO_DEPTH = 16
START_S_MAX = 10.0
STOP_S_MAX = 20.0


class Row(NamedTuple):
    """What one workload gave, in requests per second."""

    name: str
    must_keep_up: bool
    iops: dict[str, list[float]]  # by server, a value for each round

    @property
    def ratio(self) -> float:
        """Ours to qemu-nbd's, by their medians."""
        ours, theirs = (statistics.median(self.iops[server]) for server in SERVERS)
        return ours / theirs


class Case(NamedTuple):
    """One fio workload."""

    name: str
    pattern: str
    block_bytes: int
    must_keep_up: bool


CASES = (
    Case("4 KiB random write", "randwrite", 4096, True),
    Case("128 KiB sequential write", "write", 131072, True),
    Case("4 KiB random read", "randread", 4096, False),
    Case("128 KiB sequential read", "read", 131072, False),
)
SERVERS = ("colo", "qemu-nbd")


def main() -> int:
    """The exit status."""
    options = _options()
    rows = [Row(case.name, case.must_keep_up, {server: [] for server in SERVERS}) for case in CASES]
    with tempfile.TemporaryDirectory(prefix="colo-bench-", dir=options.dir) as folder:
        image = _image(Path(folder), options.size_mib)
        for turn in range(options.rounds):
            for server in SERVERS if turn % 2 == 0 else SERVERS[::-1]:  # neither always comes second
                with _serving(server, image, Path(folder) / "socket") as socket_path:
                    for case, row in zip(CASES, rows, strict=True):
                        _settle(image)
                        row.iops[server].append(_iops(case, socket_path, options))
    _show(rows)
    options.out.write_text(_json(rows))
    return 0 if all(row.ratio >= RATIO_MIN for row in rows if row.must_keep_up) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each fio")
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--dir", type=Path, default=None, help="where the image is made, else in $TMPDIR or /tmp")
    parser.add_argument("--out", type=Path, default=Path("bench-disk.json"))
    return parser.parse_args()


def _image(folder: Path, size_mib: int) -> Path:
    """Written once, so that no server pays for allocating its blocks."""
    image = folder / "disk.raw"
    with image.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(1 << 20))
    return image


def _settle(image: Path) -> None:
    """What the case before has left dirty is not the next one's burden."""
    with image.open("rb") as file:
        os.fdatasync(file.fileno())


@contextlib.contextmanager
def _serving(server: str, image: Path, socket_path: Path) -> Iterator[Path]:
    theirs = ["qemu-nbd", "-t", "-f", "raw", "--cache=writeback", "--aio=threads", "-k", str(socket_path), str(image)]
    ours = [sys.executable, "-m", "pycolo", "disk", "serve", str(image), "--socket", str(socket_path)]
    command = ours if server == "colo" else theirs
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _await_socket(process, socket_path)
        yield socket_path
    finally:
        process.terminate()
        process.wait(STOP_S_MAX)


def _await_socket(process: subprocess.Popen[bytes], socket_path: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not socket_path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} did not start")
        time.sleep(0.05)


def _iops(case: Case, socket_path: Path, options: argparse.Namespace) -> float:
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri=nbd+unix:///?socket={socket_path}",
        f"--rw={case.pattern}",
        f"--bs={case.block_bytes}",
        f"--iodepth={IO_DEPTH}",
        f"--size={options.size_mib}M",
        "--time_based",
        f"--runtime={options.seconds}",
        "--randseed=1",
        "--output-format=json",
    ]
    with tempfile.TemporaryDirectory() as folder:  # fio leaves files where it runs
        text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    job = json.loads(text[text.index("{") :])["jobs"][0]
    return float(job["write" if "write" in case.pattern else "read"]["iops"])


def _show(rows: list[Row]) -> None:
    table = Table(title=f"requests per second at depth {IO_DEPTH}: median (lowest - highest)")
    for heading in ("", *SERVERS, "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        values = [row.iops[server] for server in SERVERS]
        cells = [f"{statistics.median(v):.0f} ({min(v):.0f} - {max(v):.0f})" for v in values]
        table.add_row(row.name, *cells, f"{row.ratio:.2f}")
    Console(width=100).print(table)


def _json(rows: list[Row]) -> str:
    return json.dumps({"io_depth": IO_DEPTH, "cases": [row._asdict() | {"ratio": row.ratio} for row in rows]}, indent=2)


if __name__ == "__main__":
    sys.exit(main())
