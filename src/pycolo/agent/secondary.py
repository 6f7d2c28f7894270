"""The agent beside the SVM: client frames come from the peer, the SVM's output goes to the peer and to nobody else.

Guarantees: nothing reaches a client from here (rule 5): at a takeover, and not before `may_speak`, a `PrimarySide`
takes the place. The SVM sees
every client frame from the boundary of its checkpoint on, or a further checkpoint is asked for.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

from pycolo.agent import protocol
from pycolo.agent.side import BATCH_FRAMES_MAX, Card, Side
from pycolo.core import engines, wire
from pycolo.core.lease import Promise
from pycolo.core.limits import DataplaneLimits
from pycolo.core.overheard import Overheard
from pycolo.core.packed import Batch, Packed, batch_of, joined, measure
from pycolo.core.replay import ReplayLog
from pycolo.edge.boottime import boottime_s
from pycolo.edge.doorway import Doorway
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.packet_channel import Incoming, PacketChannel
from pycolo.errors import PeerClosed, PeerLost

REPLAY_BYTES_MAX = 64 << 20


class SecondaryCard(Card):
    """A card and what clients may lack of its output, or have said to nobody."""

    def __init__(self, card: Card, limits: DataplaneLimits) -> None:
        super().__init__(card.number, card.mac, card.tap, card.nic, card.chain)
        self.dataplane = engines.secondary_dataplane(limits, seed=secrets.randbits(64))
        self.overheard = self._new_account()
        self._overheard_apart: Overheard | None = None
        self._output_no = 0

    def _new_account(self) -> Overheard:
        return engines.overheard(self.mac, seed=secrets.randbits(64))

    def primary_came(self) -> None:
        """What was overheard until now it has dealt with, if it was away: nobody passes that on any more."""
        self._overheard_apart, self.overheard = self.overheard, self._new_account()

    def loaded(self) -> None:
        """The SVM is the PVM's copy, which has dealt with what was overheard while the two were apart."""
        self.dataplane.loaded()
        self._overheard_apart = None

    def missed(self, now_ms: float) -> Batch:
        """What clients said, and the SVM has not heard."""
        apart = [] if self._overheard_apart is None else [self._overheard_apart.missed(now_ms)]
        return joined([*apart, self.overheard.missed(now_ms)])

    def put_out(self, batch: Batch) -> int:
        """The SVM has put these out; returns the number of the first."""
        first_no = self._output_no
        self._output_no += batch.count
        self.dataplane.svm_packed(batch.packed, first_no)
        return first_no

    def feed(self, packed: Packed) -> int:
        """Client frames in the numbers of the SVM; returns how many were dropped."""
        return self.nic.send(Batch(packed, measure(packed, 0, len(packed))[1]))


class SecondarySide(Side):
    """Silent towards clients; each card's `chain` translates as the primary does, see `agent/primary`."""

    def __init__(
        self,
        cards: Sequence[Card],
        notify: Callable[[protocol.Notice], None],
        limits: DataplaneLimits,
        open_doorway: Callable[[Callable[[MessageStream], None]], Doorway],
    ) -> None:
        """`limits` are those of one card; `open_doorway(greeted)` listens for the packet channel."""
        super().__init__(notify)
        self.cards: list[SecondaryCard] = [SecondaryCard(card, limits) for card in cards]
        self._open_doorway = open_doorway
        self._doorway = open_doorway(self._greeted)
        self._replay = ReplayLog(REPLAY_BYTES_MAX)
        self._epoch = 0
        self.feeding = False
        self._asked = False
        self._promise = Promise()
        self._left: PacketChannel | None = None  # we have left, and the primary may not know it
        self._broken: PacketChannel | None = None

    @property
    def packet_port(self) -> int:
        """Where the primary's agent connects to."""
        return self._doorway.port

    def listen(self) -> int:
        """The channel is lost: open another way in, and return its port."""
        self.leave_pair()
        self._close_left()
        self._doorway = self._open_doorway(self._greeted)
        return self.packet_port

    def _greeted(self, stream: MessageStream) -> None:
        self.channel = PacketChannel(stream, len(self.cards), receiver_is_primary=False)
        for card in self.cards:
            card.primary_came()

    def reads_tap(self, number: int) -> bool:
        del number
        return True

    def reads_nic(self, number: int) -> bool:
        del number
        return self.feeding

    def on_tap(self, number: int, now_ms: float) -> None:
        card = self.cards[number]
        card.overheard.overhear(card.tap.receive(BATCH_FRAMES_MAX).packed, now_ms)

    def on_nic(self, number: int, now_ms: float) -> None:
        del now_ms
        card = self.cards[number]
        batch = card.nic.receive(BATCH_FRAMES_MAX)
        self.counters.vm_frames += batch.count
        first_no = card.put_out(batch)
        if self.channel is not None:
            self.channel.send_frames(number, self._epoch, first_no, batch)
        self._feed_packed(card, card.dataplane.take_freed())

    def on_channel(self, now_ms: float) -> None:
        for message in self._receive(self.open_channel()):
            if isinstance(message, tuple):
                number, _, first_no, batch = message
                self._client_frames(self.cards[number], first_no, batch, now_ms)
            elif isinstance(message, wire.Boundary):
                self._replay.mark(message.input_no)
            elif isinstance(message, wire.Translations):
                self.cards[message.nic].chain.adopt(message, now_ms)
            elif isinstance(message, wire.Confirm):
                self.cards[message.nic].dataplane.confirm(message.numbers)
            elif isinstance(message, wire.AskLease):
                self._promise.grant(message.lease_ms, boottime_s() * 1000)
                self.open_channel().send(wire.GrantLease(message.number))

    def _receive(self, channel: PacketChannel) -> list[Incoming]:
        """A primary's agent that closes its end gives up its leases. Raises PeerLost.

        Not so a channel that broke on our side: the kernel says why once, and from then on that it has ended.
        """
        try:
            return channel.receive()
        except PeerClosed:
            if channel is not self._broken:
                self._promise.void()
            raise
        except PeerLost:
            self._broken = channel
            raise

    def on_time(self, now_ms: float) -> float | None:
        left_s = self._doorway.turn(now_ms / 1000)
        return None if left_s is None else now_ms + left_s * 1000

    # ---- the roll-forward's steps, in their order

    def stop_feed(self) -> None:
        """Feed no more, and take back what QEMU has not read; frames go on being logged for the replay.

        A stopped QEMU would still read one frame and hand it to the loaded SVM, which has seen it already.
        """
        self.feeding = False
        for card in self.cards:
            card.nic.take_back()

    def drop_output(self) -> int:
        """The SVM is stopped: forget what it put out and take back what it has not read."""
        return sum(card.nic.receive_all().count + card.nic.take_back() for card in self.cards)

    def start_feed(self, epoch: int, boundary: int) -> int:
        """The SVM runs from the start of `epoch`; once for each epoch, however often it is said."""
        if self.feeding and epoch == self._epoch:
            return 0
        self._epoch = epoch
        self._asked = False
        for card in self.cards:
            card.loaded()
        replay = self._replay.replay(boundary)
        self.feeding = True
        for number, batch in replay.batches:
            self._feed(self.cards[number], batch)
        if not replay.complete:
            self.notify(protocol.Wanted("replay"))
        return replay.count

    def may_speak(self) -> bool:
        """After the pair is left: whether no lease of the primary's can run any more."""
        if self._left is not None:
            try:
                self._receive(self._left)  # its end is what matters
            except PeerLost:
                self._close_left()
        return self._promise.is_free(boottime_s() * 1000)

    def _close_left(self) -> None:
        if self._left is not None:
            self._left.close()
            self._left = None

    def take_over(self, now_ms: float) -> tuple[list[Batch], list[Batch]]:
        """We hold the claim: what clients may still miss, in their numbers, and what they said to the dead host.

        Both card by card. From now on each `chain` translates for our guest as well; this side is over.
        """
        for card in self.cards:
            while packed := card.tap.receive(BATCH_FRAMES_MAX).packed:
                card.overheard.overhear(packed, now_ms)
        self.leave_pair()
        self._close_left()
        released = [batch_of(card.chain.outbound(card.dataplane.take_over())) for card in self.cards]
        for card in self.cards:
            card.feed(card.dataplane.take_freed())
            card.chain.push(card.dataplane.translator, now_ms)
        return released, [card.missed(now_ms) for card in self.cards]

    def leave_pair(self) -> None:
        """Grant no lease any more. The channel stays open, as the primary's end of it tells when it has none."""
        if self.channel is not None:
            with suppress(PeerLost):
                self.channel.send(wire.EndLeases())
            self._close_left()
            self._left, self.channel = self.channel, None
        self._doorway.close()

    def stats(self) -> protocol.Stats:
        """Counters; a secondary releases nothing."""
        now = self.counters
        return protocol.Stats(client_frames=now.client_frames, vm_frames=now.vm_frames)

    def _client_frames(self, card: SecondaryCard, first_no: int, arrived: Batch, now_ms: float) -> None:
        card.overheard.passed_on(arrived.packed, now_ms)
        self.counters.client_frames += arrived.count
        batch = card.inbound(arrived)  # now, as the primary did: its translation may change before a replay
        self._replay.add(card.number, first_no, batch)
        if self.feeding:
            self._feed(card, batch)

    def _feed(self, card: SecondaryCard, batch: Batch) -> None:
        self._feed_packed(card, card.dataplane.client_packed(batch.packed))
        self._feed_packed(card, card.dataplane.take_freed())

    def _feed_packed(self, card: SecondaryCard, packed: Packed) -> None:
        """What the SVM does not get here it has to get by another checkpoint."""
        if packed and card.feed(packed) and not self._asked:
            self._asked = True
            self.notify(protocol.Wanted("replay"))
