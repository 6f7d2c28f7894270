"""A pair in a few lines: clients ask, a guest with one CPU answers, answers are held; what does a policy cost them?

Time goes in steps of one ms. A checkpoint: the guest stands for `pause_ms`, it is committed `cost_ms` after the seal,
the SVM can be compared again `load_ms` later. An answer that differs (with probability `differing`) leaves by a
checkpoint only, another one also as soon as the comparison sees.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from pycolo.core.adaptive import Adaptive


@dataclass
class AtOnce:
    """A checkpoint for each divergence."""

    def due(self, now_ms: float, wanted: bool, sealed_ms: float) -> bool:
        return wanted

    def sealed(self, now_ms: float, share: float) -> None: ...
    def committed(self, now_ms: float, pause_ms: float, load_ms: float) -> None: ...


@dataclass
class Periodic(AtOnce):
    """Micro-checkpoints: nothing is compared."""

    interval_ms: float = 50

    def due(self, now_ms: float, wanted: bool, sealed_ms: float) -> bool:
        return now_ms >= sealed_ms + self.interval_ms


@dataclass
class Adapting(AtOnce):
    """What is under test."""

    adaptive: Adaptive
    modes: list[tuple[float, str]] = field(default_factory=lambda: [(0.0, "comparing")])

    def due(self, now_ms: float, wanted: bool, sealed_ms: float) -> bool:
        if wanted:
            self.adaptive.wanted("divergence", now_ms)
        due_ms = self.adaptive.due_at_ms(now_ms)
        if self.modes[-1][1] != self.adaptive.mode:
            self.modes.append((now_ms, self.adaptive.mode))
        return due_ms is not None and due_ms <= now_ms

    def sealed(self, now_ms: float, share: float) -> None:
        self.adaptive.sealed(now_ms, differing_share=share)

    def committed(self, now_ms: float, pause_ms: float, load_ms: float) -> None:
        self.adaptive.committed(now_ms, pause_ms=pause_ms, load_ms=load_ms)


@dataclass
class Load:
    """Closed: `clients` ask again `think_ms` after each answer, which takes `service_ms` of the guest's CPU."""

    clients: int
    service_ms: int
    think_ms: int = 1
    differing: Callable[[float], float] = lambda now_ms: 0.0


@dataclass
class Costs:
    """Of one checkpoint."""

    pause_ms: int = 5
    cost_ms: int = 25
    load_ms: int = 10


@dataclass
class Result:
    """What came of it."""

    answers_per_s: float
    wait_ms: float  # mean, from the answer to its release
    wait_ms_max: float
    paused_share: float
    seals_ms: list[float]


@dataclass
class _Answer:
    made_ms: float
    differs: bool


def run(policy: AtOnce, load: Load, costs: Costs, *, seconds: int = 20, seed: int = 1) -> Result:
    """Let it run."""
    rng = random.Random(seed)
    asks = deque(sorted(rng.uniform(0, load.think_ms + 1) for _ in range(load.clients)))  # when each asks
    held: list[_Answer] = []
    under_way: list[_Answer] = []
    waits: list[float] = []
    seals: list[float] = []
    worked = paused_until = committed_at = sees_from = 0.0
    sealed_ms, committing, released_equal, paused = -1e9, False, 0, 0
    compares = not isinstance(policy, Periodic)

    def leave(answers: list[_Answer], now_ms: float) -> None:
        waits.extend(now_ms - answer.made_ms for answer in answers)
        asks.extend(now_ms + load.think_ms for _ in answers)

    for now in range(seconds * 1000):
        now_ms = float(now)
        if committing and now_ms >= committed_at:
            committing = False
            leave(under_way, now_ms)
            under_way, sees_from = [], now_ms + costs.load_ms
            policy.committed(now_ms, costs.pause_ms, costs.load_ms)
        if now_ms >= paused_until and asks and asks[0] <= now_ms:
            worked += 1
            if worked >= load.service_ms:
                worked = 0
                asks.popleft()
                held.append(_Answer(now_ms, rng.random() < load.differing(now_ms)))
        paused += now_ms < paused_until
        if committing:
            continue
        sees = compares and now_ms >= sees_from
        if sees:
            equal = [answer for answer in held if not answer.differs]
            held = [answer for answer in held if answer.differs]
            released_equal += len(equal)
            leave(equal, now_ms)
        if policy.due(now_ms, sees and bool(held), sealed_ms):
            policy.sealed(now_ms, len(held) / max(1, len(held) + released_equal))
            seals.append(now_ms)
            under_way, held, released_equal = held, [], 0
            committing, sealed_ms = True, now_ms
            committed_at, paused_until = now_ms + costs.cost_ms, now_ms + costs.pause_ms
    return Result(
        answers_per_s=len(waits) / seconds,
        wait_ms=fmean(waits) if waits else 0.0,
        wait_ms_max=max(waits, default=0.0),
        paused_share=paused / (seconds * 1000),
        seals_ms=seals,
    )
