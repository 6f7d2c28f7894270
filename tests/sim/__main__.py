"""Run the simulator: `python -m tests.sim --seed 7 --steps 4000`, or a campaign with `--seeds 1..500`."""

from __future__ import annotations

import argparse
import sys

from .verdict import problems_of
from .world import STEPS, drawn, play


def main() -> int:
    """Exit status 1 when a checker found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run one seed and print its transitions")
    parser.add_argument("--seeds", help="A..B: run the seeds A to B, print only what a checker found")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the scheduler before the heal")
    options = parser.parse_args()
    if options.seeds:
        first, last = map(int, options.seeds.split(".."))
        return _campaign(range(first, last + 1), options.steps)
    return _one(options.seed or 0, options.steps)


def _one(seed: int, steps: int) -> int:
    run = play(*drawn(seed, steps))
    print(*run.trace, sep="\n")
    problems = problems_of(run.history)
    print(*(problems or [f"seed {seed}: nothing found"]), sep="\n")
    return bool(problems)


def _campaign(seeds: range, steps: int) -> int:
    failed = 0
    for seed in seeds:
        problems = problems_of(play(*drawn(seed, steps)).history)
        failed += bool(problems)
        for problem in problems[:3]:
            print(f"seed {seed}: {problem}", flush=True)
    print(f"{len(seeds)} seeds of {steps} steps, {failed} with a finding")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
