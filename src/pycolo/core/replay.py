"""The secondary's log of client frames that a loaded SVM has to see again.

Guarantees: after `replay(boundary)` the SVM has got every client frame from the boundary on exactly once and in order,
or `complete` is False and the SVM needs another checkpoint (rule 8: never a silent gap).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pycolo.errors import PeerViolation

BOUNDARIES_MAX = 64
FRAME_OVERHEAD_BYTES = 100  # what an entry costs beside its bytes, so that empty frames are bounded as well


@dataclass(frozen=True, slots=True)
class Replay:
    """Client frames to feed again, each to its network card; `complete` is False when some had to be dropped."""

    frames: list[tuple[int, bytes]]
    complete: bool


class ReplayLog:
    """Client frames since the oldest boundary that has not been replayed yet."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._frames: deque[tuple[int, int, bytes]] = deque()
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

    def add(self, nic: int, first_no: int, frames: Sequence[bytes]) -> None:
        """Client frames for one network card, numbered from `first_no`; kept only when a boundary is open."""
        if not self._boundaries:
            return
        for number, frame in enumerate(frames, first_no):
            self._frames.append((number, nic, frame))
            self._bytes += len(frame) + FRAME_OVERHEAD_BYTES
        while self._bytes > self._bytes_max:
            self._drop_oldest()

    def replay(self, boundary: int) -> Replay:
        """The frames from `boundary` on; what is older than any later boundary is forgotten."""
        frames = [(nic, frame) for number, nic, frame in self._frames if number >= boundary]
        complete = boundary in self._boundaries and self._first_kept_no <= boundary
        while self._boundaries and self._boundaries[0] <= boundary:
            self._boundaries.popleft()
        keep_from = self._boundaries[0] if self._boundaries else None
        while self._frames and (keep_from is None or self._frames[0][0] < keep_from):
            self._drop_oldest()
        return Replay(frames, complete)

    def _drop_oldest(self) -> None:
        number, _, frame = self._frames.popleft()
        self._bytes -= len(frame) + FRAME_OVERHEAD_BYTES
        self._first_kept_no = number + 1
