"""A VM under load for a long time, and whether anything grows: `python -m tests.campaign.soak`.

Samples memory, descriptors, threads and disk use of everything that runs on three hosts, prints a line for each sample
and writes a page with pictures. Ends with 1 when something grows by more than ALLOWANCES, or a client noticed anything;
Ctrl-C ends it with what was seen so far.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fault_matrix import FAULTS, PARTS, serves, suffer
from pair import PATIENT, LeftBehind
from pycolo.errors import PycoloError
from pycolo.guest.builder import GuestImage, build_guest

from .cluster import CampaignCluster
from .growth import Allowance, Samples, complaints, gained, is_long
from .history import History
from .judge import clients_noticed, counts, speakers
from .kept import LOG_CHARS_MAX, keep
from .page import card, page, picture, table
from .rounds import WAYS_TO_FAIL
from .sampler import sample
from .signals import until_signalled

# Over the time after the warm-up. RSS is not judged: it has the guest's memory, which grows as the guest touches it.
ALLOWANCES = {
    "own memory MiB": Allowance(6.0, 0.03),
    "descriptors": Allowance(4.0),
    "threads": Allowance(4.0),
    "state MiB": Allowance(4.0),
    "beside images MiB": Allowance(8.0),
    "files in /dev/shm": Allowance(0.5),
    "/dev/shm MiB": Allowance(1.0),
}
KINDS = ("RSS MiB", *ALLOWANCES)
STILL_MAX = 4  # samples; a fault is over much sooner
LONG_S = 300.0


class Soak:
    """`series`: what was sampled, by name; `problems`: what clients noticed or what was left behind."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._began_s = time.monotonic()
        self.series: dict[str, list[tuple[float, float]]] = {}
        self.problems: list[str] = []
        self.faults = 0
        self._requests = self._still = 0

    async def run(self, image: GuestImage) -> None:
        """The whole time. Raises PycoloError, OSError, TimeoutError when there can be no hosts."""
        with tempfile.TemporaryDirectory(prefix="colo-soak-", ignore_cleanup_errors=True) as folder:
            try:
                async with CampaignCluster.running(image, Path(folder), heartbeat_lost_max=PATIENT) as cluster:
                    history = await cluster.registers.begin()
                    await self._under_load(cluster)
                    self._judge(cluster, history, await cluster.load.finish())
            except LeftBehind as problem:
                self.problems.append(f"left behind: {problem}")

    async def _under_load(self, cluster: CampaignCluster) -> None:
        self._began_s = time.monotonic()
        faults = asyncio.create_task(self._faults(cluster))
        try:
            while (now_s := time.monotonic() - self._began_s) < 60 * self._options.minutes and not faults.done():
                self._take(now_s, await sample(cluster))
                await asyncio.sleep(self._options.every_s)
                if not self._serves(cluster.load.latest):
                    break
        finally:
            faults.cancel()
            (ended,) = await asyncio.gather(faults, return_exceptions=True)
        try:
            if isinstance(ended, Exception):
                raise ended
            await cluster.protected()
            await serves(cluster)
        except WAYS_TO_FAIL as problem:
            self.problems.append(f"{type(problem).__name__}: {problem}")
            if self._options.logs is not None:
                keep(self._options.logs, cluster.tails(LOG_CHARS_MAX))

    def _serves(self, tick: Mapping[str, Any]) -> bool:
        """Without a load nothing is shown by what does not grow."""
        self._still = self._still + 1 if tick["requests"] == self._requests else 0
        self._requests = tick["requests"]
        if self._still == STILL_MAX:
            self.problems.append(f"no client has had an answer for {STILL_MAX} samples")
        return self._still < STILL_MAX

    def _judge(self, cluster: CampaignCluster, history: History, result: Mapping[str, Any]) -> None:
        """What clients, wires and logs have to say in the end."""
        noticed = clients_noticed({}, counts(result), "kept", down=False)
        self.problems += [f"{one}: {result['errors']}" for one in noticed]
        self.problems += speakers(cluster.speakers.turns())
        self.problems += history.contradictions()
        self.problems += cluster.news_of_failures()
        judged = {name.partition("'s ")[2].split(" ")[0] for name, seen in self.series.items() if is_long(seen)}
        missing = set(PARTS) - judged
        if time.monotonic() - self._began_s > LONG_S and missing and not self.faults:  # faults end what is looked at
            self.problems.append(f"too few samples of any {', '.join(sorted(missing))}")

    async def _faults(self, cluster: CampaignCluster) -> None:
        """One after the other, all of the matrix; or none, for ever."""
        every_s = self._options.fault_every_s
        for fault in itertools.cycle(FAULTS):
            await asyncio.sleep(every_s or 60 * self._options.minutes)
            if every_s:
                outcome = await suffer(cluster, fault)
                print(f"  {outcome}", flush=True)
                self.problems += speakers(outcome.turns)
                self.faults += 1

    def _take(self, now_s: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.series.setdefault(name, []).append((now_s, value))
        memory = sum(value for name, value in values.items() if name.startswith("own memory"))
        descriptors = sum(value for name, value in values.items() if name.startswith("descriptors"))
        threads = sum(value for name, value in values.items() if name.startswith("threads"))
        disk = sum(value for name, value in values.items() if name.startswith(("state", "beside")))
        print(
            f"{now_s:7.0f} s  own memory {memory:7.1f} MiB  descriptors {descriptors:4.0f}  threads {threads:4.0f}  "
            f"disk {disk:6.1f} MiB  /dev/shm {values['files in /dev/shm of all']:.0f} files",
            flush=True,
        )


def report(series: Mapping[str, Samples], problems: Sequence[str], seconds: float, faults: int) -> str:
    """The page. Pure."""
    title = "nothing grows" if not problems else f"{len(problems)} complaints"
    body = (
        [card("Complaints", "".join(f'<p class="bad">{escape(problem)}</p>' for problem in problems))]
        if problems
        else []
    )
    rows = []
    for kind in KINDS:
        of_kind = {
            name.partition(" of ")[2]: points for name, points in series.items() if name.startswith(f"{kind} of")
        }
        lines = {name: points for name, points in of_kind.items() if len(points) > 1}
        body.append(card(kind, picture(lines, "", "s")))
        rows += [
            (f"{kind} of {name}", f"{points[-1][1]:.1f}", f"{gained(points):+.2f}") for name, points in lines.items()
        ]
    body.append(card("By the slope since the warm-up", table(("what", "last", "gained"), rows, [""] * len(rows))))
    lead = f"{seconds / 60:.1f} minutes under load, {faults} faults."
    return page(title, lead, "".join(body), good=not problems)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every-s", type=float, default=5.0, help="between samples")
    parser.add_argument("--fault-every-s", type=float, default=0.0, help="0: no faults")
    parser.add_argument("--report", type=Path, default=Path("soak.html"))
    parser.add_argument("--logs", type=Path, help="a folder for the hosts' logs, should a fault not be got over")
    options = parser.parse_args(arguments)
    soak, began_s = Soak(options), time.monotonic()
    try:
        asyncio.run(until_signalled(soak.run(build_guest())))
    except (PycoloError, OSError, TimeoutError) as problem:
        print(f"no hosts for a soak: {problem}")
        return 2
    problems = [*soak.problems, *complaints(soak.series, ALLOWANCES)]
    options.report.write_text(report(soak.series, problems, time.monotonic() - began_s, soak.faults))
    print("\n".join(problems) or "nothing grows")
    print(f"Report: {options.report}")
    return 1 if problems or not soak.series else 0


if __name__ == "__main__":
    sys.exit(main())
