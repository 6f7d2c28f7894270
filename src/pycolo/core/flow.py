"""One TCP connection on the primary: what the PVM wants to send waits until the SVM has said the same.

Guarantees
* `release` lets a segment go only when the SVM has produced its payload at the same place of the stream, its SYN, FIN
  or RST as well, and has acknowledged at least as much (rules 1 and 2; the exceptions at the end of a connection are
  at `_acknowledged` and `_judge_reset`). Segments leave in the order in which the PVM produced them.
* One `Flow` is one connection, never two that happen to use the same ports one after the other.

Names: `pvm_*` is what the PVM has produced, in its sequence numbers; `svm_*` what the SVM has, in its own, which are
`delta` ahead. After a checkpoint the SVM is the PVM's copy: `rebase` puts the PVM's side in the place of the SVM's.
What the client can't tell apart is ignored: IP id, TTL, window, timestamps, PSH, and SACK (advice that may be taken
back, RFC 2018, 8: a client keeps the bytes until they are acknowledged).
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from pycolo.core.holding import TwinBudget
from pycolo.core.packet import ACK, FIN, HALF, MASK, ODD, RST, SYN, URG, distance, syn_terms
from pycolo.core.tolerance import CONTEXT_BYTES, HTTP_PORT, tolerates

Held = tuple[int, float, bytes, int, int, int, int, int]
"""A held segment: number, arrival in ms, frame, seq, ack, flags, payload start, payload end."""

_TRIM_BYTES = 4096  # trimming less at a time costs more than it frees
_WINDOW_MAX = 1 << 30  # RFC 7323, 2.3: no peer is further ahead than this
_EVENTS = SYN | FIN | RST | URG | ODD


class Verdict(IntEnum):
    """What becomes of a held frame."""

    WAIT = 0
    RELEASE = 1
    DIVERGED = 2


WAIT, RELEASE, DIVERGED = Verdict.WAIT, Verdict.RELEASE, Verdict.DIVERGED


class Flow:
    """One connection; see the module docstring."""

    __slots__ = (
        "_budget",
        "_context_bytes",
        "_guessed",
        "_tolerated",
        "acked",
        "client_fin",
        "client_isn",
        "client_next",
        "delta",
        "diverged",
        "epoch",
        "guest_opened",
        "hold",
        "key",
        "pvm_ack",
        "pvm_fin",
        "pvm_isn",
        "pvm_next",
        "pvm_open",
        "pvm_rst",
        "pvm_syn",
        "released",
        "successor",
        "svm_ack",
        "svm_base",
        "svm_fin",
        "svm_isn",
        "svm_open",
        "svm_rst",
        "svm_stream",
        "svm_syn",
    )

    def __init__(self, key: bytes, epoch: int, budget: TwinBudget) -> None:
        self.key = key  # as in `packet.Segment`, with the guest as the source
        self.epoch = epoch
        self.hold: deque[Held] = deque()
        self.diverged = False
        self.successor: Flow | None = None  # the next connection on the same ports: the SVM has opened it, the PVM not
        self._budget = budget
        self._context_bytes = CONTEXT_BYTES if int.from_bytes(key[8:10]) == HTTP_PORT else 0
        # Identity: the client's ISN, or that the guest opened it. Neither: it began before we looked.
        self.client_isn: int | None = None
        self.guest_opened = False
        self.pvm_open = self.svm_open = False  # has this side been seen to open (or refuse) just this connection?
        self.pvm_isn: int | None = None
        self.pvm_syn = b""
        self.pvm_next: int | None = None
        self.pvm_ack: int | None = None
        self.pvm_fin: int | None = None  # the sequence number of the FIN itself
        self.pvm_rst = False
        self.released: int | None = None  # all before this has left
        self.acked: int | None = None  # the client has acknowledged all before this, in the PVM's numbers
        self.client_next: int | None = None  # end of the client's data
        self.client_fin: int | None = None
        self._guessed = True  # svm_base is just the first segment seen, not known
        self.delta: int | None = 0
        self.svm_isn: int | None = None
        self.svm_syn = b""
        self.svm_base: int | None = None
        self.svm_stream = bytearray()
        self._tolerated: dict[int, bytes] = {}  # what the PVM said instead, at which of the SVM's sequence numbers
        self.svm_ack: int | None = None
        self.svm_fin: int | None = None
        self.svm_rst = False

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

    def open_pvm(self, frame: bytes, seq: int, ack: int, flags: int, start: int) -> None:
        """The PVM opens (SYN, SYN-ACK) or refuses (RST that answers a SYN) this connection."""
        self._identify(ack, flags)
        if not self.pvm_open:  # what it said so far was said in an older connection
            self.pvm_open, self.diverged = True, False
            self.pvm_next = self.pvm_ack = self.pvm_fin = self.released = self.acked = self.client_fin = None
            self.client_next = ack if flags & ACK else None
        if flags & SYN:
            self.pvm_isn, self.pvm_syn = seq, syn_terms(frame, flags, start)
            if self.acked is None:
                self.acked = (seq + 1) & MASK  # there is nothing before
            self._align()

    def open_svm(self, frame: bytes, seq: int, ack: int, flags: int, start: int) -> None:
        """The SVM does."""
        self._identify(ack, flags)
        if not self.svm_open:  # as above
            self.svm_open, self.diverged = True, False
            self.svm_ack = self.svm_fin = None
            self._set_stream(None, bytearray())
        if flags & SYN:
            self.svm_syn = syn_terms(frame, flags, start)
            if self.svm_isn is None:
                self._set_stream((seq + 1) & MASK, bytearray())
                self._guessed = False
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
        if flags & RST or flags & (SYN | ACK) == SYN:
            return
        end = (seq + length + bool(flags & SYN)) & MASK
        if self.pvm_ack is None or distance(end, self.pvm_ack) < _WINDOW_MAX:
            if self.client_next is None or distance(end, self.client_next) > 0:
                self.client_next = end
            if flags & FIN:
                self.client_fin = end
        if not flags & ACK or self.released is None or distance(self.released, ack) < 0:
            return
        if self.acked is None or distance(ack, self.acked) > 0:
            self.acked = ack
            self._trim()

    def observe_pvm(self, seq: int, ack: int, flags: int, length: int) -> None:
        """The PVM has produced a segment, which goes into `hold`."""
        self.pvm_rst = flags & RST != 0
        if flags & ACK and (self.pvm_ack is None or distance(ack, self.pvm_ack) > 0):
            self.pvm_ack = ack
        if flags & RST:
            return
        end = (seq + length) & MASK
        if flags & (SYN | FIN):
            if flags & FIN:
                self.pvm_fin = (end + bool(flags & SYN)) & MASK
            end = (end + bool(flags & SYN) + bool(flags & FIN)) & MASK
        if self.pvm_next is None or distance(end, self.pvm_next) > 0:
            self.pvm_next = end

    def observe_svm(self, frame: bytes, seq: int, ack: int, flags: int, start: int, end: int) -> bool:
        """The SVM has produced a segment; False when there is no room for its payload."""
        if self.pvm_open and not self.svm_open:
            return True  # it still speaks of the connection before this one
        self.svm_rst = flags & RST != 0
        if flags & ACK and (self.svm_ack is None or distance(ack, self.svm_ack) > 0):
            self.svm_ack = ack
        if flags & RST:
            return True
        if flags & SYN:
            seq = (seq + 1) & MASK
        if self.svm_base is None or (self._guessed and not self.svm_stream and distance(seq, self.svm_base) > 0):
            self.svm_base = seq
        known = distance((self.svm_base + len(self.svm_stream)) & MASK, seq)
        if known < 0:
            return True  # a gap: what the SVM said before got lost, so nothing behind it can be compared
        if known < end - start and self.svm_fin is None and not self._extend(frame[start + known : end]):
            return False
        if flags & FIN and known <= end - start:
            self.svm_fin = (seq + end - start) & MASK
        return True

    def _extend(self, payload: bytes) -> bool:
        budget = self._budget
        if len(self.svm_stream) + len(payload) > budget.flow_bytes_max or not budget.has_room(len(payload)):
            return False
        self.svm_stream += payload
        budget.used_bytes += len(payload)
        return True

    def _set_stream(self, base: int | None, stream: bytearray) -> None:
        self._budget.used_bytes += len(stream) - len(self.svm_stream)
        self.svm_base, self.svm_stream = base, stream
        self._tolerated.clear()

    def _trim(self) -> None:
        """Forget what the client has acknowledged, and by that what has been released."""
        if self.svm_base is None or self.delta is None or self.acked is None:
            return
        surplus = distance((self.acked + self.delta) & MASK, self.svm_base) - self._context_bytes
        if surplus >= _TRIM_BYTES:
            surplus = min(surplus, len(self.svm_stream))
            del self.svm_stream[:surplus]
            self._budget.used_bytes -= surplus
            self.svm_base = base = (self.svm_base + surplus) & MASK
            if self._tolerated:
                self._tolerated = {at: said for at, said in self._tolerated.items() if distance(at, base) >= 0}

    # ---------------------------------------------------------------- what leaves

    def release(self, out: list[bytes]) -> bool:
        """Move what may leave from `hold` to `out`; True when the flow has diverged."""
        hold = self.hold
        while hold:
            verdict = self._judge(hold[0])
            if verdict != RELEASE:
                self.diverged = verdict == DIVERGED
                break
            _, _, frame, seq, _, flags, start, end = hold.popleft()
            out.append(frame)
            if not flags & RST:
                length = end - start + bool(flags & SYN) + bool(flags & FIN)
                self._note_released((seq + length) & MASK)
        return self.diverged

    def _note_released(self, end: int) -> None:
        if self.released is None or (end - self.released) & MASK < HALF:
            self.released = end

    def _judge(self, held: Held) -> Verdict:
        _, _, frame, seq, ack, flags, start, end = held
        if self.pvm_open != self.svm_open:
            return WAIT
        if flags & _EVENTS:
            return self._judge_event(frame, seq, ack, flags, start, end)
        if start != end:
            verdict = self._judge_payload(seq, frame, start, end)
            if verdict != RELEASE:
                return verdict
        return RELEASE if not flags & ACK or self._acknowledged(ack) else WAIT

    def _acknowledged(self, ack: int) -> bool:
        """Rule 2. Once the SVM has reset the connection only the client's data count, not its FIN: nobody will read on.

        As long as the SVM has merely ended its own stream, a FIN counts: somebody may still wait for the client's end.
        """
        if self.svm_ack is None:
            return False
        return (self.svm_ack - ack) & MASK < HALF or (self.svm_rst and self._all_data_acknowledged())

    def _all_data_acknowledged(self) -> bool:
        return (
            self.svm_ack is not None and self.client_next is not None and distance(self.svm_ack, self.client_next) >= 0
        )

    def _judge_event(self, frame: bytes, seq: int, ack: int, flags: int, start: int, end: int) -> Verdict:
        """A segment with SYN, FIN, RST, or with something that we can't compare: urgent data, an unknown option."""
        if flags & URG or flags & (ODD | SYN) == ODD:
            return DIVERGED
        first = (seq + bool(flags & SYN)) & MASK
        verdicts = [
            self._judge_syn(syn_terms(frame, flags, start)) if flags & SYN else RELEASE,
            self._judge_payload(first, frame, start, end) if start != end else RELEASE,
            self._judge_fin((first + end - start) & MASK) if flags & FIN else RELEASE,
        ]
        if flags & RST:
            verdicts.append(self._judge_reset(ack, flags))
        elif flags & ACK and not self._acknowledged(ack):
            verdicts.append(WAIT)
        if DIVERGED in verdicts:
            return DIVERGED
        return WAIT if WAIT in verdicts else RELEASE

    def _judge_syn(self, terms: bytes) -> Verdict:
        if not self.svm_syn:
            return DIVERGED if self.svm_rst else WAIT  # refused there, accepted here
        return RELEASE if terms == self.svm_syn else DIVERGED

    def _judge_fin(self, place: int) -> Verdict:
        """The SVM's FIN has to stand at the same place; no other event stands for it."""
        if self.delta is None:
            return WAIT
        place = (place + self.delta) & MASK
        if self.svm_fin is not None:
            return RELEASE if place == self.svm_fin else DIVERGED
        if self.svm_rst or self.svm_base is None:
            return DIVERGED if self.svm_rst else WAIT
        beyond = distance((self.svm_base + len(self.svm_stream)) & MASK, place) > 0
        return DIVERGED if beyond else WAIT

    def _judge_reset(self, ack: int, flags: int) -> Verdict:
        """A RST leaves when the SVM has reset as well, or has ended its stream and acknowledged all data of the client.

        In the second case the survivor has nothing to say any more and nothing to hear: which of the two ways a
        connection ends by then is timing (one side still ACKs the last FIN where the other resets).
        """
        if self.svm_fin is not None and self._all_data_acknowledged():
            return RELEASE
        return RELEASE if self.svm_rst and (not flags & ACK or self._acknowledged(ack)) else WAIT

    def _judge_payload(self, seq: int, frame: bytes, start: int, end: int) -> Verdict:
        """Compare with the SVM's stream at the same place.

        What the client has acknowledged counts as compared: only released bytes can be acknowledged, so it left at this
        very place under rule 1 before, and a client ignores it.
        """
        if self.acked is not None:
            below = ((self.acked - seq + HALF) & MASK) - HALF
            if below > 0:
                if below >= end - start:
                    return RELEASE
                seq, start = seq + below, start + below
        if self.svm_base is None or self.delta is None:
            return WAIT
        at = ((seq + self.delta - self.svm_base + HALF) & MASK) - HALF
        if at < 0:
            return WAIT  # sent before we began to look: only a checkpoint helps
        payload = frame[start:end]
        if len(self.svm_stream) - at < len(payload):
            return self._judge_partly(payload, at)
        if self.svm_stream.startswith(payload, at) or self._tolerate(payload, at):
            return RELEASE
        return DIVERGED

    def _judge_partly(self, payload: bytes, at: int) -> Verdict:
        """The SVM has not produced all of it: wait, unless it can't come to be equal any more."""
        if self.svm_fin is not None or self.svm_rst:
            return DIVERGED
        known = self.svm_stream[at:]
        if known and not self._context_bytes and not payload.startswith(known):
            return DIVERGED
        return WAIT

    def _tolerate(self, payload: bytes, at: int) -> bool:
        if not self._context_bytes or self.svm_base is None:
            return False
        theirs = bytes(self.svm_stream[at : at + len(payload)])
        if not tolerates(bytes(self.svm_stream[max(0, at - self._context_bytes) : at]), payload, theirs):
            return False
        self._tolerated[(self.svm_base + at) & MASK] = payload
        return True

    # ---------------------------------------------------------------- epochs

    def rebase(self, epoch: int) -> None:
        """The SVM becomes a copy of the PVM as it is now: all it has sent, held or released, is the SVM's past."""
        base, stream = self._pvm_stream()
        self._set_stream(base, stream)
        self._guessed = base is None
        self.hold.clear()
        self.epoch, self.diverged, self.successor, self.delta = epoch, False, None, 0
        if not self.pvm_open:
            self.client_isn, self.guest_opened = None, False
        self.svm_open, self.svm_isn, self.svm_syn = self.pvm_open, self.pvm_isn, self.pvm_syn
        self.svm_ack, self.svm_fin, self.svm_rst = self.pvm_ack, self.pvm_fin, self.pvm_rst
        self.released = self.pvm_next

    def _pvm_stream(self) -> tuple[int | None, bytearray]:
        """The PVM's stream as far as it is known, in its own numbers, up to its newest byte."""
        if self.pvm_next is None:
            return None, bytearray()
        pieces = self._released_piece()
        for _, _, frame, seq, _, flags, start, end in self.hold:
            if start != end and not flags & RST:
                pieces.append(((seq + bool(flags & SYN)) & MASK, frame[start:end]))
        top = self.pvm_next
        if self.pvm_fin is not None and distance(top, self.pvm_fin) > 0:
            top = self.pvm_fin
        return _joined(pieces, top, self._budget.flow_bytes_max)

    def _released_piece(self) -> list[tuple[int, bytes]]:
        """What the PVM has released of the SVM's stream, in the PVM's words where a difference was tolerated."""
        if self.svm_base is None or self.delta is None or self.released is None:
            return []
        base = (self.svm_base - self.delta) & MASK
        length = distance(self.released, base)
        if length <= 0:
            return []
        stream = self.svm_stream[:length]
        for at, said in self._tolerated.items():
            start = distance(at, self.svm_base)
            if start + len(said) <= length:
                stream[start : start + len(said)] = said
        return [(base, bytes(stream))]

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


def _joined(pieces: list[tuple[int, bytes]], top: int, bytes_max: int) -> tuple[int, bytearray]:
    """The longest run of bytes without a gap that ends at sequence number `top`, and where it begins."""
    pieces.sort(key=lambda piece: distance(piece[0], top))
    stream = bytearray()
    first: int = top
    for seq, payload in pieces:
        known = distance((first + len(stream)) & MASK, seq)
        if not stream or known < 0:
            first, stream = seq, bytearray(payload)
        elif known < len(payload):
            stream += payload[known:]
    if distance(top, (first + len(stream)) & MASK) != 0:
        return top, bytearray()
    surplus = max(0, len(stream) - bytes_max // 2)
    return (first + surplus) & MASK, stream[surplus:]
