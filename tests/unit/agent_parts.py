"""The agent's sides for unit tests: network cards whose uplinks and QEMUs are sockets, and the peer's end."""

from __future__ import annotations

import socket

from headed import Headed, headed_pair
from pycolo.agent.side import Card
from pycolo.core import wire
from pycolo.core.adaptive import AdaptiveLimits
from pycolo.core.pace import CheckpointPace
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.nic import Nic
from pycolo.edge.packet_channel import Incoming, PacketChannel
from pycolo.edge.tap import Tap
from pycolo.edge.transport import PlainTransport
from tcp_frames import GUEST_MAC
from tcp_pair import tcp_pair


class Clock:
    """The host's clock, which the test moves; in the place of `boottime_s`."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Wire(Tap):
    """An uplink that is a socket pair."""

    def __init__(self) -> None:
        self.name = "wire"
        self.ours, self.clients = headed_pair(socket.SOCK_SEQPACKET)
        self.clients.setblocking(False)
        self.fd = self.ours.fileno()

    def heard(self) -> list[bytes]:
        """What clients have heard since the last call."""
        return everything(self.clients)


class Place:
    """One network card's uplink, its QEMU's end, and the card between them."""

    def __init__(self, number: int) -> None:
        self.tap = Wire()
        ours, self.qemu = headed_pair()
        self.qemu.setblocking(False)
        again = self.qemu.end.dup()
        self._ends = (self.tap.ours, self.tap.clients, self.qemu, ours, again)
        self.card = Card(number, GUEST_MAC, self.tap, Nic(ours, again), TranslatorChain(100, 5000))

    def guest_hears(self) -> list[bytes]:
        """What QEMU has been fed since the last call."""
        return everything(self.qemu)

    def close(self) -> None:
        for end in self._ends:
            end.close()


class Peer:
    """A packet channel and its far end; `secondary` says what the far end is."""

    def __init__(self, nics: int, *, secondary: bool) -> None:
        self._heard: list[Incoming] = []
        near, far = tcp_pair()
        self.near, self.far = (
            open_channel(end, nics, primary) for end, primary in ((near, secondary), (far, not secondary))
        )

    def grant(self) -> None:
        """Read what has come, and grant the leases that were asked for."""
        if self.far.fileno() < 0:
            return
        for message in self.far.receive():
            if isinstance(message, wire.AskLease):
                self.far.send(wire.GrantLease(message.number))
            else:
                self._heard.append(message)

    def hears(self) -> list[Incoming]:
        """What it has been told since the last call, but for questions for leases."""
        self.grant()
        heard, self._heard = self._heard, []
        return heard


def open_channel(end: socket.socket, nics: int, receiver_is_primary: bool) -> PacketChannel:
    stream = MessageStream(PlainTransport(end), "the packet channel", wire.decode_header)
    return PacketChannel(stream, nics, receiver_is_primary=receiver_is_primary)


def everything(end: Headed) -> list[bytes]:
    frames = []
    try:
        while True:
            frames.append(end.recv(70_000))
    except BlockingIOError:
        return frames


def comparing() -> CheckpointPace:
    """A pace that asks at once, as long as nothing differs again and again."""
    return CheckpointPace(AdaptiveLimits(), 0.0)
