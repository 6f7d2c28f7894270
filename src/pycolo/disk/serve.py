"""Serves a disk over NBD on a unix socket: the program `colo disk serve`.

Guarantees: whatever one client does, the others go on; at most CLIENTS_MAX clients at a time, further ones wait; when
it ends, no socket, thread or lock stays.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from select import EPOLLIN

from pycolo.disk.local import LocalExport
from pycolo.disk.loop import NbdLoop
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.nbd_export import Export
from pycolo.edge.unix_listener import UnixListener
from pycolo.edge.workers import Workers

CLIENTS_MAX = 64
WORKER_THREADS = 8


class Clients:
    """Whoever connects to `listener` is served `exports`."""

    def __init__(self, loop: NbdLoop, listener: UnixListener, exports: Mapping[str, Export]) -> None:
        self._loop, self._listener, self._exports = loop, listener, exports
        self.admit()

    def admit(self) -> None:
        """Listen only while there is room for one more."""
        self._loop.want(self._listener.fileno(), self._accept, EPOLLIN if self._loop.client_count < CLIENTS_MAX else 0)

    def _accept(self) -> None:
        while self._loop.client_count < CLIENTS_MAX and (sock := self._listener.accept()) is not None:
            self._loop.serve(sock, self._exports)


def serve_image(
    path: Path, socket_path: Path, *, read_only: bool, image_format: str | None, ready: Callable[[], None]
) -> None:
    """Serve one image until SIGTERM or SIGINT; `ready` is called when clients may come. Raises EnvironmentFault."""
    with contextlib.ExitStack() as stack:
        stopping: list[int] = []
        wakeup = stack.enter_context(_stop_signals())
        image = DiskImage(path, read_only=read_only, image_format=image_format)
        stack.callback(image.close)
        listener = UnixListener(socket_path)
        stack.callback(listener.close)
        workers = Workers(WORKER_THREADS)
        stack.callback(workers.close)
        loop = NbdLoop()
        stack.callback(loop.close)
        clients = Clients(loop, listener, {"": LocalExport(image, workers)})
        loop.after_turn = clients.admit
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
