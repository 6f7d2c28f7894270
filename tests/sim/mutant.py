"""What a mutant is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

Apply = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken core that `checker` has to catch; `seed` is one of the seeds in which it does, the first to be tried.

    `only`: in that seed no other checker finds anything.
    """

    name: str
    checker: str
    apply: Apply
    seed: int
    only: bool = False
