"""What the production agent has its hands on, over the model: an uplink, a network card, a packet channel's bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from pycolo.core.packed import Batch, Packed, batch_of, unpack
from pycolo.edge.nic import Nic
from pycolo.edge.tap import Tap

from .guest import Guest
from .links import LinkEnd
from .scheduler import Host, Scheduler

TAKE_US = 40  # a frame's way into QEMU
DRAIN_US = 60  # a packet's way out of it
QUEUE_FRAMES_MAX = 4000

Emit = Callable[[bytes], None]


class ModelTap(Tap):
    """An uplink to the clients' network."""

    def __init__(self, host: Host, now_s: Callable[[], float], emit: Emit) -> None:
        """`now_s` is the host's clock."""
        self.name, self.fd = host.name, -1
        self._now_s, self._emit = now_s, emit
        self.inbox: deque[bytes] = deque(maxlen=QUEUE_FRAMES_MAX)

    def receive(self, frames_max: int) -> Batch:
        """See Tap."""
        return batch_of([self.inbox.popleft() for _ in range(min(frames_max, len(self.inbox)))])

    def send(self, packed: Packed, deadline_s: float = float("inf")) -> tuple[int, int]:
        """See Tap."""
        if self._now_s() > deadline_s:
            return 0, 0
        for frame in unpack(packed):
            self._emit(frame)
        return len(packed), 0

    def close(self) -> None:
        """See Tap."""


class ModelNic(Nic):
    """Frames into and out of a model guest."""

    def __init__(self, scheduler: Scheduler, guest: Guest, on_output: Callable[[], None]) -> None:
        self._scheduler, self._guest, self._on_output = scheduler, guest, on_output
        self.backlog = 0
        self._on_way: deque[bytes] = deque()
        self.out: deque[bytes] = deque()
        guest.on_output = lambda: scheduler.call_later(DRAIN_US, guest.host, self._drain)

    def _drain(self) -> None:
        """What the guest has put out is there for the agent."""
        if not self._guest.dead:
            self.out += self._guest.outbox
            self._guest.outbox.clear()
            self._on_output()

    def receive(self, frames_max: int) -> Batch:
        """See Nic."""
        return batch_of([self.out.popleft() for _ in range(min(frames_max, len(self.out)))])

    def receive_all(self) -> Batch:
        """See Nic."""
        frames = [*self.out, *self._guest.outbox]
        self.out.clear()
        self._guest.outbox.clear()
        return batch_of(frames)

    def send(self, batch: Batch) -> int:
        """See Nic."""
        for frame in unpack(batch.packed):
            self._on_way.append(frame)
            self._scheduler.call_later(TAKE_US, self._guest.host, self._take)
        return 0

    def _take(self) -> None:
        if self._on_way:
            self._guest.deliver(self._on_way.popleft())

    def flush(self) -> None:
        """See Nic."""

    @property
    def unread(self) -> int:
        """How many frames QEMU has not taken."""
        return len(self._on_way)

    def taken(self) -> bool:
        """See Nic."""
        return not self._on_way

    def take_back(self) -> int:
        """See Nic."""
        count = len(self._on_way)
        self._on_way.clear()
        return count


class ModelTransport:
    """Transport: the bytes of the packet channel on one end of a link."""

    certified: frozenset[str] | None = None
    ready: Literal[True] = True
    pending: Literal[False] = False

    def __init__(self, link: LinkEnd, on_readable: Callable[[], None]) -> None:
        self._link, self._on_readable = link, on_readable
        self._arrived = bytearray()
        self._ended = self._closed = self._broken = False
        link.carry_packets(self._take, self._break)

    def _take(self, data: bytes) -> None:
        """Bytes arrive; none at all is the end."""
        if not self._closed:
            self._arrived += data
            self._ended = self._ended or not data
            self._on_readable()

    def _break(self) -> None:
        """Nothing was acknowledged for too long: the kernel gives the connection up."""
        self._broken = True
        self._on_readable()

    @property
    def readable(self) -> bool:
        """Whether epoll would say so."""
        return bool(self._arrived) or self._ended or self._broken

    def fileno(self) -> int:
        """See Transport; nothing watches it."""
        return -1

    def shake(self) -> bool:
        """See Transport."""
        return True

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """See Transport."""
        if self._broken:
            raise TimeoutError(110, "Connection timed out")
        if self._ended:
            raise BrokenPipeError(32, "Broken pipe")
        data = b"".join(buffers)
        self._link.send("packets", data)
        return len(data)

    def flush(self) -> None:
        """See Transport."""

    def receive(self) -> bytes:
        """See Transport."""
        if self._arrived:
            data = bytes(self._arrived)
            self._arrived.clear()
            return data
        if self._broken:
            raise TimeoutError(110, "Connection timed out")
        if self._ended:
            return b""
        raise BlockingIOError

    def close(self) -> None:
        """See Transport."""
        if not self._closed:
            self._closed = True
            self._link.send("packets", b"")
