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
  2.1), when its clock has passed that of the dead copy. Only a SYN that a client repeated in that time is answered at
  once: then the client drops what it hears until the survivor's clock is no longer behind, and hears it repeated.
* A connection that begins after the takeover is never touched, nor, once the layer is `settled`, one that is not known:
  a guest that has said nothing on it for so long has a clock that has passed what clients have seen.
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

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from pycolo.core import wire
from pycolo.core.connection import Connection, PythonConnection
from pycolo.core.layers import Layers, locate
from pycolo.core.packet import FIN, RST, SYN, Segment, opposite, parse_first_piece, parse_tcp
from pycolo.core.quotes import quoted_segment

ADVANCE_SLACK_TICKS = 4000
_EVICTION_LOOKS_MAX = 64


class Translator:
    """The table of connections, by the guest's view of their addresses and ports (as in `packet.Segment`)."""

    def __init__(self, flows_max: int, advance_ticks: int) -> None:
        self._flows_max = flows_max
        self._advance_ticks = advance_ticks
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self._ended_before: set[bytes] = set()  # had when `forget_ended` was called last, here or on the other host
        self.connections: OrderedDict[bytes, Connection] = OrderedDict()
        self._changed: dict[bytes, None] = {}  # whose offsets are others than when they were told
        self.taken_over = False
        self.settled = False  # the takeover was longer ago than timestamps advance, when that was last looked at

    def clear(self) -> None:
        """All offsets are zero."""
        self.connections.clear()
        self._ended.clear()
        self._ended_before.clear()

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
        connection = self.connections[key] = self._new_connection(key)
        return connection

    def _new_connection(self, key: bytes) -> Connection:
        del key
        return PythonConnection()

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
        self._ended_before.discard(key)
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
                if connection.ended:
                    self._ended[offsets.key] = None
                    self._ended_before.add(offsets.key)

    # ---------------------------------------------------------------- several takeovers

    def fold_into(self, inner: Translator, *, anyhow: bool = False) -> None:
        """What `inner`, the layer of the next takeover, can do for this settled one as well, it does alone from now on.

        `anyhow`: whatever `inner` has room for. Then an opening that nothing has answered goes on in the numbers of the
        last guest, and what a client echoes that has heard nothing since this takeover becomes too old.
        """
        is_full = False
        for key, outer in list(self.connections.items()):
            is_new = key not in inner.connections
            if outer.existed and is_new and (is_full or not (anyhow or inner.settled or outer.is_constant)):
                continue
            if not outer.existed or inner._take_in(key, outer, anyhow):
                self._drop(key)
            else:
                is_full |= is_new

    def _take_in(self, key: bytes, outer: Connection, anyhow: bool) -> bool:
        """Translate a connection as `outer`, nearer to the clients, and this layer did; False when that can't be."""
        known = self.connections.get(key)
        if known is None:
            goes_on, known = self.settled or outer.unsettled, self.admit(key)
            if known is None:
                return False
        elif known.existed:
            if not anyhow and (not outer.is_constant or known.unsettled):
                return False
            goes_on = False
        else:
            goes_on = known.existed = True  # the guest has repeated its opening, which this layer took for another one
        if goes_on:
            known.adopt(outer.offsets(key))
        else:
            known.fold(outer)
        self._note_end(key, known)
        return True

    def forget_ended(self) -> None:
        """Of those that have ended, the ones that had already when this was called before."""
        for key in list(self._ended_before):
            connection = self.connections.get(key)
            if connection is not None and connection.ended:
                self._drop(key)
        self._ended_before = set(self._ended)

    def _note_end(self, key: bytes, connection: Connection) -> None:
        if connection.ended:
            self._ended[key] = None
            self._note(key)

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
        if flags & (FIN | RST):
            self._note_end(key, connection)
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
            if self.settled or flags & RST:
                return frame  # a RST answers a stray segment: it carries no timestamp, and nothing follows
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
        if segment[3] & (FIN | RST):
            self._note_end(segment[0], connection)

    def _note(self, key: bytes) -> None:
        """The offsets of this connection change; before a takeover and without a secondary nobody asks for that."""
        if self.taken_over and len(self._changed) < self._flows_max:
            self._changed[key] = None


def parse(frame: bytes) -> Segment | None:
    """The segment in `frame`, whole or as the first piece of it; None when there is none."""
    segment = parse_tcp(frame)
    layers = locate(frame) if segment is None else None
    return segment if layers is None else parse_first_piece(frame, layers)
