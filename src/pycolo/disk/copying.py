"""The copy of disks to a partner: which ranges, in what pieces, how fast.

Guarantees: every byte that may be different on the partner's image is passed once; what is a hole or all zero travels
without content; no faster than the rate, whatever the pauses before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pycolo.core.changed_chunks import Bits, ranges_of
from pycolo.edge.disk_image import DiskImage

PIECE_BYTES = 256 << 10
ZEROS_BYTES_MAX = 32 << 20  # where holes can't be punched they are written, and nothing else happens meanwhile
BURST_S = 0.1
_ZEROS = bytes(PIECE_BYTES)


class Receiver(Protocol):
    """Who gets the pieces."""

    def wrote(self, disk: int, offset: int, data: bytes) -> None: ...
    def zeroed(self, disk: int, offset: int, length: int) -> None: ...


@dataclass(frozen=True, slots=True)
class CopyTask:
    """One disk to copy: all of it, or only the chunks marked in `changed`."""

    disk: int
    image: DiskImage
    changed: Bits | None

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is looked at."""
        if self.changed is None:
            return iter([(0, self.image.size_bytes)])
        return ranges_of(self.changed, self.image.size_bytes)


class Copying:
    """Passes all disks to `receiver`, piece by piece. `step` may raise OSError: an image can't be read."""

    def __init__(self, tasks: Sequence[CopyTask], receiver: Receiver, bytes_per_s_max: int, now_s: float) -> None:
        self._receiver, self._rate = receiver, bytes_per_s_max
        self.total_bytes = sum(length for task in tasks for _, length in task.ranges())
        self.looked_at_bytes = self.sent_bytes = 0
        self._pieces = (piece for task in tasks for piece in _pieces(task))
        self._allowance_bytes, self._counted_at_s = 0.0, now_s
        self.done = False

    def step(self, now_s: float) -> float | None:
        """Pass one piece; returns the seconds until the next one may follow, None when all is passed."""
        wait_s = self._wait_s(now_s)
        if wait_s > 0:
            return wait_s
        piece = next(self._pieces, None)
        if piece is None:
            self.done = True
            return None
        self._pass(*piece)
        return 0.0

    def _wait_s(self, now_s: float) -> float:
        if not self._rate:
            return 0.0
        earned = (now_s - self._counted_at_s) * self._rate
        self._allowance_bytes = min(self._allowance_bytes + earned, self._rate * BURST_S)
        self._counted_at_s = now_s
        return max(0.0, -self._allowance_bytes / self._rate)

    def _pass(self, task: CopyTask, offset: int, length: int, is_hole: bool) -> None:
        self.looked_at_bytes += length
        data = b"" if is_hole else task.image.read(offset, length)
        if is_hole or data == _ZEROS[:length]:
            self._receiver.zeroed(task.disk, offset, length)
            return
        self._receiver.wrote(task.disk, offset, data)
        self.sent_bytes += length
        self._allowance_bytes -= length


def _pieces(task: CopyTask) -> Iterator[tuple[CopyTask, int, int, bool]]:
    """(task, offset, length, is_hole). Holes are looked for as the copy goes, since the guest may fill them."""
    for offset, length in task.ranges():
        end = offset + length
        while offset < end:
            hole = task.image.hole_at(offset, min(end - offset, ZEROS_BYTES_MAX))
            piece = hole or min(end - offset, PIECE_BYTES)
            yield task, offset, piece, bool(hole)
            offset += piece
