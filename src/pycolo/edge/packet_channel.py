"""The agents' TCP connection for frames: non-blocking, whole messages in, bounded queue out."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from pycolo.core import wire
from pycolo.edge.peer_socket import prepare_peer_socket
from pycolo.errors import PeerLost, PeerViolation

QUEUE_BYTES_MAX = 64 << 20
READ_BYTES = 1 << 18
READS_MAX = 64
Incoming = tuple[int, int, list[bytes]] | wire.Boundary | wire.Confirm | wire.ChannelHello


class PacketChannel:
    """Frames and their bookkeeping messages to and from the peer's agent. Every method may raise PeerLost."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        prepare_peer_socket(connection)
        self._connection = connection
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        """For the event loop."""
        return self._connection.fileno()

    def send_frames(self, epoch: int, first_no: int, frames: Sequence[bytes]) -> None:
        """Queue and send frames numbered from `first_no`."""
        for start in range(0, len(frames), wire.FRAMES_MAX):
            part = frames[start : start + wire.FRAMES_MAX]
            self._out += wire.encode_frames(epoch, first_no + start, part)
        self.flush()

    def send(self, message: wire.ChannelHello | wire.Boundary | wire.Confirm) -> None:
        """Queue and send one bookkeeping message."""
        self._out += wire.encode_control(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        try:
            while self._out:
                sent = self._connection.send(self._out)
                del self._out[:sent]
        except BlockingIOError:
            if len(self._out) > QUEUE_BYTES_MAX:
                raise PeerLost(f"the peer's agent has not read {len(self._out)} bytes of packets") from None
        except OSError as error:
            raise PeerLost(f"the packet channel broke: {error.strerror}") from None

    @property
    def waiting(self) -> bool:
        """Whether bytes wait to be sent."""
        return bool(self._out)

    def receive(self) -> list[Incoming]:
        """All whole messages of what has arrived, up to READ_BYTES."""
        self._read()
        return self._whole_messages()

    def receive_all(self) -> list[Incoming]:
        """As `receive`, but nothing of a peer that has left: its end is looked for behind what it said last."""
        for _ in range(READS_MAX):
            if not self._read():
                break
        return self._whole_messages()

    def _read(self) -> bool:
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            raise PeerLost(f"the packet channel broke: {error.strerror}") from None
        if not data:
            raise PeerLost("the peer's agent closed the packet channel")
        self._in += data
        return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _whole_messages(self) -> list[Incoming]:
        messages: list[Incoming] = []
        at, size = 0, len(self._in)
        while size - at >= wire.HEADER.size:
            length, kind = wire.decode_header(bytes(self._in[at : at + wire.HEADER.size]))
            end = at + wire.HEADER.size + length
            if end > size:
                break
            messages.append(_decode(kind, bytes(self._in[at + wire.HEADER.size : end])))
            at = end
        del self._in[:at]
        return messages


def _decode(kind: wire.Kind, body: bytes) -> Incoming:
    if kind is wire.Kind.FRAMES:
        return wire.decode_frames(body)
    if kind is wire.Kind.CONTROL:
        message = wire.decode_control(body)
        if isinstance(message, wire.Boundary | wire.Confirm | wire.ChannelHello):
            return message
    raise PeerViolation(f"the peer sent a message of kind {kind.name} on the packet channel")
