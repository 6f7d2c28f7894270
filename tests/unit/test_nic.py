"""The agent's end of a card: no frame is lost below the limits, and what QEMU has not read can be taken back."""

import socket
from collections.abc import Iterator

import pytest

from headed import headed_pair
from pycolo.core.packed import Batch, batch_of, unpack
from pycolo.edge import nic as nic_module
from pycolo.edge.nic import Nic

NOTHING = Batch(b"", 0)


class Card:
    """A Nic, and QEMU's end as QEMU holds it."""

    def __init__(self) -> None:
        ours, self.qemu = headed_pair()
        self.qemu.setblocking(False)
        self.nic = Nic(ours, self.qemu.end.dup())

    def taken(self) -> list[bytes]:
        """What QEMU reads now."""
        frames = []
        try:
            while True:
                frames.append(self.qemu.recv(70_000))
        except BlockingIOError:
            return frames


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card()
    yield card
    for end in (card.qemu, card.nic._ours, card.nic._theirs):
        end.close()


def numbered(count: int, size: int = 60) -> Batch:
    return batch_of([b"%06d" % number + bytes(size - 6) for number in range(count)])


def test_frames_keep_their_bounds_and_order_both_ways(card: Card) -> None:
    frames = [b"x" * size for size in (1, 14, 60, 1514, 65549)]
    assert card.nic.send(batch_of(frames)) == 0
    assert card.taken() == frames
    for frame in frames:
        card.qemu.send(frame)
    assert card.nic.receive(2) == batch_of(frames[:2])
    assert card.nic.receive_all() == batch_of(frames[2:])
    assert card.nic.receive(10) == card.nic.receive_all() == NOTHING


def test_all_is_more_than_one_call_takes(card: Card) -> None:
    batch = numbered(1000)
    for frame in unpack(batch.packed):
        card.qemu.send(frame)
    assert card.nic.receive_all() == batch


def test_taken_says_whether_qemu_has_read_all(card: Card) -> None:
    assert card.nic.taken()
    card.nic.send(numbered(3))
    assert not card.nic.taken()
    card.qemu.recv(100)
    assert not card.nic.taken()
    card.taken()
    assert card.nic.taken()


def test_a_burst_waits_for_a_slow_qemu(card: Card) -> None:
    batch = numbered(6000, 1514)
    assert card.nic.send(batch) == 0
    assert card.nic.backlog > 0
    assert not card.nic.taken()
    read: list[bytes] = []
    while card.nic.backlog:
        read += card.taken()
        card.nic.flush()
    assert read + card.taken() == unpack(batch.packed)


def test_what_is_fed_later_comes_behind_what_waits(card: Card) -> None:
    batch = numbered(6000, 1514)
    card.nic.send(batch)
    waiting = card.nic.backlog
    card.nic.send(numbered(3))
    card.nic.send(NOTHING)
    assert card.nic.backlog == waiting + 3
    read: list[bytes] = []
    while card.nic.backlog:
        read += card.taken()
        card.nic.flush()
    assert read + card.taken() == unpack(batch.packed) + unpack(numbered(3).packed)


def test_the_backlog_has_a_limit_and_the_newest_go(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nic_module, "BACKLOG_FRAMES_MAX", 10)
    ours = card.nic._ours
    assert isinstance(ours, socket.socket)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least
    batch = numbered(100)
    dropped = card.nic.send(batch)
    assert card.nic.backlog == 10
    assert dropped > 0
    assert card.nic.send(numbered(7)) == 7
    assert card.nic.backlog == 10
    read = card.taken()
    card.nic.flush()
    while more := card.taken():
        read += more
        card.nic.flush()
    assert read == unpack(batch.packed)[: 100 - dropped]


def test_what_qemu_has_not_read_is_taken_back(card: Card) -> None:
    card.nic.send(numbered(6000, 1514))
    assert card.nic.take_back() == 6000
    assert card.taken() == []
    assert card.nic.taken()


def test_a_dead_qemu_is_no_exception(card: Card) -> None:
    card.qemu.send(b"last words")
    card.qemu.close()
    assert card.nic.send(numbered(3)) == 0
    assert card.nic.receive_all() == batch_of([b"last words"])
    assert card.nic.take_back() == 3
    card.nic._theirs.close()
    assert card.nic.send(numbered(3)) == 0
    assert card.nic.receive_all() == NOTHING
