"""What the SVM has said on one TCP connection, by its place in the stream.

Guarantees
* `judge` calls bytes equal only when the SVM has said the same bytes at the same place.
* What is kept is bounded: per connection and together by the `TwinBudget`, and in RUNS_MAX pieces.

A guest's own output has gaps when its network card's queue drops a frame, and captures have them anywhere; so besides
the main run up to RUNS_MAX others are kept. All numbers here are the SVM's sequence numbers.
"""

from __future__ import annotations

from enum import IntEnum

from pycolo.core.holding import TwinBudget
from pycolo.core.packet import HALF, MASK, distance

RUNS_MAX = 8
TERMS_MAX = 64
TRIM_BYTES = 4096  # trimming less at a time costs more than it frees
TRIM_BYTES_FOLLOWED = 16384  # where a compiled connection has to come back for it, as a tolerance follows it


class Verdict(IntEnum):
    """What becomes of a held frame."""

    WAIT = 0
    RELEASE = 1
    DIVERGED = 2


WAIT, RELEASE, DIVERGED = Verdict.WAIT, Verdict.RELEASE, Verdict.DIVERGED


class Added(IntEnum):
    """What became of bytes of the SVM."""

    KEPT = 0
    NO_ROOM = 1
    CONTRADICTS = 2  # the SVM has said something else at this place before


class TwinStream:
    """The main run begins at `base`; `guessed`: that is just the first segment seen, not known from its opening."""

    __slots__ = ("_budget", "_runs", "base", "guessed", "main")

    def __init__(self, budget: TwinBudget) -> None:
        self._budget = budget
        self.base: int | None = None
        self.main = bytearray()
        self.guessed = True
        self._runs: list[tuple[int, bytearray]] = []  # others: none touches another

    @property
    def next(self) -> int:
        """The place behind the main run."""
        assert self.base is not None
        return (self.base + len(self.main)) & MASK

    @property
    def apart(self) -> bool:
        """Whether there are other runs than the main one."""
        return bool(self._runs)

    def set(self, base: int | None, main: bytearray, *, guessed: bool) -> None:
        """Begin anew."""
        self._budget.used_bytes += len(main) - len(self.main) - sum(len(run) for _, run in self._runs)
        self.base, self.main, self.guessed, self._runs = base, main, guessed, []

    # ---------------------------------------------------------------- the SVM speaks

    def reach(self, seq: int) -> None:
        """The SVM stands at `seq`, whether it says anything there or not."""
        if self.base is None or (self.guessed and not self.main and distance(seq, self.base) > 0):
            self.base = seq

    def add(self, seq: int, payload: bytes) -> Added:
        """The SVM has said `payload` at `seq`; `reach` was called before."""
        assert self.base is not None
        at = ((seq - self.base + HALF) & MASK) - HALF
        known = len(self.main) - at
        if known == 0 and at >= 0 and not self._runs:
            return self._append(payload)
        if known < 0 or at < 0:
            return self._add_apart(seq, payload, at)
        if known == len(payload) == 1:
            return Added.KEPT  # a keep-alive, whose byte may be any (RFC 1122, 4.2.3.6)
        if not self.main.startswith(payload[:known], at):
            return Added.CONTRADICTS
        if known >= len(payload):
            return Added.KEPT
        added = self._append(payload[known:])
        return added if added != Added.KEPT else self._join()

    def _append(self, payload: bytes) -> Added:
        if not self._has_room(len(payload)):
            return Added.NO_ROOM
        self.main += payload
        self._budget.used_bytes += len(payload)
        return Added.KEPT

    def _has_room(self, more_bytes: int) -> bool:
        budget = self._budget
        return len(self.main) + more_bytes <= budget.flow_bytes_max and budget.has_room(more_bytes)

    def _add_apart(self, seq: int, payload: bytes, at: int) -> Added:
        """Behind a gap, or before the place where we began to look."""
        if at < 0 and not self.guessed:
            return Added.KEPT  # older than all we need to know: released, or of the past of a checkpoint
        for start, run in self._runs:
            known = distance((start + len(run)) & MASK, seq)
            if known >= 0 and distance(seq, start) >= 0:
                if not run.startswith(payload[:known], distance(seq, start)):
                    return Added.CONTRADICTS
                more = payload[known:]
                if sum(len(other) for _, other in self._runs) + len(more) > self._budget.flow_bytes_max:
                    return Added.NO_ROOM
                if not self._budget.has_room(len(more)):
                    return Added.NO_ROOM
                run += more
                self._budget.used_bytes += len(more)
                return self._join()
        if not self._has_room(len(payload)):
            return Added.NO_ROOM
        self._runs.append((seq, bytearray(payload)))
        self._budget.used_bytes += len(payload)
        if len(self._runs) > RUNS_MAX:
            self._forget_oldest()
        return self._join()

    def _forget_oldest(self) -> None:
        """Too many gaps: the main run gives way to the one that comes first behind it. To know less is safe."""
        self._budget.used_bytes -= len(self.main)
        begins = self.base or 0
        first = min(self._runs, key=lambda run: distance(run[0], begins))
        self._runs.remove(first)
        self.base, self.main = first[0], first[1]

    def _join(self) -> Added:
        """Runs that have come to touch the main one become part of it."""
        joined = True
        while joined and self._runs:
            joined = False
            for number, (start, run) in enumerate(self._runs):
                assert self.base is not None
                known = distance(self.next, start)
                if distance(start, self.base) >= 0 and known >= 0:
                    same = min(known, len(run))
                    contradicts = not self.main.startswith(run[:same], distance(start, self.base))
                    self.main += run[same:]
                elif distance(start, self.base) < 0 <= distance((start + len(run)) & MASK, self.base):
                    same = min(distance((start + len(run)) & MASK, self.base), len(self.main))
                    contradicts = not self.main.startswith(run[len(run) - same :][:same])
                    self.main[:0] = run[: distance(self.base, start)]
                    self.base = start
                else:
                    continue
                self._budget.used_bytes -= same
                del self._runs[number]
                if contradicts:
                    return Added.CONTRADICTS
                joined = True
                break
        return Added.KEPT

    # ---------------------------------------------------------------- the PVM has said

    def judge(self, seq: int, payload: bytes) -> Verdict:
        """Whether the SVM has said the same at the same place; WAIT as long as it has not said all of it."""
        if self.base is None:
            return WAIT
        at = ((seq - self.base + HALF) & MASK) - HALF
        if 0 <= at <= len(self.main) - len(payload):
            return RELEASE if self.main.startswith(payload, at) else DIVERGED
        return self._judge_apart(seq, payload)

    def _judge_apart(self, seq: int, payload: bytes) -> Verdict:
        """Not within the main run: another run, or only a part is known."""
        for start, run in ((self.base or 0, self.main), *self._runs):
            at = distance(seq, start)
            if at >= len(run) or at + len(payload) <= 0:
                continue
            low, high = max(0, -at), min(len(payload), len(run) - at)
            if not run.startswith(payload[low:high], at + low):
                return DIVERGED
            if high - low == len(payload):
                return RELEASE
        return WAIT

    def said(self, seq: int, length: int) -> bytes:
        """What the main run has at `seq`, up to `length` bytes."""
        at = -1 if self.base is None else distance(seq, self.base)
        return bytes(self.main[at : at + length]) if at >= 0 else b""

    def first_difference(self, seq: int, payload: bytes) -> tuple[int, bytes]:
        """(place in `payload`, the SVM's bytes from there on) of the first byte that differs; b"" when none does."""
        for start, run in ((self.base or 0, self.main), *self._runs):
            at = distance(seq, start)
            low, high = max(0, -at), min(len(payload), len(run) - at)
            for place in range(low, high):
                if run[at + place] != payload[place]:
                    return place, bytes(run[at + place : at + len(payload)])
        return 0, b""

    # ---------------------------------------------------------------- forgetting

    def trim(self, to: int, bytes_min: int) -> bool:
        """Nothing before `to` is needed any more; whether that moved the base, which fewer than `bytes_min` do not."""
        if self.base is None:
            return False
        surplus = ((to - self.base + HALF) & MASK) - HALF
        if surplus < bytes_min:
            return False
        surplus = min(surplus, len(self.main))
        del self.main[:surplus]
        self._budget.used_bytes -= surplus
        self.base = (self.base + surplus) & MASK
        self.guessed = False
        while not self.main and self._runs and distance(to, self._runs[0][0]) >= 0:
            self.base, self.main = self._runs.pop(0)
        return True


class TwinTerms:
    """What the SVM's segments have said besides their payload (`packet.odd_terms`), the newest TERMS_MAX."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: list[tuple[int, int, bytes]] = []  # place, length of the payload, terms

    def add(self, seq: int, length: int, terms: bytes) -> None:
        """The SVM has said `terms` in a segment."""
        if self._said:
            start, known, before = self._said[-1]
            if terms == before and length and seq == (start + known) & MASK:
                self._said[-1] = start, known + length, terms
                return
        self._said.append((seq, length, terms))
        del self._said[:-TERMS_MAX]

    def judge(self, seq: int, length: int, terms: bytes) -> Verdict:
        """Whether it has said the same of this payload, or of some of it in segments that are cut otherwise."""
        there = [said for start, known, said in self._said if _overlap(start, known, seq, length)]
        if terms in there:
            return RELEASE
        return DIVERGED if there and length else WAIT

    @property
    def any(self) -> bool:
        """Whether anything was said."""
        return bool(self._said)

    @property
    def newest(self) -> bytes:
        """The last terms."""
        return self._said[-1][2] if self._said else b""

    def clear(self) -> None:
        """All of it is of the past."""
        self._said.clear()


def _overlap(start: int, length: int, other: int, other_length: int) -> bool:
    """Whether two places of a stream have a byte in common, or are the same empty one."""
    ahead = distance(other, start)
    return -max(other_length, 1) < ahead < max(length, 1)


def joined(pieces: list[tuple[int, bytes]], top: int, bytes_max: int) -> tuple[int, bytearray]:
    """The longest run of bytes without a gap that ends at sequence number `top`, and where it begins."""
    pieces.sort(key=lambda piece: distance(piece[0], top))
    stream = bytearray()
    first: int = top
    for seq, payload in pieces:
        known = distance((first + len(stream)) & MASK, seq)
        if not stream or known < 0:
            first, stream = seq, bytearray(payload)
        elif known < len(payload):
            stream += payload[known:]
    if distance(top, (first + len(stream)) & MASK) != 0:
        return top, bytearray()
    surplus = max(0, len(stream) - bytes_max // 2)
    return (first + surplus) & MASK, stream[surplus:]
