"""The agents' connection: whole messages whatever the pieces, bounded queues, and one error for every end."""

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core import wire
from pycolo.core.packed import Batch, batch_of
from pycolo.edge import packet_channel
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.packet_channel import Incoming, PacketChannel
from pycolo.edge.transport import PlainTransport
from pycolo.errors import PeerClosed, PeerLost, PeerViolation
from tcp_pair import tcp_pair

HELLO, BOUNDARY, CONFIRM = wire.ChannelHello("t" * 32), wire.Boundary(7), wire.Confirm(1, [1, 2, 3])
NICS = 2
HUNDRED = batch_of([bytes(1500)] * 100)


def message(nic: int, epoch: int, first_no: int, frames: list[bytes]) -> bytes:
    """Frames as they go by."""
    return b"".join(wire.encode_frames(nic, epoch, first_no, batch_of(frames)))


def open_channel(connection: socket.socket, *, receiver_is_primary: bool) -> PacketChannel:
    stream = MessageStream(PlainTransport(connection), "the packet channel", wire.decode_header)
    return PacketChannel(stream, NICS, receiver_is_primary=receiver_is_primary)


class Ends:
    """A channel and the raw socket at its other end."""

    def __init__(self) -> None:
        self.ours, self.raw = tcp_pair()
        self.channel = open_channel(self.ours, receiver_is_primary=False)
        self.raw.settimeout(5)

    def close(self) -> None:
        self.channel.close()
        self.raw.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def wait_readable(channel: PacketChannel) -> None:
    assert select.select([channel], [], [], 5)[0]


def send_for_long(channel: PacketChannel) -> None:
    for _ in range(1000):
        channel.send_frames(0, 1, 0, HUNDRED)


def received(channel: PacketChannel, count: int) -> list[Incoming]:
    """Read until `count` messages have come."""
    messages: list[Incoming] = []
    while len(messages) < count:
        wait_readable(channel)
        messages += channel.receive()
    return messages


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=20), st.integers(1, 40))
def test_pieces_make_whole_messages(frames: list[bytes], piece: int) -> None:
    ends = Ends()
    try:
        stream = wire.encode_control(BOUNDARY) + message(1, 3, 5, frames) + wire.encode_control(CONFIRM)
        messages: list[Incoming] = []
        for start in range(0, len(stream), piece):
            ends.raw.sendall(stream[start : start + piece])
            wait_readable(ends.channel)
            messages += ends.channel.receive()
        assert messages == [BOUNDARY, (1, 3, 5, batch_of(frames)), CONFIRM]
    finally:
        ends.close()


def test_a_long_batch_is_cut_into_messages_that_follow_on(ends: Ends) -> None:
    other = open_channel(ends.raw, receiver_is_primary=True)
    frames = [b"%04d" % number for number in range(wire.FRAMES_MAX + 3)]
    ends.channel.send_frames(1, 9, 100, batch_of(frames))
    first, second = received(other, 2)
    assert first == (1, 9, 100, batch_of(frames[: wire.FRAMES_MAX]))
    assert second == (1, 9, 100 + wire.FRAMES_MAX, batch_of(frames[wire.FRAMES_MAX :]))


def test_nothing_there_is_nothing(ends: Ends) -> None:
    assert ends.channel.receive() == []
    ends.channel.send_frames(0, 1, 1, Batch(b"", 0))
    assert not ends.channel.waiting


def test_a_peer_that_does_not_read_is_lost_at_the_limit(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_channel, "QUEUE_BYTES_MAX", 1 << 20)
    with pytest.raises(PeerLost, match=r"has not read \d+ bytes of packets"):
        send_for_long(ends.channel)
    assert ends.channel.waiting


def test_what_waits_is_sent_when_the_peer_reads(ends: Ends) -> None:
    ends.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = 0
    while not ends.channel.waiting:
        ends.channel.send_frames(0, 1, sent, HUNDRED)
        sent += 1
    got = 0
    expected = sent * len(message(0, 1, 0, [bytes(1500)] * 100))
    while got < expected:
        ends.channel.flush()
        got += len(ends.raw.recv(1 << 20))
    assert not ends.channel.waiting


def test_the_end_of_the_peer(ends: Ends) -> None:
    ends.raw.sendall(wire.encode_control(BOUNDARY))
    ends.raw.shutdown(socket.SHUT_WR)
    wait_readable(ends.channel)
    assert ends.channel.receive() == [BOUNDARY]  # the secondary still needs what the primary said last
    with pytest.raises(PeerClosed, match="closed the packet channel"):
        ends.channel.receive()


def test_sending_to_a_peer_that_is_gone(ends: Ends) -> None:
    ends.raw.close()
    with pytest.raises(PeerLost, match="the packet channel broke"):
        send_for_long(ends.channel)


@pytest.mark.parametrize(
    "said",
    [
        wire.HEADER.pack(0xFFFFFFFF, 3),
        wire.HEADER.pack(1, 9) + b"x",
        wire.HEADER.pack(5, 1) + b"\xff" * 5,
        wire.HEADER.pack(3, 3) + b"abc",
        wire.HEADER.pack(16, 2) + bytes(16),
        wire.encode_control(wire.Heartbeat()),
        wire.encode_control(HELLO),  # a greeting once more
        message(NICS, 1, 0, [b"x" * 60]),  # of a card that the VM does not have
        wire.encode_control(wire.Confirm(NICS, [1])),
        wire.encode_control(wire.Translations(0, [], [], nic=NICS)),
    ],
)
def test_what_can_not_be_a_message_ends_the_session(ends: Ends, said: bytes) -> None:
    ends.raw.sendall(said)
    wait_readable(ends.channel)
    with pytest.raises(PeerViolation):
        ends.channel.receive()


@given(st.binary(min_size=1, max_size=400))
def test_garbage_never_does_worse_than_end_the_session(garbage: bytes) -> None:
    ends = Ends()
    try:
        ends.raw.sendall(garbage)
        wait_readable(ends.channel)
        with contextlib.suppress(PeerViolation):
            ends.channel.receive()
    finally:
        ends.close()


@pytest.mark.parametrize("message", [BOUNDARY, CONFIRM])
def test_a_secondary_sends_nothing_but_frames(message: wire.Boundary | wire.Confirm) -> None:
    ours, raw = tcp_pair()
    primary = open_channel(ours, receiver_is_primary=True)
    raw.sendall(wire.encode_control(message))
    wait_readable(primary)
    with pytest.raises(PeerViolation, match="on the packet channel while the session is open"):
        primary.receive()
    primary.close()
    raw.close()
