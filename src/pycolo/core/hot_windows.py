"""`ReceiveWindows` with plain segments compiled; everything else is the Python rules', on the same table.

Guarantee: whatever the frames and their order, what is fed when is that of the twin.
"""

from __future__ import annotations

from pycolo.core._hot import HotWindows
from pycolo.core.packed import Packed, frame_at
from pycolo.core.receive_windows import PARKED_BYTES_MAX, ReceiveWindows


class HotReceiveWindows(ReceiveWindows):
    """As `ReceiveWindows`."""

    def __init__(self, flows_max: int, parked_bytes_max: int = PARKED_BYTES_MAX, *, seed: int) -> None:
        self._hot = HotWindows(flows_max, parked_bytes_max, seed)
        super().__init__(self._hot)

    def client_packed(self, packed: Packed) -> Packed:
        """As the twin."""
        at, slow = self._hot.run(True, packed, 0)
        while slow:
            frame, at = frame_at(packed, at)
            if self._client(frame):
                self._hot.say(frame)
            at, slow = self._hot.run(True, packed, at)
        return self._hot.take_out()

    def svm_packed(self, packed: Packed) -> None:
        """As the twin."""
        at, slow = self._hot.run(False, packed, 0)
        while slow:
            frame, at = frame_at(packed, at)
            self._svm(frame)
            at, slow = self._hot.run(False, packed, at)
