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

from collections import deque
from collections.abc import Sequence
from typing import Literal

from pycolo.core.compare_policy import CHECKPOINT, COMPARE, RELEASE
from pycolo.core.compare_terms import DEFAULT_TERMS, CompareTerms
from pycolo.core.datagrams import DatagramFlow
from pycolo.core.divergence import Divergence, divergence
from pycolo.core.explain import explain
from pycolo.core.flow import Flow
from pycolo.core.flow_table import FlowTable
from pycolo.core.fragments import Reassembly
from pycolo.core.holding import TwinBudget
from pycolo.core.lateness import Lateness
from pycolo.core.layers import Layers, locate
from pycolo.core.limits import DataplaneLimits, DataplaneStats
from pycolo.core.messages import Message, message, policy_of, stray_reset, whole_frame
from pycolo.core.packed import PackedBatches
from pycolo.core.packet import ACK, RST, SYN, Segment, opens, opposite, parse_tcp
from pycolo.core.pieces import Assembled, FragmentHold, in_pieces

Reason = Literal["divergence", "policy", "late", "limit"]
AnyFlow = Flow | DatagramFlow | FragmentHold

DIVERGENCES_MAX = 64


class PrimaryDataplane(PackedBatches):
    """Holds, compares and releases the PVM's output; `epoch` is the one whose output is compared now."""

    def __init__(self, limits: DataplaneLimits, epoch: int, terms: CompareTerms = DEFAULT_TERMS) -> None:
        self.epoch = epoch
        self._limits, self._terms, self._policy = limits, terms, terms.policy
        self._lateness: Lateness[AnyFlow] = Lateness(limits)
        self._confirmed: deque[int] = deque(maxlen=limits.held_frames_max)
        self._now_ms = 0.0
        self._next_no = 0
        self._held_frames = self._held_bytes = 0
        self._released_equal = self._released_by_checkpoint = self._released_by_policy = self._diverged = 0
        self._sealed: deque[tuple[int, list[bytes]]] = deque()
        self._orphans: list[tuple[int, bytes]] = []
        self._awaiting_commit = self._solo = self._asked = False
        self._reason: Reason | None = None
        self._divergences: deque[Divergence] = deque(maxlen=DIVERGENCES_MAX)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._budget = TwinBudget(self._limits.stream_bytes_max, self._limits.unreleased_bytes_max)
        self._table = self._new_table()
        self._datagrams: dict[bytes, DatagramFlow] = {}
        self._pieces = FragmentHold()
        self._svm_pieces: Reassembly[tuple[int, bytes]] = Reassembly()
        self._also: dict[int, list[int]] = {}  # numbers of the SVM's fragments before the last one of their packet
        self._waiting: dict[AnyFlow, None] = {}
        self._lateness.forget()

    # ---------------------------------------------------------------- a client's frame

    def client_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """Frames on their way to both VMs; returns what may leave now: of connections that a client has reset."""
        self._now_ms = now_ms
        out: list[bytes] = []
        for frame in frames:
            self._client_frame(parse_tcp(frame), out)
        return out

    def _client_frame(self, segment: Segment | None, out: list[bytes]) -> None:
        if segment is None:
            return
        key, seq, ack, flags, _, start, end = segment
        flow = self._table.get(opposite(key), self._now_ms)
        if flow is not None:
            flow.observe_client(seq, ack, flags, end - start)
            self._table.note_client(flow)
            self._table.note_end(flow)
            if flow.client_gone:
                self._pump(flow, out)
            elif flow.difference is not None:
                self._note_divergence(flow)

    # ---------------------------------------------------------------- a frame of the PVM

    def pvm_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """Frames the PVM has put out; returns what may leave now."""
        if self._solo:
            return list(frames)
        self._now_ms = now_ms
        out: list[bytes] = []
        for frame in frames:
            self._pvm_frame(frame, parse_tcp(frame), out)
        return out

    def _pvm_frame(self, frame: bytes, segment: Segment | None, out: list[bytes]) -> None:
        if segment is not None:
            self._pvm_segment(frame, segment, out)
            return
        layers = locate(frame)
        if layers is not None and layers.fragment is not None:
            self._pvm_fragment(frame, layers, out)
            return
        said = message(frame, layers)
        if said is None:
            out.append(frame)
            self._next_no += 1
        else:
            self._pvm_message(frame, said, out)

    def _pvm_segment(self, frame: bytes, segment: Segment, out: list[bytes]) -> None:
        key, seq, ack, flags, at, start, end = segment
        flow = self._table.get(key, self._now_ms)
        if opens(seq, flags):
            flow = self._pvm_opens(frame, segment, flow)
        elif flow is None:
            if flags & RST:
                self._pvm_message(frame, stray_reset(segment), out)
                return
            flow = self._admit(key)
        if flow is None:
            self._table.forgot = True
            self._pvm_message(frame, whole_frame(frame), out)
            return
        flow.observe_pvm(seq, ack, flags, end - start)
        flow.hold.append((self._next_no, self._now_ms, frame, seq, ack, flags, at, start, end))
        self._count(frame, flow)
        if not flow.compared:
            self._leave_to_checkpoint(flow)
        self._pump(flow, out)

    def _leave_to_checkpoint(self, flow: Flow | DatagramFlow) -> None:
        flow.diverged = True
        self._reason = self._reason or "policy"

    def _pvm_opens(self, frame: bytes, segment: Segment, flow: Flow | None) -> Flow | None:
        """The PVM opens or refuses a connection: the known one, the one the SVM has opened already, or a new one."""
        key, seq, ack, flags, *_ = segment
        if flow is None:
            flow = self._table.admit(key, self._now_ms)
        elif not flow.answers(flow.pvm_isn, seq, ack, flags):
            flow = self._succeed(flow, seq, ack, flags)
        elif not flow.pvm_open:
            self._orphan(flow)
        if flow is not None:
            flow.open_pvm(frame, segment)
            if flags & (SYN | ACK) == SYN | ACK:
                self._table.note_half_open(flow)
        return flow

    def _succeed(self, flow: Flow, seq: int, ack: int, flags: int) -> Flow:
        self._orphan(flow)
        successor = flow.successor
        if successor is not None and successor.answers(None, seq, ack, flags):
            flow.successor = None
        else:
            successor = self._table.new(flow.key)
        self._table.replace(flow, successor)
        return successor

    def _orphan(self, flow: Flow) -> None:
        """What the flow holds can't be compared any more: only a checkpoint releases it."""
        if flow.hold:
            self._orphans += [(held[0], held[2]) for held in flow.hold]
            flow.hold.clear()
            self._waiting.pop(flow, None)
            self._reason = "divergence"

    def _pvm_message(self, frame: bytes, said: Message, out: list[bytes]) -> None:
        key, comparable, payload_at = said
        verdict = self._policy.verdict(*policy_of(key))
        if verdict == RELEASE:
            out += in_pieces([frame])
            self._next_no += 1
            self._released_by_policy += 1
            return
        flow = self._datagrams.get(key)
        if flow is None:
            flow = self._datagrams[key] = self._new_datagram_flow(key)
        flow.hold.append((self._next_no, self._now_ms, frame, comparable, payload_at))
        self._count(frame, flow)
        if verdict == CHECKPOINT:
            self._leave_to_checkpoint(flow)
        self._pump(flow, out)

    def _pvm_fragment(self, frame: bytes, layers: Layers, out: list[bytes]) -> None:
        """It waits for the rest of its packet; what comes of it is a frame like any other, and counted already."""
        packets = self._pieces.add(self._next_no, self._now_ms, frame, layers)
        self._count(frame, self._pieces)
        for packet in packets:
            self._uncount(in_pieces([packet]))
            self._next_no -= isinstance(packet, Assembled)  # it goes by the number of its last piece
            segment = parse_tcp(packet)
            if segment is not None:
                self._pvm_segment(packet, segment, out)
                continue
            said = message(packet, locate(packet))
            self._pvm_message(packet, whole_frame(packet) if said is None else said, out)
        if not self._pieces.hold:
            self._waiting.pop(self._pieces, None)

    def _count(self, frame: bytes, flow: AnyFlow) -> None:
        """A frame has gone into the flow's hold."""
        pieces = in_pieces([frame])
        self._held_frames += len(pieces)
        self._held_bytes += sum(map(len, pieces))
        self._lateness.arrived(self._next_no, self._now_ms, flow, self._held_frames)
        self._next_no += 1
        self._waiting[flow] = None

    # ---------------------------------------------------------------- a frame of the SVM

    def svm_frames(self, epoch: int, first_no: int, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """Frames the SVM has put out in `epoch`, numbered from `first_no` on; returns what may leave now."""
        self._now_ms = now_ms
        if epoch != self.epoch or self._solo or not frames:
            return []
        self._lateness.progress(now_ms)
        out: list[bytes] = []
        for no, frame in enumerate(frames, first_no):
            self._svm_frame(no, frame, parse_tcp(frame), out)
        return out

    def _svm_frame(self, no: int, frame: bytes, segment: Segment | None, out: list[bytes]) -> None:
        if segment is not None:
            self._svm_segment(no, frame, segment, out)
            return
        layers = locate(frame)
        if layers is not None and layers.fragment is not None:
            self._svm_fragment(no, frame, layers, out)
            return
        said = message(frame, layers)
        if said is not None:
            self._svm_message(no, said, out)

    def _svm_segment(self, no: int, frame: bytes, segment: Segment, out: list[bytes]) -> None:
        key, seq, _, flags, *_ = segment
        flow = self._table.get(key, self._now_ms)
        if flow is None:
            if flags & RST and not opens(seq, flags):
                self._svm_message(no, stray_reset(segment), out)
                return
            flow = self._table.admit(key, self._now_ms) if opens(seq, flags) else self._admit(key)
            if flow is None:
                self._reach_limit()
                return
        if opens(seq, flags):
            flow = self._table.svm_opens(frame, segment, flow)
        elif flow.successor is not None:
            flow = flow.successor
        if not flow.compared:
            return
        if not flow.observe_svm(frame, segment):
            self._reach_limit()
        if flow.difference is not None:
            self._note_divergence(flow)
        if flow.hold:
            self._pump(flow, out)

    def _svm_message(self, no: int, said: Message, out: list[bytes]) -> None:
        key, comparable, _ = said
        if self._policy.verdict(*policy_of(key)) != COMPARE:
            return
        flow = self._datagrams.get(key)
        if flow is None:
            if len(self._datagrams) >= self._limits.flows_max:
                self._reach_limit()
                return
            flow = self._datagrams[key] = self._new_datagram_flow(key)
        if not flow.observe_svm(no, comparable):
            self._reach_limit()
        self._pump(flow, out)

    def _svm_fragment(self, no: int, frame: bytes, layers: Layers, out: list[bytes]) -> None:
        whole = self._svm_pieces.add((no, frame), frame, layers)
        if whole is not None:
            segment = parse_tcp(whole.frame)
            if segment is not None:
                self._svm_segment(no, whole.frame, segment, out)
            else:
                self._also[no] = [ticket[0] for ticket in whole.tickets if ticket[0] != no]
                said = message(whole.frame, locate(whole.frame))
                self._svm_message(no, whole_frame(whole.frame) if said is None else said, out)
        while (hopeless := self._svm_pieces.over_limit()) is not None:
            for number, each in hopeless.tickets:
                self._svm_message(number, whole_frame(each), out)

    # ---------------------------------------------------------------- what leaves because it is equal

    def _pump(self, flow: Flow | DatagramFlow, out: list[bytes]) -> None:
        """Release what the twins allow."""
        if not flow.hold or flow.diverged or self._awaiting_commit:
            return
        before, arrived_ms = len(out), flow.hold[0][1]
        if flow.release(out):
            self._note_divergence(flow)
        if len(out) > before:
            self._lateness.released(arrived_ms, self._now_ms)
            out[before:] = released = in_pieces(out[before:])
            self._released_equal += len(released)
            self._uncount(released)
        if not flow.hold:
            self._waiting.pop(flow, None)
            if isinstance(flow, Flow):
                self._table.note_end(flow)
            elif not flow.twins and not flow.diverged:
                del self._datagrams[flow.key]

    def _note_divergence(self, flow: Flow | DatagramFlow) -> None:
        self._diverged += 1
        self._reason = "divergence"
        pvm_no = flow.hold[0][0] if flow.hold else None
        self._divergences.append(divergence(flow.name, explain(flow), pvm_no, flow.svm_no))
        flow.difference = None

    def _uncount(self, frames: Sequence[bytes]) -> None:
        self._held_frames -= len(frames)
        self._held_bytes -= sum(map(len, frames))

    # ---------------------------------------------------------------- checkpoints

    def seal(self, epoch_next: int) -> int:
        """The PVM is stopped and drained: all that is held belongs to the past of `epoch_next`; returns its number.

        It waits for `commit`. The SVM's side of every flow is void: at the start of `epoch_next` the SVM is the PVM's
        copy. Flows that hold nothing are set right when they are next used, so that the pause stays short.
        """
        assert epoch_next > self.epoch, "an epoch number is never used twice"
        sealed = self._take_held()
        flows = [flow for flow in self._waiting if isinstance(flow, Flow)]
        for flow in flows:
            flow.rebase(epoch_next, self._now_ms)
        self._table.note_ends(flows)
        self._forget_waiting()
        self._sealed.append((epoch_next, sealed))
        self.epoch = epoch_next
        self._table.begin_epoch(epoch_next)
        self._awaiting_commit, self._solo = True, False
        self._asked, self._reason = False, None
        return len(sealed)

    def commit(self, epoch: int, now_ms: float | None = None) -> list[bytes]:
        """The start of `epoch` is committed on the secondary: returns what was sealed by then, in order.

        If that is the newest seal, comparison begins again, and what the PVM has produced since may leave as well.
        """
        out = self._take_sealed(epoch)
        self._released_by_checkpoint += len(out)
        self._uncount(out)
        if epoch >= self.epoch and self._awaiting_commit:
            self._awaiting_commit = False
            self._now_ms = self._now_ms if now_ms is None else now_ms
            self._lateness.compare_from(self._now_ms)
            self._table.tidy(self._now_ms)
            self._pump_waiting(out)
        return out

    def _pump_waiting(self, out: list[bytes]) -> None:
        """Comparison begins again: look at every flow that holds something, the one that does so longest first."""
        for flow in sorted(self._waiting, key=lambda flow: flow.hold[0][0]):
            if not isinstance(flow, FragmentHold):
                self._pump(flow, out)

    def hold_until_commit(self) -> None:
        """Nothing is compared until a checkpoint that is sealed from now on is committed."""
        self._awaiting_commit = True

    def go_solo(self) -> list[bytes]:
        """We hold the claim: everything held leaves, in order; from now on (until the next `seal`) nothing is held."""
        out = self._take_sealed(self.epoch)
        out += self._take_held()
        self._solo, self._awaiting_commit = True, False
        self._held_frames = self._held_bytes = 0
        self._asked, self._reason = False, None
        self._start_afresh()
        return out

    def _take_held(self) -> list[bytes]:
        """Everything held and not sealed, in the order in which the PVM produced it; the flows keep theirs."""
        held = [(entry[0], entry[2]) for flow in self._waiting for entry in flow.hold]
        held += self._orphans
        self._orphans = []
        return in_pieces([frame for _, frame in sorted(held)])

    def _take_sealed(self, epoch: int) -> list[bytes]:
        out: list[bytes] = []
        while self._sealed and self._sealed[0][0] <= epoch:
            out += self._sealed.popleft()[1]
        return out

    def _forget_waiting(self) -> None:
        for flow in self._datagrams.values():
            flow.forget()
        self._datagrams.clear()
        self._pieces.forget()
        self._svm_pieces.give_up()
        self._also.clear()
        self._waiting.clear()
        self._lateness.forget()

    # ---------------------------------------------------------------- when a checkpoint is needed

    def due(self, now_ms: float) -> Reason | None:
        """Why a checkpoint is needed, or None; said once, and not again before the next seal."""
        if self._asked or self._awaiting_commit or self._solo:
            return None
        self._now_ms = max(now_ms, self._now_ms)
        reason = self._reason
        if reason is None and self.full:
            reason = "limit"
        if reason is None and self._lateness.is_late(now_ms):
            reason = "late"
        self._asked = reason is not None
        return reason

    def next_due_ms(self, now_ms: float) -> float | None:
        """When `due` should be asked at the latest, None while nothing waits."""
        if self._asked or self._awaiting_commit or self._solo:
            return None
        if self._reason is not None or self.full:
            return now_ms
        return self._lateness.late_at_ms()

    def _reach_limit(self) -> None:
        self._reason = self._reason or "limit"

    # ---------------------------------------------------------------- what the caller may ask

    @property
    def next_frame(self) -> int:
        """The number that the PVM's next frame gets, counted from 1 as in `Divergence`."""
        return self._next_no + 1

    @property
    def full(self) -> bool:
        """The limits of what may be held are reached: read no more from the PVM. Draining it for a seal is fine."""
        limits = self._limits
        return self._held_frames >= limits.held_frames_max or self._held_bytes >= limits.held_bytes_max

    @property
    def stats(self) -> DataplaneStats:
        """Counts since the start, and what is held now."""
        return DataplaneStats(
            released_equal=self._released_equal,
            released_by_checkpoint=self._released_by_checkpoint,
            released_by_policy=self._released_by_policy,
            diverged=self._diverged,
            held_frames=self._held_frames,
            held_bytes=self._held_bytes,
            lag_ms=self._lateness.limit.lag_ms,
            limit_ms=self._lateness.limit.limit_ms,
            flows=len(self._table),
        )

    def take_divergences(self) -> list[Divergence]:
        """Why outputs differed since the last call, at most DIVERGENCES_MAX."""
        taken = list(self._divergences)
        self._divergences.clear()
        return taken

    def take_confirmations(self) -> list[int]:
        """Numbers of the SVM's datagrams (not TCP) whose twin has left, since the last call."""
        confirmed = list(self._confirmed)
        self._confirmed.clear()
        if self._also:
            confirmed += [other for no in confirmed for other in self._also.pop(no, ())]
        return confirmed

    # ---------------------------------------------------------------- flows

    def _new_table(self) -> FlowTable:
        return FlowTable(self._limits.flows_max, self.epoch, self._budget, self._terms)

    def _new_datagram_flow(self, key: bytes) -> DatagramFlow:
        return DatagramFlow(key, self._limits.datagrams_max, self._budget, self._confirmed)

    def _admit(self, key: bytes) -> Flow | None:
        """A connection that began before we looked, in the table; None when all of that holds something."""
        flow = self._table.admit(key, self._now_ms)
        if flow is not None and self._table.forgot:
            flow.diverged = True  # its offset may be one that we have forgotten
            self._reach_limit()
        return flow
