"""What is counted of one VM copy, from its events and its statuses; no count ever falls while the daemon lives."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Any

PAUSE_MS_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
REASONS_MAX = 64
RISING = (
    "released_equal",
    "released_by_checkpoint",
    "released_by_policy",
    "released_solo",
    "diverged",
    "client_frames",
    "vm_frames",
)


class Counters:
    """Counts of one VM on this host."""

    def __init__(self) -> None:
        self.checkpoints: Counter[str] = Counter()
        self.checkpoints_failed = 0
        self.pauses = [0] * (len(PAUSE_MS_BOUNDS) + 1)
        self.pause_ms_sum = 0.0
        self.failovers: Counter[str] = Counter()
        self.packets: Counter[str] = Counter()
        self.committed_at_ms: float | None = None
        self.spoke_alone_at_ms: float | None = None
        self._seen: dict[str, int] = {}
        self._takeover_counts = False

    def begin(self, role: str) -> None:
        """A new process runs the copy: its own counts begin at zero, ours go on."""
        self._seen = {}
        self._takeover_counts = role == "secondary"
        self.committed_at_ms = self.spoke_alone_at_ms = None

    def feed(self, event: Mapping[str, Any]) -> None:
        """Count one event of the manager."""
        match event["kind"]:
            case "checkpoint":
                self._checkpoint(event)
            case "loaded":
                self.committed_at_ms = event["t_ms"]
            case "checkpoint-failed":
                self.checkpoints_failed += 1
            case "solo":
                self.spoke_alone_at_ms = event["t_ms"]
                # A secondary that speaks alone for the first time has taken over; whoever else does has lost a partner.
                self.failovers["takeover" if self._takeover_counts else "partner-lost"] += 1
                self._takeover_counts = False

    def see(self, status: Mapping[str, Any]) -> None:
        """Add what the packet agent has counted since the last status."""
        packets = status.get("packets", {})
        for name in RISING:
            now, before = int(packets.get(name, 0)), self._seen.get(name, 0)
            if now:
                self.packets[name] += now - before if now >= before else now
                self._seen[name] = now

    def _checkpoint(self, event: Mapping[str, Any]) -> None:
        reason = str(event["reason"])
        known = reason in self.checkpoints or len(self.checkpoints) < REASONS_MAX
        self.checkpoints[reason if known else "other"] += 1
        pause_ms = float(event["pause_ms"])
        self.pauses[bisect_left(PAUSE_MS_BOUNDS, pause_ms)] += 1
        self.pause_ms_sum += pause_ms
        self.committed_at_ms = event["t_ms"]
