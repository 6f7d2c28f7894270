"""Checker 4: the image is a whole epoch at any time, and the survivor's disk is what its guest wrote."""

from __future__ import annotations

from ..history import History

NAME = "disks"


def check(history: History) -> list[str]:
    """What contradicts it, in sentences; empty when nothing does."""
    problems = [
        f"the image {seen.moment} is not {seen.names}"
        for seen in history.disks_seen
        if seen.content not in seen.allowed
    ]
    if history.survivor_disk != history.survivor_disk_written:
        problems.append(f"the survivor {history.survivor} does not find on its disk what it wrote")
    return problems
