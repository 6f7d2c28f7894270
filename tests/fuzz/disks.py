"""Targets for disks: what NBD clients send, and the files beside an image."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path
from socket import socket, socketpair
from tempfile import TemporaryDirectory
from unittest import mock

import xxhash

from nbd_peer import EXPORT_NAME, FLAGS, SET_META, STRUCTURED, MemoryExport, meta, option, option_replies
from pycolo.core import disk_journal
from pycolo.core.nbd import BUFFER_BYTES, NbdViolation, RequestBuffer
from pycolo.core.nbd_handshake import OPTIONS_MAX, ExportInfo, Handshake
from pycolo.edge.disk_meta import HEADER_BYTES, DiskMeta
from pycolo.edge.nbd_server import NbdConnection
from pycolo.errors import EnvironmentFault

from .reader import Reader

SIZE_BYTES = 1 << 16
_EXPORTS = {"root": ExportInfo(SIZE_BYTES, read_only=False), "data": ExportInfo(512, read_only=True)}
_TURNS_MAX = 10_000


@cache
def folder() -> Path:
    """For files that need a name; removed at the end."""
    made = TemporaryDirectory(prefix="fuzz-")
    _kept.append(made)
    return Path(made.name)


_kept: list[TemporaryDirectory[str]] = []


def nbd_handshake(data: bytes) -> None:
    """The same answers in one piece and in many, bounded, and each to an option of the client."""
    reader = Reader(data)
    size = reader.number() + 1
    stream = reader.rest()
    whole, cuts = Handshake(_EXPORTS), Handshake(_EXPORTS)
    out = whole.feed(stream)
    cut_out, at = b"", 0
    while at < len(stream) and not cuts.over:
        cut_out += cuts.feed(stream[at : at + size])
        at += size
    assert out == cut_out
    assert (whole.session, whole.ended, whole.violation) == (cuts.session, cuts.ended, cuts.violation)
    assert whole.rest() == cuts.rest() + stream[at:]
    assert len(out) <= OPTIONS_MAX * 4096
    by_name = whole.session is not None and b"IHAVEOPT\0\0\0\1" in stream
    if not by_name:
        option_replies(out)


def nbd_requests(data: bytes) -> None:
    """The same requests however the bytes come, within the memory that is promised."""
    reader = Reader(data)
    size = reader.number(2) % 5000 + 1
    stream = reader.rest()
    outcomes = [_requests(stream, size), _requests(stream, BUFFER_BYTES)]
    assert outcomes[0] == outcomes[1]


def _requests(stream: bytes, size: int) -> tuple[list[tuple[object, ...]], str]:
    buffer, came, at = RequestBuffer(), list[tuple[object, ...]](), 0
    try:
        while True:
            request = buffer.take()
            if request is not None:
                came.append((*request[:-1], bytes(request.payload)))
                continue
            space = buffer.space()
            assert 0 < len(space) <= max(BUFFER_BYTES, 33 << 20)
            count = min(size, len(space), len(stream) - at)
            if not count:
                return came, ""
            space[:count] = stream[at : at + count]
            buffer.filled(count)
            at += count
    except NbdViolation as violation:
        return came, str(violation)


def nbd_connection(data: bytes) -> None:
    """A client of a disk in memory: it is served or dropped, and the disk is the size it was."""
    reader = Reader(data)
    structured, status, shake = reader.flag(), reader.flag(), reader.flag()
    disk = MemoryExport(SIZE_BYTES, slow=reader.flag())
    ours, theirs = socketpair()
    with ours:
        ours.setblocking(False)
        connection = NbdConnection(theirs, {"": disk})
        begin = option(STRUCTURED) if structured else b""
        begin += meta(SET_META, b"", b"base:allocation") if status else b""
        said = b"" if shake else FLAGS + begin + option(EXPORT_NAME)
        for piece in [said, *reader.pieces()]:
            _converse(connection, ours, piece)
            while disk.waiting:
                disk.release()
        assert len(disk.content) == SIZE_BYTES
        assert connection.closed == bool(connection.why)
        connection.close()
        assert connection._transmission is None  # else as many as a client likes keep their 32 MiB for a while


def _converse(connection: NbdConnection, client: socket, said: bytes) -> None:
    """The client says something and hears what comes back."""
    view = memoryview(said)
    for _ in range(_TURNS_MAX):
        sent = 0
        with suppress(BlockingIOError, ConnectionError):
            sent = client.send(view) if view else 0
        view = view[sent:]
        if connection.wants_write:
            connection.on_writable()
        if connection.wants_read:
            connection.on_readable()
        heard = b""
        with suppress(BlockingIOError, ConnectionError):
            heard = client.recv(1 << 20)
        if connection.closed or not (view or heard or sent):
            return
    raise AssertionError("the connection comes to no end")


@mock.patch.object(os, "fdatasync", mock.Mock())
def disk_meta(data: bytes) -> None:
    """The file beside an image: damage is an EnvironmentFault, whatever stands in it; `forged` has a right digest."""
    reader = Reader(data)
    forged, size_bytes = reader.flag(), reader.choice([0, 1, 4096, 1 << 20, 5 << 30])
    bits, content = reader.piece(), reader.rest()
    if forged:
        body = content[: HEADER_BYTES - 64]
        head = struct.pack(">8sQI", b"COLOIMG1", xxhash.xxh3_64_intdigest(body), len(body))
        content = (head + body).ljust(HEADER_BYTES, b"\0") + bits
    path, image = folder() / "image.colo", folder() / "image"
    path.write_bytes(content)
    image.touch()
    try:
        meta_file = DiskMeta(path, image, size_bytes)
    except EnvironmentFault:
        return
    try:
        assert len(meta_file.bits) * 8 * (1 << 20) >= size_bytes or size_bytes >= 1 << 30
        meta_file.change(meta_file.kind, meta_file.session, closed=True)
    finally:
        meta_file.close()
    again = DiskMeta(path, image, size_bytes)
    assert (again.kind, again.session) == (meta_file.kind, meta_file.session)
    again.close()


class _Memory:
    """A file in memory, for `disk_journal`; `size_bytes` None: it grows."""

    def __init__(self, content: bytes, size_bytes: int | None = None) -> None:
        self.content, self._size_bytes = bytearray(content), size_bytes

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        if self._size_bytes is not None and end > self._size_bytes:
            raise OSError("beyond the disk")
        self.content.extend(bytes(max(0, end - len(self.content))))
        self.content[offset:end] = data

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        del may_trim
        self.write(offset, bytes(length))

    def sync(self) -> None:
        pass


def journal(data: bytes) -> None:
    """A journal that is damaged somewhere changes nothing, or finishes its batch: the image is never between."""
    reader = Reader(data)
    records: list[disk_journal.Record] = []
    for _ in range(reader.number() % 6):
        offset, zeros, content = reader.number(2) % 4096, reader.flag(), reader.piece()[:4096]
        records.append((offset, len(content), None if zeros else [content]))
    written, before = _Memory(b""), bytes(range(256)) * 32
    disk_journal._write_journal(written, records)
    done = _Memory(before, len(before))
    disk_journal._write_image(done, records)
    for _ in range(reader.number() % 4):
        place = reader.number(2) % max(len(written.content), 1)
        written.content[place] ^= reader.number()
    if reader.flag():
        del written.content[reader.number(2) :]
    image = _Memory(before, len(before))
    finished = disk_journal.replay(written, image)
    assert image.content == (done.content if finished else before)
    assert not disk_journal.replay(written, image)
    raw = _Memory(reader.rest())
    assert not disk_journal.replay(raw, image) or raw.content
