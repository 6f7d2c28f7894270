"""A secondary's disks with real files, a scripted primary, and jobs that run when the test says so and may fail."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from disk_tools import Answer, HandWorkers, Partner, make_source, until_readable
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES, BlockStore
from pycolo.disk import protocol
from pycolo.disk.applier import Applier, Part
from pycolo.disk.secondary import SecondarySide
from pycolo.disk.target import TargetDisk
from pycolo.edge.journal_file import JournalFile
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.nbd_export import Export
from pycolo.edge.transport import PlainTransport

BLOCKS = 2000
SIZE = BLOCKS * BLOCK_BYTES
ROOM_BLOCKS = 1200  # in the store of each disk
OVERLAY_BLOCKS = ROOM_BLOCKS // 2
SESSION = "ab" * 16
IMAGES = (random.Random(1).randbytes(SIZE), b"small" * 100)


class Secondary:
    """Two disks that follow the scripted primary `other`."""

    def __init__(self, folder: Path, room_blocks: int = ROOM_BLOCKS) -> None:
        self.folder, self.workers = folder, HandWorkers()
        self.notices: list[protocol.Notice] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.side = SecondarySide(room_blocks // 2, self.notices.append)
        self.sources = [make_source(folder, image, self.workers, number) for number, image in enumerate(IMAGES)]
        self._journal = JournalFile(folder / "journal")
        self.disks = [TargetDisk(source, BlockStore(room_blocks), self.side) for source in self.sources]
        parts = [Part(disk.core, disk.source.image, disk.meta) for disk in self.disks]
        self.applier = Applier(parts, self._journal, self.workers)
        self.side.serve(self.disks, self.applier)
        self.exports: dict[int, Export] = {}
        self._digest = wire.StreamDigest()
        self.other = self.call()

    def call(self) -> Partner:
        """The primary comes in."""
        partner = Partner(socket.create_connection(self.listener.getsockname()))
        connection, _ = self.listener.accept()
        self.side.greet(MessageStream(PlainTransport(connection), "the disk channel", wire.decode_header))
        return partner

    # ---- the primary speaks

    def send(self, data: bytes) -> None:
        assert self.side.stream is not None
        self.other.send(data)
        if not self.side.troubled:
            until_readable(self.side.stream)
        self.side.on_readable()

    def say(self, *messages: wire.Control) -> None:
        self.send(b"".join(map(wire.encode_control, messages)))

    def written(self, offset: int, content: bytes, disk: int = 0) -> bytes:
        """A message that has to be sent."""
        message = wire.data_header(len(content)) + wire.data_body(disk, offset) + content
        self._digest.add(message)
        return message

    def write(self, block: int, content: bytes = b"P", disk: int = 0) -> None:
        """The PVM writes a block."""
        self.send(self.written(block * BLOCK_BYTES, content * BLOCK_BYTES, disk))

    def zero(self, offset: int, length: int, disk: int = 0) -> None:
        message = wire.zeros_header() + wire.zeros_body(disk, offset, length)
        self._digest.add(message)
        self.send(message)

    def marked(self, epoch: int, checks: bytes = b"") -> bytes:
        return wire.encode_control(wire.Mark(epoch, self._digest.take(), checks))

    def mark(self, epoch: int, checks: bytes = b"") -> None:
        self.send(self.marked(epoch, checks))

    def hear(self, count: int) -> list[wire.Message]:
        """What the primary hears."""
        self.side.turn(0.0)
        return self.other.hear(count)

    # ---- how far it is

    def copying(self) -> None:
        """All of both disks is being copied."""
        self.say(wire.Begin([True, True]))
        self.hear(1)

    def begin_again(self) -> None:
        """The pair has found itself again: only what was written meanwhile is copied."""
        self._digest = wire.StreamDigest()
        self.say(wire.Begin([False, False]))

    def adopting(self) -> None:
        """The first mark has come; a job waits: that makes the images the session's."""
        self.copying()
        self.say(wire.Copied(SESSION))
        self.workers.run()
        assert self.hear(1) == [wire.Following()]
        self.mark(1)

    def following(self) -> None:
        """The SVM runs from epoch 1 on."""
        self.adopting()
        self.workers.run()
        assert self.hear(2) == [wire.Adopted(), wire.Applied(1)]
        assert self.side.commit(1) is None
        self.notices.clear()

    def checkpoint(self, epoch: int) -> None:
        self.mark(epoch)
        self.side.expect_pause()
        assert self.side.commit(epoch) is None

    def step(self) -> None:
        """The job under way writes something."""
        self._journal.steps += 1

    def take_over(self) -> None:
        self.side.take_over(self.exports.__setitem__)

    # ---- the SVM

    @property
    def disk(self) -> TargetDisk:
        return self.disks[0]

    def image(self, disk: int = 0) -> bytes:
        return self.sources[disk].image.path.read_bytes()

    def _export(self, disk: int) -> Export:
        return self.exports.get(disk, self.disks[disk])

    def svm_write(
        self, block: int, content: bytes = b"S", count: int = 1, *, disk: int = 0, fua: bool = False
    ) -> Answer:
        answer = Answer()
        data = (content * BLOCK_BYTES * count)[: self.disks[disk].size_bytes - block * BLOCK_BYTES]
        self._export(disk).write(answer, block * BLOCK_BYTES, memoryview(data), fua=fua)
        return answer

    def svm_flush(self, disk: int = 0) -> Answer:
        answer = Answer()
        self._export(disk).flush(answer)
        return answer

    def svm_reads(self, block: int = 0, count: int = BLOCKS) -> bytes:
        answer = Answer()
        self._export(0).read(answer, block * BLOCK_BYTES, count * BLOCK_BYTES)
        while answer.said is None:
            self.workers.run()
        assert isinstance(answer.said, bytes)
        return answer.said

    def troubles(self) -> list[str]:
        return [notice.why for notice in self.notices if isinstance(notice, protocol.Trouble) and notice.fatal]

    def close(self) -> None:
        self.side.leave()
        self.other.close()
        self.listener.close()
        for source in self.sources:
            source.give_up()
        self._journal.close()
        self.workers.close()


def changed(image: bytes, *blocks: tuple[int, bytes]) -> bytes:
    """`image` with these blocks filled."""
    content = bytearray(image)
    for block, fill in blocks:
        content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = fill * BLOCK_BYTES
    return bytes(content)
