"""The story of a packet on the primary, top to bottom (the secondary's part: `secondary`).

    client frame -> PVM, and over the peer link -> SVM                          client_frames
    PVM frame    -> held in its flow                                            pvm_frames
    SVM frame    -> compared; what the SVM has said as well leaves              svm_frames
    checkpoint   -> what is held is sealed, and leaves when it is committed     seal, commit
    different, late, or too much                                                due

Guarantees
* Output commit (rules 1 and 2): a frame leaves because its twin came in the same epoch, or because a checkpoint taken
  after it is committed, or because we hold the claim (`go_solo`). Link control (ARP and its like) alone is never held.
* What is held is never dropped. At the limits `full` asks the caller to read no more from the PVM.
* While a checkpoint is sealed and not committed nothing is compared, so nothing can be released by mistake.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Literal

from pycolo.core.datagrams import DatagramFlow
from pycolo.core.flow import Flow, StreamBudget
from pycolo.core.holding import HoldLimit
from pycolo.core.packet import (
    ACK,
    FIN,
    RST,
    SYN,
    Segment,
    datagram,
    is_link_control,
    opposite,
    parse_tcp,
    whole_frame,
)

Reason = Literal["divergence", "late", "limit"]

_EVICTION_LOOKS_MAX = 64


@dataclass(frozen=True, slots=True)
class DataplaneLimits:
    """Bounds of what the agents hold, remember and wait for."""

    hold_ms_min: float = 50
    hold_ms_max: float = 1000
    held_frames_max: int = 20_000
    held_bytes_max: int = 64 << 20
    flows_max: int = 8192
    stream_bytes_max: int = 8 << 20  # of the SVM's stream, per flow
    unreleased_bytes_max: int = 256 << 20  # of the SVM's output, all flows together
    datagrams_max: int = 1024  # of the SVM, per flow


@dataclass(frozen=True, slots=True)
class DataplaneStats:
    """Counts since the start, and what is held now."""

    released_equal: int
    released_by_checkpoint: int
    diverged: int
    held_frames: int
    held_bytes: int
    lag_ms: float
    limit_ms: float


class PrimaryDataplane:
    """Holds, compares and releases the PVM's output; `epoch` is the one whose output is compared now."""

    def __init__(self, limits: DataplaneLimits, epoch: int) -> None:
        self.epoch = epoch
        self._limits = limits
        self._hold_limit = HoldLimit(limits.hold_ms_min, limits.hold_ms_max)
        self._confirmed: deque[int] = deque(maxlen=limits.held_frames_max)
        self._now_ms = self._progress_ms = self._compared_since_ms = 0.0
        self._next_no = 0
        self._held_frames = self._held_bytes = 0
        self._released_equal = self._released_by_checkpoint = self._diverged = 0
        self._sealed: deque[tuple[int, list[bytes]]] = deque()
        self._orphans: list[tuple[int, bytes]] = []
        self._awaiting_commit = False
        self._solo = False
        self._reason: Reason | None = None
        self._asked = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._budget = StreamBudget(self._limits.stream_bytes_max, self._limits.unreleased_bytes_max)
        self._flows: OrderedDict[bytes, Flow] = OrderedDict()
        self._finished: OrderedDict[bytes, None] = OrderedDict()
        self._forgot = False  # a live connection was forgotten, so an unknown one may have any offset
        self._datagrams: dict[bytes, DatagramFlow] = {}
        self._twin_bytes = 0  # of the SVM's datagrams that wait
        self._waiting: dict[Flow | DatagramFlow, None] = {}
        self._arrivals: deque[tuple[int, float, Flow | DatagramFlow]] = deque()

    # ---------------------------------------------------------------- a client's frame

    def client_frames(self, frames: Sequence[bytes], now_ms: float) -> None:
        """Frames on their way to both VMs: what they acknowledge, and how far the client's data go."""
        self._now_ms = now_ms
        for frame in frames:
            segment = parse_tcp(frame)
            if segment is None:
                continue
            key, seq, ack, flags, start, end = segment
            key = opposite(key)
            flow = self._flows.get(key)
            if flow is not None:
                if flow.epoch != self.epoch:
                    flow.rebase(self.epoch)
                flow.observe_client(seq, ack, flags, end - start)
                if flow.pvm_fin is not None and flow.finished():
                    self._finished[key] = None

    # ---------------------------------------------------------------- a frame of the PVM

    def pvm_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """Frames the PVM has put out; returns what may leave now."""
        if self._solo:
            return list(frames)
        self._now_ms = now_ms
        out: list[bytes] = []
        for frame in frames:
            segment = parse_tcp(frame)
            if segment is not None:
                self._pvm_segment(frame, segment, now_ms, out)
            elif is_link_control(frame):
                out.append(frame)
            else:
                self._pvm_datagram(frame, *datagram(frame), out)
        return out

    def _pvm_segment(self, frame: bytes, segment: Segment, now_ms: float, out: list[bytes]) -> None:
        key, seq, ack, flags, start, end = segment
        flow = self._flow(key)
        if _opens(seq, flags):
            flow = self._pvm_opens(frame, segment, flow)
        elif flow is None:
            flow = self._admit(key)
        if flow is None:
            self._forgot = True
            self._pvm_datagram(frame, *whole_frame(frame), out)
            return
        flow.observe_pvm(seq, ack, flags, end - start)
        no = self._count(frame)
        flow.hold.append((no, now_ms, frame, seq, ack, flags, start, end))
        self._arrivals.append((no, now_ms, flow))
        self._waiting[flow] = None
        self._pump(flow, out)
        if flags & (FIN | RST) and flow.finished():
            self._finished[key] = None

    def _pvm_opens(self, frame: bytes, segment: Segment, flow: Flow | None) -> Flow | None:
        """The PVM opens or refuses a connection: the one we know of, the one the SVM has opened already, or a new one."""
        key, seq, ack, flags, start, _ = segment
        if flow is None:
            flow = self._admit(key)
        elif not flow.answers(flow.pvm_isn, seq, ack, flags):
            flow = self._succeed(key, flow, seq, ack, flags)
        elif not flow.pvm_open:
            self._orphan(flow)
        if flow is not None:
            flow.open_pvm(frame, seq, ack, flags, start)
        return flow

    def _succeed(self, key: bytes, flow: Flow, seq: int, ack: int, flags: int) -> Flow:
        self._orphan(flow)
        successor, flow.successor = flow.successor, None
        if successor is None or not successor.answers(None, seq, ack, flags):
            flow.forget()
            successor = self._new_flow(key)
        flow.forget()
        self._finished.pop(key, None)
        self._flows[key] = successor
        self._flows.move_to_end(key)
        return successor

    def _orphan(self, flow: Flow) -> None:
        """What the flow holds can't be compared any more: only a checkpoint releases it."""
        if flow.hold:
            self._orphans += [(held[0], held[2]) for held in flow.hold]
            flow.hold.clear()
            self._waiting.pop(flow, None)
            self._reason = "divergence"

    def _pvm_datagram(self, frame: bytes, key: bytes, comparable: bytes, out: list[bytes]) -> None:
        flow = self._datagrams.get(key)
        if flow is None:
            flow = self._datagrams[key] = self._new_datagram_flow(key)
        no = self._count(frame)
        flow.hold.append((no, self._now_ms, frame, comparable))
        self._arrivals.append((no, self._now_ms, flow))
        self._waiting[flow] = None
        self._pump(flow, out)

    def _count(self, frame: bytes) -> int:
        self._held_frames += 1
        self._held_bytes += len(frame)
        self._next_no += 1
        return self._next_no

    # ---------------------------------------------------------------- a frame of the SVM

    def svm_frames(self, epoch: int, first_no: int, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """Frames the SVM has put out in `epoch`, numbered from `first_no` on; returns what may leave now."""
        self._now_ms = now_ms
        if epoch != self.epoch or self._solo or not frames:
            return []
        self._progress_ms = now_ms
        out: list[bytes] = []
        for no, frame in enumerate(frames, first_no):
            segment = parse_tcp(frame)
            if segment is not None:
                self._svm_segment(frame, segment, out)
            elif not is_link_control(frame):
                self._svm_datagram(no, *datagram(frame), out)
        return out

    def _svm_segment(self, frame: bytes, segment: Segment, out: list[bytes]) -> None:
        key, seq, ack, flags, start, end = segment
        flow = self._flow(key)
        if flow is None:
            flow = self._admit(key)
            if flow is None:
                self._reach_limit()
                return
        if _opens(seq, flags):
            flow = self._svm_opens(frame, segment, flow)
        elif flow.successor is not None:
            flow = flow.successor
        if not flow.observe_svm(frame, seq, ack, flags, start, end):
            self._reach_limit()
        if flow.hold:
            self._pump(flow, out)

    def _svm_opens(self, frame: bytes, segment: Segment, flow: Flow) -> Flow:
        """The SVM opens or refuses a connection: the PVM's present one, or one that the PVM will come to."""
        key, seq, ack, flags, start, _ = segment
        successor = flow.successor
        if flow.answers(flow.svm_isn, seq, ack, flags) or flow.pvm_next is None and not flow.svm_open:
            mine = flow
        elif successor is not None and successor.answers(successor.svm_isn, seq, ack, flags):
            mine = successor
        else:
            if successor is not None:
                successor.forget()
            mine = flow.successor = self._new_flow(key)
        mine.open_svm(frame, seq, ack, flags, start)
        return mine

    def _svm_datagram(self, no: int, key: bytes, comparable: bytes, out: list[bytes]) -> None:
        flow = self._datagrams.get(key)
        if flow is None:
            if len(self._datagrams) >= self._limits.flows_max:
                self._reach_limit()
                return
            flow = self._datagrams[key] = self._new_datagram_flow(key)
        if self._twin_bytes >= self._limits.unreleased_bytes_max or not flow.observe_svm(no, comparable):
            self._reach_limit()
            return
        self._twin_bytes += len(comparable)
        self._pump(flow, out)
