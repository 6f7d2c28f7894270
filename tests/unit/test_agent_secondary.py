"""The agent beside the SVM: silent until the takeover, and every client frame reaches the card that it was for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest
from agent_parts import Clock, Peer, Place, comparing

from pycolo.agent import protocol, secondary
from pycolo.agent.primary import PrimarySide
from pycolo.agent.secondary import SecondarySide
from pycolo.core import wire
from pycolo.core.compare_terms import DEFAULT_TERMS
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import Batch, batch_of, unpack
from pycolo.edge.doorway import Doorway
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.transport import PlainTransport
from pycolo.errors import PeerLost
from tcp_frames import udp


class NoDoor:
    """A doorway that nobody comes through: tests set the channel themselves."""

    port = 4711

    def __init__(self, greeted: Callable[[MessageStream], None]) -> None:
        self.greeted = greeted

    def close(self) -> None:
        """It is closed."""


class Host:
    """A secondary of a VM with two cards, loaded with epoch 1, whose boundary is client frame number 10."""

    def __init__(self) -> None:
        self.places = [Place(number) for number in range(2)]
        self.notices: list[protocol.Notice] = []
        self.limits = DataplaneLimits()
        cards = [place.card for place in self.places]
        self.side = SecondarySide(
            cards, self.notices.append, self.limits, lambda greeted: cast(Doorway, NoDoor(greeted))
        )
        self.peer = Peer(2, secondary=False)
        self.side.channel = self.peer.near
        self.peer.far.send(wire.Boundary(10))
        self.side.on_channel(0.0)
        self.side.start_feed(1, 10)

    def clients(self, card: int, first_no: int, *said: bytes) -> None:
        """The primary passes on what clients have said."""
        self.peer.far.send_frames(card, 0, first_no, batch_of([udp(one, inbound=True) for one in said]))
        self.side.on_channel(1.0)

    def svm(self, card: int, *said: bytes) -> None:
        for one in said:
            self.places[card].qemu.send(udp(one))
        self.side.on_nic(card, 1.0)

    def guest_hears(self) -> list[list[bytes]]:
        return [place.guest_hears() for place in self.places]

    def close(self) -> None:
        self.side.leave_pair()
        self.peer.near.close()
        self.peer.far.close()
        for place in self.places:
            place.close()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def frames_of(batches: Sequence[Batch]) -> list[list[bytes]]:
    return [unpack(batch.packed) for batch in batches]


def inbound(*said: bytes) -> list[bytes]:
    return [udp(one, inbound=True) for one in said]


def test_client_frames_go_to_their_cards(host: Host) -> None:
    host.clients(1, 10, b"a", b"b")
    host.clients(0, 12, b"c")
    assert host.guest_hears() == [inbound(b"c"), inbound(b"a", b"b")]
    assert host.side.stats().client_frames == 3


def test_output_goes_to_the_peer_under_its_card_and_to_nobody_else(host: Host) -> None:
    host.svm(1, b"x")
    host.svm(0, b"y")
    host.svm(1, b"z")
    said = [(1, 1, 0, batch_of([udp(b"x")])), (0, 1, 0, batch_of([udp(b"y")])), (1, 1, 1, batch_of([udp(b"z")]))]
    assert host.peer.hears() == said
    assert [place.tap.heard() for place in host.places] == [[], []]


def test_a_load_replays_to_all_cards_from_one_boundary(host: Host) -> None:
    host.clients(0, 10, b"before")
    host.peer.far.send(wire.Boundary(11))
    host.clients(1, 11, b"a")
    host.clients(0, 12, b"b")
    host.clients(1, 13, b"c")
    host.side.stop_feed()
    host.clients(1, 14, b"while it stands")
    host.places[1].qemu.send(udp(b"old output"))
    host.side.drop_output()
    assert host.guest_hears() == [[], []]
    assert host.side.start_feed(2, 11) == 4
    assert host.guest_hears() == [inbound(b"b"), inbound(b"a", b"c", b"while it stands")]
    assert host.notices == []


def test_a_takeover_speaks_on_all_cards(host: Host) -> None:
    host.svm(0, b"confirmed", b"not confirmed")
    host.svm(1, b"lost with the primary")
    host.peer.far.send(wire.Confirm(0, [0]))
    host.side.on_channel(1.0)
    host.places[1].tap.clients.send(udp(b"said to the dead", inbound=True))
    host.clients(0, 10, b"passed on")
    host.places[0].tap.clients.send(udp(b"passed on", inbound=True))
    host.guest_hears()
    released, missed = host.side.take_over(2.0)
    assert frames_of(released) == [[udp(b"not confirmed")], [udp(b"lost with the primary")]]
    assert frames_of(missed) == [[], inbound(b"said to the dead")]

    primary = PrimarySide(host.side.cards, host.notices.append, host.limits, DEFAULT_TERMS, comparing(), 100.0)
    assert primary.take_over(released, missed) == 2
    assert [place.tap.heard() for place in host.places] == frames_of(released)
    assert host.guest_hears() == frames_of(missed)
    host.places[1].qemu.send(udp(b"free"))
    primary.on_nic(1, 3.0)
    assert host.places[1].tap.heard() == [udp(b"free")]


def apart_and_back(host: Host) -> None:
    """The two lose each other; clients go on, and the primary hears them; then they find each other again."""
    host.places[0].tap.clients.send(udp(b"said while apart", inbound=True))
    host.side.on_tap(0, 1.5)
    door = cast(NoDoor, host.side._doorway)
    host.peer.far.close()
    host.peer.near.close()
    host.peer = Peer(2, secondary=False)
    door.greeted(host.peer.near._stream)


def test_what_was_said_while_apart_is_heard_when_the_primary_dies_at_once(host: Host) -> None:
    apart_and_back(host)
    host.places[0].tap.clients.send(udp(b"said to the dead", inbound=True))
    _, missed = host.side.take_over(2.0)
    assert frames_of(missed) == [inbound(b"said while apart", b"said to the dead"), []]


def test_what_was_said_while_apart_is_in_the_next_checkpoint(host: Host) -> None:
    """The simulator's seed 1955: the survivor heard it once more, seconds later."""
    apart_and_back(host)
    host.peer.far.send(wire.Boundary(20))
    host.side.on_channel(1.6)
    host.side.stop_feed()
    host.side.drop_output()
    host.side.start_feed(2, 20)
    host.places[0].tap.clients.send(udp(b"said to the dead", inbound=True))
    _, missed = host.side.take_over(2.0)
    assert frames_of(missed) == [inbound(b"said to the dead"), []]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1000.0)
    monkeypatch.setattr(secondary, "boottime_s", clock)
    return clock


def test_it_does_not_speak_while_a_lease_runs(host: Host, clock: Clock) -> None:
    assert host.side.may_speak()
    host.peer.far.send(wire.AskLease(7, 100.0))
    host.side.on_channel(1.0)
    assert host.peer.hears() == [wire.GrantLease(7)]
    host.side.leave_pair()
    assert host.peer.hears() == [wire.EndLeases()]
    clock.now_s += 0.1
    assert not host.side.may_speak()
    clock.now_s += 0.02
    assert host.side.may_speak()


def test_it_speaks_at_once_when_the_primary_has_closed_its_end(host: Host, clock: Clock) -> None:
    host.peer.far.send(wire.AskLease(1, 100.0))
    host.side.on_channel(1.0)
    host.side.leave_pair()
    assert not host.side.may_speak()
    host.peer.far.close()
    assert host.side.may_speak()


def test_a_primary_whose_end_is_closed_before_we_leave_has_no_lease(host: Host, clock: Clock) -> None:
    host.peer.far.send(wire.AskLease(1, 100.0))
    host.side.on_channel(1.0)
    host.peer.hears()
    host.peer.far.close()
    with pytest.raises(PeerLost):
        host.side.on_channel(1.0)
    host.side.leave_pair()
    assert host.side.may_speak()


def test_a_link_that_breaks_ends_no_lease(host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    host.peer.far.send(wire.AskLease(1, 100.0))
    host.side.on_channel(1.0)

    said: list[OSError] = [TimeoutError(110, "Connection timed out")]

    def times_out(self: PlainTransport) -> bytes:
        """As Linux does: the error once, and from then on that it has ended."""
        if said:
            raise said.pop()
        return b""

    monkeypatch.setattr(PlainTransport, "receive", times_out)
    with pytest.raises(PeerLost):
        host.side.on_channel(1.0)
    host.side.leave_pair()
    assert not host.side.may_speak()
    clock.now_s += 0.12
    assert host.side.may_speak()


def test_each_card_translates_for_itself(host: Host) -> None:
    host.peer.far.send(wire.Translations(0, [], [], afresh=True, nic=1))
    host.peer.far.send(wire.Translations(0, [], [], nic=1))
    host.side.on_channel(1.0)
    assert [len(card.chain) for card in host.side.cards] == [0, 1]
