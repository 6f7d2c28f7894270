"""A data plane that is let go of is gone at once: a primary gets a new one with each partner, MiBs in size."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.engines import primary_dataplane, secondary_dataplane
from pycolo.core.limits import DataplaneLimits


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Its third generation may not be looked at for hours."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "make",
    [
        lambda: primary_dataplane(DataplaneLimits(), 1, seed=3),
        lambda: PrimaryDataplane(DataplaneLimits(), 1),
        lambda: secondary_dataplane(DataplaneLimits(), seed=3),
    ],
    ids=["primary", "primary in Python", "secondary"],
)
@pytest.mark.usefixtures("no_collector")
def test_nothing_holds_it(make: Callable[[], object]) -> None:
    made = make()
    seen = weakref.ref(made)
    del made
    assert seen() is None
