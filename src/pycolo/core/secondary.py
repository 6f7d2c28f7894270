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
* Client frames come out in the order of their connection, each once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from pycolo.core.fragments import Reassembly
from pycolo.core.layers import TCP, Layers, locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.messages import message
from pycolo.core.packed import Packed, pack, unpack
from pycolo.core.packet import ACK, FIN, MASK, RST, SYN, Segment, distance, parse_tcp
from pycolo.core.receive_windows import PARKED_BYTES_MAX, ReceiveWindows, Windows
from pycolo.core.translation import ADVANCE_SLACK_TICKS, Connection, Translator


def advance_ticks(limits: DataplaneLimits) -> int:
    """By how much timestamps advance at a takeover: more than the clocks of two copies can be apart (ticks of 1 ms)."""
    return int(limits.hold_ms_max) + ADVANCE_SLACK_TICKS


class SecondaryDataplane:
    """The agent's part beside the SVM."""

    def __init__(self, limits: DataplaneLimits) -> None:
        self._limits = limits
        self.translator = Translator(limits.flows_max, advance_ticks(limits))
        self._retained: OrderedDict[int, bytes] = OrderedDict()
        self._retained_bytes = 0
        self._windows = ReceiveWindows(Windows(limits.flows_max, PARKED_BYTES_MAX))
        self._pieces: Reassembly[int] = Reassembly()  # which of the SVM's fragments make a segment

    # ---------------------------------------------------------------- before a takeover

    def client_frames(self, frames: Sequence[bytes]) -> list[bytes]:
        """Client frames as the SVM has to see them."""
        out = []
        for frame in frames:
            translated, segment, connection = self.translator.inbound_frame(frame)
            out.append(translated)
            if segment is None or connection is None or connection.learning:
                continue
            if connection.sent and segment[3] & ACK:
                self._acknowledged(connection, (segment[2] + connection.seq_add) & MASK)
        return self._windows.client_frames(out)

    def client_packed(self, packed: Packed) -> Packed:
        """As `client_frames`, of a packed batch."""
        return pack(self.client_frames(unpack(packed)))

    def svm_packed(self, packed: Packed, first_no: int) -> None:
        """As `svm_frames`, of a packed batch."""
        self.svm_frames(unpack(packed), first_no)

    def svm_frames(self, frames: Sequence[bytes], first_no: int) -> None:
        """Frames the SVM has put out, numbered from `first_no` on; the caller sends them to the primary as they are."""
        self._windows.svm_packed(pack(frames))
        for no, frame in enumerate(frames, first_no):
            segment = parse_tcp(frame)
            if segment is not None:
                self._retain(no, frame)
                self._svm_segment((no,), frame, segment)
                continue
            layers = locate(frame)
            if layers is not None and layers.fragment is not None and layers.protocol == TCP:
                self._retain(no, frame)
                self._svm_piece(no, frame, layers)
            elif message(frame, layers) is not None:
                self._retain(no, frame)

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
            connection.sent.extend((no, (seq + length) & MASK) for no in nos)
            return
        if connection.last_ack_no is not None:
            self._drop(connection.last_ack_no)
        connection.last_ack_no = nos[-1]

    def take_freed(self) -> Packed:
        """Client frames that were beyond the SVM's windows and are not any more (`receive_windows`)."""
        return self._windows.take_freed()

    def confirm(self, nos: Sequence[int]) -> None:
        """The primary has released the twins of these frames (never TCP: there the client's acknowledgement tells)."""
        for no in nos:
            self._drop(no)

    def loaded(self) -> None:
        """The SVM is the PVM's copy now: all offsets are zero, and its past output was the PVM's."""
        self.translator.clear()
        self._windows.loaded()
        self._retained.clear()
        self._retained_bytes = 0
        self._pieces.give_up()

    # ---------------------------------------------------------------- takeover

    def take_over(self) -> list[bytes]:
        """We hold the claim: what clients may not have got, in order and in the numbers of the PVM.

        From now on `translator` stands between the clients and the guest.
        """
        frames = list(self._retained.values())
        self._retained.clear()
        self._retained_bytes = 0
        self._windows.give_up()
        self.translator.taken_over = True
        return self.translator.outbound(frames)

    # ---------------------------------------------------------------- what is retained

    def _retain(self, no: int, frame: bytes) -> None:
        self._retained[no] = frame
        self._retained_bytes += len(frame)
        limits = self._limits
        while len(self._retained) > limits.held_frames_max or self._retained_bytes > limits.held_bytes_max:
            self._retained_bytes -= len(self._retained.popitem(last=False)[1])

    def _drop(self, no: int) -> None:
        frame = self._retained.pop(no, None)
        if frame is not None:
            self._retained_bytes -= len(frame)

    def _drop_all(self, connection: Connection) -> None:
        """The guest has opened another connection on the same ports."""
        for no, _ in connection.sent:
            self._drop(no)
        if connection.last_ack_no is not None:
            self._drop(connection.last_ack_no)

    def _acknowledged(self, connection: Connection, ack: int) -> None:
        """The client has everything before `ack` (in the SVM's numbers)."""
        sent = connection.sent
        while sent and distance(ack, sent[0][1]) >= 0:
            self._drop(sent.popleft()[0])
