"""Two capture files through the engine, in step by the time since the first frame of each.

Guarantees
* Memory is bounded by the engine's limits, however long the captures are.
* Where a capture is damaged the comparison ends: what only the other one has from there on is no divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from pycolo.capture.engine import Comparison, Divergence
from pycolo.capture.lookup import Located, look_up, primary_place, secondary_place
from pycolo.edge.capture_file import CaptureReader
from pycolo.edge.capture_spool import rereadable, spoken
from pycolo.errors import CaptureDamaged, EnvironmentFault

SHOWN_MAX = 20

Side = Literal["primary", "secondary"]
Timed = tuple[int, bytes]
"""Nanoseconds since the first frame of the capture, and the frame."""
Tick = Callable[[float], None]

_FRAMES_PER_TICK = 2000
_LAG_NS_MAX = 1_000_000_000  # by so much a copy may be behind the other


@dataclass(frozen=True, slots=True)
class CaptureFacts:
    """What was found in one file."""

    name: str
    frames: int
    frames_skipped: int
    frames_cut: int
    damage: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A divergence; frames are numbered as in the files, and at hand for the first SHOWN_MAX only."""

    divergence: Divergence
    primary: Located
    secondary: Located


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a report says."""

    primary: CaptureFacts
    secondary: CaptureFacts
    flows: int
    flows_by_protocol: dict[str, int]
    released: int
    found: list[Found]

    @property
    def damage(self) -> list[str]:
        """A sentence for each capture that is not whole."""
        return [facts.damage for facts in (self.primary, self.secondary) if facts.damage]


def compare_files(primary: Path, secondary: Path, comparison: Comparison, tick: Tick) -> Outcome:
    """Read both to their ends; `tick` hears how far it is, from 0 to 1. Raises EnvironmentFault."""
    if primary == secondary == Path("-"):
        raise EnvironmentFault("standard input can be one of the two captures only: name a file for the other")
    with rereadable(primary) as primary_path, rereadable(secondary) as secondary_path:
        with (
            CaptureReader(primary_path, spoken(primary)) as primary_reader,
            CaptureReader(secondary_path, spoken(secondary)) as secondary_reader,
        ):
            ours, theirs = _Whole(primary_reader), _Whole(secondary_reader)
            _feed(ours, theirs, comparison, tick)
        found = _found(comparison.divergences, primary_path, secondary_path)
    return Outcome(
        _facts(primary, ours),
        _facts(secondary, theirs),
        comparison.flows,
        dict(comparison.flows_by_protocol),
        comparison.released,
        found,
    )


class _Whole:
    """The frames of a capture up to where it is damaged, each with the nanoseconds since the first."""

    def __init__(self, reader: CaptureReader) -> None:
        self.reader = reader
        self.damage: str | None = None
        self.ends_ns = inf
        """Beyond this nothing of the other capture can have its twin here."""

    def __iter__(self) -> Iterator[Timed]:
        first_ns: int | None = None
        since_ns = 0
        try:
            for record in self.reader:
                first_ns = record.ts_ns if first_ns is None else first_ns
                since_ns = record.ts_ns - first_ns
                yield since_ns, record.frame
        except CaptureDamaged as damage:
            self.damage = str(damage)
            self.ends_ns = since_ns + _LAG_NS_MAX

    @property
    def fraction(self) -> float:
        return self.reader.position_bytes / max(self.reader.size_bytes, 1)


def _feed(ours: _Whole, theirs: _Whole, comparison: Comparison, tick: Tick) -> None:
    now_ms = 0.0
    for count, (side, since_ns, frame) in enumerate(in_step(ours, theirs)):
        if since_ns > min(ours.ends_ns, theirs.ends_ns):
            break
        now_ms = max(now_ms, since_ns / 1e6)  # a capture of several interfaces may step back
        if side == "primary":
            comparison.primary([frame], now_ms)
        else:
            comparison.secondary([frame], now_ms)
        if count % _FRAMES_PER_TICK == 0:
            tick((ours.fraction + theirs.fraction) / 2)
    if not (ours.damage or theirs.damage):
        comparison.finish()


def in_step(primary: Iterable[Timed], secondary: Iterable[Timed]) -> Iterator[tuple[Side, int, bytes]]:
    """Side, nanoseconds and frame: earlier ones first, at equal times in turns, beginning with the primary."""
    sources: dict[Side, Iterator[Timed]] = {"primary": iter(primary), "secondary": iter(secondary)}
    waiting = {side: next(source, None) for side, source in sources.items()}
    last: Side | None = None
    while side := _next_side(waiting["primary"], waiting["secondary"], last):
        taken = waiting[side]
        assert taken is not None
        yield side, *taken
        waiting[side] = next(sources[side], None)
        last = side


def _next_side(ours: Timed | None, theirs: Timed | None, last: Side | None) -> Side | None:
    if ours is None or theirs is None:
        return "primary" if ours else "secondary" if theirs else None
    if ours[0] == theirs[0]:
        return "secondary" if last == "primary" else "primary"
    return "primary" if ours[0] < theirs[0] else "secondary"


def _found(divergences: Sequence[Divergence], primary: Path, secondary: Path) -> list[Found]:
    ours = look_up(primary, [primary_place(each) for each in divergences], SHOWN_MAX)
    theirs = look_up(secondary, [secondary_place(each) for each in divergences], SHOWN_MAX)
    return [Found(*each) for each in zip(divergences, ours, theirs, strict=True)]


def _facts(path: Path, whole: _Whole) -> CaptureFacts:
    reader = whole.reader
    return CaptureFacts(spoken(path), reader.frames, reader.frames_skipped, reader.frames_cut, whole.damage)
