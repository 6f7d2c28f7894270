"""One TCP connection on the primary: what the PVM wants to send waits until the SVM has said the same.

Guarantees
* `release` lets a segment go only when the SVM has produced its payload at the same place of the stream, its SYN, FIN
  or RST as well, and has acknowledged at least as much (rules 1 and 2; the exceptions at the end of a connection are
  in `flow_end`). Segments leave in the order in which the PVM produced them.
* Once the client has reset the connection all leaves: nobody is there to hear it (`flow_end`).
* One `Flow` is one connection, never two that happen to use the same ports one after the other.

Names: `pvm_*` is what the PVM has produced, in its sequence numbers; `svm_*` what the SVM has, in its own, which are
`delta` ahead. After a checkpoint the SVM is the PVM's copy: `rebase` puts the PVM's side in the place of the SVM's.
What the client can't tell apart is ignored: IP id, TTL, window, timestamps, PSH, and SACK (advice that may be taken
back, RFC 2018, 8: a client keeps the bytes until they are acknowledged).
"""

from __future__ import annotations

from collections import deque

from pycolo.core.compare_policy import COMPARE
from pycolo.core.compare_terms import CompareTerms
from pycolo.core.divergence import Difference
from pycolo.core.flow_end import acknowledged, comes_back, is_the_clients, judge_fin, judge_reset
from pycolo.core.flow_past import pvm_stream
from pycolo.core.holding import TwinBudget
from pycolo.core.layers import TCP
from pycolo.core.packet import (
    ACK,
    FIN,
    HALF,
    MASK,
    ODD,
    RST,
    SYN,
    TCP_FLOW,
    URG,
    Segment,
    distance,
    odd_terms,
    source_port,
    syn_terms,
)
from pycolo.core.tolerance_rules import ToleranceBySeq
from pycolo.core.twin_stream import (
    DIVERGED,
    RELEASE,
    TRIM_BYTES,
    TRIM_BYTES_FOLLOWED,
    WAIT,
    Added,
    TwinStream,
    TwinTerms,
    Verdict,
)

Held = tuple[int, float, bytes, int, int, int, int, int, int]
"""A held segment: number, arrival in ms, frame, seq, ack, flags, header's, payload's start, payload end."""

_WINDOW_MAX = 1 << 30  # RFC 7323, 2.3: no peer is further ahead than this
_EVENTS = SYN | FIN | RST | URG | ODD
_CAPTURED_BYTES_MAX = 1 << 20


class Flow:
    """One connection; see the module docstring."""

    __slots__ = (
        "_terms",
        "acked",
        "budget",
        "captured",
        "client_fin",
        "client_gone",
        "client_isn",
        "client_next",
        "compared",
        "delta",
        "difference",
        "diverged",
        "epoch",
        "guest_opened",
        "hold",
        "key",
        "left_ack",
        "left_unsaid",
        "pvm_ack",
        "pvm_fin",
        "pvm_first",
        "pvm_isn",
        "pvm_next",
        "pvm_open",
        "pvm_rst",
        "pvm_syn",
        "released",
        "successor",
        "svm_ack",
        "svm_fin",
        "svm_isn",
        "svm_odd",
        "svm_open",
        "svm_rst",
        "svm_syn",
        "tolerance",
        "tolerated",
        "touched_ms",
        "trim_bytes",
        "twin",
    )

    def __init__(self, key: bytes, epoch: int, budget: TwinBudget, terms: CompareTerms) -> None:
        self.key = key  # as in `packet.Segment`, with the guest as the source
        self.epoch = epoch
        self.touched_ms = 0.0  # when it was first used in this epoch
        self.hold: deque[Held] = deque()
        self.diverged = False
        self.difference: Difference | None = None  # why, until somebody takes it
        self.successor: Flow | None = None  # the next connection on the same ports: the SVM has opened it, the PVM not
        self.budget, self._terms, self.captured = budget, terms, terms.captured
        self.compared = terms.policy.verdict(TCP, source_port(key)) == COMPARE
        self.tolerance: ToleranceBySeq | None = None  # follows what the PVM has released; None: no rule holds here
        self.trim_bytes = TRIM_BYTES  # the same for as long as the connection lives, on the compiled side as well
        # Identity: the client's ISN, or that the guest opened it. Neither: it began before we looked.
        self.client_isn: int | None = None
        self.guest_opened = False
        self.pvm_open = self.svm_open = False  # has this side been seen to open (or refuse) just this connection?
        self.pvm_isn: int | None = None
        self.pvm_syn = b""
        self.pvm_first: int | None = None  # the place of its first byte that we have seen
        self.pvm_next: int | None = None
        self.pvm_ack: int | None = None
        self.pvm_fin: int | None = None  # the sequence number of the FIN itself
        self.pvm_rst = False
        self.released: int | None = None  # all before this has left
        self.acked: int | None = None  # the client has acknowledged all before this, in the PVM's numbers
        self.client_next: int | None = None  # end of the client's data
        self.client_fin: int | None = None
        self.client_gone = False  # it has reset the connection
        self.left_unsaid = False  # since then something has left that the SVM has not said
        self.left_ack: int | None = None  # what the last segment that has left acknowledges
        self.delta: int | None = 0
        self.svm_isn: int | None = None
        self.svm_syn = b""
        self.twin = TwinStream(budget)
        self.tolerated: dict[int, bytes] = {}  # what the PVM said instead, at which of the SVM's sequence numbers
        self.svm_odd = TwinTerms()
        self.svm_ack: int | None = None
        self.svm_fin: int | None = None
        self.svm_rst = False

    svm_no = None  # the numbers of the SVM's segments are not kept

    @property
    def name(self) -> bytes:
        """As `divergence.flow_of` reads it."""
        return TCP_FLOW + self.key

    # ---------------------------------------------------------------- identity

    def answers(self, own_isn: int | None, seq: int, ack: int, flags: int) -> bool:
        """Whether a guest's opening segment belongs to this connection; `own_isn` is that side's ISN if known."""
        if flags & SYN and own_isn is not None:
            return seq == own_isn
        if flags & ACK:
            return self.client_isn == (ack - 1) & MASK
        return self.guest_opened

    def _identify(self, ack: int, flags: int) -> None:
        if self.pvm_open or self.svm_open:
            return
        if flags & ACK:
            self.client_isn = (ack - 1) & MASK
        else:
            self.guest_opened = True

    def open_pvm(self, frame: bytes, segment: Segment) -> None:
        """The PVM opens (SYN, SYN-ACK) or refuses (RST that answers a SYN) this connection."""
        _, seq, ack, flags, at, start, _ = segment
        self._identify(ack, flags)
        if not self.pvm_open:  # what it said so far was said in an older connection
            self.pvm_open, self.diverged = True, False
            self.client_gone, self.left_unsaid, self.left_ack = False, False, None
            self.pvm_next = self.pvm_ack = self.pvm_fin = self.released = self.acked = self.client_fin = None
            self.client_next = ack if flags & ACK else None
        if flags & SYN:
            self.pvm_isn, self.pvm_syn = seq, syn_terms(frame, flags, at, start)
            first = (seq + 1) & MASK
            if self.pvm_first != first:
                self.tolerance = self._terms.tolerances.for_stream(source_port(self.key), first)
                self.trim_bytes = TRIM_BYTES if self.tolerance is None else TRIM_BYTES_FOLLOWED
            self.pvm_first = first
            if self.acked is None:
                self.acked = self.pvm_first  # there is nothing before
            self._align()

    def open_svm(self, frame: bytes, segment: Segment) -> None:
        """The SVM does."""
        _, seq, ack, flags, at, start, _ = segment
        self._identify(ack, flags)
        if not self.svm_open:  # as above
            self.svm_open, self.diverged = True, False
            self.client_gone, self.left_unsaid, self.left_ack = False, False, None
            self.svm_ack = self.svm_fin = None
            self._set_stream(None, bytearray())
        if flags & SYN:
            self.svm_syn = syn_terms(frame, flags, at, start)
            if self.svm_isn is None:
                self._set_stream((seq + 1) & MASK, bytearray())
            self.svm_isn = seq
            self._align()

    def _align(self) -> None:
        if self.pvm_isn is None or self.svm_isn is None:
            self.delta = None
        else:
            self.delta = (self.svm_isn - self.pvm_isn) & MASK

    # ---------------------------------------------------------------- what arrives

    def observe_client(self, seq: int, ack: int, flags: int, length: int) -> None:
        """A segment of the client passes on its way to both VMs. A forged one can only make us wait longer."""
        if flags & RST:
            self.client_gone |= is_the_clients(self, seq)
        if flags & RST or flags & (SYN | ACK) == SYN:
            return
        if self.client_gone:
            comes_back(self)
        end = (seq + length + bool(flags & SYN)) & MASK
        if self.pvm_ack is None or distance(end, self.pvm_ack) < _WINDOW_MAX:
            if self.client_next is None or distance(end, self.client_next) > 0:
                self.client_next = end
            if flags & FIN:
                self.client_fin = end
        known = self.pvm_next if self.captured else self.released
        if not flags & ACK or known is None or distance(known, ack) < 0:
            return
        if self.acked is None or distance(ack, self.acked) > 0:
            self.acked = ack
            if self.delta is not None:
                self._trim((ack + self.delta) & MASK)

    def observe_pvm(self, seq: int, ack: int, flags: int, length: int) -> None:
        """The PVM has produced a segment, which goes into `hold`."""
        self.pvm_rst = flags & RST != 0
        if flags & ACK and (self.pvm_ack is None or distance(ack, self.pvm_ack) > 0):
            self.pvm_ack = ack
        if flags & RST:
            return
        if self.pvm_first is None:
            self.pvm_first = seq
        end = (seq + length) & MASK
        if flags & (SYN | FIN):
            if flags & FIN:
                self.pvm_fin = (end + bool(flags & SYN)) & MASK
            end = (end + bool(flags & SYN) + bool(flags & FIN)) & MASK
        if self.pvm_next is None or distance(end, self.pvm_next) > 0:
            self.pvm_next = end

    def observe_svm(self, frame: bytes, segment: Segment) -> bool:
        """The SVM has produced a segment; False when there is no room for its payload."""
        _, seq, ack, flags, at, start, end = segment
        if self.pvm_open and not self.svm_open:
            return True  # it still speaks of the connection before this one
        self.svm_rst = flags & RST != 0
        if flags & ACK and (self.svm_ack is None or distance(ack, self.svm_ack) > 0):
            self.svm_ack = ack
        if flags & (ODD | URG) and not flags & SYN:
            self.svm_odd.add(seq, end - start, odd_terms(frame, flags, at, start))
        if flags & RST:
            return True
        if flags & SYN:
            seq = (seq + 1) & MASK
        self.twin.reach(seq)
        if flags & FIN:
            self.svm_fin = (seq + end - start) & MASK
        return start == end or self._svm_payload(seq, frame[start:end])

    def _svm_payload(self, seq: int, payload: bytes) -> bool:
        end = (seq + len(payload)) & MASK
        if self.svm_fin is not None and distance(end, self.svm_fin) > 0:
            return True  # nothing stands behind a FIN
        if (
            not self.captured
            and self.acked is not None
            and self.delta is not None
            and distance((self.acked + self.delta) & MASK, end) >= 0
        ):
            return True  # the client has it: a keep-alive, which may be any byte (RFC 1122, 4.2.3.6)
        added = self.twin.add(seq, payload)
        if added == Added.CONTRADICTS and not self.diverged:
            place, before = self.twin.first_difference(seq, payload)
            self.diverged = True
            self.difference = Difference("contradiction", self.offset(seq, place), before, payload[place:])
        return added != Added.NO_ROOM

    def offset(self, svm_seq: int, place: int) -> int | None:
        """Of a place in the SVM's numbers: bytes since the first that the PVM was seen to say."""
        if self.pvm_first is None or self.delta is None:
            return None
        return distance((svm_seq + place) & MASK, (self.pvm_first + self.delta) & MASK)

    def _set_stream(self, base: int | None, stream: bytearray) -> None:
        self.twin.set(base, stream, guessed=base is None)
        self.tolerated.clear()
        self.svm_odd.clear()

    def _trim(self, to: int) -> None:
        """Forget what the client has acknowledged, and by that what has been released."""
        often = self.tolerated or self.budget.crowded
        if self.twin.trim(to, TRIM_BYTES if often else self.trim_bytes) and self.tolerated:
            base = self.twin.base or 0
            self.tolerated = {at: said for at, said in self.tolerated.items() if distance(at, base) >= 0}

    # ---------------------------------------------------------------- what leaves

    def release(self, out: list[bytes]) -> bool:
        """Move what may leave from `hold` to `out`; True when the flow has diverged."""
        hold = self.hold
        while hold:
            verdict = self._judge(hold[0])
            if self.client_gone:
                self.left_unsaid |= verdict != RELEASE
            elif verdict != RELEASE:
                if verdict == DIVERGED:
                    self.diverged = True
                break
            _, _, frame, seq, ack, flags, _, start, end = hold.popleft()
            out.append(frame)
            self.left_ack = ack if flags & ACK else self.left_ack
            self._follow(seq, frame, flags, start, end)
            if not flags & RST:
                length = end - start + bool(flags & SYN) + bool(flags & FIN)
                self._note_released((seq + length) & MASK)
        return self.diverged

    def _follow(self, seq: int, frame: bytes, flags: int, start: int, end: int) -> None:
        """Tell the tolerance what leaves, as the PVM has said it."""
        if self.tolerance is None or start == end or flags & RST:
            return
        self.tolerance.advance((seq + bool(flags & SYN)) & MASK, frame[start:end])
        if self.tolerance.lost:
            self.tolerance = None

    def _note_released(self, end: int) -> None:
        if self.released is None or (end - self.released) & MASK < HALF:
            self.released = end
        if self.captured and self.delta is not None and len(self.twin.main) > _CAPTURED_BYTES_MAX:
            self._trim((self.released + self.delta - _CAPTURED_BYTES_MAX // 2) & MASK)

    def _judge(self, held: Held) -> Verdict:
        _, _, frame, seq, ack, flags, _, start, end = held
        if self.pvm_open != self.svm_open:
            return WAIT
        if flags & _EVENTS:
            return self._judge_event(held)
        if start != end:
            verdict = self._judge_payload(seq, frame, start, end)
            if verdict != RELEASE:
                return verdict
        return RELEASE if not flags & ACK or acknowledged(self, ack) else WAIT

    def _judge_event(self, held: Held) -> Verdict:
        """A segment with SYN, FIN, RST, urgent data, or an option that we don't know."""
        _, _, frame, seq, ack, flags, at, start, end = held
        first = (seq + bool(flags & SYN)) & MASK
        verdicts = []
        if flags & SYN:
            verdicts.append(self._judge_syn(syn_terms(frame, flags, at, start)))
        elif flags & (URG | ODD):
            verdicts.append(self._judge_odd(seq, end - start, odd_terms(frame, flags, at, start)))
        if start != end:
            verdicts.append(self._judge_payload(first, frame, start, end))
        if flags & FIN:
            verdicts.append(judge_fin(self, (first + end - start) & MASK))
        if flags & RST:
            verdicts.append(judge_reset(self, ack, flags))
        elif flags & ACK and not acknowledged(self, ack):
            verdicts.append(WAIT)
        if DIVERGED in verdicts:
            return DIVERGED
        return WAIT if WAIT in verdicts else RELEASE

    @property
    def otherwise(self) -> Verdict:
        """The SVM has done something else by now. A capture may still tell of more than it seems to be about."""
        return WAIT if self.captured else DIVERGED

    def _judge_syn(self, terms: bytes) -> Verdict:
        if not self.svm_syn:
            return self.otherwise if self.svm_rst else WAIT  # refused there, accepted here
        return RELEASE if terms == self.svm_syn else self.otherwise

    def _judge_odd(self, seq: int, length: int, terms: bytes) -> Verdict:
        """Options and urgent data; see `TwinTerms.judge`."""
        return WAIT if self.delta is None else self.svm_odd.judge((seq + self.delta) & MASK, length, terms)

    def _judge_payload(self, seq: int, frame: bytes, start: int, end: int) -> Verdict:
        """Compare with the SVM's stream at the same place.

        What the client has acknowledged counts as compared: only released bytes can be acknowledged, so it left at this
        very place under rule 1 before, and a client ignores it.
        """
        if self.acked is not None:
            below = ((self.acked - seq + HALF) & MASK) - HALF
            if below > 0 and (not self.captured or (below == 1 and end - start == 1)):
                if below >= end - start:
                    return RELEASE
                seq, start = seq + below, start + below
        if self.delta is None:
            return WAIT
        payload, place = frame[start:end], (seq + self.delta) & MASK
        verdict = self.twin.judge(place, payload)
        if verdict == RELEASE:
            return RELEASE
        return self._judge_other(place, payload, verdict)

    def _judge_other(self, place: int, payload: bytes, verdict: Verdict) -> Verdict:
        """The SVM has not said just that: wait, unless it can't come to be equal any more."""
        twin = self.twin
        if self.tolerance is not None and verdict == DIVERGED and self.delta is not None:
            theirs = twin.said(place, len(payload))
            if len(theirs) == len(payload):
                if self.tolerance.tolerates((place - self.delta) & MASK, payload, theirs):
                    self.tolerated[place] = payload
                    return RELEASE
                return DIVERGED
            verdict = WAIT
        if verdict == DIVERGED:
            return DIVERGED
        end = (place + len(payload)) & MASK
        if self.captured and not twin.guessed and twin.base is not None and distance(twin.base, end) >= 0:
            return RELEASE  # compared before, and forgotten
        if self.svm_rst or (self.svm_fin is not None and distance(end, self.svm_fin) > 0):
            return self.otherwise
        return WAIT

    # ---------------------------------------------------------------- epochs

    def rebase(self, epoch: int, now_ms: float = 0.0) -> None:
        """The SVM becomes a copy of the PVM as it is now: all it has sent, held or released, is the SVM's past."""
        base, stream = pvm_stream(self)
        self._set_stream(base, stream)
        for _, _, frame, seq, _, flags, _, start, end in self.hold:
            self._follow(seq, frame, flags, start, end)
        self.hold.clear()
        self.epoch, self.diverged, self.successor, self.delta = epoch, False, None, 0
        self.difference, self.touched_ms = None, now_ms
        self.rebase_identity()
        self.svm_ack, self.svm_fin, self.svm_rst = self.pvm_ack, self.pvm_fin, self.pvm_rst
        self.released, self.left_ack, self.left_unsaid = self.pvm_next, self.pvm_ack, False

    def rebase_identity(self) -> None:
        """The part of `rebase` that is about how the connection began."""
        if not self.pvm_open:
            self.client_isn, self.guest_opened = None, False
        self.svm_open, self.svm_isn, self.svm_syn = self.pvm_open, self.pvm_isn, self.pvm_syn

    def finished(self) -> bool:
        """No payload can come from the PVM any more: it has reset, or both FINs are acknowledged."""
        return not self.hold and (self.pvm_rst or self.ended_in_order())

    def ended_in_order(self) -> bool:
        """Both FINs are acknowledged."""
        return (
            self.pvm_fin is not None
            and self.client_fin is not None
            and self.acked is not None
            and self.pvm_ack is not None
            and distance(self.acked, self.pvm_fin) > 0
            and distance(self.pvm_ack, self.client_fin) > 0
        )

    def forget(self) -> None:
        """The flow is dropped from the table: give back what it took of the budget."""
        self._set_stream(None, bytearray())
        if self.successor is not None:
            self.successor.forget()
