"""The handshake of the NBD protocol (fixed newstyle, server side): bytes in, bytes out, and at last a Session.

Guarantees: whatever bytes come and however they are cut, each option is answered, in order, or the handshake ends with
a violation; it holds at most one option of OPTION_BYTES_MAX besides what it was just fed, and answers at most
OPTIONS_MAX of them.

Source: doc/proto.md of NetworkBlockDevice/nbd, "Handshake", "Option types", "Option reply types". TLS is not offered:
the server listens on a unix socket only.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import NamedTuple

from pycolo.core.nbd import (
    ALLOCATION_CONTEXT_ID,
    PAYLOAD_BYTES_MAX,
    PREFERRED_BYTES,
    NbdViolation,
    Session,
    features,
)

OPTION_BYTES_MAX = 1 << 14
OPTIONS_MAX = 64
NAME_BYTES_MAX = 4096
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPTION_MAGIC = b"IHAVEOPT"
GREETING = b"NBDMAGIC" + OPTION_MAGIC + (FIXED_NEWSTYLE | NO_ZEROES).to_bytes(2)
REPLY_MAGIC = 0x3E889045565A9
ALLOCATION = b"base:allocation"

OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")


class Option(enum.IntEnum):
    """Option types that are answered with more than NBD_REP_ERR_UNSUP."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(enum.IntEnum):
    """Option reply types."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006


class Info(enum.IntEnum):
    """What an NBD_REP_INFO tells."""

    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class ExportInfo(NamedTuple):
    """What a client is told of an export."""

    size_bytes: int
    read_only: bool


class _Malformed(Exception):
    """The data of an option do not follow its form; answered with NBD_REP_ERR_INVALID."""


class _Fields:
    """Reads the data of an option from front to back; raises _Malformed for anything missing or too much."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size_bytes: int) -> int:
        return int.from_bytes(self.raw(size_bytes))

    def string(self) -> bytes:
        size = self.number(4)
        if size > NAME_BYTES_MAX:
            raise _Malformed
        return self.raw(size)

    def raw(self, size_bytes: int) -> bytes:
        piece = self._data[self._at : self._at + size_bytes]
        if len(piece) != size_bytes:
            raise _Malformed
        self._at += size_bytes
        return piece

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Malformed


class Handshake:
    """One connection's handshake: send GREETING, then what `feed` returns, until `session` or `ended` is set."""

    def __init__(self, exports: Mapping[str, ExportInfo]) -> None:
        self.session: Session | None = None
        self.ended = False  # the client gave up or broke the protocol; nothing follows
        self.violation = ""  # in words, if it broke the protocol
        self._exports = exports
        self._in = bytearray()
        self._out = bytearray()
        self._client_flags: int | None = None
        self._options = 0
        self._structured = False
        self._allocation_of: str | None = None  # the export for which base:allocation was chosen

    def feed(self, data: bytes) -> bytes:
        """The bytes to send for what has come."""
        self._in += data
        try:
            while not self.over and self._step():
                pass
        except NbdViolation as violation:
            self.violation, self.ended = str(violation), True
        out = bytes(self._out)
        self._out.clear()
        return out

    @property
    def over(self) -> bool:
        """Whether there is a session, or never will be."""
        return self.session is not None or self.ended

    def rest(self) -> bytes:
        """What came behind the handshake: the beginning of the transmission phase."""
        rest = bytes(self._in)
        self._in.clear()
        return rest

    def _step(self) -> bool:
        """Consume the client's flags or one option; False when it is not there as a whole."""
        if self._client_flags is None:
            return self._take_client_flags()
        if len(self._in) < OPTION.size:
            return False
        magic, option, length = OPTION.unpack_from(self._in)
        if magic != OPTION_MAGIC:
            raise NbdViolation(f"an option began with {magic!r}")
        if length > OPTION_BYTES_MAX:
            raise NbdViolation(f"an option of {length} bytes was announced; the limit is {OPTION_BYTES_MAX}")
        end = OPTION.size + length
        if len(self._in) < end:
            return False
        data = bytes(self._in[OPTION.size : end])
        del self._in[:end]
        self._options += 1
        if self._options > OPTIONS_MAX:
            raise NbdViolation(f"more than {OPTIONS_MAX} options in one handshake")
        self._answer(option, data)
        return True

    def _take_client_flags(self) -> bool:
        if len(self._in) < 4:
            return False
        flags = int.from_bytes(self._in[:4])
        if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
            raise NbdViolation(f"unknown client flags {flags:#x}")
        del self._in[:4]
        self._client_flags = flags
        return True

    def _answer(self, option: int, data: bytes) -> None:
        try:
            match option:
                case Option.EXPORT_NAME:
                    self._export_name(data)
                case Option.ABORT:
                    self._reply(option, Reply.ACK)
                    self.ended = True
                case Option.LIST:
                    self._list(data)
                case Option.INFO | Option.GO:
                    self._go(option, _Fields(data))
                case Option.STRUCTURED_REPLY:
                    self._structured_reply(data)
                case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                    self._meta_context(option, _Fields(data))
                case _:
                    self._reply(option, Reply.ERR_UNSUP)
        except _Malformed:
            self._reply(option, Reply.ERR_INVALID)

    def _reply(self, option: int, kind: Reply, data: bytes = b"") -> None:
        self._out += _REPLY.pack(REPLY_MAGIC, option, kind, len(data)) + data

    def _find(self, name: bytes) -> str | None:
        """The export of this name; the empty name is the first one."""
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        if text in self._exports:
            return text
        return next(iter(self._exports), None) if not text else None

    def _export_name(self, data: bytes) -> None:
        name = self._find(data)
        if name is None:
            raise NbdViolation("an export that does not exist was chosen by NBD_OPT_EXPORT_NAME")
        info = self._begin(name)
        self._out += struct.pack(">QH", info.size_bytes, features(info.read_only, self._structured))
        if not (self._client_flags or 0) & NO_ZEROES:
            self._out += bytes(124)

    def _list(self, data: bytes) -> None:
        if data:
            raise _Malformed
        for name in self._exports:
            encoded = name.encode()
            self._reply(Option.LIST, Reply.SERVER, len(encoded).to_bytes(4) + encoded)
        self._reply(Option.LIST, Reply.ACK)

    def _go(self, option: int, fields: _Fields) -> None:
        name = self._find(fields.string())
        asked = {fields.number(2) for _ in range(fields.number(2))}
        fields.end()
        if name is None:
            self._reply(option, Reply.ERR_UNKNOWN)
            return
        info = self._exports[name]
        offered = features(info.read_only, self._structured)
        self._reply(option, Reply.INFO, _INFO_EXPORT.pack(Info.EXPORT, info.size_bytes, offered))
        if Info.NAME in asked:
            self._reply(option, Reply.INFO, Info.NAME.to_bytes(2) + name.encode())
        sizes = _INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, PREFERRED_BYTES, PAYLOAD_BYTES_MAX)
        self._reply(option, Reply.INFO, sizes)
        self._reply(option, Reply.ACK)
        if option == Option.GO:
            self._begin(name)

    def _structured_reply(self, data: bytes) -> None:
        if data:
            raise _Malformed
        self._structured = True
        self._reply(Option.STRUCTURED_REPLY, Reply.ACK)

    def _meta_context(self, option: int, fields: _Fields) -> None:
        if option == Option.SET_META_CONTEXT:
            self._allocation_of = None  # a new choice replaces the old one, also when it fails
        name = self._find(fields.string())
        queries = [fields.string() for _ in range(fields.number(4))]
        fields.end()
        if not self._structured:
            raise _Malformed
        if name is None:
            self._reply(option, Reply.ERR_UNKNOWN)
            return
        if option == Option.SET_META_CONTEXT:
            if ALLOCATION in queries:
                self._allocation_of = name
                self._reply(option, Reply.META_CONTEXT, ALLOCATION_CONTEXT_ID.to_bytes(4) + ALLOCATION)
        elif not queries or ALLOCATION in queries or b"base:" in queries:
            self._reply(option, Reply.META_CONTEXT, bytes(4) + ALLOCATION)
        self._reply(option, Reply.ACK)

    def _begin(self, name: str) -> ExportInfo:
        info = self._exports[name]
        self.session = Session(name, info.size_bytes, info.read_only, self._structured, self._allocation_of == name)
        return info
