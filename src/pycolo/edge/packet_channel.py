"""The agents' connection for frames: non-blocking, whole messages in, bounded queue out."""

from __future__ import annotations

from pycolo.core import peer, wire
from pycolo.core.packed import Batch, measure
from pycolo.edge.doorway import Greeting
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.transport import Transport
from pycolo.errors import PeerLost, PeerViolation

QUEUE_BYTES_MAX = 64 << 20
Frames = tuple[int, int, int, Batch]
"""Network card, epoch, number of the first, frames."""

OfCard = wire.Translations | wire.Confirm
Note = OfCard | wire.Boundary | wire.AskLease | wire.GrantLease | wire.EndLeases
Incoming = Frames | Note


def _token(kind: int, body: bytes) -> str:
    message = wire.decode_control(body) if kind == wire.Kind.CONTROL else None
    if isinstance(message, wire.ChannelHello):
        return message.token
    raise PeerViolation(f"somebody called for {GREETING.channel} and did not greet")


GREETING = Greeting("the packet channel", wire.decode_header, _token)


class PacketChannel:
    """Frames and their bookkeeping messages to and from the peer's agent. Every method may raise PeerLost.

    Guarantee: what is received is for one of the VM's `nics` network cards.
    """

    def __init__(self, stream: MessageStream, nics: int, *, receiver_is_primary: bool) -> None:
        """`stream`: the greeting is over."""
        self._stream, self._nics = stream, nics
        self._table = peer.PeerTable(receiver_is_primary=receiver_is_primary)
        self._table.phase = peer.Phase.OPEN

    @classmethod
    def to_secondary(cls, transport: Transport, nics: int, token: str) -> PacketChannel:
        """The primary's end of a new connection; says the greeting."""
        channel = cls(MessageStream(transport, GREETING.channel, wire.decode_header), nics, receiver_is_primary=True)
        channel.send(wire.ChannelHello(token))
        return channel

    def fileno(self) -> int:
        """For the event loop."""
        return self._stream.fileno()

    def send_frames(self, nic: int, epoch: int, first_no: int, batch: Batch) -> None:
        """Queue and send frames of one network card, numbered from `first_no`."""
        while batch.count > wire.FRAMES_MAX:
            end, count = measure(batch.packed, 0, wire.FRAMES_MAX)
            rest = memoryview(batch.packed)
            self._stream.queue(*wire.encode_frames(nic, epoch, first_no, Batch(rest[:end], count)))
            first_no, batch = first_no + count, Batch(rest[end:], batch.count - count)
        if batch.count:
            self._stream.queue(*wire.encode_frames(nic, epoch, first_no, batch))
        self.flush()

    def send(self, message: Note | wire.ChannelHello) -> None:
        """Queue and send one bookkeeping message."""
        self._stream.queue(wire.encode_control(message))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        self._stream.flush()
        if self._stream.waiting_bytes > QUEUE_BYTES_MAX:
            raise PeerLost(f"the peer's agent has not read {self._stream.waiting_bytes} bytes of packets")

    @property
    def waiting(self) -> bool:
        """Whether bytes wait to be sent."""
        return self._stream.waiting

    def receive(self) -> list[Incoming]:
        """All whole messages of what has arrived, up to READ_BYTES."""
        self._stream.read()
        return self._whole_messages()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def _whole_messages(self) -> list[Incoming]:
        return [self._decode(kind, body) for kind, body in self._stream.messages()]

    def _decode(self, kind: int, body: bytes) -> Incoming:
        if kind == wire.Kind.FRAMES:
            frames = wire.decode_frames(body)
            self._check_nic(frames[0])
            return frames
        if kind == wire.Kind.PAGES:
            raise PeerViolation("the peer sent pages on the packet channel")
        message = wire.decode_control(body)
        self._table.check(peer.Channel.PACKETS, message)
        assert isinstance(message, Note)
        if isinstance(message, OfCard):
            self._check_nic(message.nic)
        return message

    def _check_nic(self, nic: int) -> None:
        if nic >= self._nics:
            raise PeerViolation(f"the peer sent something for network card {nic} of a VM that has {self._nics}")
