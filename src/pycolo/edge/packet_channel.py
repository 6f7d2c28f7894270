"""The agents' TCP connection for frames: non-blocking, whole messages in, bounded queue out."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from pycolo.core import wire
from pycolo.edge.message_stream import MessageStream
from pycolo.errors import PeerLost, PeerViolation

QUEUE_BYTES_MAX = 64 << 20
Incoming = tuple[int, int, list[bytes]] | wire.Boundary | wire.Confirm | wire.ChannelHello


class PacketChannel:
    """Frames and their bookkeeping messages to and from the peer's agent. Every method may raise PeerLost."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = MessageStream(connection, "the packet channel", wire.decode_header)

    def fileno(self) -> int:
        """For the event loop."""
        return self._stream.fileno()

    def send_frames(self, epoch: int, first_no: int, frames: Sequence[bytes]) -> None:
        """Queue and send frames numbered from `first_no`."""
        for start in range(0, len(frames), wire.FRAMES_MAX):
            part = frames[start : start + wire.FRAMES_MAX]
            self._stream.queue(wire.encode_frames(epoch, first_no + start, part))
        self.flush()

    def send(self, message: wire.ChannelHello | wire.Boundary | wire.Confirm) -> None:
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

    def receive_all(self) -> list[Incoming]:
        """As `receive`, but nothing of a peer that has left: its end is looked for behind what it said last."""
        self._stream.read_all()
        return self._whole_messages()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def _whole_messages(self) -> list[Incoming]:
        return [_decode(wire.Kind(kind), body) for kind, body in self._stream.messages()]


def _decode(kind: wire.Kind, body: bytes) -> Incoming:
    if kind is wire.Kind.FRAMES:
        return wire.decode_frames(body)
    if kind is wire.Kind.CONTROL:
        message = wire.decode_control(body)
        if isinstance(message, wire.Boundary | wire.Confirm | wire.ChannelHello):
            return message
    raise PeerViolation(f"the peer sent a message of kind {kind.name} on the packet channel")
