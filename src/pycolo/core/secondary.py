"""The story of a packet on the secondary, top to bottom (the primary's part: `dataplane`).

    client frame -> in the SVM's numbers, when its window is open -> SVM        client_frames, take_freed
    SVM frame    -> raw to the primary, and kept while a client may lack it     svm_frames, confirm
    checkpoint   -> the SVM is the PVM's copy: nothing to translate             loaded
    takeover     -> what clients may not have got leaves, in their numbers      take_over

Guarantees
* At a takeover everything is sent that the SVM has put out since the last checkpoint and that is not known to have
  reached the client (within the limits; the oldest goes first). What is sent twice a client sees as a retransmission.
  A segment that the guest itself has cut in pieces is kept in its pieces.
* Before the takeover nothing here reaches a client.
* A client frame comes out at once, or when the SVM's window is open for it, or never if a checkpoint comes before that.
"""

from __future__ import annotations

from collections.abc import Sequence

from pycolo.core.connection import Connection
from pycolo.core.fragments import Reassembly
from pycolo.core.layers import TCP, Layers, locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.messages import message
from pycolo.core.packed import Packed, pack, unpack
from pycolo.core.packet import ACK, FIN, MASK, RST, SYN, Segment, parse_tcp
from pycolo.core.receive_windows import PARKED_BYTES_MAX, ReceiveWindows, Windows
from pycolo.core.retained import Retained, Retention
from pycolo.core.translation import ADVANCE_SLACK_TICKS, Translator


def advance_ticks(limits: DataplaneLimits) -> int:
    """By how much timestamps advance at a takeover: more than the clocks of two copies can be apart (ticks of 1 ms)."""
    return int(limits.hold_ms_max) + ADVANCE_SLACK_TICKS


class SecondaryDataplane:
    """The agent's part beside the SVM."""

    def __init__(self, limits: DataplaneLimits) -> None:
        self._limits = limits
        self.translator, self._retained = self._new_translator(), self._new_retained()
        self._windows = self._new_windows()
        self._pieces: Reassembly[int] = Reassembly()  # which of the SVM's fragments make a segment

    def _new_translator(self) -> Translator:
        return Translator(self._limits.flows_max, advance_ticks(self._limits))

    def _new_retained(self) -> Retention:
        return Retained(self._limits.held_frames_max, self._limits.held_bytes_max)

    def _new_windows(self) -> ReceiveWindows:
        return ReceiveWindows(Windows(self._limits.flows_max, PARKED_BYTES_MAX))

    # ---------------------------------------------------------------- before a takeover

    def client_frames(self, frames: Sequence[bytes]) -> list[bytes]:
        """Client frames as the SVM has to see them."""
        return self._windows.client_frames([self._client_frame(frame) for frame in frames])

    def _client_frame(self, frame: bytes) -> bytes:
        """The client has everything before what it acknowledges: that need not be retained any more."""
        translated, segment, connection = self.translator.inbound_frame(frame)
        if segment is not None and connection is not None and not connection.learning and segment[3] & ACK:
            for no in connection.take_acknowledged((segment[2] + connection.seq_add) & MASK):
                self._retained.drop(no)
        return translated

    def client_packed(self, packed: Packed) -> Packed:
        """As `client_frames`, of a packed batch."""
        return pack(self.client_frames(unpack(packed)))

    def svm_packed(self, packed: Packed, first_no: int) -> None:
        """As `svm_frames`, of a packed batch."""
        self.svm_frames(unpack(packed), first_no)

    def svm_frames(self, frames: Sequence[bytes], first_no: int) -> None:
        """Frames the SVM has put out, numbered from `first_no` on; the caller sends them to the primary as they are."""
        self._windows.svm_frames(frames)
        for no, frame in enumerate(frames, first_no):
            self._svm_frame(no, frame)

    def _svm_frame(self, no: int, frame: bytes) -> None:
        segment = parse_tcp(frame)
        if segment is not None:
            self._retained.keep(no, frame)
            self._svm_segment((no,), frame, segment)
            return
        layers = locate(frame)
        if layers is not None and layers.fragment is not None and layers.protocol == TCP:
            self._retained.keep(no, frame)
            self._svm_piece(no, frame, layers)
        elif message(frame, layers) is not None:
            self._retained.keep(no, frame)

    def _svm_piece(self, no: int, frame: bytes, layers: Layers) -> None:
        """Kept like the others; what will be acknowledged is known when the segment is whole."""
        whole = self._pieces.add(no, frame, layers)
        segment = None if whole is None else parse_tcp(whole.frame)
        if whole is not None and segment is not None:
            self._svm_segment(whole.tickets, whole.frame, segment)
        while self._pieces.over_limit() is not None:
            pass  # they stay until the next checkpoint

    def _svm_segment(self, nos: Sequence[int], frame: bytes, segment: Segment) -> None:
        """A segment that is kept as the frames with these numbers."""
        key, seq, _, flags, _, start, end = segment
        before = self.translator.connections.get(key)
        if flags & SYN and self.translator.opened(frame, segment) and before is not None:
            self._drop_all(before)
        connection = self.translator.connections.get(key) or self.translator.admit(key)
        if connection is None:
            return
        self.translator.note_outbound(connection, segment)
        length = end - start + bool(flags & SYN) + bool(flags & FIN)
        if length and not flags & RST:
            connection.note_sent(nos, (seq + length) & MASK)
            return
        if connection.last_ack_no is not None:
            self._retained.drop(connection.last_ack_no)
        connection.last_ack_no = nos[-1]

    def _drop_all(self, connection: Connection) -> None:
        """The guest has opened another connection on the same ports."""
        for no in connection.sent_nos():
            self._retained.drop(no)
        if connection.last_ack_no is not None:
            self._retained.drop(connection.last_ack_no)

    def take_freed(self) -> Packed:
        """Client frames that were beyond the SVM's windows and are not any more (`receive_windows`)."""
        return self._windows.take_freed()

    def confirm(self, nos: Sequence[int]) -> None:
        """The primary has released the twins of these frames (never TCP: there the client's acknowledgement tells)."""
        for no in nos:
            self._retained.drop(no)

    def loaded(self) -> None:
        """The SVM is the PVM's copy now: all offsets are zero, and its past output was the PVM's."""
        self.translator.clear()
        self._windows.loaded()
        self._retained.clear()
        self._pieces.give_up()

    # ---------------------------------------------------------------- takeover

    def take_over(self) -> list[bytes]:
        """We hold the claim: what clients may not have got, in order and in the numbers of the PVM.

        From now on `translator` stands between the clients and the guest.
        """
        frames = self._retained.take()
        self._windows.give_up()
        self.translator.taken_over = True
        return self.translator.outbound(frames)
