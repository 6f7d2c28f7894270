"""The secondary's leave to speak, which the primary's agent has for a short time only (rule 5).

A primary may stand still anywhere, and the link between the hosts may be cut at the same time: then nothing tells it,
when it goes on, that its partner has taken over. So it releases output only until the end of a lease, which the
secondary renews while they are a pair, and which the secondary waits out before it speaks.

Guarantee: when the two clocks run at the same rate, give or take DRIFT, every frame that the primary releases under a
lease begins to be written before the secondary is `free`. Times are in ms, each side's of a clock of its own that never
stops, not even while the host sleeps.
"""

from __future__ import annotations

import math

from pycolo.errors import PeerViolation

LEASE_MS_MAX = 1000.0
DRIFT = 0.01
MARGIN_MS = 10.0  # for the way from the last look at the clock to the network


def lease_ms_of(silence_ms: float) -> float:
    """How long a lease lasts when a silence of `silence_ms` ends a pair: it is over by then, so nobody waits for it."""
    return min(LEASE_MS_MAX, 0.6 * silence_ms)


class Lease:
    """The primary's side."""

    def __init__(self, lease_ms: float) -> None:
        self.lease_ms = lease_ms
        self.until_ms = -math.inf
        self._number = 0
        self._asked_ms: float | None = None

    def ask(self, now_ms: float) -> int | None:
        """The number of a question that is due: less than half of the lease is left, and none is under way."""
        if self._asked_ms is not None or self.until_ms - now_ms > self.lease_ms / 2:
            return None
        self._number += 1
        self._asked_ms = now_ms
        return self._number

    def granted(self, number: int) -> None:
        """The answer to question `number`: the lease counts from when it was asked. Raises PeerViolation."""
        if self._asked_ms is None or number != self._number:
            raise PeerViolation(f"the peer's agent granted lease {number}, which nobody asked for")
        self.until_ms, self._asked_ms = self._asked_ms + self.lease_ms, None


class Promise:
    """The secondary's side: not to speak while a lease may run."""

    def __init__(self) -> None:
        self._free_ms = -math.inf

    def grant(self, lease_ms: float, now_ms: float) -> None:
        """A question came at `now_ms`, and is answered."""
        self._free_ms = max(self._free_ms, now_ms + lease_ms * (1 + DRIFT) + MARGIN_MS)

    def void(self) -> None:
        """The primary's agent has given up all leases: it has closed its end of the channel, or is dead."""
        self._free_ms = -math.inf

    def is_free(self, now_ms: float) -> bool:
        """Whether no lease can run any more."""
        return now_ms >= self._free_ms
