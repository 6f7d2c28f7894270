"""What the tests of disks share: tickets that keep their answer, workers whose jobs run when the test says so."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pycolo.core import disk_wire as wire
from pycolo.disk.source import SourceDisk
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.disk_meta import DiskMeta
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.transport import PlainTransport
from pycolo.edge.workers import Workers

T = TypeVar("T")
PATIENCE_S = 5.0


class Answer:
    """A ticket. `said` is "done", the content of a read, or an errno value; None while it waits."""

    def __init__(self) -> None:
        self.said: str | bytes | int | None = None

    def _say(self, what: str | bytes | int) -> None:
        assert self.said is None, f"answered twice: {self.said!r}, {what!r}"
        self.said = what

    def done(self) -> None:
        self._say("done")

    def data(self, buffers: Sequence[bytes | memoryview]) -> None:
        self._say(b"".join(buffers))

    def failed(self, error: int) -> None:
        self._say(error)


class HandWorkers(Workers):
    """No threads: jobs wait for `run` or `fail`."""

    def __init__(self) -> None:
        super().__init__(0)
        self._waiting: deque[Callable[[int], None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Callable[[], T], done: Callable[[T | OSError], None]) -> None:
        def carry_out(error: int) -> None:
            result: T | OSError
            try:
                result = OSError(error, os.strerror(error)) if error else job()
            except OSError as problem:
                result = problem
            done(result)

        self._waiting.append(carry_out)

    def run(self, count: int = 1) -> None:
        """The next jobs, and what follows from them."""
        for _ in range(count):
            self._waiting.popleft()(0)

    def run_all(self) -> None:
        """Until none waits."""
        while self._waiting:
            self.run()

    def fail(self, error: int = errno.ENOSPC) -> None:
        """The next job fails before it has done anything."""
        self._waiting.popleft()(error)


def make_image(path: Path, content: bytes) -> DiskImage:
    """A new image."""
    path.write_bytes(content)
    return DiskImage(path, image_format="raw")


def make_source(folder: Path, content: bytes, workers: Workers, number: int = 0) -> SourceDisk:
    """A disk with everything beside it."""
    image = make_image(folder / f"disk{number}.img", content)
    meta = DiskMeta(folder / f"disk{number}.img.colo", image.path, image.size_bytes)
    return SourceDisk(number, f"disk{number}", image, meta, workers)


class Partner:
    """The other host's disk process, as a script: it says what the test says and takes apart what it hears."""

    def __init__(self, connection: socket.socket) -> None:
        self.stream = MessageStream(PlainTransport(connection), "the test's channel", wire.decode_header)
        self._heard: list[tuple[int, bytes]] = []

    def say(self, *messages: wire.Control) -> None:
        """Send control messages."""
        self.send(b"".join(map(wire.encode_control, messages)))

    def send(self, data: bytes) -> None:
        """Send bytes, all of them."""
        self.stream.queue(data)
        while self.stream.waiting:
            self.stream.flush()
            select.select([], [self.stream], [], 0.01)

    def hear_raw(self, count: int) -> list[tuple[int, bytes]]:
        """The next messages, not decoded."""
        while len(self._heard) < count:
            assert select.select([self.stream], [], [], PATIENCE_S)[0], f"only {self._heard} came"
            self.stream.read()
            self._heard += self.stream.messages()
        heard, self._heard = self._heard[:count], self._heard[count:]
        return heard

    def hear(self, count: int) -> list[wire.Message]:
        """The next messages."""
        return [wire.decode(kind, body) for kind, body in self.hear_raw(count)]

    def hears_nothing(self) -> bool:
        """Whether nothing has come that was not taken."""
        return not self._heard and not select.select([self.stream], [], [], 0)[0]

    def close(self) -> None:
        self.stream.close()


def until_readable(*readers: MessageStream | socket.socket) -> None:
    """Until what was sent has arrived."""
    assert select.select(readers, [], [], PATIENCE_S)[0]
