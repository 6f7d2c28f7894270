"""Where the peer's process calls one of ours: only who shows the token comes in.

Guarantees: a stranger costs at most one of CALLERS_MAX connections, one read of memory and GREETING_S_MAX; it learns
nothing, and never stands in the way of the peer, as the oldest caller that has not shown the token makes room.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pycolo.core import peer
from pycolo.edge.message_stream import Header, MessageStream
from pycolo.edge.transport import Wrap
from pycolo.errors import EnvironmentFault, PeerLost, PeerUntrusted, PeerViolation

CALLERS_MAX = 8
GREETING_BYTES_MAX = 1024
GREETING_S_MAX = 2.0


class Watcher(Protocol):
    """An event loop."""

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable."""

    def unwatch(self, fd: int) -> None:
        """Forget `fd`, which is still open."""


@dataclass(frozen=True)
class Greeting:
    """How a channel begins: `token` takes the token out of the first message (kind, body) or raises PeerViolation."""

    channel: str  # "the disk channel"
    header: Header
    token: Callable[[int, bytes], str]


class Doorway:
    """Listens on a port of `host` that the kernel picks; `greeted` gets the stream of who shows the token, once.

    What the peer has said behind its greeting, if anything, waits in the stream.
    """

    def __init__(
        self,
        host: str,
        secret: str,
        loop: Watcher,
        greeting: Greeting,
        wrap: Wrap,
        greeted: Callable[[MessageStream], None],
        refused: Callable[[str], None],
    ) -> None:
        """`secret` is what tokens are made of (`peer.channel_token`); `refused` hears why somebody was not let in.

        Raises EnvironmentFault.
        """
        self._secret, self._loop, self._greeting, self._wrap = secret, loop, greeting, wrap
        self._greeted, self._refused = greeted, refused
        self._callers: dict[int, tuple[MessageStream, float]] = {}  # with the time when they have to have greeted
        self._listener = _listen(host, greeting.channel)
        self.port: int = self._listener.getsockname()[1]
        loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Nobody comes in any more; may be called again."""
        for fd in list(self._callers):
            self._drop(fd)
        if self._listener.fileno() >= 0:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()

    def turn(self, now_s: float) -> float | None:
        """Drop who takes too long (`now_s` is monotonic); returns the seconds until this has to be called again."""
        for fd, (_, ends_at_s) in list(self._callers.items()):
            if now_s < ends_at_s:
                return ends_at_s - now_s  # they are in the order in which they came
            self._drop(fd)
        return None

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # whoever it was is gone, or too many files are open: the next one may come in
            return
        if len(self._callers) >= CALLERS_MAX:
            self._drop(next(iter(self._callers)))
        try:
            transport = self._wrap(connection)
        except OSError:  # gone already
            connection.close()
            return
        stream = MessageStream(transport, self._greeting.channel, self._short_header)
        self._callers[stream.fileno()] = (stream, time.monotonic() + GREETING_S_MAX)
        self._loop.watch(stream.fileno(), partial(self._hear, stream.fileno()))

    def _hear(self, fd: int) -> None:
        stream, _ = self._callers[fd]
        try:
            stream.read()
            said = next(stream.messages(), None)
            if said is None:
                return
            if not peer.may_enter(self._greeting.token(*said), self._secret, stream.certified):
                raise PeerUntrusted(f"somebody called for {stream.name} without the token of this pair")
        except PeerViolation as violation:
            self._drop(fd)
            self._refused(str(violation))
        except PeerLost:
            self._drop(fd)
        else:
            self._let_in(fd, stream)

    def _let_in(self, fd: int, stream: MessageStream) -> None:
        del self._callers[fd]
        self._loop.unwatch(fd)
        self.close()
        stream.header = self._greeting.header
        self._greeted(stream)

    def _short_header(self, header: bytes) -> tuple[int, int]:
        length, kind = self._greeting.header(header)
        if length > GREETING_BYTES_MAX:
            raise PeerViolation(f"somebody called for {self._greeting.channel} with {length} bytes of greeting")
        return length, kind

    def _drop(self, fd: int) -> None:
        self._loop.unwatch(fd)
        self._callers.pop(fd)[0].close()


def _listen(host: str, channel: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.bind((host, 0))
        listener.listen(CALLERS_MAX)
    except OSError as problem:
        listener.close()
        raise EnvironmentFault(
            f"can't listen on {host} for {channel} ({problem.strerror}): check `listen` in host.toml"
        ) from None
    listener.setblocking(False)
    return listener
