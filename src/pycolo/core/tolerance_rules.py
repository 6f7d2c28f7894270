"""Which differences between the two streams of a connection are tolerated, as data: rules by name, with their ports.

Guarantee: only a rule of `RULES` can tolerate anything, and each has its proof where it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from pycolo.core.http_dates import HttpDates
from pycolo.core.packet import MASK, distance


class StreamTolerance(Protocol):
    """Follows the PVM's stream of one connection, in order, and knows where in it the SVM may have said otherwise."""

    @property
    def position(self) -> int:
        """How many bytes of the stream it has been told."""

    @property
    def lost(self) -> bool:
        """It will never tolerate anything from `position` on any more."""

    def advance(self, payload: bytes, at: int | None = None) -> None:
        """Bytes that leave, or have left, at place `at` (None: the next ones); some it may have been told before."""

    def lose(self) -> None:
        """What comes next is not known: part of the stream was not seen."""

    def tolerates(self, ours: bytes, theirs: bytes, at: int | None = None) -> bool:
        """Whether the segment `ours` may leave although the SVM has `theirs` at place `at` (None: the next bytes)."""


class ToleranceBySeq:
    """A tolerance asked by sequence numbers of the PVM; `lost`: give it up."""

    __slots__ = ("_next_seq", "_tolerance")

    def __init__(self, tolerance: StreamTolerance, first_seq: int) -> None:
        self._tolerance, self._next_seq = tolerance, first_seq

    @property
    def lost(self) -> bool:
        """It will never tolerate anything any more."""
        return self._tolerance.lost

    def advance(self, seq: int, payload: bytes) -> None:
        """The PVM's bytes at `seq` leave, or have left."""
        before = self._tolerance.position
        self._tolerance.advance(payload, before + distance(seq, self._next_seq))
        self._next_seq = (self._next_seq + self._tolerance.position - before) & MASK

    def tolerates(self, seq: int, ours: bytes, theirs: bytes) -> bool:
        """Whether the PVM's `ours` may leave although the SVM has `theirs` at the same place."""
        return self._tolerance.tolerates(ours, theirs, self._tolerance.position + distance(seq, self._next_seq))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, and the guest's ports at which it holds."""

    name: str
    ports: tuple[int, ...]


RULES: dict[str, Callable[[], StreamTolerance]] = {"http-date": HttpDates}

PlainRule = tuple[str, list[int]]
"""Name and ports."""


class Tolerances:
    """The rules in force, by port: the first that names a port holds there. Raises ValueError for an unknown rule."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._rules = tuple(rules)
        self._by_port: dict[int, Callable[[], StreamTolerance]] = {}
        for rule in self._rules:
            if rule.name not in RULES:
                raise ValueError(f"there is no tolerance {rule.name!r}: known are {', '.join(sorted(RULES))}")
            for port in rule.ports:
                self._by_port.setdefault(port, RULES[rule.name])

    def for_stream(self, guest_port: int, first_seq: int) -> ToleranceBySeq | None:
        """For a connection of the guest's port seen from its first byte on, at `first_seq`; None: no rule holds."""
        make = self._by_port.get(guest_port)
        return None if make is None else ToleranceBySeq(make(), first_seq)

    def encode(self) -> list[PlainRule]:
        """The rules as plain data, for another process."""
        return [(rule.name, list(rule.ports)) for rule in self._rules]

    @classmethod
    def decode(cls, plain: Iterable[PlainRule]) -> Tolerances:
        """What `encode` gave. Raises ValueError for what it can't have given."""
        return cls(Rule(name, tuple(ports)) for name, ports in plain)
