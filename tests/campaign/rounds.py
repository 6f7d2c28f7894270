"""One round: a fault, or two, from a protected VM to a protected VM, with everything that outsiders can see judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fault_matrix import SERVE_S, Seen, serves, suffer
from pair import now_ms, until
from pycolo.errors import PycoloError

from . import judge
from .cluster import SILENT_S, CampaignCluster
from .history import History
from .inflict import PAUSE_S, fault_of_plan
from .judge import Round
from .kept import LOG_CHARS_MAX
from .nemesis import Plan

ANSWERED_S_MAX = 20.0
WAYS_TO_FAIL = (AssertionError, TimeoutError, PycoloError, OSError, ValueError, KeyError)


class Player:
    """Plays one round; `play` raises nothing but what is a bug of ours."""

    def __init__(self, cluster: CampaignCluster, number: int, plan: Plan) -> None:
        self._cluster, self._plan = cluster, plan
        self._round = Round(number, plan)
        self._history: History
        self._redis_until_ms = float("inf")

    async def play(self) -> Round:
        """After a round with problems the cluster is not what it was: take a new one."""
        cluster, found = self._cluster, self._round
        self._history = await cluster.registers.begin()
        load, counted = cluster.load, cluster.counted
        try:
            await self._way()()
            await self._registers_answer()
        except WAYS_TO_FAIL as problem:
            found.problems.append(f"{type(problem).__name__}: {problem}")
            found.turns = found.turns or cluster.speakers.turns()
        after = judge.counts(load.latest)
        found.problems += judge.clients_noticed(counted, after, self._plan.promise, found.went_down)
        if cluster.load is load:
            cluster.counted = after
        found.problems += judge.speakers(found.turns)
        found.problems += self._history_noticed()
        found.problems += [f"log: {line}" for line in cluster.news_of_failures()]
        found.operations = len(self._history.operations)
        if found.problems:
            found.logs = cluster.tails(LOG_CHARS_MAX)
        return found

    def _way(self) -> Callable[[], Awaitable[None]]:
        if self._plan.kind == "reboot":
            return self._reboot
        return self._up_or_down if "down" in self._plan.promise else self._stays_up

    async def _stays_up(self) -> None:
        outcome = await suffer(self._cluster, fault_of_plan(self._plan))
        self._round.gap_ms, self._round.slowest_ms = outcome.gap_ms, outcome.slowest_ms
        self._round.again_s = outcome.protected_again_s
        self._round.turns = outcome.turns

    async def _up_or_down(self) -> None:
        cluster, fault = self._cluster, fault_of_plan(self._plan)
        seen = await cluster.protected()
        await asyncio.sleep(SERVE_S)
        cluster.speakers.turns()
        began_ms = now_ms()
        undo = await fault.inflict(cluster, seen)
        try:
            await asyncio.sleep(PAUSE_S)
        finally:
            await undo()
        now = await cluster.settled(seen, fault.moves)
        self._round.went_down = now is None
        if now is None:
            await self._is_silent()
            self._redis_until_ms = began_ms
            await self._start_again()
        elif self._plan.promise == "down":
            raise AssertionError(f"{now.primary} runs the VM, which should be down")
        else:
            await serves(cluster)
            self._round.turns = cluster.speakers.turns()
        self._round.again_s = (now_ms() - began_ms) / 1000

    async def _is_silent(self) -> None:
        cluster = self._cluster
        down_ms = now_ms()
        await asyncio.sleep(SILENT_S)
        assert cluster.speakers.heard_ms < down_ms, "somebody speaks for a VM that is down"
        self._round.turns = cluster.speakers.turns()

    async def _start_again(self) -> None:
        """Where the VM spoke last is what clients were promised last."""
        cluster = self._cluster
        await cluster.load.stop()
        await cluster.start_after_loss(cluster.speakers.newest)
        await cluster.protected()
        await self._registers_answer()
        await cluster.load_on()
        cluster.speakers.turns()

    async def _reboot(self) -> None:
        """The guest takes its connections with it; what it has on the disk has to be there again."""
        cluster = self._cluster
        seen: Seen = await cluster.protected()
        cluster.speakers.turns()
        result = await cluster.load.finish()
        noticed = judge.clients_noticed(cluster.counted, judge.counts(result), "kept", down=False)
        self._round.problems += [f"before the reboot, {one}" for one in noticed]
        began_ms = self._redis_until_ms = now_ms()
        await cluster.reboot(seen.primary)
        await cluster.protected(seen, "not")
        self._round.again_s = (now_ms() - began_ms) / 1000
        await self._registers_answer()
        await cluster.load_on()
        await serves(cluster)
        self._round.turns = cluster.speakers.turns()

    async def _registers_answer(self) -> None:
        """Both kinds have outcomes of operations that begin now: a database that recovers only accepts connections."""
        history, since_ms = self._history, now_ms()
        for store in ("redis", "database"):
            await until(lambda: history.answered(store, since_ms) > 2, ANSWERED_S_MAX, f"an answer of {store}")  # noqa: B023

    def _history_noticed(self) -> list[str]:
        """No order explains it, or an operation got no outcome although no connection may break."""
        history = self._history
        found = history.contradictions(self._redis_until_ms)
        if self._plan.kind != "reboot" and not self._round.went_down:
            found += [f"no outcome: {error}" for error in history.errors]
        return found + [error for error in history.errors if "WrongBytes" in error]
