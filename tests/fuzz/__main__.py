"""Fuzz parsers: `python -m tests.fuzz --seconds 60`, one with `--target NAME`; `--input FILE` runs one input again."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from .runner import TEST_PATHS, campaign
from .targets import TARGETS, load

FOLDER = Path("build/fuzz")


def main() -> int:
    """Exit status 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what is found and learned (default: %(default)s)")
    parser.add_argument("--input", type=Path, action="append", help="only run this file through the target")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.input:
        return _again(names, options.input)
    if find_spec("atheris") is None:
        print("atheris is not installed here: pip install atheris (it has wheels for x86_64)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    found = campaign([TARGETS[name] for name in names], options.seconds, options.jobs, options.folder)
    count = sum(map(len, found.values()))
    print(f"{len(found)} targets of {options.seconds:g} s, {count} findings")
    return 1 if count else 0


def _again(names: list[str], inputs: list[Path]) -> int:
    """What an input does, with its traceback."""
    sys.path[:0] = map(str, TEST_PATHS)
    for name in names:
        one = load(TARGETS[name])
        for path in inputs:
            one(path.read_bytes())
            print(f"{path}: {name} takes it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
