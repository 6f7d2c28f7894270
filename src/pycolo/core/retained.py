"""The SVM's frames that a client may lack, by the numbers they were put out with.

Guarantee: what is kept stays within its limits; the oldest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Retention(Protocol):
    """Of one card; here, or on the compiled side (`_hot.HotConnections`)."""

    @property
    def kept_frames(self) -> int:
        """How many are kept."""

    @property
    def kept_bytes(self) -> int:
        """How long they are together."""

    def keep(self, no: int, frame: bytes) -> None:
        """Keep a frame, in the place of one that may have had this number."""

    def drop(self, no: int) -> None:
        """It is no longer needed, if it is still there."""

    def take(self) -> list[bytes]:
        """Give all of them away, the oldest first."""

    def clear(self) -> None:
        """None is needed any more."""


class Retained:
    """The Python twin."""

    def __init__(self, frames_max: int, bytes_max: int) -> None:
        self._frames_max, self._bytes_max = frames_max, bytes_max
        self._frames: OrderedDict[int, bytes] = OrderedDict()
        self.kept_bytes = 0

    @property
    def kept_frames(self) -> int:
        """As `Retention`."""
        return len(self._frames)

    def keep(self, no: int, frame: bytes) -> None:
        """As `Retention`."""
        self.drop(no)
        self._frames[no] = frame
        self.kept_bytes += len(frame)
        while len(self._frames) > self._frames_max or self.kept_bytes > self._bytes_max:
            self.kept_bytes -= len(self._frames.popitem(last=False)[1])

    def drop(self, no: int) -> None:
        """As `Retention`."""
        frame = self._frames.pop(no, None)
        if frame is not None:
            self.kept_bytes -= len(frame)

    def take(self) -> list[bytes]:
        """As `Retention`."""
        frames = list(self._frames.values())
        self.clear()
        return frames

    def clear(self) -> None:
        """As `Retention`."""
        self._frames.clear()
        self.kept_bytes = 0
