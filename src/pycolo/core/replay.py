"""The secondary's log of client frames that a loaded SVM has to see again.

Guarantees: after `replay(boundary)` the SVM has got every client frame from the boundary on exactly once and in order,
or `complete` is False and the SVM needs another checkpoint (rule 8: never a silent gap).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pycolo.core.packed import Batch, measure
from pycolo.errors import PeerViolation

BOUNDARIES_MAX = 64
BATCH_OVERHEAD_BYTES = 400  # what an entry costs beside its bytes, so that small ones are bounded as well


@dataclass(frozen=True, slots=True)
class Replay:
    """Client frames to feed again, each batch to its network card; `complete` is False when some had to be dropped."""

    batches: list[tuple[int, Batch]]
    complete: bool

    @property
    def count(self) -> int:
        """How many frames they are."""
        return sum(batch.count for _, batch in self.batches)


class ReplayLog:
    """Client frames since the oldest boundary that has not been replayed yet."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._batches: deque[tuple[int, int, Batch]] = deque()  # with the number of the first frame, and the card
        self._boundaries: deque[int] = deque()
        self._bytes = 0
        self._first_kept_no = 0

    def mark(self, boundary: int) -> None:
        """A checkpoint is cut before frame number `boundary`, which has not come yet.

        Raises PeerViolation when far more checkpoints are begun than ended.
        """
        if len(self._boundaries) >= BOUNDARIES_MAX:
            raise PeerViolation(f"the peer marked {BOUNDARIES_MAX} boundaries and no checkpoint")
        if not self._boundaries:
            self._first_kept_no = boundary
        self._boundaries.append(boundary)

    def add(self, nic: int, first_no: int, batch: Batch) -> None:
        """Client frames for one network card, numbered from `first_no`; kept only when a boundary is open."""
        if not self._boundaries or not batch.count:
            return
        self._batches.append((first_no, nic, batch))
        self._bytes += _cost_bytes(batch)
        while self._bytes > self._bytes_max:
            self._drop_oldest()

    def replay(self, boundary: int) -> Replay:
        """The frames from `boundary` on; what is older than any later boundary is forgotten."""
        parts = ((nic, _from(boundary, first_no, batch)) for first_no, nic, batch in self._batches)
        batches = [(nic, part) for nic, part in parts if part.count]
        complete = boundary in self._boundaries and self._first_kept_no <= boundary
        while self._boundaries and self._boundaries[0] <= boundary:
            self._boundaries.popleft()
        keep_from = self._boundaries[0] if self._boundaries else None
        while self._batches and (keep_from is None or _end_no(self._batches[0]) <= keep_from):
            self._drop_oldest()
        return Replay(batches, complete)

    def _drop_oldest(self) -> None:
        oldest = self._batches.popleft()
        self._bytes -= _cost_bytes(oldest[2])
        self._first_kept_no = _end_no(oldest)


def _end_no(entry: tuple[int, int, Batch]) -> int:
    """The number behind its last frame."""
    return entry[0] + entry[2].count


def _cost_bytes(batch: Batch) -> int:
    return len(batch.packed) + BATCH_OVERHEAD_BYTES


def _from(boundary: int, first_no: int, batch: Batch) -> Batch:
    """What of a batch is numbered from `boundary` on."""
    before = min(max(0, boundary - first_no), batch.count)
    if not before:
        return batch
    at, _ = measure(batch.packed, 0, before)
    return Batch(memoryview(batch.packed)[at:], batch.count - before)
