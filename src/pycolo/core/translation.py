"""The SVM's connections in the numbers that their clients know.

The two copies choose their own initial sequence numbers, and their timestamps may differ by any 32-bit offset. The
client knows the PVM's. So inbound segments are translated for the SVM (acknowledgement, SACK, timestamp echo), and
after a takeover outbound ones for the client (sequence number, timestamp).

Guarantees
* The offsets come from the SVM's own SYN or SYN-ACK and the first inbound segment that acknowledges it; the two hosts
  exchange nothing. After a checkpoint (`loaded`) they are zero.
* A connection that existed at the takeover never shows its client a timestamp older than one it has shown: PAWS
  (RFC 7323, 5) would drop such segments for ever. What a client echoes is mapped back to the exact value the SVM sent.
  One whose opening the survivor repeats is taken for a new one: it does so a second later at the earliest (RFC 6298,
  2.1), when its clock has passed that of the dead copy.
* A connection that begins after the takeover is never touched.
* Frames come out one for one, in order. In doubt nothing is translated: a copy that gets numbers it does not know
  drops them, the comparison finds it late, and a checkpoint sets the offsets to zero.

How the offsets are known (`Connection.open`, `learn`)
* What answers an opening acknowledges exactly it, unless data travelled with it or before that answer (TCP fast open,
  RFC 7413). Then nobody can tell where the PVM's numbers begin, and the offsets stay unknown.
* The answer to a SYN never comes before the SVM's own SYN is known here. The PVM's leaves in one of two ways: after
  the SVM's, which passed through here on its way to the primary; or by a commit, and then the SVM is loaded with a
  state in which it has sent that very SYN, while what the copy before it makes of the answer belongs to an old epoch.
* Equal initial sequence numbers mean a copy made while the connection was being opened: all offsets are zero,
  whatever timestamp its repeated SYN had.
* A SYN that was repeated can be answered as any of them. The offset counts from the SVM's first: too small by at most
  the time between them, so timestamps step further forward after a takeover, and until a checkpoint the SVM measures
  round trips that are too long by as much.

Other places of these numbers
* In a fragmented segment they all stand in the first piece (RFC 8200, 4.5; IPv4 from an MTU of 100 on), so that is
  translated where it is and the others pass: nothing waits, and a checkpoint between two pieces does no harm. It
  teaches nothing, as its checksum can't be verified. A header that is cut passes as it is.
* ICMP errors of the network quote the guest's segments: sequence number and timestamp become the guest's (`quotes`).
  Those of the guest quote a client's, which looks for its own sequence number only: they are left alone.
* A signed segment (MD5, RFC 2385; AO, RFC 5925) that is translated would be refused by its receiver. It never is: two
  SYNs or SYN-ACKs with other numbers carry other signatures, so the PVM's leaves by a commit alone, and from then on
  the offsets are zero. AO covers timestamps too, which therefore don't advance at a takeover.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice

from pycolo.core import wire
from pycolo.core.layers import Layers, locate
from pycolo.core.packet import (
    ACK,
    FIN,
    MASK,
    ODD,
    RST,
    SYN,
    Segment,
    checksum_is_right,
    distance,
    is_signed_with_options,
    opposite,
    parse_first_piece,
    parse_tcp,
    rewrite,
    timestamps,
)
from pycolo.core.quotes import Quote, quoted_segment, rewrite_quote

ADVANCE_SLACK_TICKS = 4000
_FIRST_ACK_WINDOW = 1 << 20  # how far behind the client's first byte its first acknowledgement may stand
_SENT_MAX = 4096
_ECHO_AHEAD_MAX = 1 << 24  # an echo further ahead of the SVM's clock is forged
_EVICTION_LOOKS_MAX = 64
_REPEATED_TICKS_MAX = 1 << 18  # between the first and the last of the SYNs of one opening


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
        self.syn_value: int | None = None  # TSval of the SVM's first SYN or SYN-ACK; None: there is none, or no need
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
    def unsettled(self) -> bool:
        """Whether the next inbound segment may tell an offset."""
        return self.learning or self.syn_value is not None

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
        _, seq, ack, flags, at, start, end = segment
        stamps = timestamps(frame, at, start)
        self.isn, self.learning = seq, True
        self.syn_value = None if stamps is None else stamps[0]
        self.client_first = ack if flags & ACK else None
        if start != end:
            self._never_learn()

    def open_again(self, segment: Segment) -> None:
        """It repeats its SYN; or, after one, sends a SYN-ACK: both sides have opened (RFC 9293, 3.5)."""
        _, _, ack, flags, *_ = segment
        if self.learning and self.client_first is None and flags & ACK:
            self.client_first = ack

    def _never_learn(self) -> None:
        """Data before the first acknowledgement: what that will acknowledge nobody can tell."""
        self.learning, self.syn_value = False, None

    def learn(self, frame: bytes, segment: Segment) -> None:
        """An inbound segment arrives while offsets are unknown: if it acknowledges the opening, it tells them.

        It has to stand where the client's stream begins, so that a stray segment can't mislead; one forged by somebody
        who knows the client's sequence number (or, where the guest opens, its ports) costs a checkpoint.
        """
        _, seq, ack, flags, at, start, end = segment
        if not flags & ACK or flags & RST or self.isn is None:
            return
        if flags & SYN:
            plausible = self.learning and self.client_first in (None, (seq + 1) & MASK)
        else:
            first = self.client_first
            plausible = first is not None and 0 <= distance(seq, first) < _FIRST_ACK_WINDOW
        if not plausible or not checksum_is_right(frame, at, end):
            return
        if self.learning:
            self.learning = False
            self.seq_add = (self.isn + 1 - ack) & MASK
            if flags & SYN:
                self.client_first = (seq + 1) & MASK
        self._learn_value(timestamps(frame, at, start))

    def _learn_value(self, stamps: tuple[int, int] | None) -> None:
        """The timestamp offset, of the first segment that echoes anything.

        The SVM's own sequence number means that its own opening got through, which happens after a takeover; or that it
        is the PVM's copy, whose first SYN had another timestamp than the repeated one that was seen here.
        """
        if stamps is not None and not stamps[1]:
            return
        syn_value, self.syn_value = self.syn_value, None
        if stamps is None or syn_value is None or (self.advance is not None and not self.seq_add):
            return
        if self.seq_add or abs(distance(syn_value, stamps[1])) >= _REPEATED_TICKS_MAX:
            self.value_add = (syn_value - stamps[1]) & MASK
            self.advance = None  # what was shown until now was not in the numbers of the PVM

    def note_inbound(self, frame: bytes, segment: Segment) -> None:
        """Keep the newest timestamp that the client has echoed, and whether it ends."""
        _, _, _, flags, at, start, _ = segment
        if flags & (FIN | RST):
            self.client_fin, self.reset = self.client_fin or bool(flags & FIN), self.reset or bool(flags & RST)
        stamps = timestamps(frame, at, start) if flags & ACK else None
        if stamps is not None and stamps[1] and (self.echo is None or distance(stamps[1], self.echo) > 0):
            self.echo = stamps[1]

    def note_outbound(self, segment: Segment) -> None:
        """Keep whether the guest ends. One that speaks on was not reset: the RST was forged, or is not there yet."""
        _, _, _, flags, _, start, end = segment
        self.guest_fin, self.reset = self.guest_fin or bool(flags & FIN), bool(flags & RST)
        if self.learning and not flags & RST and (start != end or flags & FIN):
            self._never_learn()

    def to_guest(self, frame: bytes, segment: Segment) -> bytes:
        """The client's segment in the numbers of the guest."""
        _, _, _, flags, at, start, end = segment
        if self.learning and flags & RST:
            return self._refusal(frame, segment)
        if not flags & ACK or not (self.seq_add or self.value_add or self.advance):
            return frame
        stamps = timestamps(frame, at, start)
        if stamps is None or not stamps[1]:
            return rewrite(frame, at, start, end, ack_add=self.seq_add)
        return rewrite(frame, at, start, end, ack_add=self.seq_add, echo_add=self._value_add(stamps[1]))

    def _refusal(self, frame: bytes, segment: Segment) -> bytes:
        """A client's RST while nothing is known. The one that refuses a SYN acknowledges it (RFC 9293, 3.10.7.1)."""
        _, _, ack, flags, at, start, end = segment
        if self.isn is None or self.client_first is not None or not flags & ACK:
            return frame
        return rewrite(frame, at, start, end, ack_add=self.isn + 1 - ack)

    def _value_add(self, shown: int) -> int:
        """What leads from a timestamp that the client has seen to the one that the guest sent."""
        if self.advance is not None and distance(shown, self.first_shown) >= 0:
            return self.value_add - self.advance
        return self.value_add

    def quote_to_guest(self, frame: bytes, quote: Quote) -> bytes:
        """The error with the guest's own segment in it. While nothing is acknowledged it has sent its opening alone."""
        seq_add = self.seq_add
        if self.learning and self.isn is not None and (quote.flags is None or quote.flags & SYN):
            seq_add = self.isn - quote.seq
        value_add = 0 if quote.value is None else self._value_add(quote.value)
        if not seq_add and not value_add:
            return frame
        return rewrite_quote(frame, quote, seq_add=seq_add, value_add=value_add)

    def to_client(self, frame: bytes, segment: Segment, advance_ticks: int) -> bytes:
        """The guest's segment in the numbers that the client knows, after a takeover.

        Timestamps go `advance` ticks forward, a constant of the connection. Needed: `value_add` is wrong by the lag
        between the two SYN-ACKs, and the SVM's clock may be behind the PVM's, each by less than `advance_ticks`.
        Harmless: a client only wants them not to run backwards and to be echoed (RFC 7323, 5.3); a step forward is what
        an idle connection shows. Echoes are mapped back exactly: those from `first_shown` on carry the advance, older
        ones don't, and as the values never run backwards there is no third kind.
        """
        _, _, _, flags, at, start, end = segment
        stamps = timestamps(frame, at, start)
        if flags & ODD and not self.seq_add and is_signed_with_options(frame, at, start):
            return frame
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
            known.open_again(segment)
            self._note(key)
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
        """A client's segment for the guest, and its connection."""
        key, flags = opposite(segment[0]), segment[3]
        connection = self.connections.get(key)
        if connection is None or not connection.existed:
            return frame, None
        if connection.unsettled:
            connection.learn(frame, segment)
            self._note(key)
        connection.note_inbound(frame, segment)
        if flags & (FIN | RST) and connection.ended:
            self._ended[key] = None
        return connection.to_guest(frame, segment), connection

    def inbound_frame(self, frame: bytes) -> tuple[bytes, Segment | None, Connection | None]:
        """A client's frame as the guest has to see it; the segment in it, as it came, and its connection if known."""
        if not self.connections:
            return frame, None, None
        segment = parse_tcp(frame)
        if segment is None:
            layers = locate(frame)
            segment = None if layers is None else parse_first_piece(frame, layers)
            if layers is None or segment is None:
                return (frame if layers is None else self._inbound_quote(frame, layers)), None, None
        translated, connection = self.inbound_segment(frame, segment)
        return translated, segment, connection

    def _inbound_quote(self, frame: bytes, layers: Layers) -> bytes:
        """What is no segment may quote one."""
        quote = quoted_segment(frame, layers)
        connection = None if quote is None else self.connections.get(quote.key)
        if quote is None or connection is None or not connection.existed:
            return frame
        return connection.quote_to_guest(frame, quote)

    def inbound(self, frames: Sequence[bytes]) -> list[bytes]:
        """Client frames as the guest has to see them."""
        return [self.inbound_frame(frame)[0] for frame in frames]

    def outbound(self, frames: Sequence[bytes]) -> list[bytes]:
        """The guest's frames as the clients have to see them, after a takeover."""
        out = []
        for frame in frames:
            segment = parse(frame)
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
        self.note_outbound(connection, segment)
        if not connection.existed:
            return frame
        if connection.advance is None:
            self._note(key)
        return connection.to_client(frame, segment, self._advance_ticks)

    def note_outbound(self, connection: Connection, segment: Segment) -> None:
        """The guest has put out a segment of this connection."""
        was_learning = connection.learning
        connection.note_outbound(segment)
        if was_learning and not connection.learning:
            self._note(segment[0])
        if segment[3] & (FIN | RST) and connection.ended:
            self._ended[segment[0]] = None

    def _note(self, key: bytes) -> None:
        """The offsets of this connection change; before a takeover nobody asks for that."""
        if self.taken_over:
            self._changed[key] = None


def parse(frame: bytes) -> Segment | None:
    """The segment in `frame`, whole or as the first piece of it; None when there is none."""
    segment = parse_tcp(frame)
    layers = locate(frame) if segment is None else None
    return segment if layers is None else parse_first_piece(frame, layers)
