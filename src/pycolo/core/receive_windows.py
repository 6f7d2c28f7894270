"""What a client has sent beyond the window of the SVM waits here until the SVM opens it.

A client fills the window that the PVM announces. When the SVM's application has read less, the rest lies beyond the
SVM's own window; it would drop that and see it again after the client's retransmission timeout only, and meanwhile
nothing that acknowledges it could be released. So the secondary's agent keeps to the SVM's window as a client would
(RFC 9293, 3.8.6): nobody else has to know.

Guarantees
* What waits for one connection is fed in the order of its stream, and each frame once.
* What waits is bounded, for each connection and together; beyond that, and wherever the window is not known for sure,
  frames pass as they came. A forged one that is beyond any window passes too, and keeps nothing else waiting.
* Nobody has an acknowledgement of what waits, as the SVM has not acknowledged it: a takeover may drop it.

The scale of a window (RFC 7323, 2) is known from the opening alone, so scales outlive checkpoints: equal openings have
equal ones. A connection that is older than the protection has none, and passes; so do fragments.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Protocol

from pycolo.core.packed import Packed, pack, unpack
from pycolo.core.packet import (
    ACK,
    FIN,
    MASK,
    RST,
    SYN,
    Segment,
    distance,
    opposite,
    parse_tcp,
    window_field,
    window_scale,
)

PARKED_BYTES_MAX = 16 << 20
PARKED_FRAMES_MAX = 4096  # of one connection
PARKED_OVERHEAD_BYTES = 100  # of each frame, so that small ones are bounded as well
_SCALE_MAX = 14  # RFC 7323, 2.3
_FIELD_MAX = 65535


class WindowTable(Protocol):
    """The windows of connections, by the guest's view of their addresses and ports, and what waits for them."""

    def open(self, key: bytes, scale: int) -> None:
        """A new connection, in the place of what may be there."""

    def unscale(self, key: bytes) -> None:
        """The other side does not know about scales."""

    def drop(self, key: bytes) -> None:
        """It is over, or nobody knows. What waits may as well be seen now: the SVM will make of it what it has to."""

    def note(self, key: bytes, ack: int, field: int, *, scaled: bool) -> None:
        """The SVM takes up to `field` (scaled) bytes from `ack` on."""

    def admits(self, key: bytes, ends: int, frame: bytes) -> bool:
        """Whether the SVM takes what ends at sequence number `ends`; if not, it waits."""

    def take_freed(self) -> Packed:
        """What may be fed by now, since the last call."""

    def give_up(self) -> None:
        """Drop all connections."""

    def loaded(self) -> None:
        """Forget edges and what waits."""


class _Window:
    __slots__ = ("edge", "loads", "parked", "scale")

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.edge: int | None = None  # the first of the client's sequence numbers that the SVM does not take
        self.loads = 0  # how often the SVM had been loaded when it said so
        self.parked: deque[tuple[int, bytes]] = deque()  # where it ends, frame; in this order


class Windows:
    """The table in Python: what the compiled one (`_hot.HotWindows`) has to agree with."""

    def __init__(self, flows_max: int, parked_bytes_max: int) -> None:
        self._flows_max, self._parked_bytes_max = flows_max, parked_bytes_max
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()
        self._waiting: dict[_Window, None] = {}  # those for which something waits
        self._parked_bytes = self._loads = 0
        self._freed: list[bytes] = []

    def __len__(self) -> int:
        return len(self._windows)

    def open(self, key: bytes, scale: int) -> None:
        """See `WindowTable`; the oldest makes room."""
        self.drop(key)
        if len(self._windows) >= self._flows_max:
            self.drop(next(iter(self._windows)))
        self._windows[key] = _Window(scale)

    def unscale(self, key: bytes) -> None:
        """See `WindowTable`."""
        if key in self._windows:
            self._windows[key].scale = 0

    def drop(self, key: bytes) -> None:
        """See `WindowTable`."""
        window = self._windows.pop(key, None)
        if window is not None:
            window.edge = None
            self._free(window)

    def note(self, key: bytes, ack: int, field: int, *, scaled: bool) -> None:
        """See `WindowTable`."""
        window = self._windows.get(key)
        if window is None:
            return
        edge = (ack + (field << (window.scale if scaled else 0))) & MASK
        if window.edge is None or window.loads != self._loads or distance(edge, window.edge) > 0:
            window.edge, window.loads = edge, self._loads
            self._free(window)

    def admits(self, key: bytes, ends: int, frame: bytes) -> bool:
        """See `WindowTable`."""
        window = self._windows.get(key)
        if window is None or self._takes(window, ends) or self._has_no_room(window, ends):
            return True
        place = len(window.parked)
        while place and distance(window.parked[place - 1][0], ends) > 0:
            place -= 1
        window.parked.insert(place, (ends, frame))
        self._waiting[window] = None
        self._parked_bytes += len(frame) + PARKED_OVERHEAD_BYTES
        return False

    def _takes(self, window: _Window, end: int) -> bool:
        return window.edge is None or window.loads != self._loads or distance(end, window.edge) <= 0

    def _has_no_room(self, window: _Window, ends: int) -> bool:
        assert window.edge is not None
        if distance(ends, window.edge) > _FIELD_MAX << window.scale:
            return True  # the PVM's window, of the same scale, can't be so large either
        return len(window.parked) >= PARKED_FRAMES_MAX or self._parked_bytes >= self._parked_bytes_max

    def _free(self, window: _Window) -> None:
        while window.parked and self._takes(window, window.parked[0][0]):
            frame = window.parked.popleft()[1]
            self._parked_bytes -= len(frame) + PARKED_OVERHEAD_BYTES
            self._freed.append(frame)
        if not window.parked:
            self._waiting.pop(window, None)

    def take_freed(self) -> Packed:
        """See `WindowTable`."""
        freed, self._freed = self._freed, []
        return pack(freed)

    def give_up(self) -> None:
        """See `WindowTable`."""
        for key in list(self._windows):
            self.drop(key)

    def loaded(self) -> None:
        """See `WindowTable`."""
        for window in self._waiting:
            window.parked.clear()
        self._waiting.clear()
        self._freed.clear()
        self._parked_bytes = 0
        self._loads += 1


class ReceiveWindows:
    """Which client frames the SVM gets when."""

    def __init__(self, table: WindowTable) -> None:
        self._table = table

    def client_packed(self, packed: Packed) -> Packed:
        """Client frames for the SVM; returns those that may be fed now, `take_freed` gives the others later."""
        return pack(self.client_frames(unpack(packed)))

    def client_frames(self, frames: Sequence[bytes]) -> list[bytes]:
        """As `client_packed`."""
        return [frame for frame in frames if self._client(frame)]

    def svm_packed(self, packed: Packed) -> None:
        """The SVM has put these out."""
        self.svm_frames(unpack(packed))

    def svm_frames(self, frames: Sequence[bytes]) -> None:
        """As `svm_packed`."""
        for frame in frames:
            self._svm(frame)

    def _client(self, frame: bytes) -> bool:
        segment = parse_tcp(frame)
        if segment is None:
            return True
        key, seq, _, flags, _, start, end = segment
        if flags & (SYN | RST):
            self._client_opens_or_ends(opposite(key), frame, segment)
            return True
        return self._table.admits(opposite(key), (seq + end - start + bool(flags & FIN)) & MASK, frame)

    def _client_opens_or_ends(self, key: bytes, frame: bytes, segment: Segment) -> None:
        _, _, _, flags, at, start, _ = segment
        if flags & RST or not flags & ACK:
            self._table.drop(key)
        elif window_scale(frame, at, start) is None:
            self._table.unscale(key)

    def _svm(self, frame: bytes) -> None:
        segment = parse_tcp(frame)
        if segment is None:
            return
        key, _, ack, flags, at, start, _ = segment
        if flags & SYN:
            self._table.open(key, min(window_scale(frame, at, start) or 0, _SCALE_MAX))
        if flags & ACK:
            self._table.note(key, ack, window_field(frame, at), scaled=not flags & SYN)

    def take_freed(self) -> Packed:
        """Frames that were beyond the SVM's windows and are not any more."""
        return self._table.take_freed()

    def give_up(self) -> None:
        """At a takeover the guest answers its clients itself: all that waits is in `take_freed`."""
        self._table.give_up()

    def loaded(self) -> None:
        """The SVM is the PVM's copy, whose window is not known yet; it gets again what it has to see again."""
        self._table.loaded()
