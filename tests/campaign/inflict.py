"""How each strike of a plan is done, and undone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import cast

from etcd_cluster import EtcdCluster, Member
from fault_matrix import FAULTS, NAMES, VM, Cluster, Fault, Inflict, Seen, Undo, all_of
from file_systems import fill
from pycolo.errors import PycoloError

from .cluster import CampaignCluster
from .nemesis import Plan, Strike
from .slow_link import SlowLink

SLOW_S = FULL_S = 3.0
PAUSE_S = 1.0
CLOCK_S = 1.5
MATRIX = {fault.name: fault for fault in FAULTS}


def _campaign(inflict: Callable[[CampaignCluster, Seen], Awaitable[Undo]]) -> Inflict:
    return cast(Inflict, inflict)  # what it gets in a campaign is one


def slow_link(delay_ms: float) -> Inflict:
    """Between the primary and everybody else."""

    async def inflict(cluster: Cluster, seen: Seen) -> Undo:
        return SlowLink(cluster.hosts.lab, NAMES.index(seen.primary) + 1, delay_ms).close

    return inflict


def thin_link(mbit_per_s: float) -> Inflict:
    """What the two sides send gets through at that rate only, after a queue."""

    async def inflict(cluster: Cluster, seen: Seen) -> Undo:
        spaces = [cluster.hosts.lab.hosts[name] for name in (seen.primary, seen.secondary)]
        queue = ("dev", "peer0", "root")
        for space in spaces:
            space.run(
                *("tc", "qdisc", "add", *queue, "tbf", "rate", f"{mbit_per_s:g}mbit"),
                *("burst", "128kb", "latency", "300ms"),
            )

        async def widen() -> None:
            for space in spaces:
                space.run("tc", "qdisc", "del", *queue)

        return widen

    return inflict


def strike_etcd(strike: Callable[[Member], None]) -> Inflict:
    """Its leader, which all members are well without."""

    async def inflict(cluster: Cluster, _: Seen) -> Undo:
        etcd: EtcdCluster = cluster.etcd
        strike(await asyncio.to_thread(etcd.leader))
        return partial(asyncio.to_thread, etcd.heal)

    return inflict


def step_clock(side: str, by_s: float) -> Inflict:
    """All processes of that host, from one moment to the next; it is undone by a second step."""

    async def inflict(cluster: CampaignCluster, seen: Seen) -> Undo:
        clock = cluster.clocks[getattr(seen, side)]
        clock.step_to(by_s)

        async def step_back() -> None:
            clock.step_to(0)

        return step_back

    return _campaign(inflict)


def fill_disk(side: str) -> Inflict:
    """Nothing more fits beside that host's images."""

    async def inflict(cluster: Cluster, seen: Seen) -> Undo:
        filler = await asyncio.to_thread(fill, cluster.hosts.disk_dir(getattr(seen, side)))

        async def make_room() -> None:
            filler.unlink()

        return make_room

    return inflict


def _third(seen: Seen) -> str:
    return next(name for name in NAMES if name not in (seen.primary, seen.secondary))


async def kill_third(cluster: Cluster, seen: Seen) -> Undo:
    name = _third(seen)
    cluster.hosts.daemons[name].send_signal(signal.SIGKILL)
    return partial(cluster.start_again, name)


async def cut_from_third(cluster: Cluster, seen: Seen) -> Undo:
    return cluster.cut(seen.secondary, (_third(seen),))


def fault_of(strike: Strike) -> Fault:
    """What it is and has to lead to by itself. Raises KeyError for a name that nobody knows."""
    if strike.fault in MATRIX:
        return MATRIX[strike.fault]
    amount = strike.amount
    more = {
        "slow link": (slow_link(amount), "may", SLOW_S),
        "thin link": (thin_link(amount), "may", SLOW_S),
        "kill etcd's leader": (strike_etcd(Member.kill), "not", PAUSE_S),
        "freeze etcd's leader": (strike_etcd(Member.freeze), "not", PAUSE_S),
        "step the primary's clock": (step_clock("primary", amount), "not", CLOCK_S),
        "step the secondary's clock": (step_clock("secondary", amount), "not", CLOCK_S),
        "fill the primary's disk": (fill_disk("primary"), "may", FULL_S),
        "fill the secondary's disk": (fill_disk("secondary"), "may", FULL_S),
        "kill the third's daemon": (kill_third, "not", PAUSE_S),
        "cut the secondary from the third": (cut_from_third, "not", PAUSE_S),
    }
    inflict, moves, lasts_s = more[strike.fault]
    return Fault(strike.fault, inflict, moves, undo_first=True, lasts_s=lasts_s)


def fault_of_plan(plan: Plan) -> Fault:
    """All of a round's strikes as one fault."""
    faults = [fault_of(strike) for strike in plan.strikes]
    if plan.kind == "double":
        undo_first = plan.promise != "kept" or any(fault.undo_first for fault in faults)
        inflict = _both(faults[0].inflict, plan.delay_s, faults[1].inflict)
        return Fault(str(plan), inflict, plan.moves, undo_first, PAUSE_S)
    if plan.kind == "checkpoint":
        return replace(faults[0], name=str(plan), inflict=_in_checkpoint(faults[0].inflict, plan.at_ms))
    return replace(faults[0], name=str(plan))


def _both(first: Inflict, delay_s: float, second: Inflict) -> Inflict:
    async def inflict(cluster: CampaignCluster, seen: Seen) -> Undo:
        for name in (seen.primary, seen.secondary):
            await cluster.pids(name)  # afterwards nobody may be left to tell
        undo = [await first(cluster, seen)]
        try:
            await asyncio.sleep(delay_s)
            undo.append(await second(cluster, seen))
        except BaseException:
            await all_of(undo)
            raise
        return partial(all_of, undo)

    return _campaign(inflict)


def _in_checkpoint(strike: Inflict, at_ms: float) -> Inflict:
    async def inflict(cluster: Cluster, seen: Seen) -> Undo:
        asked = asyncio.create_task(_ask_checkpoint(cluster, seen.primary))
        await asyncio.sleep(at_ms / 1000)
        undo = await strike(cluster, seen)
        await asked
        return undo

    return inflict


async def _ask_checkpoint(cluster: Cluster, name: str) -> None:
    with contextlib.suppress(PycoloError, TimeoutError):  # its daemon, or whom it asks, may die meanwhile
        async with asyncio.timeout(1.0), cluster.client(name) as client:
            await client.checkpoint(VM)
