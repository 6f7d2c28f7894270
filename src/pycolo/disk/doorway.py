"""Where the primary's disk process calls: only who shows the token comes in.

Guarantees: a stranger costs at most one of CALLERS_MAX connections and one read of memory, and learns nothing; it
never stands in the way of the primary, as the oldest caller that has not shown the token makes room.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from functools import partial

from pycolo.core import disk_wire as wire
from pycolo.disk.loop import NbdLoop
from pycolo.edge.message_stream import MessageStream
from pycolo.errors import EnvironmentFault, PeerLost, PeerViolation

CALLERS_MAX = 8
GREETING_BYTES_MAX = 1024


class Doorway:
    """Listens on a port of `host` that the kernel picks; `greeted` gets the stream of who shows the token, once."""

    def __init__(self, host: str, token: str, loop: NbdLoop, greeted: Callable[[MessageStream], None]) -> None:
        """Raises EnvironmentFault."""
        self._token, self._loop, self._greeted = token, loop, greeted
        self._callers: dict[int, MessageStream] = {}
        self._listener = _listen(host)
        self.port: int = self._listener.getsockname()[1]
        loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Nobody comes in any more; may be called again."""
        for fd in list(self._callers):
            self._drop(fd)
        if self._listener.fileno() >= 0:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # whoever it was is gone, or too many files are open: the next one may come in
            return
        if len(self._callers) >= CALLERS_MAX:
            self._drop(next(iter(self._callers)))
        stream = MessageStream(connection, "the disk channel", _decode_greeting_header)
        self._callers[stream.fileno()] = stream
        self._loop.watch(stream.fileno(), partial(self._hear, stream.fileno()))

    def _hear(self, fd: int) -> None:
        stream = self._callers[fd]
        try:
            stream.read()
            said = [wire.decode(kind, body) for kind, body in stream.messages()]
            if not said:
                return
            welcome = len(said) == 1 and self._knows(said[0])
        except PeerLost:
            welcome = False
        if not welcome:
            self._drop(fd)
            return
        del self._callers[fd]
        self._loop.unwatch(fd)
        self.close()
        stream.header = wire.decode_header
        self._greeted(stream)

    def _knows(self, message: wire.Message) -> bool:
        if not isinstance(message, wire.Greeting):
            return False
        return secrets.compare_digest(message.token.encode(), self._token.encode())  # as bytes: strangers may say é

    def _drop(self, fd: int) -> None:
        self._loop.unwatch(fd)
        self._callers.pop(fd).close()


def _decode_greeting_header(header: bytes) -> tuple[int, int]:
    length, kind = wire.decode_header(header)
    if length > GREETING_BYTES_MAX:
        raise PeerViolation(f"no greeting has {length} bytes")
    return length, kind


def _listen(host: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.bind((host, 0))
        listener.listen(CALLERS_MAX)
    except OSError as problem:
        listener.close()
        raise EnvironmentFault(
            f"the disk process can't listen on {host} ({problem.strerror}): check `listen` in host.toml"
        ) from None
    listener.setblocking(False)
    return listener
