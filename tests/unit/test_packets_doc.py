"""docs/packets.md names places in the code that are there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "packets.md").read_text()
PLACES = re.findall(r"`core/(\w+)\.py`(?:: `(\w+)`)?", DOCUMENT)
LINKS = re.findall(r"\]\(([\w/.-]+)\)", DOCUMENT)


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_places(module: str, name: str) -> None:
    found = importlib.import_module(f"pycolo.core.{module}")
    assert not name or hasattr(found, name)


@pytest.mark.parametrize("link", LINKS)
def test_links(link: str) -> None:
    assert (Path(__file__).parents[2] / "docs" / link).is_file()


def test_there_are_some() -> None:
    assert len(PLACES) > 10
    assert len(LINKS) > 2
