"""How the copies are compared, and why they differed: as events, bounded in their rate, and the last in the status."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from pycolo.agent.protocol import Paced, Terms
from pycolo.config_compare import CompareConfig
from pycolo.core.divergence import Divergence
from pycolo.events import EventLog

KEPT_MAX = 16
EVENTS_PER_S_MAX = 10


def compare_terms(compare: CompareConfig) -> Terms:
    """[compare] of vm.toml as the agent wants it."""
    default, rules = compare.policy().encode()
    return Terms(default, rules, compare.tolerances().encode(), compare.adaptive)


class DivergenceNotes:
    """The newest divergences of one VM. A guest may differ a thousand times a second: most are only counted then."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._newest: deque[dict[str, Any]] = deque(maxlen=KEPT_MAX)
        self._second, self._in_second, self._left_out = 0, 0, 0
        self._pace = ""

    def note(self, divergences: Sequence[Divergence]) -> None:
        """The agent tells of places where outputs differed."""
        for one in divergences:
            fields = as_fields(one)
            self._newest.append({"t_ms": time.monotonic_ns() / 1e6, **fields})
            if self._may_say():
                left_out, self._left_out = self._left_out, 0
                self._events.add("divergence", **fields, **({"left_out": left_out} if left_out else {}))

    def paced(self, news: Paced) -> None:
        """The agent asks for checkpoints in another mode from now on."""
        self._pace = news.why
        self._events.add("pace", mode=news.mode, interval_ms=news.interval_ms, reason=news.why)

    def details(self) -> dict[str, Any]:
        """For the status."""
        return {"divergences": list(self._newest), "pace": self._pace}

    def _may_say(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        self._left_out += self._in_second > EVENTS_PER_S_MAX
        return self._in_second <= EVENTS_PER_S_MAX


def as_fields(one: Divergence) -> dict[str, Any]:
    """A divergence in values that JSON has; bytes as hex."""
    return {
        "protocol": one.protocol,
        "source": one.source,
        "target": one.target,
        "vlans": list(one.vlans),
        "what": one.what,
        "offset": one.offset,
        "primary": one.pvm.hex(),
        "secondary": one.svm.hex(),
        "reason": one.sentence(),
    }
