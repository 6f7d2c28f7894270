"""Serves disks over NBD on a unix socket: the loop, and the program around it.

Guarantees: whatever one client does, the others go on; at most CLIENTS_MAX clients at a time, further ones wait; when
it ends, no socket, thread or lock stays.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT

from pycolo.disk.local import LocalExport
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.nbd_export import Export
from pycolo.edge.nbd_server import NbdConnection
from pycolo.edge.unix_listener import UnixListener
from pycolo.edge.workers import Workers

CLIENTS_MAX = 64
WORKER_THREADS = 8


class NbdLoop:
    """Listener, clients, and whatever else `watch` was told of; the owner calls `turn` for as long as it likes."""

    def __init__(self, listener: UnixListener, exports: Mapping[str, Export]) -> None:
        self._listener, self._exports = listener, exports
        self._epoll = select.epoll()
        self._clients: dict[int, NbdConnection] = {}
        self._asked: dict[int, int] = {}  # the events that epoll reports, by file descriptor
        self._handlers: dict[int, Callable[[], None]] = {}
        self.watch(listener.fileno(), self._accept)

    @property
    def client_count(self) -> int:
        """Clients that are connected now."""
        return len(self._clients)

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable; it may complete requests."""
        self._handlers[fd] = handler
        self._ask(fd, EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call it before closing what it belongs to."""
        del self._handlers[fd], self._asked[fd]
        self._epoll.unregister(fd)

    def turn(self, wait_s: float | None = None) -> None:
        """Wait for the next thing to happen, at most `wait_s`, and deal with it."""
        handled = False
        for fd, events in self._epoll.poll(wait_s):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
                handled = True
            elif (client := self._clients.get(fd)) is not None:
                _serve(client, events)
                if client.closed:
                    self._drop(fd)
        for fd, client in list(self._clients.items()):
            if handled and client.wants_write:  # requests were completed: their replies leave together
                client.on_writable()
            if client.closed:
                self._drop(fd)
            else:
                self._follow(fd, client)

    def close(self) -> None:
        """Drop all clients and stop listening. What else is watched belongs to the caller."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._epoll.close()
        self._listener.close()

    def _accept(self) -> None:
        while len(self._clients) < CLIENTS_MAX and (sock := self._listener.accept()) is not None:
            client = NbdConnection(sock, self._exports)
            self._clients[client.fileno()] = client
        if len(self._clients) >= CLIENTS_MAX:
            self._ask(self._listener.fileno(), 0)

    def _follow(self, fd: int, client: NbdConnection) -> None:
        """Ask only for what the client's connection wants now: not reading is how back-pressure works."""
        self._ask(fd, (EPOLLIN if client.wants_read else 0) | (EPOLLOUT if client.wants_write else 0))

    def _drop(self, fd: int) -> None:
        """Forget a closed client at once: its number may be another's in the same turn."""
        del self._clients[fd]
        self._asked.pop(fd, None)  # closing took it out of the epoll set, if it was in it yet
        self._ask(self._listener.fileno(), EPOLLIN)

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


def serve_image(
    path: Path, socket_path: Path, *, read_only: bool, image_format: str | None, ready: Callable[[], None]
) -> None:
    """Serve one image until SIGTERM or SIGINT; `ready` is called when clients may come. Raises EnvironmentFault."""
    with contextlib.ExitStack() as stack:
        stopping: list[int] = []
        wakeup = stack.enter_context(_stop_signals())
        image = DiskImage(path, read_only=read_only, format=image_format)
        stack.callback(image.close)
        listener = UnixListener(socket_path)
        stack.callback(listener.close)
        workers = Workers(WORKER_THREADS)
        stack.callback(workers.close)
        loop = NbdLoop(listener, {"": LocalExport(image, workers)})
        stack.callback(loop.close)
        loop.watch(workers.fileno(), workers.collect)
        loop.watch(wakeup.fileno(), lambda: stopping.extend(wakeup.recv(64)))
        ready()
        while not stopping:
            loop.turn()


@contextlib.contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """A socket on which the number of a SIGTERM or SIGINT comes: a handler that raised could strike anywhere."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup_before = signal.set_wakeup_fd(theirs.fileno())
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()
