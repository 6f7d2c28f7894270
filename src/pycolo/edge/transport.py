"""What carries the bytes of a MessageStream: a TCP connection as it is, or TLS over it. Nothing here ever waits.

Guarantees: with TLS no byte of payload goes out or comes in before the peer has proved who it is; all that has been
decrypted is handed over at once, so that nothing is left behind where epoll does not see it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from pycolo.edge.peer_socket import prepare_peer_socket
from pycolo.edge.tls import certified_names, failure, handshake_failure
from pycolo.errors import PeerLost, PeerUntrusted

READ_BYTES = 1 << 18
CHUNK_BYTES = 1 << 16  # so much is encrypted at a time; larger is slower (benchmarks/tls.py)
RECORD_BYTES = 1 << 14  # the most that TLS decrypts at a time (RFC 8446, 5.1)


class Transport(Protocol):
    """`certified` are the names in the peer's certificate; None without TLS."""

    certified: frozenset[str] | None

    @property
    def ready(self) -> bool:
        """Whether payload may be sent."""

    @property
    def pending(self) -> bool:
        """Whether something taken by `send` still waits for the kernel."""

    def fileno(self) -> int:
        """For the event loop."""

    def shake(self) -> bool:
        """Go on with the handshake; whether it is over. Raises PeerLost, OSError."""

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send the beginning of some buffers; returns how many bytes were taken. Raises BlockingIOError, OSError."""

    def flush(self) -> None:
        """Send what is pending. Raises BlockingIOError, OSError."""

    def receive(self) -> bytes:
        """Some of what has arrived, empty at its end. Raises BlockingIOError when nothing has, PeerLost, OSError."""

    def close(self) -> None:
        """Close the connection."""


class PlainTransport:
    """TCP as it is."""

    ready, pending = True, False
    certified: frozenset[str] | None = None

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        prepare_peer_socket(connection)
        self._connection = connection

    def fileno(self) -> int:
        return self._connection.fileno()

    def shake(self) -> bool:
        return True

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        return self._connection.sendmsg(buffers)

    def flush(self) -> None:
        """Nothing is ever pending."""

    def receive(self) -> bytes:
        return self._connection.recv(READ_BYTES)

    def close(self) -> None:
        self._connection.close()


class TlsTransport:
    """TLS over memory: the socket and the cipher never have to be ready at the same time.

    `expected`: the one host that we want to talk to; None: whoever our CA knows.
    """

    certified: frozenset[str] | None = frozenset()

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        who: str,
        *,
        server_side: bool,
        expected: str | None = None,
    ) -> None:
        """`who` is how failures call the peer."""
        connection.setblocking(False)
        prepare_peer_socket(connection)
        self._connection, self._who, self._expected = connection, who, expected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._unsent = memoryview(b"")
        self.ready = False

    @property
    def pending(self) -> bool:
        return bool(self._unsent)

    def fileno(self) -> int:
        return self._connection.fileno()

    def shake(self) -> bool:
        if not self.ready and not self._shake_once():
            with suppress(BlockingIOError):
                if not self._take_in():
                    raise PeerLost(f"{self._who} closed the connection")
                self._shake_once()
        return self.ready

    def _shake_once(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push()
            return False
        except ssl.SSLError as error:
            with suppress(OSError):
                self.flush()  # the peer gets an alert that says why, if it still listens
            raise handshake_failure(self._who, error) from None
        self.certified = certified_names(self._tls)
        if self._expected is not None and self._expected not in self.certified:
            raise PeerUntrusted(
                f"{self._who} shows a certificate of {', '.join(sorted(self.certified)) or 'no host'} instead of "
                f"{self._expected}: make `name` in its host.toml and its certificate agree (`colo pki issue`)"
            )
        self.ready = True
        self._push()
        return True

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        if not self.ready:
            raise BlockingIOError
        self.flush()
        chunk = _chunk(buffers)
        try:
            self._tls.write(chunk)
        except ssl.SSLError as error:
            raise failure(self._who, error) from None
        self._push()
        return len(chunk)

    def flush(self) -> None:
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self._unsent = self._unsent[self._connection.send(self._unsent) :]

    def _push(self) -> None:
        """As `flush`, but what the kernel does not take waits."""
        if self.pending or self._outgoing.pending:  # mostly nothing does
            with suppress(BlockingIOError):
                self.flush()

    def receive(self) -> bytes:
        while True:
            if self.ready or self._shake_once():
                plain = self._decrypted()
                self._push()  # TLS may have to answer something
                if plain is not None:
                    return plain
            if not self._take_in():
                return b""

    def _take_in(self) -> bool:
        """Whether something came; False at the end. Raises BlockingIOError."""
        data = self._connection.recv(READ_BYTES)
        self._incoming.write(data)
        return bool(data)

    def _decrypted(self) -> bytes | None:
        """All that can be decrypted now, None if that is nothing; empty when the peer has said that it ends."""
        parts: list[bytes] = []
        try:
            while part := self._tls.read(RECORD_BYTES):
                parts.append(part)
                if not (self._incoming.pending or self._tls.pending()):
                    break  # to be told so would cost an exception for each batch of frames
        except ssl.SSLWantReadError:
            if not parts:
                return None
        except ssl.SSLError as error:
            raise failure(self._who, error) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        self._connection.close()


def _chunk(buffers: Sequence[bytes | memoryview]) -> bytes | memoryview:
    """The first CHUNK_BYTES of some buffers, or all of them."""
    if len(buffers[0]) >= CHUNK_BYTES:
        return memoryview(buffers[0])[:CHUNK_BYTES]
    chosen, length = [], 0
    for buffer in buffers:
        chosen.append(memoryview(buffer)[: CHUNK_BYTES - length])
        length += len(chosen[-1])
        if length >= CHUNK_BYTES:
            break
    return b"".join(chosen)


Wrap = Callable[[socket.socket], Transport]
"""Puts what secures a connection, if anything, over it."""


def wrap_accepted(context: ssl.SSLContext | None, who: str) -> Wrap:
    """For connections that came in; without a context they stay as they are."""
    if context is None:
        return PlainTransport
    return lambda connection: TlsTransport(connection, context, who, server_side=True)


def wrap_dialled(context: ssl.SSLContext | None, who: str, expected: str) -> Wrap:
    """For connections that we made to the host `expected`."""
    if context is None:
        return PlainTransport
    return lambda connection: TlsTransport(connection, context, who, server_side=False, expected=expected)
