"""The clock of leases: it goes on while the host sleeps, and nobody sets it."""

from __future__ import annotations

import time


def boottime_s() -> float:
    """Seconds since the host booted (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
