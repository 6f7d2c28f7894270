#!/usr/bin/env python3
"""100,000 connections at once: what each costs in memory, to open and to use, and what a checkpoint costs then.

`flows.py [--flows 100000] [--rounds 3] [--out bench-flows.json]`. Each engine runs in a process of its own, so that the
memory of one is not that of another; the engines alternate. "open" is the three-way handshake of both copies.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from compare_engines import ENGINES, Engine
from compare_frames import Case, make_traffic, split_rows
from pycolo.core import engines
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import pack, unpack

BATCH = 64
STEP_S_MAX = 600
EPOCH = 1
SECONDARY = "secondary"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of each engine and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-flows.json"))
    parser.add_argument("--one", choices=[*ENGINES, SECONDARY], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(secondary(options.flows) if options.one == SECONDARY else primary(options.one, options.flows)))
        return
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in (*ENGINES, SECONDARY)}
    for number in range(options.rounds):
        for name, rounds in figures.items():
            print(f"round {number + 1}: {name}", file=sys.stderr)
            command = [sys.executable, __file__, "--one", name, "--flows", str(options.flows)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S_MAX, check=True)
            rounds.append(json.loads(done.stdout))
    options.out.write_text(json.dumps({"flows": options.flows, "figures": figures}, indent=2) + "\n")
    for name, rounds in figures.items():
        for key in rounds[0]:
            values = [each[key] for each in rounds]
            print(f"{name:10} {key:28} {statistics.median(values):10.2f} ({min(values):.2f} to {max(values):.2f})")


def primary(name: str, flows: int) -> dict[str, float]:
    """The figures of one engine of the primary."""
    traffic = make_traffic(Case(64, flows), 2 * flows)
    engine = ENGINES[name](flows)
    opening = [split_rows(each) for each in traffic.opening]
    data = [split_rows(each) for each in (traffic.pvm, traffic.svm)]
    hellos = [_hello(frame) for frame in opening[0]]
    before = _resident_bytes()
    open_us = _timed_us(lambda: _open(engine, opening, hellos), flows)
    after = _resident_bytes()
    use_us = _timed_us(lambda: _use(engine, data, flows), 2 * flows)
    busy = _resident_bytes()
    plane = engine.plane
    seal_ms = _timed_us(lambda: plane.seal(EPOCH + 1), 1) / 1000
    commit_ms = _timed_us(lambda: plane.commit(EPOCH + 1, time.monotonic() * 1000), 1) / 1000
    assert plane.stats.flows == flows
    assert plane.stats.released_equal == 3 * flows
    return {
        "bytes_per_idle_flow": (after - before) / flows,
        "bytes_per_flow_with_128_unacked": (busy - before) / flows,
        "open_us": open_us,
        "segment_us": use_us,
        "seal_ms": seal_ms,
        "commit_ms": commit_ms,
    }


def secondary(flows: int) -> dict[str, float]:
    """The figures of the secondary's table."""
    traffic = make_traffic(Case(64, flows), flows)
    plane = engines.secondary_dataplane(DataplaneLimits(flows_max=flows), seed=1)
    opening = split_rows(traffic.opening[1])
    hellos = [_hello(frame) for frame in opening]
    before = _resident_bytes()

    def open_all() -> None:
        for start in range(0, flows, BATCH):
            plane.svm_frames(opening[start : start + BATCH], start)
            plane.client_frames(hellos[start : start + BATCH])

    open_us = _timed_us(open_all, flows)
    assert len(plane.translator.connections) == flows
    return {"bytes_per_idle_flow": (_resident_bytes() - before) / flows, "open_us": open_us}


def _open(engine: Engine, opening: list[list[bytes]], hellos: list[bytes]) -> None:
    for start in range(0, len(hellos), BATCH):
        for take, frames in zip((engine.svm, engine.pvm, engine.client), (opening[1], opening[0], hellos), strict=True):
            take(pack(frames[start : start + BATCH]))


def _use(engine: Engine, data: list[list[bytes]], flows: int) -> None:
    left = 0
    for start in range(0, 2 * flows, BATCH):
        left += len(unpack(engine.pvm(pack(data[0][start : start + BATCH]))))
        left += len(unpack(engine.svm(pack(data[1][start : start + BATCH]))))
    assert left == 2 * flows


def _hello(syn_ack: bytes) -> bytes:
    """The client's answer to a SYN-ACK; its checksum is nobody's business here."""
    mirrored = syn_ack[6:12] + syn_ack[:6] + syn_ack[12:26] + syn_ack[30:34] + syn_ack[26:30]
    ports = syn_ack[36:38] + syn_ack[34:36]
    seq, ack = syn_ack[42:46], ((int.from_bytes(syn_ack[38:42]) + 1) & 0xFFFFFFFF).to_bytes(4)
    return mirrored + ports + seq + ack + syn_ack[46:47] + b"\x10" + syn_ack[48:]


def _timed_us(work: Callable[[], object], count: int) -> float:
    began_s = time.perf_counter()
    work()
    return (time.perf_counter() - began_s) * 1e6 / count


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
