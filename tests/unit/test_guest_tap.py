"""A real network card between the agent and QEMU: the kernel cuts, completes and tags as the two ends ask for."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator
from contextlib import suppress

import pytest

from headed import NO_HEADER
from long_segments import FRAMES, SIZE, TAGS, TCP_AT, noted, tagged
from pycolo.core.packed import batch_of, unpack
from pycolo.edge import nic as nic_module
from pycolo.edge.frames_twin import receive_frames, send_frames
from pycolo.edge.guest_tap import guest_tap
from pycolo.edge.nic import BACKLOG_FRAMES_MAX, IN_FLIGHT_MAX, Nic
from pycolo.edge.offload import NEEDS_CHECKSUM, VNET_HEADER, described, settled
from pycolo.edge.tap import OFFLOADED, TUNSETOFFLOAD
from tcp_frames import Connection, ones_complement

SHORT = [Connection().out(number, 1, payload=b"%06d" % number) for number in range(100)]


class Card:
    """What the agent has, and QEMU's end as QEMU uses it."""

    def __init__(self) -> None:
        self._ours, self._theirs = guest_tap()
        self.qemu = self._theirs.fileno()
        self.nic = Nic(self._ours, self._theirs)

    def accept_segments(self) -> None:
        """What QEMU does when the guest's driver can take long segments."""
        fcntl.ioctl(self.qemu, TUNSETOFFLOAD, OFFLOADED)

    def said(self, count: int = 1) -> list[bytes]:
        """So many frames of the guest's."""
        frames: list[bytes] = []
        while len(frames) < count:
            select.select([self.nic.fileno()], [], [], 5)
            frames += unpack(self.nic.receive(64).packed)
        return frames

    def read(self) -> list[bytes]:
        """What QEMU has been fed, headers and all."""
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(os.read(self.qemu, 70_000))
        return frames

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture(params=["as picked", "python"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    if request.param == "python":
        monkeypatch.setattr(nic_module, "receive_frames", receive_frames)
        monkeypatch.setattr(nic_module, "send_frames", send_frames)
    card = Card()
    yield card
    card.close()


@pytest.mark.parametrize("name", FRAMES)
def test_a_long_segment_of_the_guest_arrives_whole(card: Card, name: str) -> None:
    os.writev(card.qemu, described(noted(FRAMES[name])))
    assert card.said() == [noted(FRAMES[name])]


@pytest.mark.parametrize("name", FRAMES)
def test_a_long_segment_reaches_a_guest_that_takes_it(card: Card, name: str) -> None:
    card.accept_segments()
    assert card.nic.send(batch_of([noted(FRAMES[name])])) == 0
    (content,) = card.read()
    assert settled(content[: VNET_HEADER.size], content[VNET_HEADER.size :]) == noted(FRAMES[name])
    assert VNET_HEADER.unpack(content[: VNET_HEADER.size])[3] == SIZE


@pytest.mark.parametrize("name", ["IPv4", "IPv6", "tag"])
def test_a_guest_that_does_not_take_it_gets_segments_of_the_wire(card: Card, name: str) -> None:
    card.nic.send(batch_of([noted(FRAMES[name])]))
    frames = [settled(content[: VNET_HEADER.size], content[VNET_HEADER.size :]) for content in card.read()]
    head = len(FRAMES[name]) - 4096
    assert [len(frame) - head for frame in frames] == [SIZE, SIZE, 4096 - 2 * SIZE]
    assert b"".join(frame[head:] for frame in frames) == FRAMES[name][head:]
    if name == "IPv4":
        for frame in frames:
            pseudo = frame[26:34] + (6).to_bytes(2) + (len(frame) - TCP_AT).to_bytes(2)
            assert ones_complement(pseudo + frame[TCP_AT:]) == 0


def test_short_frames_pass_both_ways_with_their_tags(card: Card) -> None:
    frames = [*SHORT, tagged(SHORT[0], TAGS[1]), tagged(SHORT[1], *TAGS), tagged(SHORT[2], b"\x81\x00\x00\x00")]
    for frame in frames:
        os.write(card.qemu, NO_HEADER + frame)
    assert card.said(len(frames)) == frames
    card.nic.send(batch_of(frames))
    assert card.read() == [NO_HEADER + frame for frame in frames]


def test_what_the_guest_leaves_to_us_is_completed_behind_its_tag(card: Card) -> None:
    frame = tagged(SHORT[0], TAGS[1])
    pseudo = SHORT[0][26:34] + (6).to_bytes(2) + (len(SHORT[0]) - TCP_AT).to_bytes(2)
    partial = frame[:54] + (ones_complement(pseudo) ^ 0xFFFF).to_bytes(2) + frame[56:]
    os.write(card.qemu, VNET_HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, TCP_AT + 4, 16) + partial)
    assert card.said() == [frame]


def test_nothing_is_said_by_the_kernel(card: Card) -> None:
    os.write(card.qemu, NO_HEADER + b"\xff" * 6 + bytes(6) + b"\x08\x06" + bytes(46))
    assert len(card.said()) == 1
    assert card.read() == []
    assert card.nic.receive(64).count == 0


def test_a_full_queue_waits_and_loses_only_what_is_beyond_the_backlog(card: Card) -> None:
    batch = batch_of(SHORT)
    rounds = (IN_FLIGHT_MAX + BACKLOG_FRAMES_MAX) // batch.count
    assert [card.nic.send(batch) for _ in range(rounds)] == [0] * rounds
    assert card.nic.backlog == rounds * batch.count - IN_FLIGHT_MAX
    assert card.nic.send(batch) == (rounds + 1) * batch.count - IN_FLIGHT_MAX - BACKLOG_FRAMES_MAX
    read: list[bytes] = []
    while card.nic.backlog:
        assert not card.nic.taken()
        read += card.read()
        card.nic.flush()
    read += card.read()
    assert card.nic.taken()
    assert read == ([NO_HEADER + frame for frame in SHORT] * (rounds + 1))[: IN_FLIGHT_MAX + BACKLOG_FRAMES_MAX]


def test_what_no_ethernet_takes_is_passed_over(card: Card) -> None:
    card.nic.send(batch_of([b"", SHORT[0], b"short", bytes(65_549), SHORT[1]]))
    assert card.read() == [NO_HEADER + SHORT[0], NO_HEADER + SHORT[1]]
    assert card.nic.taken()


def test_what_qemu_has_not_read_is_taken_back(card: Card) -> None:
    card.nic.send(batch_of(SHORT * 30))
    assert card.nic.take_back() == 3000
    assert card.read() == []
