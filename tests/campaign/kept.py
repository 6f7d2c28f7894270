"""Logs that outlive the hosts they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

LOG_CHARS_MAX = 60_000
"""Of each log the end."""


def keep(folder: Path, logs: Mapping[str, str]) -> None:
    """Write them into a folder by their names, as `CampaignCluster.tails` has them."""
    for name, text in logs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
