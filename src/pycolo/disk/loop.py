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
    def clients(self) -> int:
        """How many NBD clients there are."""
        return len(self._clients)

    def watch(self, fd: int, handler: Handler) -> None:
        """Call `handler` whenever `fd` is readable; it may complete requests."""
        self.want(fd, handler, EPOLLIN)

    def want(self, fd: int, handler: Handler, events: int) -> None:
        """Call `handler` whenever one of `events` is there."""
        self._handlers[fd] = handler
        self._ask(fd, events)

    def forget(self, fd: int) -> None:
        """`fd` is about to be closed, or has been."""
        self._handlers.pop(fd, None)
        if self._asked.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:  # closing it took it out of the set
                return

    def serve(self, sock: socket.socket, exports: Mapping[str, Export]) -> None:
        """A new client, connected; takes over `sock`."""
        client = NbdConnection(sock, exports)
        self._clients[client.fileno()] = client
        self._asked.pop(client.fileno(), None)
        self._follow(client.fileno(), client)

    def turn(self, wait_s: float | None = None) -> None:
        """Wait for the next thing to happen, at most `wait_s`, and deal with it."""
        handled = wait_s is not None  # who has a timer may complete requests between two turns
        for fd, events in self._epoll.poll(wait_s):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
                handled = True
            elif (client := self._clients.get(fd)) is not None:
                _serve(client, events)
        for fd, client in list(self._clients.items()):
            if handled and client.wants_write:  # requests were completed: their replies leave together
                client.on_writable()
            self._follow(fd, client)
        self.after_turn()

    def close(self) -> None:
        """Drop all clients. What else is watched belongs to the caller."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._epoll.close()

    def _follow(self, fd: int, client: NbdConnection) -> None:
        """Ask only for what the client's connection wants now: not reading is how back-pressure works."""
        if client.closed:
            del self._clients[fd], self._asked[fd]  # closing took it out of the epoll set
            return
        self._ask(fd, (EPOLLIN if client.wants_read else 0) | (EPOLLOUT if client.wants_write else 0))

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
