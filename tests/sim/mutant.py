"""What a mutant of the core is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from .faults import Fault

Apply = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken core: `faults` strike one after the other, starting at each await of one of `ports`."""

    name: str
    checker: str
    apply: Apply
    ports: tuple[str, ...] = ("output.pause_feed",)
    faults: tuple[Fault, ...] = ()
