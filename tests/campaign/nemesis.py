"""What goes wrong in a round: drawn from the round's seed, and from nothing else.

Pure: a plan is data; `inflict` knows how each strike is done, docs/faults.md what is promised for each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["single", "checkpoint", "double", "reboot"]
"""One fault; one while a checkpoint is taken; a second one during the recovery from the first; none, but the guest
starts again.
"""
KINDS: dict[Kind, int] = {"single": 11, "checkpoint": 4, "double": 4, "reboot": 1}
CHECKPOINT_MS_MAX = 60.0

SIDES = ("primary", "secondary")
PARTS = ("manager", "agent", "qemu", "disks")

Promise = Literal["kept", "held", "down", "kept or down"]
"""What clients may see. `kept`: nothing at all. `held`: no answer for a while, so that clients of UDP and ICMP may give
up, and nothing else. `down`: silence; the VM stays down, says so, and has its disk when its operator starts it again.
"""


@dataclass(frozen=True)
class Strike:
    """One fault by its name; `amount` is its size where it has one."""

    fault: str
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.fault} ({self.amount:g} {UNITS[self.fault]})" if self.fault in UNITS else self.fault


@dataclass(frozen=True)
class Pair:
    """Two faults, and what is promised for both together; the second comes `delay_s_max` after the first at most."""

    first: str
    second: str
    moves: str
    promise: Promise
    delay_s_max: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A round. `at_ms`: so long after a checkpoint was asked for; `delay_s`: from the first strike to the second."""

    seed: int
    kind: Kind
    strikes: tuple[Strike, ...]
    promise: Promise = "kept"
    moves: str = ""
    at_ms: float = 0.0
    delay_s: float = 0.0

    def __str__(self) -> str:
        if self.kind == "reboot":
            return "the guest reboots"
        if self.kind == "checkpoint":
            return f"{self.strikes[0]}, {self.at_ms:.0f} ms into a checkpoint"
        if self.kind == "double":
            return f"{self.strikes[0]}, {self.delay_s:.1f} s later {self.strikes[1]}"
        return str(self.strikes[0])


UNITS = {
    "slow link": "ms each way",
    "thin link": "Mbit/s",
    "step the primary's clock": "s",
    "step the secondary's clock": "s",
}
AMOUNTS: dict[str, tuple[float, ...]] = {
    "slow link": (2, 5, 10, 20, 40),
    "thin link": (20, 50, 100, 200),
    "step the primary's clock": (-3000, -60, -1, 1, 60, 3600, 86400),
    "step the secondary's clock": (-3000, -60, -1, 1, 60, 3600, 86400),
}
DEATHS = (
    *(f"kill the {side}'s {part}" for side in SIDES for part in ("daemon", *PARTS)),
    *(f"kill all of the {side}" for side in SIDES),
    *(f"freeze the {side}'s {part}" for side in SIDES for part in PARTS),
    *(f"freeze all of the {side}" for side in SIDES),
)
LINKS = ("cut the link", "what the primary sends is lost", "what the secondary sends is lost")
ISOLATIONS = ("isolate the primary", "isolate the secondary", "freeze and isolate the primary")
PAUSES = ("freeze the primary's daemon", "freeze the secondary's daemon")
SLOW = ("slow link", "thin link")
ARBITER = ("cut the arbiter", "cut link and arbiter", "kill etcd's leader", "freeze etcd's leader")
CLOCKS = ("step the primary's clock", "step the secondary's clock")
FULL = ("fill the primary's disk", "fill the secondary's disk")
FAMILIES: tuple[tuple[int, Sequence[str]], ...] = (
    (6, DEATHS),
    (2, LINKS),
    (1, ISOLATIONS),
    (1, PAUSES),
    (3, SLOW),
    (3, ARBITER),
    (2, CLOCKS),
    (2, FULL),
)
AT_A_CHECKPOINT = (*DEATHS, *LINKS, *ISOLATIONS)

DOUBLES = (
    Pair("kill all of the primary", "kill all of the secondary", "", "down"),
    Pair("kill the primary's qemu", "kill the secondary's qemu", "", "down"),
    Pair("freeze all of the primary", "kill all of the secondary", "may", "kept or down"),
    Pair("freeze all of the primary", "freeze all of the secondary", "may", "held"),
    Pair("kill all of the primary", "freeze all of the secondary", "over", "held"),
    Pair("cut the arbiter", "kill all of the primary", "over", "held"),
    Pair("cut the arbiter", "kill all of the secondary", "on", "held"),
    Pair("cut link and arbiter", "kill all of the primary", "over", "held"),
    Pair("cut link and arbiter", "kill all of the secondary", "on", "held"),
    Pair("kill etcd's leader", "kill all of the primary", "over", "held"),
    Pair("freeze etcd's leader", "kill all of the secondary", "on", "held"),
    Pair("kill all of the primary", "kill the third's daemon", "over", "kept", 2.0),
    Pair("kill all of the secondary", "kill the third's daemon", "on", "kept", 2.0),
    Pair("kill all of the primary", "cut the secondary from the third", "over", "kept", 2.0),
    Pair("freeze the primary's qemu", "kill the primary's agent", "over", "kept"),
    Pair("freeze the secondary's disks", "kill the secondary's manager", "on", "kept"),
    Pair("cut the link", "step the primary's clock", "may", "kept"),
    Pair("step the secondary's clock", "kill all of the primary", "over", "kept"),
)


def draw(seed: int) -> Plan:
    """The plan of the round with that seed."""
    luck = random.Random(f"round {seed}")
    kind = luck.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "reboot":
        return Plan(seed, kind, ())
    if kind == "double":
        pair = luck.choice(DOUBLES)
        delay_s = luck.uniform(0, pair.delay_s_max)
        strikes = (_strike(luck, pair.first), _strike(luck, pair.second))
        return Plan(seed, kind, strikes, pair.promise, pair.moves, delay_s=delay_s)
    if kind == "checkpoint":
        return Plan(
            seed, kind, (_strike(luck, luck.choice(AT_A_CHECKPOINT)),), at_ms=luck.uniform(0, CHECKPOINT_MS_MAX)
        )
    (family,) = luck.choices([names for _, names in FAMILIES], [weight for weight, _ in FAMILIES])
    return Plan(seed, kind, (_strike(luck, luck.choice(family)),))


def _strike(luck: random.Random, fault: str) -> Strike:
    return Strike(fault, luck.choice(AMOUNTS[fault]) if fault in AMOUNTS else 0.0)
