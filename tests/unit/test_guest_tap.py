"""A real network card between the agent and QEMU: the kernel cuts, completes and tags as the two ends ask for."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import ARP, Ether

from long_segments import FRAMES, SIZE, TAGS, TCP_AT, noted, partial, pseudo_header, tagged
from pycolo.core.packed import batch_of, unpack
from pycolo.edge import guest_tap as guest_tap_module
from pycolo.edge import nic as nic_module
from pycolo.edge.frames_twin import receive_frames, send_frames
from pycolo.edge.guest_tap import guest_tap
from pycolo.edge.namespaces import has_ipv6
from pycolo.edge.nic import BACKLOG_FRAMES_MAX, IN_FLIGHT_MAX, Nic
from pycolo.edge.offload import NEEDS_CHECKSUM, NO_HEADER, VNET_HEADER, described, settled
from pycolo.errors import EnvironmentFault
from tcp_frames import Connection, ones_complement

TUNSETOFFLOAD, OFFLOADED = 0x400454D0, 0x07  # linux/if_tun.h: checksums, TCP over IPv4 and IPv6
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
            assert ones_complement(pseudo_header(frame) + frame[TCP_AT:]) == 0


def test_short_frames_pass_both_ways_with_their_tags(card: Card) -> None:
    frames = [*SHORT, tagged(SHORT[0], TAGS[1]), tagged(SHORT[1], *TAGS), tagged(SHORT[2], b"\x81\x00\x00\x00")]
    for frame in frames:
        os.write(card.qemu, NO_HEADER + frame)
    assert card.said(len(frames)) == frames
    card.nic.send(batch_of(frames))
    assert card.read() == [NO_HEADER + frame for frame in frames]


def test_what_the_guest_leaves_to_us_is_completed_behind_its_tag(card: Card) -> None:
    frame = tagged(SHORT[0], TAGS[1])
    to_complete = tagged(partial(SHORT[0]), TAGS[1])
    os.write(card.qemu, VNET_HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, TCP_AT + 4, 16) + to_complete)
    assert card.said() == [frame]


def test_nothing_is_said_by_the_kernel(card: Card) -> None:
    """Not even to a guest that is a router, from which it would take an address."""
    router = IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_RA(routerlifetime=1800)
    router /= ICMPv6NDOptPrefixInfo(prefix="2001:db8::", prefixlen=64)
    asks = [router, IPv6(src="fe80::1", dst="ff02::1") / ICMPv6EchoRequest(), ARP(pdst="10.0.0.9")]
    for ask in asks:
        os.write(card.qemu, NO_HEADER + bytes(Ether(src="52:54:00:00:00:02", dst="33:33:00:00:00:01") / ask))
    assert len(card.said(3)) == 3
    time.sleep(0.5)
    assert card.read() == []
    assert card.nic.receive(64).count == 0


def strange(kind: int) -> bytes:
    """What a guest may say of a frame in spite of what it was offered: its card does not look."""
    return VNET_HEADER.pack(0, kind, TCP_AT + 20, 1000, 0, 0) + FRAMES["IPv4"]


@pytest.mark.parametrize("kind", [3, 0x83])
def test_a_header_that_the_kernel_cant_put_costs_its_frame_only(card: Card, kind: int) -> None:
    os.write(card.qemu, strange(kind))
    assert card.said() == [b""]
    for content in (NO_HEADER + SHORT[0], strange(kind), strange(kind), NO_HEADER + SHORT[1]):
        os.write(card.qemu, content)
    frames = []
    while (batch := card.nic.receive(64)).count:
        frames += unpack(batch.packed)
    assert [frame for frame in frames if frame] == SHORT[:2]


def test_its_error_is_not_that_of_what_is_fed_next(card: Card) -> None:
    os.write(card.qemu, NO_HEADER + SHORT[0])
    os.write(card.qemu, strange(3))
    assert unpack(card.nic.receive(64).packed)[0] == SHORT[0]
    assert card.nic.send(batch_of(SHORT[:3])) == 0
    assert card.read() == [NO_HEADER + frame for frame in SHORT[:3]]


def test_an_error_does_not_keep_the_loop_awake(card: Card) -> None:
    os.write(card.qemu, NO_HEADER + SHORT[0])
    os.write(card.qemu, strange(3))
    card.nic.receive(64)
    epoll = select.epoll()
    epoll.register(card.nic.fileno(), 0)
    card.nic.clear_error()
    assert epoll.poll(0) == []


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


def test_what_no_ethernet_takes_is_passed_over_and_told(card: Card) -> None:
    assert card.nic.send(batch_of([b"", SHORT[0], b"short", bytes(65_549), SHORT[1]])) == 3
    assert card.read() == [NO_HEADER + SHORT[0], NO_HEADER + SHORT[1]]
    assert card.nic.taken()


def test_what_qemu_has_not_read_is_taken_back(card: Card) -> None:
    card.nic.send(batch_of(SHORT * 30))
    assert card.nic.take_back() == 3000
    assert card.read() == []


def test_a_kernel_without_ipv6_has_nothing_to_switch_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest_tap_module, "QUIET", tmp_path / "not" / "there")
    monkeypatch.setattr(guest_tap_module, "has_ipv6", lambda: False)
    card = Card()
    os.write(card.qemu, NO_HEADER + SHORT[0])
    assert card.said() == [SHORT[0]]
    card.close()


def test_settings_that_are_hidden_are_no_kernel_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest_tap_module, "QUIET", tmp_path / "not" / "there")
    with pytest.raises(EnvironmentFault, match="with /proc/sys writable"):
        guest_tap()


def test_this_kernel_has_ipv6() -> None:
    assert has_ipv6()
