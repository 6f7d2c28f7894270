"""Which engine compares: the compiled one, or its Python twin where nothing could be compiled. Verdicts are alike."""

from __future__ import annotations

from pycolo.core.compare_terms import DEFAULT_TERMS, CompareTerms
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.limits import DataplaneLimits
from pycolo.core.overheard import AGE_MS_MAX, FRAMES_MAX, Accounts, Overheard
from pycolo.core.secondary import SecondaryDataplane

try:
    from pycolo.core._hot import HotAccounts
    from pycolo.core.hot_dataplane import HotDataplane
    from pycolo.core.hot_secondary import HotSecondary

    COMPILED = True
except ImportError:
    COMPILED = False

__all__ = ["COMPILED", "NAME", "overheard", "primary_dataplane", "secondary_dataplane"]

NAME = "compiled" if COMPILED else "python"


def primary_dataplane(
    limits: DataplaneLimits, epoch: int, terms: CompareTerms = DEFAULT_TERMS, *, seed: int
) -> PrimaryDataplane:
    """The faster one that there is. `seed` is random, from 0 to 2^64 - 1."""
    if COMPILED:
        return HotDataplane(limits, epoch, terms, seed=seed)
    return PrimaryDataplane(limits, epoch, terms)


def secondary_dataplane(limits: DataplaneLimits, *, seed: int) -> SecondaryDataplane:
    """As `primary_dataplane`."""
    if COMPILED:
        return HotSecondary(limits, seed=seed)
    return SecondaryDataplane(limits)


def overheard(own_mac: bytes, *, seed: int) -> Overheard:
    """As `primary_dataplane`."""
    if COMPILED:
        return Overheard(own_mac, HotAccounts(FRAMES_MAX, AGE_MS_MAX, seed))
    return Overheard(own_mac, Accounts(FRAMES_MAX, AGE_MS_MAX))
