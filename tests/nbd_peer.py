"""The other end of an NBD connection, for tests: bytes of options and requests, replies taken apart, a memory disk."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pycolo.core.nbd import CMD_WRITE, REQUEST_MAGIC
from pycolo.edge.nbd_export import Export, Ticket
from pycolo.edge.nbd_server import NbdConnection

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
FLAGS = struct.pack(">I", 3)
EXPORT_NAME, ABORT, LIST, PEEK, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = range(1, 11)
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN = 0x80000001, 0x80000003, 0x80000006
PATIENCE_S = 10.0


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def go(name: bytes = b"", *infos: int, number: int = GO) -> bytes:
    return option(number, string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos))


def meta(number: int, name: bytes, *queries: bytes) -> bytes:
    return option(number, string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


def request(
    command: int,
    cookie: int,
    offset: int = 0,
    length: int = 0,
    data: bytes = b"",
    flags: int = 0,
    magic: int = REQUEST_MAGIC,
) -> bytes:
    size = len(data) if command == CMD_WRITE and not length else length
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, size) + data


class OptionReply(NamedTuple):
    option: int
    kind: int
    data: bytes


def option_replies(stream: bytes) -> list[OptionReply]:
    """A whole stream of them."""
    replies = []
    while stream:
        magic, number, kind, length = struct.unpack_from(">QIII", stream)
        assert magic == 0x3E889045565A9
        replies.append(OptionReply(number, kind, stream[20 : 20 + length]))
        stream = stream[20 + length :]
    return replies


class MemoryExport:
    """A disk in memory that answers at once, or when `release` is called if `slow`."""

    def __init__(self, size_bytes: int, *, read_only: bool = False, slow: bool = False) -> None:
        self.content = bytearray(size_bytes)
        self.size_bytes, self.read_only, self.slow = size_bytes, read_only, slow
        self.waiting: list[Callable[[], None]] = []
        self.calls: list[str] = []

    def _answer(self, name: str, answer: Callable[[], None]) -> None:
        self.calls.append(name)
        if self.slow:
            self.waiting.append(answer)
        else:
            answer()

    def release(self, index: int = 0) -> None:
        self.waiting.pop(index)()

    def read(self, ticket: Ticket, offset: int, length: int) -> None:
        data = bytes(self.content[offset : offset + length])
        half = memoryview(data)[length // 2 :]
        self._answer("read", lambda: ticket.data((data[: length // 2], half)))

    def write(self, ticket: Ticket, offset: int, data: memoryview, *, fua: bool) -> None:
        self.content[offset : offset + len(data)] = data
        self._answer(f"write fua={fua}", ticket.done)

    def zero(self, ticket: Ticket, offset: int, length: int, *, fua: bool, may_trim: bool) -> None:
        self.content[offset : offset + length] = bytes(length)
        self._answer(f"zero fua={fua} may_trim={may_trim}", ticket.done)

    def trim(self, ticket: Ticket, offset: int, length: int, *, fua: bool) -> None:
        self._answer(f"trim fua={fua}", ticket.done)

    def flush(self, ticket: Ticket) -> None:
        self._answer("flush", ticket.done)

    def block_status(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        return [(3, 0), (3, 0), (length, 3)]


class NbdReply(NamedTuple):
    cookie: int
    error: int
    data: bytes


class Peer:
    """A client of one NbdConnection over a socket pair, in one thread: it turns the connection while it waits."""

    def __init__(self, exports: Mapping[str, Export], *, structured: bool = False, status: bool = False) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.connection = NbdConnection(theirs, exports)
        self.structured = structured
        self.reads: dict[int, int] = {}  # length by cookie: a simple reply does not tell it
        self._in = b""
        options = option(STRUCTURED) if structured else b""
        options += meta(SET_META, b"", b"base:allocation") if status else b""
        self.take(18)
        self.send(FLAGS + options + option(EXPORT_NAME))
        self.take((20 if structured else 0) + (59 if status else 0) + 10)

    def turn(self) -> None:
        """What an event loop would do with the connection now."""
        connection = self.connection
        if connection.wants_write:
            connection.on_writable()
        if connection.wants_read and select.select([connection], [], [], 0)[0]:
            connection.on_readable()

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        for _ in range(100_000):
            if not view or self.connection.closed:
                return
            with contextlib.suppress(BlockingIOError, ConnectionError):
                view = view[self.socket.send(view) :]
            self.turn()
        raise AssertionError("the connection does not take what is sent")

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes of what the server sends."""
        for _ in range(100_000):
            if len(self._in) >= count:
                break
            self.turn()
            try:
                data = self.socket.recv(1 << 20)
                assert data, f"the connection closed: {self.connection.why}"
                self._in += data
            except BlockingIOError:
                pass
        assert len(self._in) >= count, f"only {len(self._in)} of {count} bytes came"
        taken, self._in = self._in[:count], self._in[count:]
        return taken

    def settle(self) -> None:
        """Until the connection has nothing to do; what it sends stays unread."""
        for _ in range(1000):
            self.turn()

    def ask(
        self, command: int, cookie: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> None:
        if command == READ:
            self.reads[cookie] = length
        self.send(request(command, cookie, offset, length, data, flags))

    def reply(self) -> NbdReply:
        """The next reply."""
        magic = self.take(4)
        if magic == b"\x67\x44\x66\x98":
            error, cookie = struct.unpack(">IQ", self.take(12))
            wanted = self.reads.pop(cookie, 0)
            return NbdReply(cookie, error, self.take(wanted) if not error and not self.structured else b"")
        assert magic == b"\x66\x8e\x33\xef"
        flags, kind, cookie, length = struct.unpack(">HHQI", self.take(16))
        assert flags == 1
        body = self.take(length)
        if kind == 0x8001:
            error, text = struct.unpack(">IH", body)
            assert text == 0
            return NbdReply(cookie, error, b"")
        return NbdReply(cookie, 0, body[8:] if kind == 1 else body)

    def call(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> NbdReply:
        """One request and its reply."""
        self.ask(command, 77, offset, length, data, flags)
        reply = self.reply()
        assert reply.cookie == 77
        return reply

    def close(self) -> None:
        self.connection.close()
        self.socket.close()
