"""The primary's disks on their way to the secondary: first copy, then every write at once, marks at the checkpoints.

Guarantees: the stream is what happened to the images, in order; the secondary never has to keep more than it has room
for, nor this process more than `queue_bytes_max`: the guest's answers wait before that, none longer than
`stall_ms_max`, after which the secondary is given up (rules 7 and 9).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pycolo.agent.protocol import Wanted
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES, blocks_touched
from pycolo.core.changed_chunks import Bits
from pycolo.core.disk_room import TURN_S_MAX, DiskRoom
from pycolo.disk import protocol
from pycolo.disk.copying import Copying, CopyTask
from pycolo.disk.source import SourceDisk
from pycolo.edge.message_stream import MessageStream
from pycolo.errors import PeerLost, PeerViolation

COPY_QUEUE_BYTES = 4 << 20
COPY_TURN_PIECES = 4
BACKLOG = "disk_backlog"


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """Bounds of one replica; a rate of 0 is no limit."""

    queue_bytes_max: int
    stall_ms_max: int
    copy_bytes_per_s_max: int


class Replica:
    """The stream to the secondary's disk process; one for all disks of a VM. Implements Listeners of `source`."""

    def __init__(
        self,
        disks: Sequence[SourceDisk],
        stream: MessageStream,
        limits: ReplicaLimits,
        notify: Callable[[protocol.Notice], None],
    ) -> None:
        self._disks, self.stream, self._limits, self._notify = disks, stream, limits, notify
        self._digest = wire.StreamDigest()
        self.copying: Copying | None = None  # under way or done
        self._session = ""
        self._whole = False
        self.room = DiskRoom(limits.queue_bytes_max, limits.stall_ms_max / 1000)
        self._sealed_epoch = self._sent_bytes = 0
        self.applied_epoch = 0  # what the secondary said to have on its images
        self._withheld: deque[Callable[[], None]] = deque()
        self._hurried = self._pause_waits = self._follows = self._adopted = False
        self._now_s = 0.0
        self._hopeless = ""

    # ---------------------------------------------------------------- what happens to the images

    def wrote(self, disk: int, offset: int, data: bytes | memoryview) -> None:
        """An image has new content."""
        for start in range(0, len(data), wire.DATA_BYTES_MAX):
            content = bytes(data[start : start + wire.DATA_BYTES_MAX])
            head = wire.data_header(len(content)) + wire.data_body(disk, offset + start)
            self._digest.add(head, content)
            self.stream.queue(head, content)
        self._count(blocks_touched(offset, len(data)))

    def zeroed(self, disk: int, offset: int, length: int) -> None:
        """A range of an image is zero."""
        message = wire.zeros_header() + wire.zeros_body(disk, offset, length)
        self._digest.add(message)
        self.stream.queue(message)
        self._count(blocks_touched(offset, length))  # zeros take a place as well

    def give_up(self, why: str) -> None:
        """Nobody knows what is on an image: the secondary can't be kept alike."""
        self._hopeless = why

    def answer(self, give: Callable[[], None]) -> None:
        """Answer a write, at once or when there is room again."""
        if self._hurried or not self.room.full(self.stream.waiting_bytes):
            give()
            return
        self._withheld.append(give)
        self._ask()

    # ---------------------------------------------------------------- checkpoints

    def has_room(self, committed_epoch: int) -> bool:
        """Whether the secondary can take what a pause lets through; if not, `RoomFree` is told when it can."""
        self.room.committed(committed_epoch)
        self._pause_waits = not self.room.may_pause
        return not self._pause_waits

    def expect_pause(self) -> None:
        """Every answer is given at once from here on."""
        self._hurried = True
        self.release()

    def expect_requests(self) -> None:
        """The VM runs again."""
        self._hurried = False

    def seal(self, epoch: int, checks: bytes = b"") -> None:
        """The PVM is paused: what has been sent belongs to the checkpoint that starts `epoch`.

        `checks` are those of a self-check (`checks_of`), and empty without one.
        """
        if self._hopeless:
            raise PeerLost(self._hopeless)
        for disk in self._disks:
            disk.changes.seal(epoch)
            disk.sealed_in(self._session)
        self.stream.queue(wire.encode_control(wire.Mark(epoch, self._digest.take(), checks)))
        self.room.seal(epoch)
        self._sealed_epoch = epoch
        self.stream.flush()

    def release(self) -> None:
        """Give every answer that waits."""
        while self._withheld:
            self._withheld.popleft()()

    @property
    def withheld(self) -> int:
        """Answers that wait."""
        return len(self._withheld)

    # ---------------------------------------------------------------- the loop

    def on_readable(self) -> None:
        """The secondary's disk process spoke. Raises PeerLost."""
        self.stream.read()
        for kind, body in self.stream.messages():
            self._handle(wire.decode(kind, body))

    def turn(self, now_s: float) -> float | None:
        """Send, copy, watch the time; returns the seconds until it has to be called again. Raises PeerLost, OSError."""
        self._now_s = now_s
        if self._hopeless:
            raise PeerLost(self._hopeless)
        due_s = self._copy(now_s)
        self.stream.flush()
        if due_s == 0.0 and self._copy_is_ahead:
            due_s = None  # the loop calls when more can be sent
        self._note_progress()
        if self._pause_waits and self.room.may_pause:
            self._pause_waits = False
            self._notify(protocol.RoomFree())
        someone_waits = bool(self._withheld) or self._hurried or self._pause_waits
        left_s = self.room.turn(now_s, someone_waits=someone_waits, queued_bytes=self.stream.waiting_bytes)
        if left_s is None:
            if self._withheld:
                self.release()
            return due_s
        if left_s <= 0:
            raise PeerLost(f"the secondary's disks give no room in {self._limits.stall_ms_max} ms")
        return min(TURN_S_MAX, left_s, left_s if due_s is None else due_s)

    def _note_progress(self) -> None:
        """Tell what the secondary's kernel took."""
        if self.stream.sent_bytes != self._sent_bytes:
            self._sent_bytes = self.stream.sent_bytes
            self.room.taken(self.stream.waiting_bytes)

    def close(self) -> None:
        """End the replica: the guest goes on alone."""
        for disk in self._disks:
            disk.replica = None
            disk.changes.lost()
        self.release()
        self.stream.close()

    # ---------------------------------------------------------------- what the secondary says

    def _handle(self, message: wire.Message) -> None:
        match message:
            case wire.Images() if self.copying is None:
                self._begin(message)
            case wire.Following() if self.copying is not None and self.copying.done and not self._follows:
                self._follows = True
                self._notify(protocol.Following(self.copying.sent_bytes, self._whole))
            case wire.Working() if self.copying is not None:
                self.room.progressed()
            case wire.Adopted() if self._sealed_epoch and not self._adopted:
                self._adopted = True
                for disk in self._disks:
                    disk.adopt(self._session)
            case wire.Applied(epoch=epoch) if self._adopted and epoch <= self._sealed_epoch:
                self._applied(epoch)
            case _:
                raise PeerViolation(f"the secondary's disk process sent {type(message).__name__}, which is not due")

    def _begin(self, images: wire.Images) -> None:
        """Choose what to copy, and send every write from here on."""
        if len(images.images) != len(self._disks):
            raise PeerViolation(f"the secondary has {len(images.images)} disks, we have {len(self._disks)}")
        self.room.room_bytes = images.room_blocks * BLOCK_BYTES
        self._session = secrets.token_hex(16)
        tasks = [self._task(disk, image) for disk, image in zip(self._disks, images.images, strict=True)]
        whole = [task.changed is None for task in tasks]
        self._whole = any(whole)
        self.stream.queue(wire.encode_control(wire.Begin(whole)))
        for disk in self._disks:
            disk.changes.begin()
            disk.replica = self
        self.copying = Copying(tasks, self, self._limits.copy_bytes_per_s_max, self._now_s)

    def _task(self, disk: SourceDisk, image: wire.ImageState) -> CopyTask:
        theirs = np.frombuffer(image.changed, np.uint8)
        known = disk.knows(image.session) and len(theirs) in (0, len(disk.meta.bits))
        changed: Bits | None = (disk.meta.bits | theirs if len(theirs) else disk.meta.bits.copy()) if known else None
        return CopyTask(disk.number, disk.image, changed)

    def _copy(self, now_s: float) -> float | None:
        """Queue pieces of the copy; returns the seconds until the next ones, None when there are none."""
        copying = self.copying
        if copying is None or copying.done:
            return None
        for _ in range(COPY_TURN_PIECES):
            if self._copy_is_ahead:
                return 0.0
            wait_s = copying.step(now_s)
            if wait_s is None:
                self.stream.queue(wire.encode_control(wire.Copied(self._session)))
                return None
            if wait_s:
                return wait_s
        return 0.0

    @property
    def _copy_is_ahead(self) -> bool:
        """Whether so much waits to be sent that the copy waits as well."""
        return self.stream.waiting_bytes > min(COPY_QUEUE_BYTES, self._limits.queue_bytes_max // 2)

    def _applied(self, epoch: int) -> None:
        self.applied_epoch = epoch
        self.room.applied(epoch)
        for disk in self._disks:
            disk.changes.applied(epoch)

    def _count(self, blocks: int) -> None:
        self.room.count(blocks * BLOCK_BYTES)
        self._ask()

    def _ask(self) -> None:
        if self.room.asks(someone_waits=bool(self._withheld)):
            self._notify(Wanted(BACKLOG))
