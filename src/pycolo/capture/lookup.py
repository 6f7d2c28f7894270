"""The frames in which copies differ, found in the captures by a second reading.

The engine names frames where it can; of a TCP stream it keeps the bytes only, so the segment that holds a place is
looked for. To keep all frames for the case that one of them differs would take too much memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pycolo.capture.engine import Divergence
from pycolo.core.divergence import flow_of
from pycolo.core.packet import FIN, RST, SYN, TCP_FLOW, Segment, distance, parse_tcp
from pycolo.edge.capture_file import CaptureReader
from pycolo.errors import EnvironmentFault

_EVENTS = {"syn": SYN, "fin": FIN, "reset": RST}
_NAMES_CACHED = 4096

_Name = tuple[str, str, tuple[int, ...]]


class Place(NamedTuple):
    """What is looked for on one side: a frame by the engine's number, or what was said where in which flow."""

    divergence: Divergence
    number: int | None
    said: bytes


class Located(NamedTuple):
    """A frame of a capture: its number in the file, and what it is, if that was asked for."""

    number: int | None
    frame: bytes | None


def primary_place(divergence: Divergence) -> Place:
    """Where to look in the primary's capture."""
    return Place(divergence, divergence.pvm_frame, divergence.pvm)


def secondary_place(divergence: Divergence) -> Place:
    """Where to look in the secondary's capture."""
    return Place(divergence, divergence.svm_frame, divergence.svm)


def look_up(path: Path, places: Sequence[Place], shown: int) -> list[Located]:
    """One for each place, with the frames of the first `shown`; the engine counted the frames as they are read."""
    found = [Located(place.number, None) for place in places]
    by_number: dict[int, list[int]] = defaultdict(list)
    streams = _Streams()
    for index, place in enumerate(places):
        if place.number is not None:
            by_number[place.number].append(index)
        elif place.divergence.protocol == "tcp":
            streams.want(index, place)
    with (
        suppress(EnvironmentFault),
        CaptureReader(path) as reader,
    ):  # what was read once is there; if not, less is shown
        for number, record in enumerate(reader, 1):
            if not by_number and not streams.wanted:
                break
            for index in (*by_number.pop(number, ()), *streams.see(record.frame)):
                found[index] = Located(record.number, record.frame if index < shown else None)
    return found


class _Streams:
    """Sees the frames of a capture in order, and tells in which of them a place of a stream is first held."""

    def __init__(self) -> None:
        self.wanted: dict[_Name, dict[int, Place]] = defaultdict(dict)
        self._first: dict[_Name, int] = {}  # sequence number of the stream's first byte

    def want(self, index: int, place: Place) -> None:
        """Look for it if there is anything by which it can be known."""
        divergence = place.divergence
        if divergence.what in _EVENTS or (divergence.offset is not None and place.said):
            self.wanted[divergence.source, divergence.target, divergence.vlans][index] = place

    def see(self, frame: bytes) -> list[int]:
        """The places that are in this frame; they are not looked for any further."""
        segment = parse_tcp(frame) if self.wanted else None
        if segment is None:
            return []
        name = _name(segment[0])
        places = self.wanted.get(name)
        if places is None:
            return []
        _, seq, _, flags, _, _, _ = segment
        if flags & SYN or name not in self._first:
            self._first[name] = seq + bool(flags & SYN)
        here = [index for index, place in places.items() if _is_in(place, frame, segment, self._first[name])]
        for index in here:
            del places[index]
        if not places:
            del self.wanted[name]
        return here


def _is_in(place: Place, frame: bytes, segment: Segment, first: int) -> bool:
    """Whether the segment is the event, or holds the bytes, in a stream whose first byte has number `first`."""
    _, seq, _, flags, _, start, end = segment
    divergence = place.divergence
    event = _EVENTS.get(divergence.what)
    if event is not None or divergence.offset is None:
        return bool(flags & (event or 0))
    at = start + divergence.offset - distance(seq + bool(flags & SYN), first)
    return start <= at < end and place.said.startswith(frame[at:end][: len(place.said)])


@lru_cache(_NAMES_CACHED)
def _name(key: bytes) -> _Name:
    _, source, target, vlans = flow_of(TCP_FLOW + key)
    return source, target, vlans
