"""The agent beside the PVM: client frames go to it and, numbered, to the peer; the PVM's output waits for its twin.

Where the PVM has been taken over, each card's `chain` stands between the clients and all of this: what is held and
compared is in the guest's numbers. The peer gets client frames as they came, and beforehand what it needs to translate
them alike. All cards share one numbering of client frames, so that a checkpoint has one boundary.

Guarantees: in protected mode the only way to a client is what `PrimaryDataplane` releases (rule 1), and only under a
lease of the secondary's (`core/lease`). After the pair is left everything stays held until `go_solo` (rule 5).
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from pycolo.agent import protocol
from pycolo.agent.recorder import Recorder
from pycolo.agent.side import BATCH_FRAMES_MAX, Card, Side
from pycolo.core import engines, wire
from pycolo.core.compare_terms import CompareTerms
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.divergence import Divergence
from pycolo.core.engines import primary_dataplane
from pycolo.core.lease import Lease
from pycolo.core.limits import DataplaneLimits
from pycolo.core.pace import CheckpointPace
from pycolo.core.packed import Batch, Packed, measure, pack, unpack
from pycolo.edge.boottime import boottime_s
from pycolo.edge.packet_channel import PacketChannel
from pycolo.errors import PeerLost, WrongState

DIVERGENCES_MAX = 8  # told with one request for a checkpoint
UNSPOKEN_BYTES_MAX = 16 << 20  # of a card
UNUSED_MS_MAX = 5.0  # how long a card that took no frame at all the last time is waited for
KEPT_BY_QEMU_MAX = 4  # frames that QEMU takes between two pauses though the guest does not


class PrimaryCard(Card):
    """A card and what it holds; `dataplane` is None while the VM runs solo and output flows freely.

    `unspoken` is free to go, but has not been sent for want of a lease.
    """

    def __init__(self, card: Card) -> None:
        super().__init__(card.number, card.mac, card.tap, card.nic, card.chain)
        self.dataplane: PrimaryDataplane | None = None
        self.unspoken = b""
        self._fed = 0
        self._unused = False

    @property
    def full(self) -> bool:
        """Whether it may hold no more."""
        return self.dataplane is not None and (self.dataplane.full or len(self.unspoken) > UNSPOKEN_BYTES_MAX)

    def feed(self, batch: Batch) -> None:
        """Client frames, in the guest's numbers."""
        self._fed += batch.count
        self.nic.send(batch)

    def speak(self, packed: Packed, deadline_s: float) -> int:
        """Send the guest's frames to clients, in their numbers, and none after `deadline_s`; returns the place reached.

        What is behind it may be said again later: to the translation it is as if the guest had repeated it.
        """
        at = 0
        while at < len(packed) and boottime_s() <= deadline_s:
            # A part at a time: the clock must not run while all the others are being translated.
            end, _ = measure(packed, at, BATCH_FRAMES_MAX)
            said = self.chain.outbound_packed(packed[at:end])
            reached, _ = self.tap.send(said, deadline_s)
            if reached < len(said):
                _, count = measure(said[:reached], 0, BATCH_FRAMES_MAX)  # translated one for one
                return measure(packed, at, count)[0]
            at = end
        return at

    # ---- the guest may have a card that it does not use: nobody ever takes the frames that are fed to it

    def waits(self, waited_ms: float) -> bool:
        """Whether QEMU still has to be waited for, `waited_ms` after the pause."""
        hopeless = self._unused and waited_ms > UNUSED_MS_MAX
        return not (hopeless or self.nic.taken())

    def end_wait(self) -> None:
        """A guest that takes no frames loses them, as on a full wire: in both copies alike."""
        left = 0 if self.nic.taken() else min(self._fed, self.nic.take_back())
        if left or self._fed > KEPT_BY_QEMU_MAX:
            self._unused = self._fed - left <= KEPT_BY_QEMU_MAX
        self._fed = 0


class PrimarySide(Side):
    """Solo at first; protected from the first seal on; solo again after `go_solo`: all cards alike."""

    def __init__(
        self,
        cards: Sequence[Card],
        notify: Callable[[protocol.Notice], None],
        limits: DataplaneLimits,
        terms: CompareTerms,
        pace: CheckpointPace,
        lease_ms: float,
    ) -> None:
        """`limits` are those of one card; `lease_ms`: see `core/lease`."""
        super().__init__(notify)
        self._terms, self._pace = terms, pace
        self.cards: list[PrimaryCard] = [PrimaryCard(card) for card in cards]
        self._limits = limits
        self._lease = Lease(lease_ms)
        self._input_no = 0
        self.feeding = True
        self._cutting = False
        self._past = protocol.Stats()
        self._recorder: Recorder | None = None
        self._captured = protocol.Capture()
        self._found: list[Divergence] = []

    @property
    def _dataplanes(self) -> list[PrimaryDataplane]:
        """One for each card; none while the VM runs solo."""
        return [card.dataplane for card in self.cards if card.dataplane is not None]

    def attach(self, channel: PacketChannel, now_ms: float) -> None:
        """From the next boundary on client frames go to the peer too."""
        self.channel, self._lease = channel, Lease(self._lease.lease_ms)
        for dataplane in self._dataplanes:  # a reunion: its commit shows that the peer is our secondary still
            dataplane.hold_until_commit()
        for card in self.cards:
            self._tell(card, card.chain.whole(now_ms))

    def take_over(self, released: Sequence[Batch], missed: Sequence[Batch]) -> int:
        """Our guest was the SVM until now: on each card clients get `released`, in their numbers; the guest what it
        `missed`.
        """
        for card, batch in zip(self.cards, released, strict=True):
            card.tap.send(batch.packed)
            self.counters.released_solo += batch.count
        for card, batch in zip(self.cards, missed, strict=True):
            self.counters.client_frames += batch.count
            card.feed(card.inbound(batch))
        return sum(batch.count for batch in released)

    def reads_tap(self, number: int) -> bool:
        return self.feeding and not self.cards[number].nic.backlog

    def reads_nic(self, number: int) -> bool:
        card = self.cards[number]
        if self._cutting:
            return False
        return card.dataplane is None or (self.channel is not None and not card.full)

    def on_tap(self, number: int, now_ms: float) -> None:
        card = self.cards[number]
        arrived = card.tap.receive(BATCH_FRAMES_MAX)
        self.counters.client_frames += arrived.count
        if self._recorder is not None:
            self._recorder.clients(number, unpack(arrived.packed), now_ms)
        batch = card.inbound(arrived)
        freed = b"" if card.dataplane is None else card.dataplane.client_packed(batch.packed, now_ms)
        card.feed(batch)
        if freed:
            self._speak([(card, freed)], now_ms)
        if self.channel is not None:
            self.channel.send_frames(number, 0, self._input_no, arrived)
            self._input_no += arrived.count
            self._tell_changes(card)
            self._ask_lease()

    def on_nic(self, number: int, now_ms: float) -> None:
        card = self.cards[number]
        self._ask_lease()
        self._speak([(card, self._put_out(card, card.nic.receive(BATCH_FRAMES_MAX), now_ms))], now_ms)
        self._confirm()

    def on_channel(self, now_ms: float) -> None:
        for message in self.open_channel().receive():
            if isinstance(message, tuple):
                number, epoch, first_no, batch = message
                card = self.cards[number]
                if self._recorder is not None:
                    self._recorder.secondary(number, epoch, unpack(batch.packed), now_ms)
                if card.dataplane is not None:
                    self._speak([(card, card.dataplane.svm_packed(epoch, first_no, batch.packed, now_ms))], now_ms)
            elif isinstance(message, wire.GrantLease):
                self._lease.granted(message.number)
                self._speak([(card, b"") for card in self.cards], now_ms)
            elif isinstance(message, wire.EndLeases):
                raise PeerLost("the secondary's agent has left the pair")
        self._confirm()

    def on_time(self, now_ms: float) -> float | None:
        for card in self.cards:
            reason = None if card.dataplane is None else card.dataplane.due(now_ms)
            if reason is not None or card.full:
                self._pace.want(reason or "limit", now_ms)
        asked = self._pace.due(now_ms)
        if asked is not None:
            self.notify(protocol.Wanted(asked, self._divergences()))
        news = self._pace.news(now_ms)
        if news is not None:
            self.notify(protocol.Paced(news.mode, news.interval_ms, news.why))
        due_ms = [self._capture_due(now_ms), self._pace.next_ms(now_ms)]
        due_ms += [dataplane.next_due_ms(now_ms) for dataplane in self._dataplanes]
        return min((due for due in due_ms if due is not None), default=None)

    def _divergences(self) -> list[Divergence]:
        """Where outputs have differed since the last time, the first places."""
        self._find_divergences()
        found, self._found = self._found, []
        return found

    def _find_divergences(self) -> None:
        """Those that nobody has asked for yet."""
        for card in self.cards:
            found = [] if card.dataplane is None else card.dataplane.take_divergences()
            self._found += found[: DIVERGENCES_MAX - len(self._found)]
            if found and self._recorder is not None:
                self._recorder.differ(card.number, found)

    def _put_out(self, card: PrimaryCard, batch: Batch, now_ms: float) -> Packed:
        """The PVM has put these out; returns what may leave now."""
        self.counters.vm_frames += batch.count
        if card.dataplane is not None:
            if self._recorder is not None:
                first_no, epoch = card.dataplane.next_frame, card.dataplane.epoch
                self._recorder.put_out(card.number, unpack(batch.packed), first_no, epoch, now_ms)
            return card.dataplane.pvm_packed(batch.packed, now_ms)
        self.counters.released_solo += batch.count
        return batch.packed

    def _speak(self, out: Sequence[tuple[PrimaryCard, Packed]], now_ms: float, *, committed: int = 0) -> None:
        """Release frames, first what is unspoken; without a lease they wait, and after the pair is left for `go_solo`.

        All of them before any news for the peer, as the channel may break. `committed`: by that checkpoint. Raises
        PeerLost.
        """
        for card, free in out:
            packed = card.unspoken + free if card.unspoken else free
            if not packed:
                continue
            at = card.speak(packed, math.inf if card.dataplane is None else self._leave_until_s())
            card.unspoken = bytes(packed[at:])
            if self._recorder is not None:
                self._find_divergences()
                sent, solo = unpack(packed[:at]), card.dataplane is None
                self._recorder.left(card.number, sent, now_ms, committed=committed, solo=solo)
        for card, _ in out:
            self._tell_changes(card)
        if any(card.unspoken for card, _ in out):
            self._ask_lease()

    def _leave_until_s(self) -> float:
        """Until when we may release output: a time of `boottime_s`."""
        return -math.inf if self.channel is None else self._lease.until_ms / 1000

    def _ask_lease(self) -> None:
        """Whenever something comes that output may follow: an idle VM needs no lease."""
        if self.channel is not None and self._dataplanes:
            number = self._lease.ask(boottime_s() * 1000)
            if number is not None:
                self.channel.send(wire.AskLease(number, self._lease.lease_ms))

    def _tell_changes(self, card: PrimaryCard) -> None:
        """Before the next client frame, which may need them."""
        if self.channel is not None:
            self._tell(card, card.chain.changes())

    def _tell(self, card: PrimaryCard, news: Sequence[wire.Translations]) -> None:
        for message in news:
            self.open_channel().send(msgspec.structs.replace(message, nic=card.number))

    def _confirm(self) -> None:
        """Tell the peer what has left; on a card where something waits for a lease, later."""
        if self.channel is None:
            return
        for card in self.cards:
            numbers = [] if card.dataplane is None or card.unspoken else card.dataplane.take_confirmations()
            if numbers:
                self.channel.send(wire.Confirm(card.number, numbers))

    # ---- the checkpoint's steps, in their order

    def pause_feed(self, now_ms: float) -> int:
        """Take no more client frames; returns the number of the next one, which the peer is told as well."""
        self.feeding = False
        self._pace.paused(now_ms)
        self.open_channel().send(wire.Boundary(self._input_no))
        return self._input_no

    def waits_for_qemu(self, waited_ms: float) -> bool:
        """Whether QEMU has not taken all yet that was fed until the pause, `waited_ms` ago."""
        return any(card.waits(waited_ms) for card in self.cards)

    def end_wait(self) -> None:
        """What QEMU has not taken by now it never gets."""
        for card in self.cards:
            card.end_wait()

    def resume_feed(self, now_ms: float) -> None:
        """Take client frames and the PVM's output again."""
        self.feeding, self._cutting = True, False
        self._pace.resumed(now_ms)

    def drain(self) -> list[Batch]:
        """The PVM is paused: what it has put out until now, card by card. Nothing is read until the feed resumes."""
        self._cutting = True
        return [card.nic.receive_all() for card in self.cards]

    def seal(self, epoch: int, drained: Sequence[Batch], now_ms: float) -> None:
        """What was drained, and all before it, belongs to the old epoch; what comes now to `epoch`."""
        cards = zip(self.cards, drained, strict=True)
        self._speak([(card, self._put_out(card, batch, now_ms)) for card, batch in cards], now_ms)
        self._confirm()
        held = 0
        for card in self.cards:
            if card.dataplane is None:
                seed = secrets.randbits(64)
                card.dataplane = primary_dataplane(self._limits, epoch - 1, self._terms, seed=seed)
            held += card.dataplane.seal(epoch)
        self._pace.sealed(now_ms, held, sum(dataplane.stats.released_equal for dataplane in self._dataplanes))

    def commit(self, epoch: int, now_ms: float) -> int:
        """Release what the checkpoint that starts `epoch` freed."""
        if not self._dataplanes:
            return 0
        self._pace.committed(now_ms)
        self._ask_lease()
        freed = []
        for card in self.cards:
            assert card.dataplane is not None
            freed.append((card, pack(card.dataplane.commit(epoch, now_ms))))
        count = _count(freed)
        self._speak(freed, now_ms, committed=epoch)
        return count

    def go_solo(self) -> int:
        """We hold the claim: everything held leaves, and output flows freely."""
        self.leave_pair()
        held = [(card, pack(card.dataplane.go_solo())) for card in self.cards if card.dataplane is not None]
        if held:
            self._past = self.stats()
        for card, _ in held:
            card.dataplane = None
        self._found = []  # nobody is left who could differ
        count = _count(held)
        self._speak(held, time.monotonic() * 1000)
        self.counters.released_solo += count
        return count

    # ---- recording what goes by

    def start_capture(self, request: protocol.StartCapture, now_ms: float) -> protocol.Capture:
        """Raises WrongState while a capture runs, EnvironmentFault when there can be no file."""
        if self._recorder is not None:
            raise WrongState(
                f"the VM is being captured into {self._captured.path}: wait for the end of that, or stop it first"
            )
        wall_clock_ns = time.time_ns()
        self._recorder = Recorder(request, len(self.cards), self._terms.policy, now_ms, wall_clock_ns)
        return self.capture()

    def capture(self) -> protocol.Capture:
        """The capture that runs, or ran last. Raises WrongState when there was none."""
        if self._recorder is not None:
            self._captured = self._recorder.report()
        if not self._captured.path:
            raise WrongState("no capture has been taken here: start one with `colo capture VM`")
        return self._captured

    def stop_capture(self, why: str) -> protocol.Capture:
        """End the capture, if one runs."""
        if self._recorder is not None:
            self._recorder.end(why)
            self._captured, self._recorder = self._recorder.report(), None
        return self.capture()

    def _capture_due(self, now_ms: float) -> float | None:
        """When the capture wants to be called again; one that has ended is dropped."""
        if self._recorder is None:
            return None
        due_ms = self._recorder.on_time(now_ms)
        if self._recorder.ended:
            self.stop_capture(self._recorder.ended)
            return None
        return due_ms

    # ---- counters

    def stats(self) -> protocol.Stats:
        """Counters, over all protected times and all cards; the lag is the longest."""
        past, counters, now = self._past, self.counters, [dataplane.stats for dataplane in self._dataplanes]
        return protocol.Stats(
            released_equal=past.released_equal + sum(one.released_equal for one in now),
            released_by_checkpoint=past.released_by_checkpoint + sum(one.released_by_checkpoint for one in now),
            released_solo=counters.released_solo,
            diverged=past.diverged + sum(one.diverged for one in now),
            held_frames=sum(one.held_frames for one in now),
            held_bytes=sum(one.held_bytes for one in now),
            lag_ms=max((one.lag_ms for one in now), default=0.0),
            client_frames=counters.client_frames,
            vm_frames=counters.vm_frames,
            released_by_policy=past.released_by_policy + sum(one.released_by_policy for one in now),
            flows=sum(one.flows for one in now),
            mode=self._pace.mode if now else "",
            interval_ms=self._pace.interval_ms if now else 0.0,
            engine=engines.NAME,
        )


def _count(out: Sequence[tuple[PrimaryCard, Packed]]) -> int:
    """How many frames these are, with those that are unspoken."""
    return sum(measure(packed, 0, len(packed))[1] for card, free in out for packed in (card.unspoken, free))
