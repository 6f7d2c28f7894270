"""Tests of the secondary on both engines: those that use `secondary_engine` run once with each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest

from pycolo.core import engines
from pycolo.core.limits import DataplaneLimits
from pycolo.core.secondary import SecondaryDataplane

Make = Callable[[DataplaneLimits], SecondaryDataplane]
ENGINES: dict[str, Make] = {
    "python": SecondaryDataplane,
    engines.NAME: partial(engines.secondary_dataplane, seed=7),  # the same once more where nothing is compiled
}
_now = SimpleNamespace(make=SecondaryDataplane)


@pytest.fixture(params=ENGINES)
def secondary_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `secondary_plane` makes."""
    monkeypatch.setattr(_now, "make", ENGINES[request.param])


def secondary_plane(limits: DataplaneLimits) -> SecondaryDataplane:
    """Of the engine whose turn it is."""
    made: SecondaryDataplane = _now.make(limits)
    return made
