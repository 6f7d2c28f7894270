"""The agent's end of a VM's network card: a packet socket on the tap device that is QEMU's end; frames in batches.

The tap is in a network namespace of its own, where nothing else is, and vanishes with the last descriptor. Through it
QEMU takes frames in batches, and guests leave checksums and long segments to us (`offload`), which QEMU's sockets don't
carry.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import Protocol

from pycolo.core.packed import Batch, Packed, joined, measure
from pycolo.edge.frames_io import CALL_FRAMES_MAX, read_frames, receive_frames, send_frames

BACKLOG_FRAMES_MAX = 8192
IN_FLIGHT_MAX = 1000  # frames in the kernel, or taken by QEMU since it was last seen to have taken all


class End(Protocol):
    """A descriptor."""

    def fileno(self) -> int:
        """Its number."""

    def close(self) -> None:
        """Let go of it."""


class Nic:
    """Frames into and out of one VM copy; never blocks."""

    def __init__(self, ours: socket.socket, theirs: End) -> None:
        """See `guest_tap`; `theirs` is a duplicate of QEMU's end, which tells what QEMU has not read, and takes that
        back.
        """
        self._ours, self._theirs = ours, theirs
        self._unread = select.poll()
        self._unread.register(theirs.fileno(), select.POLLIN)
        self._waiting: deque[tuple[Packed, int, int]] = deque()  # from which place on they wait, and how many they are
        self.backlog = 0  # frames that QEMU has not taken and the kernel does not hold
        self._in_flight = 0
        self._refused = 0  # by the kernel, since that was told last

    def fileno(self) -> int:
        """For the event loop."""
        return self._ours.fileno()

    def receive(self, frames_max: int) -> Batch:
        """Some frames that the VM sent, at most `frames_max`."""
        return Batch(*receive_frames(self._ours.fileno(), frames_max))

    def clear_error(self) -> None:
        """Read the error of a frame that could not be received: epoll tells of it until then, whatever it is asked."""
        self._ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def receive_all(self) -> Batch:
        """Everything that the VM has sent so far; the VM is stopped, so there is an end."""
        batches = []
        while (batch := self.receive(CALL_FRAMES_MAX)).count:
            batches.append(batch)
        return joined(batches)

    def send(self, batch: Batch) -> int:
        """Feed frames to the VM; what does not fit waits in a bounded backlog. Returns the number dropped."""
        if batch.count:
            self._waiting.append((batch.packed, 0, batch.count))
            self.backlog += batch.count
        self.flush()
        dropped, self._refused = self._refused, 0
        excess = max(0, self.backlog - BACKLOG_FRAMES_MAX)
        self._drop_newest(excess)
        return dropped + excess

    def flush(self) -> None:
        """Feed what waits, as far as QEMU takes it: the kernel would not say that its queue is full."""
        while self._waiting and (room := self._room()):
            packed, at, count = self._waiting.popleft()
            end, chosen = (len(packed), count) if count <= room else measure(packed, at, room)
            reached, sent = send_frames(self._ours.fileno(), memoryview(packed)[:end], at)
            self._in_flight += sent
            left = count - chosen + (measure(packed[:end], reached, chosen)[1] if reached < end else 0)
            self._refused += count - left - sent
            self.backlog -= count - left
            if left:
                self._waiting.appendleft((packed, reached, left))
            if reached < end:
                return

    def _room(self) -> int:
        """How many frames may be fed now."""
        if self._in_flight >= IN_FLIGHT_MAX and not self._unread.poll(0):
            self._in_flight = 0
        return IN_FLIGHT_MAX - self._in_flight

    def _drop_newest(self, count: int) -> None:
        while count:
            packed, at, waiting = self._waiting.pop()
            dropped = min(count, waiting)
            if dropped < waiting:
                end, kept = measure(packed, at, waiting - dropped)
                self._waiting.append((memoryview(packed)[:end], at, kept))
            self.backlog -= dropped
            count -= dropped

    def taken(self) -> bool:
        """Whether QEMU has read every frame fed so far."""
        return not self.backlog and not self._unread.poll(0)

    def take_back(self) -> int:
        """Take back the frames that a stopped QEMU has not read; returns how many."""
        count, self.backlog, self._in_flight = self.backlog, 0, 0
        self._waiting.clear()
        while taken := read_frames(self._theirs.fileno(), CALL_FRAMES_MAX)[1]:
            count += taken
        return count
