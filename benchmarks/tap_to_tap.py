"""What a frame costs between a client's wire and a guest's card, without a guest: bridge, agents, QEMU's filters.

`make bench-tap`. This process is the client and the guest, or both copies of it, which put out equal frames. `down` is
guest to client: what is held, compared and released. `up` is client to guest: what both copies get. Everything that
went in has to come out, whole; at most `WINDOW` frames are on their way. Contestants alternate, in the opposite order
every other round. Prints a table of medians and ranges and writes all as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from compare_frames import CLIENT_MAC, GUEST_MAC, Case, make_traffic, make_upload, split_rows
from compare_lanes import cpu_ns
from tap_worlds import Open, World, bridge, filters, pair, solo

CONTESTANTS: dict[str, Open] = {"bridge": bridge, "ours solo": solo, "ours": pair, "qemu": filters}
DIRECTIONS = ("down", "up")
PAYLOADS_BYTES, FLOWS = (64, 1448), 100
WARM_FRAMES = 2000
WINDOW, BATCH = 256, 32
PAIR_PAUSE_S = 200e-6
FRAME_BYTES_MAX = 65_553
WAIT_S_MAX = 30

Row = dict[str, Any]
End = tuple[int, bytes]
"""A descriptor, and what is in front of each frame there."""


def main() -> int:
    """The exit status."""
    options = _options()
    names = options.only or list(CONTESTANTS)
    found: dict[str, list[Row]] = {}
    for turn in range(options.rounds):
        for payload_bytes in PAYLOADS_BYTES:
            for name in names if turn % 2 == 0 else names[::-1]:
                rows = asyncio.run(_run(CONTESTANTS[name], Case(payload_bytes, FLOWS), options.frames, options.single))
                for direction, row in zip(DIRECTIONS, rows, strict=True):
                    found.setdefault(f"{direction} {payload_bytes} {name}", []).append(row)
                    print(
                        f"round {turn + 1}, {direction}, {payload_bytes} bytes, {name}: {_line(row)}", file=sys.stderr
                    )
                options.out.write_text(json.dumps(found, indent=2))
    _show(found, Console(width=140))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=20_000, help="in each direction, in each run")
    parser.add_argument("--single", type=int, default=500, help="frames one at a time, for the latency")
    parser.add_argument("--only", choices=CONTESTANTS, action="append", help="this contestant (may be repeated)")
    parser.add_argument("--out", type=Path, default=Path("bench-tap.json"))
    return parser.parse_args()


async def _run(open_world: Open, case: Case, frames: int, single: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="colo-tap-") as folder:
        async with open_world(Path(folder)) as world:
            ends = Ends(world)
            count = WARM_FRAMES + frames + single
            traffic = make_traffic(case, count)
            pvm, svm, acks = (split_rows(matrix) for matrix in (traffic.pvm, traffic.svm, traffic.client))
            copies, last = [pvm, svm][: len(world.guests)], WARM_FRAMES + frames
            ends.down([split_rows(matrix) for matrix in traffic.opening][: len(copies)], [], [])
            at = traffic.client_at.tolist()
            rows = [
                _measured(ends, lambda part: ends.down([copy[part] for copy in copies], *_acks(at, acks, part)), last)
            ]
            rows[0]["latency_us"] = [ends.down_one([copy[number] for copy in copies]) for number in range(last, count)]
            upload = split_rows(make_upload(case, count))
            rows.append(_measured(ends, lambda part: ends.up(upload[part]), last))
            rows[1]["latency_us"] = [ends.up_one(frame) for frame in upload[last:]]
            return rows


def _acks(at: Sequence[int], acks: Sequence[bytes], part: slice) -> tuple[list[int], list[bytes]]:
    """What clients acknowledge in that part, and behind how many of its frames."""
    chosen = [number for number, place in enumerate(at) if part.start <= place < part.stop]
    return [at[number] - part.start + 1 for number in chosen], [acks[number] for number in chosen]


def _measured(ends: Ends, go: Callable[[slice], None], last: int) -> Row:
    go(slice(0, WARM_FRAMES))
    before_ns = {name: cpu_ns(pid) for name, pid in ends.pids.items()}
    own_s, began_s = time.process_time(), time.perf_counter()
    go(slice(WARM_FRAMES, last))
    took_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
    count = last - WARM_FRAMES
    cpu = {name: (cpu_ns(pid) - before_ns[name]) / 1e3 / count for name, pid in ends.pids.items()}
    return {
        "frames_per_s": count / took_s,
        "cpu_us": cpu,
        "bench_cpu_us": own_s * 1e6 / count,
        "load": os.getloadavg()[0],
    }


# ---------------------------------------------------------------- the client and the guest


class Ends:
    """The client's wire and the network cards, used by one thread in turn."""

    def __init__(self, world: World) -> None:
        self.pids = world.pids
        self._client, self._guests = (world.client, b""), [(guest, world.header) for guest in world.guests]

    def down(self, copies: Sequence[Sequence[bytes]], acks_at: Sequence[int], acks: Sequence[bytes]) -> None:
        """All frames of both copies in, those of the first out; clients acknowledge as they come."""
        frames, got, sent, acked, ends_s = copies[0], list[bytes](), 0, 0, time.monotonic() + WAIT_S_MAX
        heard: list[list[bytes]] = [[] for _ in self._guests]
        while len(got) < len(frames) or any(len(one) < len(acks) for one in heard):
            _in_time(ends_s)
            if sent < len(frames) and sent - len(got) < WINDOW:
                for guest, copy in zip(self._guests, copies, strict=True):
                    _put(guest, copy[sent : sent + BATCH])
                sent = min(sent + BATCH, len(frames))
            full = sent - len(got) >= WINDOW or sent == len(frames)
            _take(self._client, got, GUEST_MAC, wait=full and len(got) < sent)
            end = bisect_right(acks_at, len(got))
            _put(self._client, acks[acked:end])
            acked = end
            for guest, one in zip(self._guests, heard, strict=True):
                _take(guest, one, CLIENT_MAC, wait=False)
        _check(got, frames)

    def up(self, frames: Sequence[bytes]) -> None:
        """All frames of clients in, out at each copy."""
        got: list[list[bytes]] = [[] for _ in self._guests]
        sent, ends_s = 0, time.monotonic() + WAIT_S_MAX
        while any(len(one) < len(frames) for one in got):
            _in_time(ends_s)
            behind = min(map(len, got))
            if sent < len(frames) and sent - behind < WINDOW:
                _put(self._client, frames[sent : sent + BATCH])
                sent = min(sent + BATCH, len(frames))
            full = sent - behind >= WINDOW or sent == len(frames)
            for guest, one in zip(self._guests, got, strict=True):
                _take(guest, one, CLIENT_MAC, wait=full and len(one) == behind)
        for one in got:
            _check(one, frames)

    def down_one(self, copies: Sequence[bytes]) -> float:
        """From the last copy's frame in to the first's out, in us."""
        for number, (guest, frame) in enumerate(zip(self._guests, copies, strict=True)):
            if number:
                time.sleep(PAIR_PAUSE_S)
            began_ns = time.perf_counter_ns()
            _put(guest, [frame])
        return self._out(self._client, began_ns, GUEST_MAC, copies[0])

    def up_one(self, frame: bytes) -> float:
        """From a client to the first copy, in us."""
        began_ns = time.perf_counter_ns()
        _put(self._client, [frame])
        took_us = self._out(self._guests[0], began_ns, CLIENT_MAC, frame)
        for guest in self._guests[1:]:
            self._out(guest, began_ns, CLIENT_MAC, frame)
        return took_us

    def _out(self, end: End, began_ns: int, source: bytes, frame: bytes) -> float:
        got: list[bytes] = []
        while not got:
            _in_time(began_ns / 1e9 + WAIT_S_MAX)
            _take(end, got, source, wait=True)
        took_us = (time.perf_counter_ns() - began_ns) / 1e3
        _check(got, [frame])
        return took_us


def _put(end: End, frames: Sequence[bytes]) -> None:
    for frame in frames:
        os.write(end[0], end[1] + frame)


def _in_time(ends_s: float) -> None:
    if time.monotonic() > ends_s:
        raise SystemExit(f"frames are missing after {WAIT_S_MAX} s")


def _take(end: End, got: list[bytes], source: bytes, *, wait: bool) -> None:
    """Frames that have arrived, from that sender; others are the kernel's or our own."""
    if wait:
        select.select([end[0]], [], [], WAIT_S_MAX)
    with contextlib.suppress(BlockingIOError):
        for _ in range(WINDOW):
            frame = os.read(end[0], FRAME_BYTES_MAX)[len(end[1]) :]
            if frame[6:12] == source:
                got.append(frame)


def _check(got: Sequence[bytes], frames: Sequence[bytes]) -> None:
    """Each frame once, whole but for what the agent beside the SVM translates: acknowledgement, times and checksum."""
    if sorted(map(_untranslated, got)) != sorted(map(_untranslated, frames)):
        raise SystemExit(f"what came out ({len(got)} frames) is not what went in ({len(frames)})")


def _untranslated(frame: bytes) -> bytes:
    return frame[:42] + frame[46:50] + frame[52:54] + frame[66:]


# ---------------------------------------------------------------- telling


def _line(row: Row) -> str:
    cpu = ", ".join(f"{name} {value:.1f}" for name, value in row["cpu_us"].items())
    p50, p99 = np.percentile(row["latency_us"], (50, 99))
    return f"{row['frames_per_s']:,.0f}/s; CPU us: {cpu}; here {row['bench_cpu_us']:.1f}; us {p50:.0f} / {p99:.0f}"


def _show(found: dict[str, list[Row]], console: Console) -> None:
    table = Table(title="thousand frames per second and CPU us per frame: median (lowest - highest); latency us")
    for heading in ("", "frames/s", "CPU primary", "CPU secondary", "CPU here", "p50", "p99", "load"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, rows in found.items():
        spent = [_spread([row["cpu_us"].get(side, 0.0) for row in rows]) for side in ("primary", "secondary")]
        latency = np.percentile([us for row in rows for us in row["latency_us"]], (50, 99))
        cells = [_spread([row["frames_per_s"] / 1e3 for row in rows]), *spent]
        cells.append(_spread([row["bench_cpu_us"] for row in rows]))
        load = _spread([row["load"] for row in rows])
        table.add_row(name, *cells, *(f"{value:.0f}" for value in latency), load)
    console.print(table)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
