"""What is known of one connection on the secondary, and its rules; why they are right says `translation`.

Guarantee: no bytes make anything here raise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from pycolo.core import wire
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
    rewrite,
    timestamps,
)
from pycolo.core.quotes import Quote, rewrite_quote

_FIRST_ACK_WINDOW = 1 << 20  # how far behind the client's first byte its first acknowledgement may stand
_SENT_MAX = 4096
_ECHO_AHEAD_MAX = 1 << 24  # an echo further ahead of the SVM's clock is forged
_REPEATED_TICKS_MAX = 1 << 18  # between the first and the last of the SYNs of one opening
_STATE_ELSEWHERE: tuple[str, ...] = ()  # a name, as mypy takes an empty literal for "nothing can be assigned"


class Connection(ABC):
    """What the secondary knows of one connection. `seq_add` etc. are added mod 2^32 on the way to the SVM.

    Here are the rules. Where the state is a subclass says: in Python, or in C, where the compiled side finds it too.
    """

    __slots__ = _STATE_ELSEWHERE

    isn: int | None  # the SVM's; None: the connection is older than the last checkpoint
    syn_value: int | None  # TSval of the SVM's first SYN or SYN-ACK; None: there is none, or no need
    client_first: int | None  # the client's first sequence number behind its SYN
    learning: bool  # the SVM has opened, and nothing has acknowledged it yet
    seq_add: int  # SVM's sequence number minus the PVM's
    value_add: int  # SVM's timestamp minus the PVM's
    echo: int | None  # the newest timestamp that the client has echoed
    existed: bool  # at the takeover: only then outbound segments are translated
    advance: int | None  # ticks added to timestamps after the takeover, fixed at the first of them
    first_shown: int  # the first timestamp shown to the client since
    guest_fin: bool
    client_fin: bool
    reset: bool
    last_ack_no: int | None  # the retained segment that takes no room in the stream

    @abstractmethod
    def note_sent(self, nos: Sequence[int], end: int) -> None:
        """A segment up to `end`, in the SVM's numbers, is retained as the frames `nos`; the oldest of too many goes."""

    @abstractmethod
    def take_acknowledged(self, ack: int) -> list[int]:
        """The frames of which the client has everything, as it has what is before `ack` (in the SVM's numbers)."""

    @abstractmethod
    def sent_nos(self) -> list[int]:
        """All frames that `note_sent` has told and `take_acknowledged` has not."""

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

    @property
    def is_constant(self) -> bool:
        """Whether the same is added to whatever comes from now on, as the client has echoed something shown since the
        takeover; or nothing has been shown, and timestamps have had the time to pass by themselves.
        """
        echoed = self.echo is not None and distance(self.echo, self.first_shown) >= 0
        return not self.unsettled and (self.advance is None or echoed)

    def fold(self, nearer: Connection) -> None:
        """Do what `nearer` to the clients, which is constant, has done to the same connection as well."""
        apart = nearer.value_add - (nearer.advance or 0)
        if self.isn is None and nearer.isn is not None:
            self.isn = (nearer.isn + self.seq_add) & MASK
        self.seq_add = (self.seq_add + nearer.seq_add) & MASK
        self.value_add = (self.value_add + apart) & MASK
        self.first_shown = (self.first_shown - apart) & MASK
        self.echo = nearer.echo
        self.guest_fin, self.client_fin = self.guest_fin or nearer.guest_fin, self.client_fin or nearer.client_fin

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
            self.guest_fin,
            self.client_fin,
            self.reset,
        )

    def adopt(self, known: wire.Offsets) -> None:
        """What `offsets` said on the other host."""
        self.seq_add, self.value_add, self.advance = known.seq_add, known.value_add, known.advance
        self.first_shown, self.echo, self.learning = known.first_shown, known.echo, known.learning
        self.isn, self.syn_value, self.client_first = known.isn, known.syn_value, known.client_first
        self.guest_fin, self.client_fin, self.reset = known.guest_fin, known.client_fin, known.reset

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


class PythonConnection(Connection):
    """Its state is in Python."""

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
        self.isn = self.syn_value = self.client_first = self.echo = self.advance = self.last_ack_no = None
        self.seq_add = self.value_add = self.first_shown = 0
        self.learning = self.guest_fin = self.client_fin = self.reset = False
        self.existed = True
        self.sent: deque[tuple[int, int]] = deque(maxlen=_SENT_MAX)  # number, end in SVM's numbers

    def note_sent(self, nos: Sequence[int], end: int) -> None:
        self.sent.extend((no, end) for no in nos)

    def take_acknowledged(self, ack: int) -> list[int]:
        sent, nos = self.sent, []
        while sent and distance(ack, sent[0][1]) >= 0:
            nos.append(sent.popleft()[0])
        return nos

    def sent_nos(self) -> list[int]:
        return [no for no, _ in self.sent]
