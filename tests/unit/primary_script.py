"""A primary's disks with real files and a replica whose secondary is scripted; the clock is the test's."""

from __future__ import annotations

import random
from pathlib import Path

from disk_tools import Answer, HandWorkers, Partner, make_source, until_readable
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES
from pycolo.disk import protocol
from pycolo.disk.primary import PrimarySide
from pycolo.disk.replica import ReplicaLimits
from pycolo.edge.transport import PlainTransport
from tcp_pair import tcp_pair

MIB = 1 << 20
SIZE = MIB + 512
ROOM_BLOCKS = 100
TOKEN = "token"
SESSION = "ab" * 16
FIRST = random.Random(1).randbytes(SIZE)
STALL_S = 2.0
EMPTY = wire.ImageState("", b"")
DIGEST_BYTES = 16


class Primary:
    """Two disks of a primary whose replica talks to `other`."""

    def __init__(self, folder: Path, *, queue_bytes_max: int = 16 * MIB) -> None:
        self.workers = HandWorkers()
        self.disks = [make_source(folder, FIRST, self.workers, 0), make_source(folder, b"x" * 700, self.workers, 1)]
        self.notices: list[protocol.Notice] = []
        limits = ReplicaLimits(queue_bytes_max, int(STALL_S * 1000), 0)
        self.side = PrimarySide(self.disks, limits, self.notices.append)
        ours, theirs = tcp_pair()
        self.other = Partner(theirs)
        self.side.attach(PlainTransport(ours), TOKEN)
        self.digest = wire.StreamDigest()

    def turn(self, now_s: float = 0.0) -> float | None:
        return self.side.turn(now_s)

    def hear(self, count: int) -> list[wire.Message]:
        """What the secondary gets, which keeps its digest."""
        self.turn()
        messages = self.other.hear_raw(count)
        for kind, body in messages:
            if kind != wire.Kind.CONTROL:
                self.digest.add_received(kind, body)
        return [wire.decode(kind, body) for kind, body in messages]

    def say(self, *messages: wire.Control) -> None:
        """The secondary speaks."""
        assert self.side.replica is not None
        self.other.say(*messages)
        until_readable(self.side.replica.stream)
        self.side.replica.on_readable()

    def copied(self, states: tuple[wire.ImageState, ...] = (EMPTY, EMPTY)) -> list[wire.Message]:
        """The secondary says what it has; returns what it gets, up to Copied."""
        assert self.hear(1) == [wire.Greeting(TOKEN)]
        self.say(wire.Images(list(states), ROOM_BLOCKS))
        messages: list[wire.Message] = []
        while not messages or not isinstance(messages[-1], wire.Copied):
            messages += self.hear(1)
        return messages

    def following(self) -> None:
        """Protected from epoch 1 on: the secondary keeps what it gets, and has adopted its images."""
        self.copied()
        self.say(wire.Following())
        self.side.seal(1)
        assert self.hear(1) == [wire.Mark(1, self.digest.take())]
        self.say(wire.Adopted(), wire.Applied(1))
        self.workers.run_all()
        self.notices.clear()

    def write(self, blocks: int = 1, offset: int = 0) -> Answer:
        answer = Answer()
        self.disks[0].write(answer, offset, memoryview(b"w" * (blocks * BLOCK_BYTES)), fua=False)
        return answer

    def close(self) -> None:
        self.side.leave()
        self.other.close()
        for disk in self.disks:
            disk.give_up()
        self.workers.close()
