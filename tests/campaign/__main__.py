"""Rounds of faults, each drawn from its seed, on three hosts with etcd and a VM under load: `python -m tests.campaign`.

Prints a line for each round and writes a page with the logs of those that failed. A round's seed is --seed plus the
number of rounds before it, so `--seed N --rounds 1` repeats what round N did. Ends with 1 when a promise was broken or
something was left behind, with 2 when the hosts can't be made. Ctrl-C ends it, with the report so far.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fault_matrix import NAMES
from pair import PATIENT, LeftBehind
from pycolo.errors import PycoloError
from pycolo.guest.builder import GuestImage, build_guest

from .cluster import CampaignCluster
from .judge import Round, clients_noticed, counts
from .kept import keep
from .nemesis import draw
from .report import report, summary
from .rounds import Player
from .signals import until_signalled

# How fast a loss is seen is the matrix's question: this bears a busy machine.
PROTECTION = {"heartbeat_lost_max": PATIENT}


class Campaign:
    """`rounds` are those played so far, `ended_by` what ended it early, `left` what outlived a cluster."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._ends_s = time.monotonic() + 60 * options.minutes_max
        self.rounds: list[Round] = []
        self.ended_by = ""
        self.left: list[str] = []

    async def run(self, image: GuestImage) -> None:
        """All rounds. Raises PycoloError, OSError, TimeoutError when there can be no hosts."""
        while not self._is_over():
            try:
                with tempfile.TemporaryDirectory(prefix="colo-campaign-", ignore_cleanup_errors=True) as folder:
                    async with CampaignCluster.running(image, Path(folder), **PROTECTION) as cluster:
                        await self._rounds_on(cluster)
            except LeftBehind as problem:
                self.left.append(str(problem))
                print(f"left behind: {problem}", flush=True)

    def _is_over(self) -> bool:
        if len(self.rounds) >= self._options.rounds:
            return True
        if time.monotonic() > self._ends_s:
            self.ended_by = f"Ended after {self._options.minutes_max:g} minutes."
        return bool(self.ended_by)

    async def _rounds_on(self, cluster: CampaignCluster) -> None:
        """Until one fails: what comes after that would be judged for it."""
        while not self._is_over():
            number = len(self.rounds)
            played = await Player(cluster, number + 1, draw(self._options.seed + number)).play()
            self.rounds.append(played)
            print(played, flush=True)
            if played.problems:
                self._keep_logs(played)
                return
        result, last = await cluster.load.finish(), self.rounds[-1]
        noticed = clients_noticed(cluster.counted, counts(result), last.plan.promise, last.went_down)
        if noticed:
            last.problems += [f"at the last look, {one}: {result['errors']}" for one in noticed]
            print(last, flush=True)

    def _keep_logs(self, played: Round) -> None:
        if self._options.logs is None:
            return
        keep(self._options.logs / f"seed-{played.plan.seed}", {**played.logs, "round": str(played)})


async def _until_stopped(campaign: Campaign, image: GuestImage) -> None:
    if await until_signalled(campaign.run(image)):
        campaign.ended_by = "Ended by a signal."


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next ones follow")
    parser.add_argument("--minutes-max", type=float, default=60.0, help="no round begins after that")
    parser.add_argument("--report", type=Path, default=Path("campaign.html"))
    parser.add_argument("--logs", type=Path, help="a folder for the logs of rounds that fail, beside the report")
    parser.add_argument("--list", action="store_true", help="only say what the rounds would do")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"seed {seed}: {draw(seed)}" for seed in range(options.seed, options.seed + options.rounds)))
        return 0
    campaign, began_s = Campaign(options), time.monotonic()
    print(f"{options.rounds} rounds from seed {options.seed} on {', '.join(NAMES)}", flush=True)
    status = 0
    try:
        asyncio.run(_until_stopped(campaign, build_guest()))
    except (PycoloError, OSError, TimeoutError) as problem:
        print(f"no hosts for a campaign: {problem}", flush=True)
        status = 2
    seconds = time.monotonic() - began_s
    options.report.write_text(report(campaign.rounds, seconds, campaign.ended_by))
    failed = [one for one in campaign.rounds if one.problems]
    print(f"{len(campaign.rounds)} rounds in {seconds / 60:.1f} min, {len(failed)} failed. {campaign.ended_by}")
    print(f"{summary(campaign.rounds)} Report: {options.report}")
    return status or (1 if failed or campaign.left or not campaign.rounds else 0)


if __name__ == "__main__":
    sys.exit(main())
