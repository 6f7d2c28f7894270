"""The primary's disks, or those of a VM that runs solo: the replica comes and goes, the images stay.

Guarantees: the loss of the secondary never fails a request of the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pycolo.core import disk_wire as wire
from pycolo.disk import protocol
from pycolo.disk.replica import Replica, ReplicaLimits
from pycolo.disk.self_check import checks_of
from pycolo.disk.source import SourceDisk
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.transport import Transport
from pycolo.errors import PeerLost


class PrimarySide:
    """All disks of one VM."""

    def __init__(
        self, disks: Sequence[SourceDisk], limits: ReplicaLimits, notify: Callable[[protocol.Notice], None]
    ) -> None:
        self.disks, self._limits, self.notify = list(disks), limits, notify
        self.replica: Replica | None = None
        self._past = protocol.DiskStats()

    def attach(self, transport: Transport, token: str) -> None:
        """A connection to the secondary's disk process."""
        stream = MessageStream(transport, "the disk channel", wire.decode_header)
        stream.queue(wire.encode_control(wire.Greeting(token)))
        self.replica = Replica(self.disks, stream, self._limits, self.notify)

    @property
    def stream(self) -> MessageStream | None:
        """The disk channel, while there is one."""
        return self.replica.stream if self.replica is not None else None

    @property
    def wants_read(self) -> bool:
        """What the secondary says is always heard."""
        return True

    def on_readable(self) -> None:
        """The secondary's disk process spoke. Raises PeerLost."""
        if self.replica is not None:
            self.replica.on_readable()

    def leave(self) -> None:
        """The pair is over: the guest goes on with what is here."""
        if self.replica is not None:
            self._past = self.stats()
            self.replica.close()
            self.replica = None

    def has_room(self, committed_epoch: int) -> bool:
        """As `Replica.has_room`. Raises PeerLost."""
        return self._to_secondary().has_room(committed_epoch)

    def expect_pause(self) -> None:
        """The VM is about to be stopped."""
        for disk in self.disks:
            disk.hurry(True)
        if self.replica is not None:
            self.replica.expect_pause()

    def expect_requests(self) -> None:
        """The VM runs again."""
        for disk in self.disks:
            disk.hurry(False)
        if self.replica is not None:
            self.replica.expect_requests()

    def checks(self) -> bytes:
        """What a self-check compares; any thread may ask, while the PVM is paused. Raises OSError."""
        return checks_of([disk.image.read for disk in self.disks], [disk.size_bytes for disk in self.disks])

    def seal(self, epoch: int, checks: bytes = b"") -> None:
        """The PVM is paused. Raises PeerLost."""
        self._to_secondary().seal(epoch, checks)

    def _to_secondary(self) -> Replica:
        if self.replica is None:
            raise PeerLost("there is no disk channel to the secondary")
        return self.replica

    def turn(self, now_s: float) -> float | None:
        """As `Replica.turn`; also tells what troubles the images."""
        for disk in self.disks:
            if disk.trouble:
                self.notify(protocol.Trouble(disk.trouble, fatal=False))
                disk.trouble = ""
        return self.replica.turn(now_s) if self.replica is not None else None

    def stats(self) -> protocol.DiskStats:
        """Counters; those of a replica that is gone stay."""
        replica, past = self.replica, self._past
        copying = replica.copying if replica is not None else None
        return protocol.DiskStats(
            copied_bytes=copying.looked_at_bytes if copying else past.copied_bytes,
            copy_bytes=copying.total_bytes if copying else past.copy_bytes,
            sent_bytes=copying.sent_bytes if copying else past.sent_bytes,
            written_bytes=sum(disk.written_bytes for disk in self.disks),
            read_errors=sum(disk.read_errors for disk in self.disks),
            write_errors=sum(disk.write_errors for disk in self.disks),
            backlog_bytes=replica.room.backlog_bytes if replica is not None else 0,
            backlog_bytes_max=max(past.backlog_bytes_max, replica.room.backlog_bytes_max if replica is not None else 0),
            withheld=replica.withheld if replica is not None else 0,
            applied_epoch=replica.applied_epoch if replica is not None else 0,
        )
