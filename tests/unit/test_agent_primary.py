"""The agent beside the PVM: once either side has left the pair, nothing leaves without the claim (rule 5)."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from agent_parts import Clock, Peer, Place, comparing

from pycolo.agent import primary, protocol
from pycolo.agent.primary import UNUSED_MS_MAX, PrimarySide
from pycolo.agent.side import BATCH_FRAMES_MAX
from pycolo.core import wire
from pycolo.core.adaptive import AdaptiveLimits
from pycolo.core.compare_policy import CHECKPOINT, Policy, Rule
from pycolo.core.compare_terms import DEFAULT_TERMS, CompareTerms
from pycolo.core.lease import LEASE_MS_MAX
from pycolo.core.limits import DataplaneLimits
from pycolo.core.pace import CheckpointPace
from pycolo.core.packed import Packed, batch_of, measure, pack, unpack
from pycolo.core.tolerance_rules import Tolerances
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.boottime import boottime_s
from pycolo.edge.packet_channel import PacketChannel
from pycolo.errors import PeerLost
from tcp_frames import arp, udp

BRIEF_LEASE_MS = 600.0
AHEAD_S = 3600.0  # so far that what a tap compares with the machine's clock is never late


class Host:
    """A protected primary: its agent's side, and for each card its QEMU's end and its uplink; and the peer's end."""

    def __init__(
        self, cards: int = 1, limits: DataplaneLimits | None = None, *, lease_ms: float = LEASE_MS_MAX
    ) -> None:
        self.places = [Place(number) for number in range(cards)]
        self.tap = self.places[0].tap
        self.notices: list[protocol.Notice] = []
        self.side = PrimarySide(
            [place.card for place in self.places],
            self.notices.append,
            limits or DataplaneLimits(),
            DEFAULT_TERMS,
            comparing(),
            lease_ms,
        )
        self._twin_nos = [0] * cards
        self.pair_up()

    def pair_up(self) -> None:
        self.peer = Peer(len(self.places), secondary=True)
        self.side.attach(self.peer.near, 0.0)
        self.seal(1, 0.0)
        self.side.commit(1, 0.0)
        self.peer.grant()
        self.side.on_channel(0.0)

    def seal(self, epoch: int, now_ms: float) -> None:
        """The PVM is copied."""
        self.side.pause_feed(0)
        self.side.seal(epoch, self.side.drain(), now_ms)
        self.side.resume_feed(0)

    def pvm(self, *frames: bytes, card: int = 0) -> None:
        for frame in frames:
            self.places[card].qemu.send(frame)

    def svm(self, *frames: bytes, card: int = 0) -> None:
        self.peer.far.send_frames(card, 1, self._twin_nos[card], batch_of(frames))
        self._twin_nos[card] += len(frames)

    def turn(self) -> None:
        """What the event loop does when all are readable, the network cards first."""
        try:
            for number in range(len(self.places)):
                if self.side.reads_nic(number):
                    self.side.on_nic(number, 1.0)
            self.peer.grant()
            if self.side.channel is not None:
                self.side.on_channel(1.0)
        except PeerLost:
            self.side.leave_pair()

    def heard(self) -> list[list[bytes]]:
        """What clients have heard on each card's network since the last call."""
        return [place.tap.heard() for place in self.places]

    def close(self) -> None:
        self.side.leave_pair()
        self.peer.far.close()
        for place in self.places:
            place.close()


@pytest.fixture
def no_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that this machine does ends a lease: its clock stands still."""
    monkeypatch.setattr(primary, "boottime_s", Clock(boottime_s() + AHEAD_S))


@pytest.fixture
def host(no_stalls: None) -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def two(no_stalls: None) -> Iterator[Host]:
    """With two network cards, each of which may hold a few frames only."""
    host = Host(2, replace(DataplaneLimits(), held_frames_max=4))
    yield host
    host.close()


@pytest.fixture
def brief() -> Iterator[Host]:
    """With two network cards, and leases that do not last long."""
    host = Host(2, lease_ms=BRIEF_LEASE_MS)
    yield host
    host.close()


def test_a_frame_leaves_once_its_twin_has_come(host: Host) -> None:
    host.pvm(udp(b"one"))
    host.turn()
    assert host.tap.heard() == []
    host.svm(udp(b"one"))
    host.turn()
    assert host.tap.heard() == [udp(b"one")]


@pytest.mark.parametrize("order", ["twin first", "frame first"])
def test_what_the_peer_said_before_it_left_counts_and_after_that_nothing(host: Host, order: str) -> None:
    """It does not speak before our lease is over, or we have closed our end."""
    if order == "frame first":
        host.pvm(udp(b"one"))
        host.turn()
    host.svm(udp(b"one"))
    host.peer.far.send(wire.EndLeases())
    if order == "twin first":
        host.pvm(udp(b"one"))
    host.turn()
    assert host.tap.heard() == [udp(b"one")]
    assert host.side.channel is None
    host.pvm(udp(b"two"), arp())
    host.turn()
    assert host.tap.heard() == []


def test_after_leaving_nothing_leaves_and_nothing_is_lost(host: Host) -> None:
    host.svm(udp(b"one"), udp(b"two"))
    host.turn()
    host.side.leave_pair()
    host.pvm(udp(b"one"), arp(), udp(b"two"), udp(b"three"))
    host.turn()
    assert not host.side.reads_nic(0)
    assert host.tap.heard() == []
    host.side.go_solo()
    host.turn()
    assert sorted(host.tap.heard()) == sorted([udp(b"one"), arp(), udp(b"two"), udp(b"three")])


def test_what_a_seal_frees_after_the_loss_waits_for_the_claim(host: Host) -> None:
    host.svm(udp(b"one"))
    host.turn()
    host.pvm(udp(b"one"))
    drained = host.side.drain()
    host.side.leave_pair()
    host.side.seal(2, drained, 1.0)
    assert host.tap.heard() == []
    host.side.resume_feed(0)
    host.side.go_solo()
    assert host.tap.heard() == [udp(b"one")]


def test_a_commit_after_leaving_frees_nothing_and_loses_nothing(host: Host) -> None:
    host.pvm(udp(b"held"))
    host.turn()
    host.side.pause_feed(0)
    host.side.seal(2, host.side.drain(), 1.0)
    host.side.resume_feed(0)
    host.side.leave_pair()
    host.side.commit(2, 2.0)
    assert host.tap.heard() == []
    assert host.side.go_solo() == 1
    assert host.tap.heard() == [udp(b"held")]


def test_going_solo_is_final_until_the_next_pair(host: Host) -> None:
    host.side.leave_pair()
    host.side.go_solo()
    host.pvm(udp(b"free"))
    host.turn()
    assert host.tap.heard() == [udp(b"free")]


# ---------------------------------------------------------------- several network cards


def test_a_twin_frees_its_frame_on_its_own_card_only(two: Host) -> None:
    for card in (0, 1):
        two.pvm(udp(b"same"), card=card)
    two.svm(udp(b"same"), card=1)
    two.turn()
    assert two.heard() == [[], [udp(b"same")]]
    two.svm(udp(b"same"), card=0)
    two.turn()
    assert two.heard() == [[udp(b"same")], []]
    told = [said for said in two.peer.hears() if isinstance(said, wire.Confirm)]
    assert told == [wire.Confirm(1, [0]), wire.Confirm(0, [0])]
    assert two.side.stats().released_equal == 2


def test_client_frames_of_all_cards_are_one_sequence(two: Host) -> None:
    two.peer.hears()
    for card, said in ((1, b"a"), (0, b"b"), (1, b"c")):
        two.places[card].tap.clients.send(udp(said, inbound=True))
        two.side.on_tap(card, 1.0)
    assert two.side.pause_feed(0) == 3
    frames = [said for said in two.peer.hears() if isinstance(said, tuple)]
    assert [(card, number) for card, _, number, _ in frames] == [(1, 0), (0, 1), (1, 2)]
    assert [place.guest_hears() for place in two.places] == [
        [udp(b"b", inbound=True)],
        [udp(b"a", inbound=True), udp(b"c", inbound=True)],
    ]
    assert not any(two.side.reads_tap(card) for card in (0, 1))


def test_a_checkpoint_frees_what_all_cards_hold(two: Host) -> None:
    for card in (0, 1):
        two.pvm(udp(b"%d" % card), card=card)
    two.turn()
    two.pvm(udp(b"drained"), card=1)
    two.side.pause_feed(0)
    drained = two.side.drain()
    assert [batch.count for batch in drained] == [0, 1]
    assert not any(two.side.reads_nic(card) for card in (0, 1))
    two.side.seal(2, drained, 1.0)
    two.side.resume_feed(0)
    assert two.heard() == [[], []]
    assert two.side.stats().held_frames == 3
    assert two.side.commit(2, 2.0) == 3
    assert two.heard() == [[udp(b"0")], [udp(b"1"), udp(b"drained")]]
    assert two.side.stats().released_by_checkpoint == 3


def test_a_card_that_is_full_does_not_stop_the_others(two: Host) -> None:
    two.pvm(*(udp(b"%d" % number) for number in range(5)), card=1)
    two.turn()
    assert [two.side.reads_nic(card) for card in (0, 1)] == [True, False]
    two.side.on_time(1.0)
    assert two.notices == [protocol.Wanted("limit")]


def test_what_is_due_first_on_any_card_is_due(two: Host) -> None:
    assert two.side.on_time(1.0) is None
    two.pvm(udp(b"waits"), card=1)
    two.turn()
    due_ms = two.side.on_time(1.0)
    assert due_ms is not None
    two.pvm(udp(b"waits, too"), card=0)
    two.side.on_nic(0, 5.0)
    assert two.side.on_time(5.0) == due_ms
    assert two.notices == []
    two.side.on_time(due_ms)
    assert two.notices == [protocol.Wanted("late")]


def test_going_solo_frees_all_cards(two: Host) -> None:
    for card in (0, 1):
        two.pvm(udp(b"%d" % card), card=card)
    two.turn()
    two.side.leave_pair()
    assert two.heard() == [[], []]
    assert two.side.go_solo() == 2
    assert two.heard() == [[udp(b"0")], [udp(b"1")]]
    two.pvm(udp(b"free"), card=1)
    two.turn()
    assert two.heard() == [[], [udp(b"free")]]


def test_a_channel_that_breaks_between_two_cards_loses_nothing(two: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first card has news for the peer, who is not there any more; the second one has frames to send."""
    for card in (0, 1):
        two.pvm(udp(b"%d" % card), card=card)
    two.turn()
    two.seal(2, 1.0)
    news = wire.Translations(0, [], [])
    monkeypatch.setattr(two.places[0].card.chain, "changes", lambda: [news])

    def breaks(self: PacketChannel, message: wire.Translations) -> None:
        raise PeerLost("it is gone")

    monkeypatch.setattr(PacketChannel, "send", breaks)
    with pytest.raises(PeerLost):
        two.side.commit(2, 2.0)
    two.side.leave_pair()
    two.side.go_solo()
    assert two.heard() == [[udp(b"0")], [udp(b"1")]]


def freeze() -> None:
    """The process stands still, longer than any of its brief leases lasts."""
    time.sleep((BRIEF_LEASE_MS + 10) / 1000)


def freeze_behind(host: Host, card: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right behind what it sends on this card."""
    send = host.places[card].tap.send

    def and_freeze(packed: Packed, deadline_s: float = math.inf) -> tuple[int, int]:
        sent = send(packed, deadline_s)
        freeze()
        return sent

    monkeypatch.setattr(host.places[card].tap, "send", and_freeze)


def hears(host: Host) -> list[bytes]:
    """What leaves at the next turn: on a busy machine one may last longer than the leases it has."""
    for _ in range(10):
        host.turn()
        if heard := host.tap.heard():
            return heard
    return []


class Doubling(TranslatorChain):
    """Translates so that one sees it."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def outbound_packed(self, packed: Packed) -> Packed:
        return pack(frame * 2 for frame in unpack(packed))


@pytest.mark.parametrize("then", ["goes on", "alone"])
def test_a_frozen_agent_keeps_what_it_has_not_sent_of_any_card(
    brief: Host, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Until its partner lends it the leave to speak again, or the claim is its own."""
    for card in (0, 1):
        brief.pvm(udp(b"%d" % card), card=card)
    brief.turn()
    brief.seal(2, 1.0)
    freeze_behind(brief, 0, monkeypatch)
    brief.side.commit(2, 2.0)
    assert brief.heard() == [[udp(b"0")], []]
    monkeypatch.undo()
    if then == "goes on":
        brief.turn()
    else:
        brief.side.leave_pair()
        brief.side.go_solo()
    assert brief.heard() == [[], [udp(b"1")]]


def test_a_frozen_agent_keeps_the_rest_of_a_batch_as_the_guest_said_it(
    brief: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients' numbers have other bytes than the guest's; what is kept is translated when it leaves, and once."""
    said = [udp(b"%d" % number) for number in range(5)]
    monkeypatch.setattr(brief.side.cards[0], "chain", Doubling())
    brief.pvm(*said)
    brief.turn()
    brief.seal(2, 1.0)
    send = brief.tap.send

    def two_and_freeze(packed: Packed, deadline_s: float = math.inf) -> tuple[int, int]:
        at, _ = measure(packed, 0, 2)
        send(packed[:at])
        if deadline_s == math.inf:
            return send(packed[at:])[0] + at, 0
        freeze()
        return at, 0

    monkeypatch.setattr(brief.tap, "send", two_and_freeze)
    brief.side.commit(2, 2.0)
    assert brief.tap.heard() == [one * 2 for one in said[:2]]
    brief.side.leave_pair()
    assert brief.side.go_solo() == 3
    assert brief.tap.heard() == [one * 2 for one in said[2:]]


class Slow(Doubling):
    """Takes so long for each batch that all of them together outlast a lease."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def outbound_packed(self, packed: Packed) -> Packed:
        self._clock.now_s += BRIEF_LEASE_MS / 2000
        return super().outbound_packed(packed)


@pytest.mark.parametrize("step", ["compare", "seal", "commit", "twin"])
def test_an_agent_says_nothing_after_its_lease_wherever_it_was_frozen(
    brief: Host, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """And though nothing tells it that its partner has left: the link is cut as well."""
    if step == "twin":
        brief.pvm(udp(b"one"))
        brief.turn()
        brief.svm(udp(b"one"))
    else:
        brief.svm(udp(b"one"))
        brief.turn()
        brief.pvm(udp(b"one"))
    dataplane = brief.side.cards[0].dataplane
    assert dataplane is not None
    name = {"compare": "pvm_packed", "seal": "pvm_packed", "commit": "commit", "twin": "svm_packed"}[step]
    method = getattr(dataplane, name)

    def and_freeze(*arguments: object) -> object:
        freed = method(*arguments)
        freeze()
        return freed

    if step == "commit":
        brief.pvm(udp(b"two"))
        assert hears(brief) == [udp(b"one")]
        brief.seal(2, 1.0)
    monkeypatch.setattr(brief.peer, "grant", lambda: None)
    monkeypatch.setattr(dataplane, name, and_freeze)
    if step == "seal":
        brief.seal(2, 1.0)
    elif step == "commit":
        brief.side.commit(2, 2.0)
    else:
        brief.turn()
    monkeypatch.undo()
    assert brief.tap.heard() == []
    assert hears(brief) == [udp(b"two" if step == "commit" else b"one")]


def test_what_takes_long_to_translate_leaves_in_parts(brief: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would leave, and there would be more to translate the next time."""
    said = [udp(b"%d" % number) for number in range(4 * BATCH_FRAMES_MAX)]
    clock = Clock(boottime_s() + AHEAD_S)
    monkeypatch.setattr(primary, "boottime_s", clock)
    monkeypatch.setattr(brief.side.cards[0], "chain", Slow(clock))
    for start in range(0, len(said), BATCH_FRAMES_MAX):
        brief.pvm(*said[start : start + BATCH_FRAMES_MAX])
        brief.turn()
    brief.seal(2, 1.0)
    brief.side.commit(2, 2.0)
    heard = brief.tap.heard()
    assert BATCH_FRAMES_MAX <= len(heard) < len(said)
    for _ in range(4):
        brief.turn()
    assert heard + brief.tap.heard() == [one * 2 for one in said]


def test_an_agent_without_a_lease_takes_no_more_than_it_may_keep(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "UNSPOKEN_BYTES_MAX", 100)
    monkeypatch.setattr(host.peer, "grant", lambda: None)
    monkeypatch.setattr(host.side._lease, "until_ms", 0.0)
    for _ in range(5):
        host.pvm(arp())
        host.turn()
    assert host.tap.heard() == []
    assert not host.side.reads_nic(0)
    assert len(unpack(bytes(host.side.cards[0].unspoken))) == 3
    monkeypatch.undo()
    host.turn()
    assert host.side.reads_nic(0)
    host.turn()
    assert host.tap.heard() == [arp()] * 5


def test_what_waits_for_a_lease_is_not_confirmed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partner still has it to say, when we die before we do."""
    host.peer.hears()
    monkeypatch.setattr(host.peer, "grant", lambda: None)
    monkeypatch.setattr(host.side._lease, "until_ms", 0.0)
    host.svm(udp(b"one"))
    host.pvm(udp(b"one"))
    host.turn()
    monkeypatch.undo()
    assert host.tap.heard() == []
    assert host.peer.hears() == []
    host.turn()
    assert host.tap.heard() == [udp(b"one")]
    assert host.peer.hears() == [wire.Confirm(0, [0])]


def test_a_partner_that_says_that_it_leaves_is_lost(host: Host) -> None:
    host.peer.far.send(wire.EndLeases())
    with pytest.raises(PeerLost, match="left the pair"):
        host.side.on_channel(1.0)


def test_news_of_a_translation_names_its_card(two: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    two.peer.hears()
    news = wire.Translations(0, [], [], afresh=True)
    monkeypatch.setattr(two.places[1].card.chain, "changes", lambda: [news])
    two.places[1].tap.clients.send(udp(b"a", inbound=True))
    two.side.on_tap(1, 1.0)
    assert two.peer.hears()[-1] == msgspec.structs.replace(news, nic=1)


class Guest:
    """Client frames for the second card of two, and pauses of the feed."""

    def __init__(self, host: Host) -> None:
        self.side, self.place, self._card = host.side, host.places[1], host.side.cards[1]

    def pause(self, frames: int, takes: int = 0) -> bool:
        """Whether QEMU is waited for when it takes `takes` of so many frames, and only those."""
        self._card.feed(batch_of([udp(b"%d" % number) for number in range(frames)]))
        self.side.pause_feed(0)
        for _ in range(takes):
            self.place.qemu.recv(1000)
        waits = self.side.waits_for_qemu(UNUSED_MS_MAX + 1)
        self.side.end_wait()
        assert self.place.guest_hears() == []  # the rest is taken back
        self.side.resume_feed(0)
        return waits


@pytest.fixture
def guest(two: Host) -> Guest:
    return Guest(two)


def test_a_card_that_the_guest_does_not_use_is_waited_for_once(guest: Guest) -> None:
    assert guest.pause(3)
    assert not guest.pause(3)
    guest.pause(1, takes=1)  # QEMU itself keeps one now and then
    assert not guest.pause(3)


def test_a_card_that_comes_into_use_gets_its_time_again(guest: Guest) -> None:
    assert guest.pause(2)
    assert not guest.pause(9, takes=4)  # as many as QEMU may keep
    assert not guest.pause(9, takes=5)
    assert guest.pause(2)
    guest.pause(9, takes=9)
    assert guest.pause(2)


def test_an_unused_card_takes_no_time_from_the_others(two: Host, guest: Guest) -> None:
    guest.pause(3)
    two.side.cards[0].feed(batch_of([udp(b"slow")]))
    two.side.cards[1].feed(batch_of([udp(b"never read")]))
    two.side.pause_feed(0)
    assert two.side.waits_for_qemu(UNUSED_MS_MAX + 1)
    two.places[0].guest_hears()
    assert not two.side.waits_for_qemu(UNUSED_MS_MAX + 1)
    assert two.side.waits_for_qemu(0.0)


# ---------------------------------------------------------------- what is asked for, and how often


def test_a_divergence_is_told_with_its_place(host: Host) -> None:
    host.pvm(udp(b"one"))
    host.svm(udp(b"two"))
    host.turn()
    host.side.on_time(1.0)
    (wanted,) = host.notices
    assert isinstance(wanted, protocol.Wanted)
    assert wanted.reason == "divergence"
    assert [each.sentence() for each in wanted.divergences] == [
        "udp 10.0.0.2:53 to 10.0.0.1:5000: payload at byte 0: primary 6f 6e 65 |one|, secondary 74 77 6f |two|"
    ]
    again = protocol.answer_decoder.decode(protocol.encoder.encode(wanted))
    assert again == wanted
    host.side.on_time(2.0)
    assert host.notices == [wanted], "once"


def test_a_full_card_asks_though_a_divergence_was_told(two: Host) -> None:
    two.pvm(udp(b"one"))
    two.svm(udp(b"two"))
    two.turn()
    two.side.on_time(1.0)
    two.pvm(*(udp(b"%d" % number) for number in range(5)))
    two.turn()
    two.side.on_time(2.0)
    two.side.on_time(3.0)
    assert [each.reason for each in two.notices if isinstance(each, protocol.Wanted)] == ["divergence", "limit"]


def differ(host: Host, epoch: int, now_ms: float) -> None:
    """Outputs differ, and the checkpoint that is asked for at last is taken, with a pause of 5 ms."""
    host.pvm(udp(b"p%d" % epoch))
    host.peer.far.send_frames(0, epoch - 1, 0, batch_of([udp(b"s%d" % epoch)]))
    host.turn()
    due_ms = host.side.on_time(now_ms)
    if not host.notices and due_ms is not None:
        host.side.on_time(due_ms)
    assert any(isinstance(each, protocol.Wanted) for each in host.notices)
    host.side.pause_feed(now_ms)
    host.side.seal(epoch, host.side.drain(), now_ms + 5)
    host.side.resume_feed(now_ms + 5)
    host.side.commit(epoch, now_ms + 8)


def test_outputs_that_always_differ_get_checkpoints_at_a_pace_and_it_is_told(host: Host) -> None:
    for epoch in range(2, 300):
        host.notices.clear()
        differ(host, epoch, 10.0 * epoch)
        if host.side.stats().mode == "periodic":
            break
    assert host.side.stats().interval_ms >= 20
    host.side.on_time(10.0 * epoch + 9)
    (paced,) = [each for each in host.notices if isinstance(each, protocol.Paced)]
    assert (paced.mode, "divergences in" in paced.why) == ("periodic", True)
    host.notices.clear()
    host.pvm(udp(b"p"))
    host.peer.far.send_frames(0, epoch, 0, batch_of([udp(b"s")]))
    host.turn()
    due_ms = host.side.on_time(10.0 * epoch + 10)
    assert host.notices == [], "not yet"
    assert due_ms is not None
    assert 10.0 * epoch + 10 < due_ms <= 10.0 * epoch + 210
    host.side.on_time(due_ms)
    assert [type(each) for each in host.notices] == [protocol.Wanted]
    host.side.seal(epoch + 1, host.side.drain(), due_ms + 5)
    host.side.commit(epoch + 1, due_ms + 8)
    host.notices.clear()
    host.side.on_time(due_ms + 100_000)
    assert [each.mode for each in host.notices if isinstance(each, protocol.Paced)] == ["comparing"]


def test_with_the_adaptive_mode_off_each_difference_is_asked_for_at_once(host: Host) -> None:
    host.side._pace = CheckpointPace(AdaptiveLimits(enabled=False), 0.0)
    for epoch in range(2, 300):
        host.notices.clear()
        differ(host, epoch, 10.0 * epoch)
    assert host.side.stats().mode == "comparing"


def test_what_the_policy_keeps_for_a_checkpoint_is_asked_for(host: Host) -> None:
    host.side._terms = CompareTerms(Policy([Rule(17, CHECKPOINT)]), Tolerances())
    host.side.go_solo()
    host.peer.far.close()
    host.pair_up()
    host.pvm(udp(b"one"))
    host.svm(udp(b"one"))
    host.turn()
    host.side.on_time(1.0)
    assert host.notices == [protocol.Wanted("policy", [])]
    assert host.heard() == [[]]
