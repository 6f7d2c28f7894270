"""Checker 4: the image is a whole epoch at any time, the survivor's disk is what its guest wrote, and the primary knows
where its disk may differ from the image that a returning secondary brings along.
"""

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
    for leaving in history.leavings:
        brought_up = bytearray(leaving.image)
        for offset, length in leaving.marked:
            brought_up[offset : offset + length] = leaving.primary_disk[offset : offset + length]
        if brought_up != leaving.primary_disk:
            problems.append("the marked chunks are not all that differs from the secondary's image")
    return problems
