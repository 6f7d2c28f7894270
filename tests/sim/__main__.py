"""Run the simulator: `python -m tests.sim --seed 7 --steps 6000` prints every transition of one run, `--seeds 0..9999`
a line for each thing that a checker found, and how many seeds there were, and how long they took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from .campaign import run_seed, said
from .sweep import SWEPT, one_fault_plans
from .verdict import problems_of
from .world import STEPS, drawn, play

PROGRESS_S = 10.0


def main() -> int:
    """Exit status 1 when a checker found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run one seed and print its transitions")
    parser.add_argument("--seeds", metavar="A..B", help="run the seeds A to B, print only what a checker found")
    parser.add_argument("--sweep", action="store_true", help="every fault at every await, one at a time")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the scheduler before the heal")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes for --seeds")
    options = parser.parse_args()
    if options.sweep:
        return _sweep()
    if options.seeds:
        first, _, last = options.seeds.partition("..")
        return _campaign(range(int(first), int(last or first) + 1), options.steps, options.jobs)
    return _one(options.seed or 0, options.steps)


def _one(seed: int, steps: int) -> int:
    run = play(*drawn(seed, steps))
    print(*run.trace, sep="\n")
    problems = problems_of(run.history)
    print(*(problems or [f"seed {seed}: nothing found"]), sep="\n")
    return bool(problems)


def _sweep() -> int:
    runs = failed = 0
    for scenario in SWEPT:
        for description, plan in one_fault_plans(scenario):
            problems = problems_of(play(scenario, plan).history)
            runs += 1
            failed += bool(problems)
            for problem in problems[:3]:
                print(f"{scenario.seed}, {description}: {problem}", flush=True)
    print(f"{runs} runs with one fault each, {failed} with a finding")
    return failed > 0


def _campaign(seeds: range, steps: int, jobs: int) -> int:
    began_s = told_s = time.monotonic()
    done = failed = 0
    struck: Counter[str] = Counter()
    events: Counter[str] = Counter()
    with multiprocessing.Pool(jobs) as pool:
        for told in pool.imap_unordered(run_seed, [(seed, steps) for seed in seeds], chunksize=8):
            done += 1
            failed += bool(told.problems)
            struck.update(told.faults)
            events.update(told.events)
            for problem in told.problems[:3]:
                print(f"seed {told.seed}: {problem}", flush=True)
            if time.monotonic() - told_s > PROGRESS_S:
                told_s = time.monotonic()
                print(f"  {done} of {len(seeds)} seeds, {failed} with a finding", file=sys.stderr, flush=True)
    print(said(len(seeds), steps, failed, struck, events, time.monotonic() - began_s))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
