"""Runs targets, each in a process of its own, and says what becomes of them.

Guarantees: a campaign ends in time whatever a target does; what a target was doing when its process died is kept;
nothing is left behind but the folder of what was found and learned.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from .guard import State
from .targets import Target

TESTS = Path(__file__).resolve().parent.parent
TEST_PATHS = (TESTS, TESTS / "unit", TESTS / "integration")  # where the tests' own modules are
SEEDS = Path(__file__).resolve().parent / "corpus"
OVERTIME_S_MAX = 90  # to start, to go through the corpus, to end
POLL_S = 0.5
IN_MEMORY = Path("/dev/shm")  # where to write and to sync costs little
TELL_EVERY_S = 30.0


@dataclass
class Run:
    """One target's process."""

    target: Target
    folder: Path
    seeds: Path
    seconds: float
    state: State = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    began_s: float = field(init=False)
    temporary: Path = field(init=False)

    def start(self) -> None:
        """Begin; what an earlier run has learned is where this one begins, what it has found is put aside."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (self.folder / "findings").glob("*"):
            old.unlink()
        (self.folder / "state").unlink(missing_ok=True)
        self.temporary = Path(mkdtemp(prefix="fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        self.state, self.began_s = State(self.folder / "state"), time.monotonic()
        paths = (TESTS.parent / "src", *TEST_PATHS)
        names = (self.target.module, self.target.name, str(self.folder), str(self.seeds))
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fuzz.child", *names, str(int(self.seconds)), str(self.target.bytes_max)],
                env={**os.environ, "PYTHONPATH": ":".join(map(str, paths)), "TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def over(self) -> bool:
        """Whether it has ended; one that does not end in time is ended."""
        over = self.process.poll() is not None or time.monotonic() > self.began_s + self.seconds + OVERTIME_S_MAX
        if over:
            self.end()
        return over

    def end(self) -> None:
        """End it, if it has not ended, and remove its own temporary files: libFuzzer ends without Python's goodbye."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def findings(self) -> list[Path]:
        """Inputs that were found; that of a process which died without a word is the one it was working at."""
        found = sorted(path for path in (self.folder / "findings").glob("*") if path.suffix != ".txt")
        if self.process.poll() and not found:
            data = self.state.under_way()
            found = [self.folder / "findings" / f"died-{hashlib.sha256(data).hexdigest()[:12]}"]
            found[0].parent.mkdir(exist_ok=True)
            found[0].write_bytes(data)
        return found

    def line(self) -> str:
        """How far it is."""
        executions, _ = self.state.counts()
        seconds = max(time.monotonic() - self.began_s, 0.001)
        corpus = sum(1 for folder in (self.folder / "corpus", self.seeds) for _ in folder.glob("*"))
        return (
            f"{self.target.name:<16} {seconds:5.0f} s {executions:>10} executions {executions / seconds:>8.0f}/s "
            f"{corpus:>5} inputs {len(self.findings()):>2} findings"
        )


def campaign(
    targets: Iterable[Target], seconds: float, jobs: int, folder: Path, seeds: Path = SEEDS
) -> dict[str, list[Path]]:
    """Run all, at most `jobs` at a time, and tell of each; returns what was found, by target."""
    waiting = [Run(target, folder / target.name, seeds / target.name, seconds) for target in targets]
    running: list[Run] = []
    found: dict[str, list[Path]] = {}
    told_s = time.monotonic()
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                run.start()
                stack.callback(run.end)
                running.append(run)
            time.sleep(POLL_S)
            if time.monotonic() >= told_s + TELL_EVERY_S:
                told_s = time.monotonic()
                _tell(running)
            over = [run for run in running if run.over()]
            running = [run for run in running if run not in over]
            for run in over:
                found[run.target.name] = run.findings()
                print(f"{run.line()}, over", *found[run.target.name], sep="\n    ", flush=True)
    return found


def _tell(runs: Sequence[Run]) -> None:
    for run in runs:
        print(run.line(), flush=True)
