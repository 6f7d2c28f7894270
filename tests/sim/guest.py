"""The model guest: a small program whose whole state is RAM pages and a few registers.

It takes client frames into a queue (device state), works on them one by one, writes pages, and answers. Some requests
ask for something that two copies answer differently: a random bit, a random number, the time of day in coarse steps.
Every answer goes to a log on disk before it leaves, and the one before it is read from there. Its TCP is in `stack`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Protocol

import numpy as np
import xxhash

from pycolo.core.pages import PAGE_BYTES, Contents, Indices

from .frames import Segment, build, client_of, read
from .scheduler import Host, Scheduler
from .stack import Stack

PLAIN, RANDOM_BIT, RANDOM_NUMBER, TIME_OF_DAY = range(4)
REQUEST = struct.Struct(">HIB")  # client, sequence number from 1, kind
RESPONSE = struct.Struct(">HIQI")  # client, sequence number, value, frames worked on before
_REGISTERS = struct.Struct(">IIQH")  # frames taken, frames worked on, ticks, frames queued
_LENGTH = struct.Struct(">H")  # of a queued frame
_STATE = struct.Struct(">IQ")  # newest sequence number, value
_TABLE_AT, _LAST_AT = 16, PAGE_BYTES - 24
CONNECTION_AT = _LAST_AT - Stack.STATE_BYTES  # of the state of the client's connection, in its page
CLOCK_STEP_US = 7_000
TICK_US = 2_500
RESEND_TICKS = 6
WORK_US = (60, 350)
LOAD_DIRTIES_MAX = 3
_LOG_AT, _LOG_BYTES = 300, 3800  # so that logs and their entries lie across blocks
DISK_BYTES = 5 * 4096 + 900


class Disk(Protocol):
    """A guest's disk."""

    @property
    def content(self) -> bytes: ...

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...
    def write_zeros(self, offset: int, length: int) -> None: ...


def response_digest(response: bytes) -> int:
    """What the guest keeps of every response."""
    return xxhash.xxh3_64_intdigest(response)


def answered(ram: Contents, client: int, seq: int) -> int:
    """The digest that the guest with this RAM keeps of its response; 0 when it never answered."""
    return int(ram[1 + client, _TABLE_AT:CONNECTION_AT].view(np.uint64)[seq - 1]) if seq else 0


def _log_at(client: int, seq: int) -> int:
    return _LOG_AT + client * _LOG_BYTES + 8 * (seq - 1)


def logged(disk: bytes, client: int, seq: int) -> int:
    """The digest of its response that the guest with this disk has in its log; 0 when it never answered."""
    at = _log_at(client, seq)
    return int.from_bytes(disk[at : at + 8], "big") if seq else 0


class Guest:
    """One copy of the VM on one host."""

    def __init__(self, scheduler: Scheduler, host: Host, disk: Disk, page_count: int, clients: int, seed: str) -> None:
        self.disk = disk
        self._scheduler, self.host, self._clients = scheduler, host, clients
        self._entropy = random.Random(seed)
        self.ram: Contents = np.zeros((page_count, PAGE_BYTES), np.uint8)
        self._dirty = np.zeros(page_count, np.bool_)
        self._stack = Stack(self._entropy, self._write, self._now_ms)
        self.taken = 0
        self._worked = 0
        self._ticks = 0
        self._queue: list[bytes] = []
        self.outbox: list[bytes] = []
        self.on_output: Callable[[], None] = lambda: None
        self.running = False
        self.dead = False
        self._turn = 0
        self._busy = False
        scheduler.call_later(TICK_US, host, self._tick)

    # ---- what QEMU does with it

    def pause(self) -> None:
        """Stand still."""
        self.running = False
        self._turn += 1
        self._busy = False

    def resume(self) -> None:
        """Go on."""
        self.running = not self.dead
        self._kick()

    def kill(self) -> None:
        """The copy ends for good."""
        self.pause()
        self.dead = True
        self.outbox.clear()

    def take_dirty(self) -> Indices:
        """Pages written since the last call; tracking is armed again."""
        dirty = np.flatnonzero(self._dirty).astype(np.uint32)
        self._dirty[:] = False
        return dirty

    def device_state(self) -> bytes:
        """The registers and the frames taken but not worked on."""
        head = _REGISTERS.pack(self.taken, self._worked, self._ticks, len(self._queue))
        return head + b"".join(_LENGTH.pack(len(frame)) + frame for frame in self._queue)

    def load(self, state: bytes) -> None:
        """Take over registers; like QEMU's, the load itself writes into RAM."""
        self.taken, self._worked, self._ticks, queued = _REGISTERS.unpack_from(state)
        at, self._queue = _REGISTERS.size, []
        for _ in range(queued):
            (length,) = _LENGTH.unpack_from(state, at)
            at += _LENGTH.size + length
            self._queue.append(state[at - length : at])
        for _ in range(self._entropy.randint(1, LOAD_DIRTIES_MAX)):
            self._write(self._entropy.randrange(len(self.ram)), self._entropy.randrange(4000), b"\xa5loaded")

    def deliver(self, frame: bytes) -> None:
        """QEMU takes a frame."""
        if not self.dead:
            self.taken += 1
            self._queue.append(frame)
            self._kick()

    # ---- the program

    def _now_ms(self) -> int:
        """The guest's own clock, which is aligned at each load."""
        return self._scheduler.now_us // 1000

    def _write(self, page: int, at: int, data: bytes) -> None:
        self.ram[page, at : at + len(data)] = np.frombuffer(data, np.uint8)
        self._dirty[page] = True

    def _kick(self) -> None:
        if self.running and self._queue and not self._busy:
            self._busy = True
            turn = self._turn
            self._scheduler.call_later(self._entropy.randint(*WORK_US), self.host, lambda: self._work(turn))

    def _work(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._busy = False
        said = self._hear(read(self._queue.pop(0), from_guest=False))
        if said and not self.dead:  # its disk may have failed meanwhile
            self.outbox += [build(segment, from_guest=True) for segment in said]
            self.on_output()
        self._worked += 1
        self._kick()

    def _hear(self, segment: Segment) -> list[Segment]:
        client = client_of(segment.client_port)
        if segment.flags is not None:
            place, secret = (1 + client, CONNECTION_AT), self.ram[0, :8].tobytes()
            return self._stack.hear(segment, self._connection(1 + client), place, secret, self._answer)
        response = self._answer(segment.payload)
        return [Segment(segment.client_port, response)] if response else []

    def _answer(self, request: bytes) -> bytes:
        """The response, which is made once; empty for what was answered long ago."""
        client, seq, kind = REQUEST.unpack(request)
        page = 1 + client
        last, value = _STATE.unpack_from(self.ram[page].data)
        if seq == last:  # sent again by the client: the same answer once more
            return self.ram[page, _LAST_AT : _LAST_AT + RESPONSE.size].tobytes()
        if seq != last + 1:
            return b""
        before = self.disk.read(_log_at(client, last), 8) if last else b""
        value = xxhash.xxh3_64_intdigest(struct.pack(">QIQ", value, seq, self._chance(kind)) + before)
        response = RESPONSE.pack(client, seq, value, self._worked)
        self._write(page, 0, _STATE.pack(seq, value))
        self._write(page, _LAST_AT, response)
        self._write(page, _TABLE_AT + 8 * last, struct.pack("=Q", response_digest(response)))
        self.disk.write(_log_at(client, seq), response_digest(response).to_bytes(8, "big"))
        return response

    def _chance(self, kind: int) -> int:
        if kind == RANDOM_BIT:
            return self._entropy.getrandbits(1)
        if kind == RANDOM_NUMBER:
            return self._entropy.getrandbits(64)
        return self.host.wall_us(self._scheduler.now_us) // CLOCK_STEP_US if kind == TIME_OF_DAY else 0

    def _tick(self) -> None:
        """Work that no client sees; it differs between the copies, and sometimes leaves a page of zeros."""
        if self.dead:
            return
        if self.running:
            self._ticks += 1
            page = self._entropy.randrange(1 + self._clients, len(self.ram))
            wipe = self._entropy.random() < 0.3
            self._write(page, 0, bytes(PAGE_BYTES) if wipe else self._entropy.randbytes(64))
            self._scribble()
            if self._ticks % RESEND_TICKS == 0:
                self._send_again()
        self._scheduler.call_later(TICK_US, self.host, self._tick)

    def _send_again(self) -> None:
        """What clients have not acknowledged; two copies do so at different times."""
        for page in range(1, 1 + self._clients):
            response = self.ram[page, _LAST_AT : _LAST_AT + RESPONSE.size].tobytes()
            said = self._stack.again(self._connection(page), self.ram[0, :8].tobytes(), response)
            self.outbox += [build(segment, from_guest=True) for segment in said]
        if self.outbox:
            self.on_output()

    def _connection(self, page: int) -> bytes:
        return self.ram[page, CONNECTION_AT : CONNECTION_AT + Stack.STATE_BYTES].tobytes()

    def _scribble(self) -> None:
        """Writes to disk behind the logs; they differ between the copies too, and are of any size and place."""
        dice = self._entropy
        offset = dice.randrange(_log_at(self._clients, 1), DISK_BYTES)
        length = min(DISK_BYTES - offset, dice.choice((8, 512, 700, 4096, 9000)))
        chance = dice.random()
        if chance < 0.5:
            self.disk.write(offset, dice.randbytes(length))
        elif chance < 0.7:
            self.disk.write_zeros(offset, length)
