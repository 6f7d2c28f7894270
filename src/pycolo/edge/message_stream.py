"""A non-blocking connection between two processes of ours that carries whole messages: header, body.

Guarantees: what is received is whole messages of bounded length, or PeerLost; what waits to be sent is counted, and
nothing is copied again while it waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from pycolo.core import wire
from pycolo.edge.transport import Transport
from pycolo.errors import PeerClosed, PeerLost

BUFFERS_PER_CALL_MAX = 64

Header = Callable[[bytes], tuple[int, int]]
"""(body length, kind) of a header; raises PeerViolation."""


class MessageStream:
    """`name` is how failures call it ("the packet channel"). Every method may raise PeerLost."""

    def __init__(self, transport: Transport, name: str, header: Header) -> None:
        self._transport, self.name, self.header = transport, name, header
        self._in = bytearray()
        self._out: deque[bytes | memoryview] = deque()
        self.waiting_bytes = self.sent_bytes = 0

    def fileno(self) -> int:
        """For the event loop."""
        return self._transport.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    @property
    def certified(self) -> frozenset[str] | None:
        """The names in the peer's certificate, which are known before anything can be read; None without TLS."""
        return self._transport.certified

    @property
    def waiting(self) -> bool:
        """Whether bytes wait for the kernel to take them."""
        return self._transport.pending or (bool(self._out) and self._transport.ready)

    def queue(self, *buffers: bytes | memoryview) -> None:
        """Let bytes wait for `flush`."""
        self._out.extend(buffers)
        self.waiting_bytes += sum(map(len, buffers))

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        try:
            while self._out:
                some = [self._out[i] for i in range(min(len(self._out), BUFFERS_PER_CALL_MAX))]
                self._sent(self._transport.send(some))
            self._transport.flush()
        except BlockingIOError:
            return
        except OSError as error:
            raise PeerLost(f"{self.name} broke: {error.strerror}") from None

    def _sent(self, count: int) -> None:
        self.waiting_bytes -= count
        self.sent_bytes += count
        while self._out and count >= len(self._out[0]):
            count -= len(self._out.popleft())
        if count:
            self._out[0] = memoryview(self._out[0])[count:]

    def read(self) -> bool:
        """Take in some of what has arrived; False when nothing has. Raises PeerClosed at its end."""
        try:
            data = self._transport.receive()
        except BlockingIOError:
            return False
        except ConnectionResetError as error:
            raise PeerClosed(f"{self.name} broke: {error.strerror}") from None
        except OSError as error:
            raise PeerLost(f"{self.name} broke: {error.strerror}") from None
        if not data:
            raise PeerClosed(f"the peer closed {self.name}")
        self._in += data
        return True

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """(kind, body) of each whole message that has been taken in; each is consumed when it is yielded."""
        at = 0
        try:
            while len(self._in) - at >= wire.HEADER.size:
                length, kind = self.header(bytes(self._in[at : at + wire.HEADER.size]))
                end = at + wire.HEADER.size + length
                if end > len(self._in):
                    return
                body = bytes(memoryview(self._in)[at + wire.HEADER.size : end])
                at = end
                yield kind, body
        finally:
            del self._in[:at]
