"""How the outputs of one VM are compared: by policy, with tolerances; the same for all of its flows."""

from __future__ import annotations

from dataclasses import dataclass

from pycolo.core.compare_policy import Policy
from pycolo.core.tolerance_rules import Rule, Tolerances


@dataclass(frozen=True, slots=True)
class CompareTerms:
    """As [compare] of vm.toml says.

    `captured`: both sides are captures of what has been sent long ago. No client throws anything away then, so
    acknowledgements don't matter, and nothing counts as compared because it was acknowledged.
    """

    policy: Policy
    tolerances: Tolerances
    captured: bool = False


DEFAULT_TERMS = CompareTerms(Policy(), Tolerances([Rule("http-date", (80,))]))
"""Everything is compared; the date of HTTP on port 80 may name another second."""
