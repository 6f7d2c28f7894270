"""The agent beside the PVM: once either side has left the pair, nothing leaves without the claim (rule 5)."""

import socket
from collections.abc import Iterator

import pytest
from tcp_frames import arp, udp

from pycolo.agent.primary import PrimarySide
from pycolo.core import wire
from pycolo.core.limits import DataplaneLimits
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.nic import Nic, nic_pair
from pycolo.edge.packet_channel import PacketChannel
from pycolo.edge.tap import Tap
from pycolo.edge.transport import PlainTransport
from pycolo.errors import PeerLost
from tcp_pair import tcp_pair


class Wire(Tap):
    """An uplink that is a socket pair."""

    def __init__(self) -> None:
        self.name = "wire"
        self.ours, self.clients = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.clients.setblocking(False)
        self.ours.setblocking(False)
        self.fd = self.ours.fileno()

    def heard(self) -> list[bytes]:
        """What clients have heard since the last call."""
        frames = []
        try:
            while True:
                frames.append(self.clients.recv(70_000))
        except BlockingIOError:
            return frames


class Host:
    """A protected primary: its agent's side, its QEMU's end and the peer's end."""

    def __init__(self) -> None:
        self.tap = Wire()
        ours, self.qemu = nic_pair()
        nic = Nic(ours, self.qemu.dup())
        self.side = PrimarySide(self.tap, nic, lambda notice: None, DataplaneLimits(), TranslatorChain(100, 5000))
        near, self.peer = tcp_pair()
        stream = MessageStream(PlainTransport(near), "the packet channel", wire.decode_header)
        self.side.attach(PacketChannel(stream, receiver_is_primary=True), 0.0)
        self.side.pause_feed()
        self.side.seal(1, self.side.drain(), 0.0)
        self.side.resume_feed()
        self.side.commit(1, 0.0)
        self._twin_no = 0

    def pvm(self, *frames: bytes) -> None:
        for frame in frames:
            self.qemu.send(frame)

    def svm(self, *frames: bytes) -> None:
        self.peer.sendall(wire.encode_frames(1, self._twin_no, frames))
        self._twin_no += len(frames)

    def turn(self) -> None:
        """What the event loop does when both are readable, the network card first."""
        try:
            if self.side.reads_nic():
                self.side.on_nic(1.0)
            if self.side.channel is not None:
                self.side.on_channel(1.0)
        except PeerLost:
            self.side.leave_pair()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.side.leave_pair()
    for end in (host.tap.ours, host.tap.clients, host.qemu, host.peer, host.side.nic._ours, host.side.nic._theirs):
        end.close()


def test_a_frame_leaves_once_its_twin_has_come(host: Host) -> None:
    host.pvm(udp(b"one"))
    host.turn()
    assert host.tap.heard() == []
    host.svm(udp(b"one"))
    host.turn()
    assert host.tap.heard() == [udp(b"one")]


@pytest.mark.parametrize("order", ["twin first", "frame first"])
def test_a_twin_that_the_peer_said_before_it_left_frees_nothing(host: Host, order: str) -> None:
    if order == "frame first":
        host.pvm(udp(b"one"))
        host.turn()
    host.svm(udp(b"one"))
    host.peer.close()
    host.pvm(udp(b"one"), arp())
    host.turn()
    host.turn()
    assert host.tap.heard() == []


def test_after_leaving_nothing_leaves_and_nothing_is_lost(host: Host) -> None:
    host.svm(udp(b"one"), udp(b"two"))
    host.turn()
    host.side.leave_pair()
    host.pvm(udp(b"one"), arp(), udp(b"two"), udp(b"three"))
    host.turn()
    assert not host.side.reads_nic()
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
    host.side.resume_feed()
    host.side.go_solo()
    assert host.tap.heard() == [udp(b"one")]


def test_a_commit_after_the_loss_frees_nothing_and_loses_nothing(host: Host) -> None:
    host.pvm(udp(b"held"))
    host.turn()
    host.side.pause_feed()
    host.side.seal(2, host.side.drain(), 1.0)
    host.side.resume_feed()
    host.peer.close()
    with pytest.raises(PeerLost):
        host.side.commit(2, 2.0)
    host.side.leave_pair()
    assert host.tap.heard() == []
    assert host.side.go_solo() == 1
    assert host.tap.heard() == [udp(b"held")]


def test_going_solo_is_final_until_the_next_pair(host: Host) -> None:
    host.side.leave_pair()
    host.side.go_solo()
    host.pvm(udp(b"free"))
    host.turn()
    assert host.tap.heard() == [udp(b"free")]
