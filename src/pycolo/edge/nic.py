"""The agent's end of a VM's network card: a datagram socket pair with QEMU, one datagram a frame."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Iterable

FRAME_BYTES_MAX = 65535 + 18
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
        self._backlog: deque[bytes] = deque()

    def fileno(self) -> int:
        """For the event loop."""
        return self._ours.fileno()

    def receive(self, frames_max: int) -> list[bytes]:
        """Up to `frames_max` frames that the VM sent."""
        return _receive(self._ours, frames_max)

    def receive_all(self) -> list[bytes]:
        """Everything that the VM has sent so far; the VM is stopped, so there is an end."""
        frames: list[bytes] = []
        while more := _receive(self._ours, 1024):
            frames += more
        return frames

    def receive_late(self, wait_s: float) -> list[bytes]:
        """As `receive_all`, after giving a QEMU that found the socket full `wait_s` to go on."""
        time.sleep(wait_s)
        return self.receive_all()

    def send(self, frames: Iterable[bytes]) -> int:
        """Feed frames to the VM; what does not fit waits in a bounded backlog. Returns the number dropped."""
        self._backlog.extend(frames)
        self.flush()
        dropped = 0
        while len(self._backlog) > BACKLOG_FRAMES_MAX:
            self._backlog.pop()
            dropped += 1
        return dropped

    def flush(self) -> None:
        """Feed what waits, as far as QEMU takes it."""
        try:
            while self._backlog:
                self._ours.send(self._backlog[0])
                self._backlog.popleft()
        except (BlockingIOError, ConnectionError):
            return

    @property
    def backlog(self) -> int:
        """Frames that QEMU has not taken and the kernel does not hold."""
        return len(self._backlog)

    @property
    def unread(self) -> int:
        """A measure of what QEMU has not read yet: the kernel's bytes (SIOCOUTQ), and frames of our backlog."""
        (queued,) = struct.unpack("i", fcntl.ioctl(self._ours.fileno(), termios.TIOCOUTQ, bytes(4)))
        return int(queued) + len(self._backlog)

    def taken(self) -> bool:
        """Whether QEMU has read every frame fed so far."""
        return self.unread == 0

    def take_back(self) -> int:
        """Take back the frames that a stopped QEMU has not read; returns how many."""
        count = len(self._backlog)
        self._backlog.clear()
        while frames := _receive(self._theirs, 1024):
            count += len(frames)
        return count


def _receive(end: socket.socket, frames_max: int) -> list[bytes]:
    frames: list[bytes] = []
    try:
        while len(frames) < frames_max:
            frames.append(end.recv(FRAME_BYTES_MAX))
    except (BlockingIOError, ConnectionError):
        pass
    return frames
