"""The secondary's disks: they follow the primary's, and after a takeover they are the VM's.

Guarantees: a stream that is not what the primary sent ends the session before anything of its epoch is committed
(rule 3); the primary hears of an epoch as applied only when it is safely on every image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from pycolo.agent.protocol import Wanted
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES, StoreFull
from pycolo.disk import protocol
from pycolo.disk.applier import Applier
from pycolo.disk.folding import Folding
from pycolo.disk.self_check import CHECK_BYTES, checks_of, first_difference
from pycolo.disk.target import TargetDisk
from pycolo.edge.disk_meta import Kind
from pycolo.edge.doorway import Greeting
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.nbd_export import Export
from pycolo.errors import PeerViolation

APPLY_EVERY_S = 0.25
APPLY_SHARE = 0.25  # of the room: so much is applied without waiting for more
TURN_READS_MAX = 4
MARKS_MAX = 64  # of checkpoints that failed one after the other


def _token(kind: int, body: bytes) -> str:
    message = wire.decode(kind, body)
    if isinstance(message, wire.Greeting):
        return message.token
    raise PeerViolation(f"somebody called for {GREETING.channel} and did not greet")


GREETING = Greeting("the disk channel", wire.decode_header, _token)


class SecondarySide:
    """All disks of one VM on the secondary. Implements Owner of `target`."""

    def __init__(self, room_blocks: int, notify: Callable[[protocol.Notice], None]) -> None:
        self.disks: Sequence[TargetDisk] = ()
        self._applier: Applier
        self._room_blocks, self.notify = room_blocks, notify
        self.stream: MessageStream | None = None
        self._digest = wire.StreamDigest()
        self._begun = self._troubled = self._adopting = self._adopted = False
        self._session = ""
        self._marked_epoch = self._committed_epoch = self._told_epoch = 0
        self._adopt_epoch = 0  # when the images have that, they are of the session
        self._uncommitted: list[int] = []
        self._checks: dict[int, bytes] = {}
        self._apply_at_s = self._told_at_s = 0.0
        self._told_steps = 0
        self._folding: Folding | None = None
        self.used_blocks_max = 0

    def serve(self, disks: Sequence[TargetDisk], applier: Applier) -> None:
        """These are the disks, in the order of vm.toml; to be called once, before anything else."""
        self.disks, self._applier = disks, applier
        applier.idle, applier.failed = self._progressed, self.trouble

    # ---------------------------------------------------------------- Owner

    def trouble(self, why: str) -> None:
        """Our disks can't be kept right any more."""
        if not self._troubled:
            self._troubled = True
            self.notify(protocol.Trouble(why, fatal=True))

    def wanted(self, reason: str) -> None:
        """A checkpoint is needed."""
        self.notify(Wanted(reason))

    def _progressed(self) -> None:
        """Tell the primary what is safely on all images by now."""
        epoch = self.applied_epoch
        if self.stream is None or not self._adopted or epoch <= self._told_epoch:
            return
        if not self._told_epoch:
            self.stream.queue(wire.encode_control(wire.Adopted()))
        self._told_epoch = epoch
        self.stream.queue(wire.encode_control(wire.Applied(epoch)))

    # ---------------------------------------------------------------- the primary's stream

    def greet(self, stream: MessageStream) -> None:
        """The primary has come: tell it what our images are."""
        self.stream = stream
        images = [
            wire.ImageState(disk.meta.session, b"" if disk.meta.kind is Kind.TARGET else disk.meta.bits.tobytes())
            for disk in self.disks
        ]
        stream.queue(wire.encode_control(wire.Images(images, self._room_blocks)))

    def on_readable(self) -> None:
        """The primary's disk process spoke. Raises PeerLost."""
        stream = self.stream
        if stream is None or self._troubled:
            return
        for _ in range(TURN_READS_MAX):
            if not stream.read():
                return
            for kind, body in stream.messages():
                if kind != wire.Kind.CONTROL:
                    self._digest.add_received(kind, body)
                self._handle(stream, wire.decode(kind, body))
                if self._troubled:
                    return  # a mark after a lost write would say that it is there

    def _handle(self, stream: MessageStream, message: wire.Message) -> None:
        if isinstance(message, wire.Data | wire.Zeros) and self._begun:
            self._stage(message)
        elif isinstance(message, wire.Begin) and not self._begun:
            self._begin(message)
        elif isinstance(message, wire.Copied) and self._begun and not self._session and message.session:
            self._session = message.session
            self._presync(stream)
        elif isinstance(message, wire.Mark) and self._session and self._may_mark(message.epoch):
            self._mark(message)
        else:
            raise PeerViolation(f"the primary's disk process sent {type(message).__name__}, which is not due")

    def _may_mark(self, epoch: int) -> bool:
        return epoch > self._marked_epoch and len(self._uncommitted) < MARKS_MAX

    def _begin(self, message: wire.Begin) -> None:
        if len(message.whole) != len(self.disks):
            raise PeerViolation(f"the primary copies {len(message.whole)} disks, we have {len(self.disks)}")
        self._begun = True
        with self._local():
            for disk, whole in zip(self.disks, message.whole, strict=True):
                disk.begin_copy(whole=whole)

    def _stage(self, message: wire.Data | wire.Zeros) -> None:
        length = message.length if isinstance(message, wire.Zeros) else len(message.content)
        if message.disk >= len(self.disks) or message.offset + length > self.disks[message.disk].size_bytes:
            raise PeerViolation(f"the primary wrote {length} bytes at {message.offset}, where no disk is")
        disk = self.disks[message.disk]
        with self._local():
            if isinstance(message, wire.Zeros):
                disk.stage_zeros(message.offset, length)
            else:
                disk.stage(message.offset, message.content)

    def _presync(self, stream: MessageStream) -> None:
        def synced() -> None:
            if self.stream is stream:
                stream.queue(wire.encode_control(wire.Following()))

        self._applier.presync(synced)

    def _mark(self, mark: wire.Mark) -> None:
        if mark.digest != self._digest.take():
            raise PeerViolation(f"the digest of what was written before epoch {mark.epoch} is wrong")
        first, self._marked_epoch = not self._marked_epoch, mark.epoch  # the first copy went to the images themselves
        self._uncommitted.append(mark.epoch)
        if mark.checks:
            self._checks[mark.epoch] = mark.checks
        for disk in self.disks:
            disk.mark(mark.epoch)
        if not self._adopt_epoch:
            self._adopt_epoch = mark.epoch
        if first:
            self._adopt()
        self.notify(protocol.Marked(mark.epoch))

    def _adopt(self) -> None:
        """The images hold what was copied."""
        self._adopting, session = True, self._session

        def adopted() -> None:
            self._adopted = self._session == session  # else the pair has lost itself meanwhile

        self._applier.adopt(session, self._adopt_epoch, adopted)

    @contextlib.contextmanager
    def _local(self) -> Iterator[None]:
        """What fails on our own side is our trouble, not the primary's."""
        try:
            yield
        except OSError as problem:
            self.trouble(f"the secondary's disks can't be written ({problem.strerror}): make room, or mend the disk")
        except StoreFull:
            self.trouble("there is no room for what the primary writes: give the secondary more `disk_spill_mib_max`")

    # ---------------------------------------------------------------- the daemon's commands

    def expect_pause(self) -> None:
        """The SVM is about to be stopped."""
        for disk in self.disks:
            disk.expect_pause()

    def commit(self, epoch: int) -> str | None:
        """The SVM is stopped and becomes the PVM at the start of `epoch`; returns what is wrong in a self-check."""
        for disk in self.disks:
            disk.commit(epoch)
        self._committed_epoch = max(self._committed_epoch, epoch)
        self._uncommitted = [marked for marked in self._uncommitted if marked > epoch]
        checks = self._checks.get(epoch)
        self._checks = {marked: kept for marked, kept in self._checks.items() if marked > epoch}
        if checks is None:
            return None
        ours = checks_of([disk.core.committed_content for disk in self.disks], [disk.size_bytes for disk in self.disks])
        different = first_difference(ours, checks)
        if different is None:
            return None
        return f"self-check: MiB {different} of the disks differs from the primary's (pieces of {CHECK_BYTES} bytes)"

    def take_over(self, switch: Callable[[int, Export], None]) -> None:
        """The SVM's disks are the disks now; `switch(number, export)` changes what the guest talks to."""
        self.leave()
        self._folding = Folding(self.disks, self._applier, switch, self.trouble)

    def leave(self) -> None:
        """The session is over. What is staged stays: the PVM did write it, and the next copy comes on top."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        self._digest = wire.StreamDigest()
        self._begun = self._adopting = self._adopted = False
        self._session = ""
        self._told_epoch = self._adopt_epoch = 0

    # ---------------------------------------------------------------- the loop

    def turn(self, now_s: float) -> float | None:
        """Send, apply; returns the seconds until this has to be called again. Raises PeerLost."""
        if self.stream is not None:
            self._tell_that_we_work(self.stream, now_s)
            self.stream.flush()
        used = self.used_blocks
        self.used_blocks_max = max(self.used_blocks_max, used)
        if self._folding or self._troubled or not self._committed_epoch:
            return None
        if now_s >= self._apply_at_s or used > self._room_blocks * APPLY_SHARE:
            self._apply_at_s = now_s + APPLY_EVERY_S
            self._applier.apply(self._committed_epoch)
            self._progressed()
        adopts = self._adopts_later and not self._applier.busy
        if adopts and self.applied_epoch >= self._adopt_epoch:
            self._adopt()
        return max(0.0, self._apply_at_s - now_s) if self._applier.unapplied or self._adopts_later else None

    @property
    def _adopts_later(self) -> bool:
        """Whether the images are of the session once they have what is committed."""
        return not self._adopting and 0 < self._adopt_epoch <= self._committed_epoch

    def _tell_that_we_work(self, stream: MessageStream, now_s: float) -> None:
        """A primary that waits for room gives up who gets nowhere, and not who is busy."""
        steps = self._applier.steps
        if not self._applier.busy:
            self._told_steps = steps
        elif steps != self._told_steps and now_s >= self._told_at_s + APPLY_EVERY_S:
            self._told_steps, self._told_at_s = steps, now_s
            stream.queue(wire.encode_control(wire.Working()))

    @property
    def wants_read(self) -> bool:
        """Whether what the primary says is still heard."""
        return not self._troubled

    def stats(self) -> protocol.DiskStats:
        """Counters and gauges."""
        sources = [disk.source for disk in self.disks]
        return protocol.DiskStats(
            written_bytes=sum(source.written_bytes for source in sources),
            read_errors=sum(source.read_errors for source in sources),
            write_errors=sum(source.write_errors for source in sources),
            buffered_bytes=self.used_blocks * BLOCK_BYTES,
            buffered_bytes_max=self.used_blocks_max * BLOCK_BYTES,
            applied_epoch=self.applied_epoch,
            folding=self._folding is not None,
        )

    @property
    def used_blocks(self) -> int:
        """Blocks that are in memory or in a spill file."""
        return sum(disk.core.used_blocks for disk in self.disks)

    @property
    def applied_epoch(self) -> int:
        """The epoch that is safely on all images."""
        return self._applier.applied_epoch

    @property
    def unfinished(self) -> bool:
        """Whether something that counts is not on the images yet."""
        return self._applier.unapplied or (self._folding is not None and not self._folding.done)

    @property
    def folded(self) -> bool:
        """Whether a takeover has come to its end: the guest talks to the images."""
        return self._folding is not None and self._folding.done

    @property
    def troubled(self) -> bool:
        """Whether our disks can't be kept right any more."""
        return self._troubled
