"""The event loop of whoever serves disks: NBD clients, and other descriptors that their owner asks about.

Guarantees: whatever one client does, the others go on; replies that were completed in one turn leave together.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT

from pycolo.edge.nbd_export import Export
from pycolo.edge.nbd_server import NbdConnection

Handler = Callable[[], None]


class NbdLoop:
    """The owner calls `turn` for as long as it likes; `after_turn` is called at the end of each."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._clients: dict[int, NbdConnection] = {}
        self._asked: dict[int, int] = {}  # the events that epoll reports, by file descriptor
        self._handlers: dict[int, Handler] = {}
        self.after_turn: Handler = lambda: None

    @property
    def client_count(self) -> int:
        """Clients that are connected now."""
        return len(self._clients)

    def watch(self, fd: int, handler: Handler) -> None:
        """Call `handler` whenever `fd` is readable; it may complete requests."""
        self.want(fd, handler, EPOLLIN)

    def want(self, fd: int, handler: Handler, events: int) -> None:
        """Call `handler` whenever one of `events` is there."""
        self._handlers[fd] = handler
        self._ask(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call it before closing what it belongs to."""
        del self._handlers[fd], self._asked[fd]
        self._epoll.unregister(fd)

    def serve(self, sock: socket.socket, exports: Mapping[str, Export]) -> None:
        """A new client, connected; takes over `sock`."""
        client = NbdConnection(sock, exports)
        self._clients[client.fileno()] = client
        self._follow(client.fileno(), client)

    def turn(self, wait_s: float | None = None) -> None:
        """Wait for the next thing to happen, at most `wait_s`, and deal with it."""
        for fd, events in self._epoll.poll(wait_s):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
            elif (client := self._clients.get(fd)) is not None:
                _serve(client, events)
                if client.closed:
                    self._drop(fd)
        self.settle()
        self.after_turn()

    def settle(self) -> None:
        """Send what was completed, go on with requests that waited, and ask for what each client waits for.

        To be called by an owner who has completed requests between two turns.
        """
        for fd, client in list(self._clients.items()):
            if client.wants_write:  # requests were completed: their replies leave together
                client.on_writable()
            if client.closed:
                self._drop(fd)
            else:
                self._follow(fd, client)

    def close(self) -> None:
        """Drop all clients. What else is watched belongs to the caller."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._epoll.close()

    def _follow(self, fd: int, client: NbdConnection) -> None:
        """Ask only for what the client's connection wants now: not reading is how back-pressure works."""
        self._ask(fd, (EPOLLIN if client.wants_read else 0) | (EPOLLOUT if client.wants_write else 0))

    def _drop(self, fd: int) -> None:
        """Forget a closed client at once: its number may be another's in the same turn."""
        del self._clients[fd]
        self._asked.pop(fd, None)  # closing took it out of the epoll set, if it was in it yet

    def _ask(self, fd: int, events: int) -> None:
        asked = self._asked.get(fd)
        if asked == events:
            return
        if asked is None:
            self._epoll.register(fd, events)
        else:
            self._epoll.modify(fd, events)
        self._asked[fd] = events


def _serve(client: NbdConnection, events: int) -> None:
    if events & EPOLLIN:
        client.on_readable()
    elif events & (EPOLLHUP | EPOLLERR):  # it is gone, and what it asked for last is of no use to it
        client.close("the client went away")
    if events & EPOLLOUT:
        client.on_writable()
