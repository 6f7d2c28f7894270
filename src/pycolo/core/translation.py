"""The SVM's connections in the numbers that their clients know.

The two copies choose their own initial sequence numbers, and their timestamps may differ by any 32-bit offset. The
client knows the PVM's. So inbound segments are translated for the SVM (acknowledgement, SACK, timestamp echo), and
after a takeover outbound ones for the client (sequence number, timestamp).

Guarantees
* The offsets come from the SVM's own SYN or SYN-ACK and the first inbound segment that acknowledges it; the two hosts
  exchange nothing. After a checkpoint (`loaded`) they are zero.
* A connection that existed at the takeover never shows its client a timestamp older than one it has shown: PAWS
  (RFC 7323, 5) would drop such segments for ever. What a client echoes is mapped back to the exact value the SVM sent.
* A connection that begins after the takeover is never touched.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice

from pycolo.core import wire
from pycolo.core.packet import (
    ACK,
    FIN,
    MASK,
    RST,
    SYN,
    Segment,
    checksum_is_right,
    distance,
    opposite,
    parse_tcp,
    rewrite,
    timestamps,
)

ADVANCE_SLACK_TICKS = 4000
_FIRST_ACK_WINDOW = 1 << 20  # how far behind the client's first byte its first acknowledgement may stand
_SENT_MAX = 4096
_ECHO_AHEAD_MAX = 1 << 24  # an echo further ahead of the SVM's clock is forged
_EVICTION_LOOKS_MAX = 64


class Connection:
    """What the secondary knows of one connection. `seq_add` etc. are added mod 2^32 on the way to the SVM."""

    __slots__ = (
        "advance",
        "client_fin",
        "client_first",
        "echo",
        "existed",
        "first_shown",
        "guest_fin",
        "isn",
        "last_ack_no",
        "learning",
        "reset",
        "sent",
        "seq_add",
        "syn_value",
        "value_add",
    )

    def __init__(self) -> None:
        self.isn: int | None = None  # the SVM's; None: the connection is older than the last checkpoint
        self.syn_value: int | None = None  # TSval of the SVM's first SYN or SYN-ACK
        self.client_first: int | None = None  # the client's first sequence number behind its SYN
        self.learning = False  # the SVM has opened, and nothing has acknowledged it yet
        self.seq_add = 0  # SVM's sequence number minus the PVM's
        self.value_add = 0  # SVM's timestamp minus the PVM's
        self.echo: int | None = None  # the newest timestamp that the client has echoed
        self.existed = True  # at the takeover: only then outbound segments are translated
        self.advance: int | None = None  # ticks added to timestamps after the takeover, fixed at the first of them
        self.first_shown = 0  # the first timestamp shown to the client since
        self.guest_fin = self.client_fin = self.reset = False
        self.sent: deque[tuple[int, int]] = deque(maxlen=_SENT_MAX)  # retained segments: number, end in SVM's numbers
        self.last_ack_no: int | None = None  # the retained segment that takes no room in the stream

    @property
    def ended(self) -> bool:
        """Forget this one first."""
        return self.reset or (self.guest_fin and self.client_fin)

    @property
    def translates(self) -> bool:
        """Whether its segments are changed, or may be."""
        return self.existed and bool(self.seq_add or self.value_add or self.learning or self.advance)

    def offsets(self, key: bytes) -> wire.Offsets:
        """For another host that has to translate it alike."""
        return wire.Offsets(
            key,
            self.seq_add,
            self.value_add,
            self.advance,
            self.first_shown,
            self.echo,
            self.learning,
            self.isn,
            self.syn_value,
            self.client_first,
        )

    def adopt(self, known: wire.Offsets) -> None:
        """What `offsets` said on the other host."""
        self.seq_add, self.value_add, self.advance = known.seq_add, known.value_add, known.advance
        self.first_shown, self.echo, self.learning = known.first_shown, known.echo, known.learning
        self.isn, self.syn_value, self.client_first = known.isn, known.syn_value, known.client_first

    def open(self, frame: bytes, segment: Segment) -> None:
        """The guest opens the connection: from now on the offsets are unknown."""
        _, seq, ack, flags, at, start, _ = segment
        stamps = timestamps(frame, at, start)
        self.isn, self.learning = seq, True
        self.syn_value = None if stamps is None else stamps[0]
        self.client_first = ack if flags & ACK else None

    def learn(self, frame: bytes, segment: Segment) -> None:
        """An inbound segment arrives while the offsets are unknown: if it acknowledges the opening, it tells them.

        It has to stand where the client's stream begins, so that a stray segment can't mislead; one forged by somebody
        who knows the client's sequence number costs a checkpoint. The SVM's own number means that its own opening got
        through, which happens after a takeover.
        """
        _, seq, ack, flags, at, start, end = segment
        if not flags & ACK or flags & RST or self.isn is None:
            return
        if self.client_first is None:
            plausible = bool(flags & SYN)
        else:
            plausible = not flags & SYN and 0 <= distance(seq, self.client_first) < _FIRST_ACK_WINDOW
        if not plausible or not checksum_is_right(frame, at, end):
            return
        self.learning = False
        self.seq_add = (self.isn + 1 - ack) & MASK
        stamps = timestamps(frame, at, start)
        own_got_through = self.advance is not None and not self.seq_add
        if stamps is not None and self.syn_value is not None and not own_got_through:
            self.value_add = (self.syn_value - stamps[1]) & MASK
            self.advance = None  # what was shown until now was not in the numbers of the PVM

    def note_inbound(self, frame: bytes, segment: Segment) -> None:
        """Keep the newest timestamp that the client has echoed, and whether it ends."""
        _, _, _, flags, at, start, _ = segment
        if flags & (FIN | RST):
            self.client_fin, self.reset = self.client_fin or bool(flags & FIN), self.reset or bool(flags & RST)
        stamps = timestamps(frame, at, start) if flags & ACK else None
        if stamps is not None and stamps[1] and (self.echo is None or distance(stamps[1], self.echo) > 0):
            self.echo = stamps[1]

    def note_outbound(self, flags: int) -> None:
        """Keep whether the guest ends."""
        self.guest_fin, self.reset = self.guest_fin or bool(flags & FIN), self.reset or bool(flags & RST)

    def to_guest(self, frame: bytes, segment: Segment) -> bytes:
        """The client's segment in the numbers of the guest."""
        _, _, _, flags, at, start, end = segment
        if not flags & ACK or not (self.seq_add or self.value_add or self.advance):
            return frame
        stamps = timestamps(frame, at, start)
        if stamps is None or not stamps[1]:
            return rewrite(frame, at, start, end, ack_add=self.seq_add)
        echo_add = self.value_add
        if self.advance is not None and distance(stamps[1], self.first_shown) >= 0:
            echo_add -= self.advance
        return rewrite(frame, at, start, end, ack_add=self.seq_add, echo_add=echo_add)

    def to_client(self, frame: bytes, segment: Segment, advance_ticks: int) -> bytes:
        """The guest's segment in the numbers that the client knows, after a takeover.

        Timestamps go `advance` ticks forward, a constant of the connection. Needed: `value_add` is wrong by the lag
        between the two SYN-ACKs, and the SVM's clock may be behind the PVM's, each by less than `advance_ticks`.
        Harmless: a client only wants them not to run backwards and to be echoed (RFC 7323, 5.3); a step forward is what
        an idle connection shows. Echoes are mapped back exactly: those from `first_shown` on carry the advance, older
        ones don't, and as the values never run backwards there is no third kind.
        """
        _, _, _, _, at, start, end = segment
        stamps = timestamps(frame, at, start)
        if stamps is None:
            return rewrite(frame, at, start, end, seq_add=-self.seq_add) if self.seq_add else frame
        if self.advance is None:
            shown = (stamps[0] - self.value_add + advance_ticks) & MASK
            behind = 0 if self.echo is None else max(0, distance(self.echo, shown) + 1)
            behind = behind if behind <= _ECHO_AHEAD_MAX else 0
            self.advance = advance_ticks + behind
            self.first_shown = (shown + behind) & MASK
        return rewrite(frame, at, start, end, seq_add=-self.seq_add, value_add=self.advance - self.value_add)


class Translator:
    """The table of connections, by the guest's view of their addresses and ports (as in `packet.Segment`)."""

    def __init__(self, flows_max: int, advance_ticks: int) -> None:
        self._flows_max = flows_max
        self._advance_ticks = advance_ticks
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self.connections: OrderedDict[bytes, Connection] = OrderedDict()
        self._changed: dict[bytes, None] = {}  # whose offsets are others than when they were told
        self.taken_over = False

    def clear(self) -> None:
        """All offsets are zero."""
        self.connections.clear()
        self._ended.clear()

    def opened(self, frame: bytes, segment: Segment) -> bool:
        """The guest has put out a SYN or SYN-ACK; False when it merely repeats it."""
        key, seq = segment[0], segment[1]
        known = self.connections.get(key)
        if known is not None and known.isn == seq:
            return False
        connection = self.admit(key)
        if connection is not None:
            if self.taken_over:
                connection.existed = False
                connection.isn = seq
                self._note(key)
            else:
                connection.open(frame, segment)
        return True

    def admit(self, key: bytes) -> Connection | None:
        """A new connection in the place of what may be there, None when the table is full of living ones."""
        if key in self.connections:
            self._drop(key)
        elif len(self.connections) >= self._flows_max and not self._evict():
            return None
        connection = self.connections[key] = Connection()
        return connection

    def _evict(self) -> bool:
        """Drop an ended connection, or one without offsets.

        The latter comes back by itself. One that began after the takeover comes back as older than it is: its
        timestamps step forward, which is harmless (see `to_client`).
        """
        while self._ended:
            key = next(iter(self._ended))
            connection = self.connections.get(key)
            del self._ended[key]
            if connection is not None and connection.ended:
                self._drop(key)
                return True
        for key, connection in islice(self.connections.items(), _EVICTION_LOOKS_MAX):
            if not connection.translates:
                self._drop(key)
                return True
        return False

    def _drop(self, key: bytes) -> None:
        del self.connections[key]
        self._ended.pop(key, None)
        self._note(key)

    # ---------------------------------------------------------------- for a new secondary, after a takeover

    @property
    def needed(self) -> bool:
        """Whether a living connection is translated."""
        return any(known.translates and not known.ended for known in self.connections.values())

    def take_changes(self) -> list[bytes]:
        """The connections whose offsets have changed since the last call, or that have been forgotten."""
        changed, self._changed = list(self._changed), {}
        return changed

    def offsets(self, key: bytes) -> wire.Offsets | None:
        """What another host has to know of a connection; None when nothing of it is translated."""
        connection = self.connections.get(key)
        return connection.offsets(key) if connection is not None and connection.existed else None

    def adopt(self, known: Sequence[wire.Offsets], forgotten: Sequence[bytes]) -> None:
        """What another host knows; beyond `flows_max` it is forgotten again, as there."""
        for key in forgotten:
            if key in self.connections:
                self._drop(key)
        for offsets in known:
            connection = self.connections.get(offsets.key) or self.admit(offsets.key)
            if connection is not None:
                connection.adopt(offsets)

    def inbound_segment(self, frame: bytes, segment: Segment) -> tuple[bytes, Connection | None]:
        """A client's segment for the guest, and its connection if it is known."""
        key, flags = opposite(segment[0]), segment[3]
        connection = self.connections.get(key)
        if connection is None or not connection.existed:
            return frame, None
        if connection.learning:
            connection.learn(frame, segment)
            self._note(key)
        connection.note_inbound(frame, segment)
        if flags & (FIN | RST) and connection.ended:
            self._ended[key] = None
        return connection.to_guest(frame, segment), connection

    def inbound(self, frames: Sequence[bytes]) -> list[bytes]:
        """Client frames as the guest has to see them."""
        out = []
        for frame in frames:
            segment = parse_tcp(frame)
            out.append(frame if segment is None else self.inbound_segment(frame, segment)[0])
        return out

    def outbound(self, frames: Sequence[bytes]) -> list[bytes]:
        """The guest's frames as the clients have to see them, after a takeover."""
        out = []
        for frame in frames:
            segment = parse_tcp(frame)
            out.append(frame if segment is None else self.outbound_segment(frame, segment))
        return out

    def outbound_segment(self, frame: bytes, segment: Segment) -> bytes:
        """One segment. A connection whose first segment since the takeover is no SYN was there before."""
        key, flags = segment[0], segment[3]
        if flags & SYN:
            self.opened(frame, segment)
        connection = self.connections.get(key)
        if connection is None:
            if flags & RST:
                return frame  # the answer to a stray segment: it carries no timestamp, and nothing follows
            connection = self.admit(key)
            if connection is None:
                return frame
        if flags & (FIN | RST):
            connection.note_outbound(flags)
            if connection.ended:
                self._ended[key] = None
        if not connection.existed:
            return frame
        if connection.advance is None:
            self._note(key)
        return connection.to_client(frame, segment, self._advance_ticks)

    def _note(self, key: bytes) -> None:
        """The offsets of this connection change; before a takeover nobody asks for that."""
        if self.taken_over:
            self._changed[key] = None
