"""The agent's end of a VM's network card: a datagram socket pair with QEMU, one datagram a frame; frames in batches."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections import deque

from pycolo.core.packed import Batch, Packed, joined, measure
from pycolo.edge.frames_io import CALL_FRAMES_MAX, receive_datagrams, send_datagrams

SOCKET_BUFFER_BYTES = 4 << 20
BACKLOG_FRAMES_MAX = 8192


def nic_pair() -> tuple[socket.socket, socket.socket]:
    """(our end, QEMU's end). Mutually connected, so the kernel's limit of ten queued datagrams does not apply."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ours, theirs


class Nic:
    """Frames into and out of one VM copy; never blocks."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        """`theirs` is a duplicate of QEMU's end, used only to take back what a stopped QEMU has not read."""
        ours.setblocking(False)
        theirs.setblocking(False)
        self._ours, self._theirs = ours, theirs
        self._waiting: deque[tuple[Packed, int, int]] = deque()  # from which place on they wait, and how many they are
        self.backlog = 0  # frames that QEMU has not taken and the kernel does not hold

    def fileno(self) -> int:
        """For the event loop."""
        return self._ours.fileno()

    def receive(self, frames_max: int) -> Batch:
        """Some frames that the VM sent, at most `frames_max`."""
        return Batch(*receive_datagrams(self._ours.fileno(), frames_max))

    def receive_all(self) -> Batch:
        """Everything that the VM has sent so far; the VM is stopped, so there is an end."""
        batches = []
        while (batch := self.receive(CALL_FRAMES_MAX)).count:
            batches.append(batch)
        return joined(batches)

    def receive_late(self, wait_s: float) -> Batch:
        """As `receive_all`, after giving a QEMU that found the socket full `wait_s` to go on."""
        time.sleep(wait_s)
        return self.receive_all()

    def send(self, batch: Batch) -> int:
        """Feed frames to the VM; what does not fit waits in a bounded backlog. Returns the number dropped."""
        if batch.count:
            self._waiting.append((batch.packed, 0, batch.count))
            self.backlog += batch.count
        self.flush()
        dropped = max(0, self.backlog - BACKLOG_FRAMES_MAX)
        self._drop_newest(dropped)
        return dropped

    def flush(self) -> None:
        """Feed what waits, as far as QEMU takes it."""
        while self._waiting:
            packed, at, count = self._waiting.popleft()
            at, sent = send_datagrams(self._ours.fileno(), packed, at)
            self.backlog -= sent
            if at < len(packed):
                self._waiting.appendleft((packed, at, count - sent))
                return

    def _drop_newest(self, count: int) -> None:
        while count:
            packed, at, waiting = self._waiting.pop()
            dropped = min(count, waiting)
            if dropped < waiting:
                end, kept = measure(packed, at, waiting - dropped)
                self._waiting.append((memoryview(packed)[:end], at, kept))
            self.backlog -= dropped
            count -= dropped

    @property
    def unread(self) -> int:
        """A measure of what QEMU has not read yet: the kernel's bytes (SIOCOUTQ), and frames of our backlog."""
        (queued,) = struct.unpack("i", fcntl.ioctl(self._ours.fileno(), termios.TIOCOUTQ, bytes(4)))
        return int(queued) + self.backlog

    def taken(self) -> bool:
        """Whether QEMU has read every frame fed so far."""
        return self.unread == 0

    def take_back(self) -> int:
        """Take back the frames that a stopped QEMU has not read; returns how many."""
        count, self.backlog = self.backlog, 0
        self._waiting.clear()
        while taken := receive_datagrams(self._theirs.fileno(), CALL_FRAMES_MAX)[1]:
            count += taken
        return count
