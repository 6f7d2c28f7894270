"""What a client has sent beyond the window of the SVM waits here until the SVM opens it.

A client fills the window that the PVM announces. When the SVM's application has read less, the rest lies beyond the
SVM's own window; it would drop that and see it again after the client's retransmission timeout only, and meanwhile
nothing that acknowledges it could be released. So the secondary's agent keeps to the SVM's window as a client would
(RFC 9293, 3.8.6): nobody else has to know.

Guarantees
* What waits for one connection is fed in the order in which it came, and each frame once.
* What waits is bounded; beyond that, and wherever the window is not known for sure, frames pass as they came.
* Nobody has an acknowledgement of what waits, as the SVM has not acknowledged it: a takeover may drop it.

The scale of a window (RFC 7323, 2) is known from the opening alone, so scales outlive checkpoints: equal openings have
equal ones. A connection that is older than the protection has none, and passes.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from pycolo.core.packet import ACK, FIN, MASK, RST, SYN, Segment, distance, opposite, window_field, window_scale

PARKED_BYTES_MAX = 16 << 20
_FRAME_OVERHEAD_BYTES = 100
_SCALE_MAX = 14  # RFC 7323, 2.3


class _Window:
    """Of one connection."""

    __slots__ = ("edge", "parked", "scale")

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.edge: int | None = None  # the first of the client's sequence numbers that the SVM does not take
        self.parked: deque[tuple[int, bytes]] = deque()  # where it ends, frame

    def takes(self, end: int) -> bool:
        """Whether the SVM takes what ends at `end`."""
        return self.edge is None or distance(end, self.edge) <= 0


class ReceiveWindows:
    """The windows of the SVM's connections, by the guest's view of their addresses and ports."""

    def __init__(self, flows_max: int, parked_bytes_max: int = PARKED_BYTES_MAX) -> None:
        self._flows_max, self._parked_bytes_max = flows_max, parked_bytes_max
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()
        self._parked_bytes = 0
        self._freed: list[bytes] = []

    def client(self, frame: bytes, segment: Segment) -> bool:
        """A client's segment for the SVM; whether it may be fed now. If not, `take_freed` gives it later."""
        key, seq, _, flags, _, start, end = segment
        window = self._windows.get(opposite(key))
        if window is None:
            return True
        if flags & (SYN | RST):
            self._client_opens_or_ends(opposite(key), window, frame, segment)
            return True
        ends = (seq + end - start + bool(flags & FIN)) & MASK
        if window.takes(ends) or self._parked_bytes >= self._parked_bytes_max:
            return True
        window.parked.append((ends, frame))
        self._parked_bytes += len(frame) + _FRAME_OVERHEAD_BYTES
        return False

    def _client_opens_or_ends(self, key: bytes, window: _Window, frame: bytes, segment: Segment) -> None:
        _, _, _, flags, at, start, _ = segment
        if flags & RST or not flags & ACK:
            self._drop(key)
        elif window_scale(frame, at, start) is None:
            window.scale = 0  # both have to offer it

    def svm(self, frame: bytes, segment: Segment) -> None:
        """The SVM has put out a segment."""
        key, _, ack, flags, at, start, _ = segment
        if flags & SYN:
            self._open(key, min(window_scale(frame, at, start) or 0, _SCALE_MAX))
        known = self._windows.get(key)
        if known is None or not flags & ACK:
            return
        scale = 0 if flags & SYN else known.scale
        edge = (ack + (window_field(frame, at) << scale)) & MASK
        if known.edge is None or distance(edge, known.edge) > 0:
            known.edge = edge
            self._free(known)

    def _open(self, key: bytes, scale: int) -> None:
        self._drop(key)
        if len(self._windows) >= self._flows_max:
            self._drop(next(iter(self._windows)))
        self._windows[key] = _Window(scale)

    def _drop(self, key: bytes) -> None:
        """What waits may as well be seen now: the SVM will make of it what it has to."""
        window = self._windows.pop(key, None)
        if window is not None:
            window.edge = None
            self._free(window)

    def _free(self, window: _Window) -> None:
        while window.parked and window.takes(window.parked[0][0]):
            frame = window.parked.popleft()[1]
            self._parked_bytes -= len(frame) + _FRAME_OVERHEAD_BYTES
            self._freed.append(frame)

    def take_freed(self) -> list[bytes]:
        """What may be fed by now, since the last call."""
        freed, self._freed = self._freed, []
        return freed

    def give_up(self) -> None:
        """At a takeover the guest answers its clients itself: all that waits is in `take_freed`."""
        for key in list(self._windows):
            self._drop(key)

    def loaded(self) -> None:
        """The SVM is the PVM's copy, whose window is not known yet; it gets again what it has to see again."""
        for window in self._windows.values():
            window.edge = None
            window.parked.clear()
        self._freed.clear()
        self._parked_bytes = 0
