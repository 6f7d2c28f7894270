"""What is known about an image beyond its content: a small file beside it, `IMAGE.colo`.

Guarantees: an image that is only partly copied is marked so, durably, before its first byte changes, and never passes
for a whole one (rule 3). The bitmap of changed chunks survives the death of the process; where it can't be trusted (the
machine went down in between, or somebody else wrote to the image) the session is forgotten, and the next partner gets a
whole copy.

Layout: 4096 bytes of header (XXH3-64 of the rest, length, msgpack), then the bitmap of core/changed_chunks.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import struct
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from pycolo.core.changed_chunks import Bits, bitmap_bytes_of
from pycolo.edge.beside import open_beside, unusable
from pycolo.errors import EnvironmentFault

HEADER_BYTES = 4096
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HEAD = struct.Struct(">8sQI")  # magic, digest, length
_MAGIC = b"COLOIMG1"


class Kind(enum.StrEnum):
    """How an image stands to its partner's."""

    SOURCE = "source"  # a VM writes to it; the bitmap says what the partner may lack
    TARGET = "target"  # it is at a checkpoint of its session
    PARTIAL = "partial"  # it is being copied: no VM can use it


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    kind: Kind
    session: str
    size_bytes: int
    boot_id: str
    closed: bool  # in good order
    mtime_ns: int  # of the image when it was closed
    bits_digest: int  # XXH3-64 of the bitmap when it was closed
    group: list[str]  # names: of the journal that a batch may be in, and of the images that share it


class DiskMeta:
    """The file beside one image."""

    def __init__(self, path: Path, image: Path, size_bytes: int) -> None:
        """Open or make it. Raises EnvironmentFault when it is there and can't be read, or can't be made."""
        self.path, self._image = path, image
        new = _Header(Kind.SOURCE, "", size_bytes, "", False, 0, 0, [])
        self._fd = open_beside(path, _encoded(new) + bytes(bitmap_bytes_of(size_bytes)))
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._fd)
            try:
                self._header = self._read(size_bytes)
                os.ftruncate(self._fd, HEADER_BYTES + bitmap_bytes_of(size_bytes))
                self._map = mmap.mmap(self._fd, HEADER_BYTES + bitmap_bytes_of(size_bytes))
            except OSError as problem:
                raise unusable(path, problem) from problem
            undo.pop_all()
        self.bits: Bits = np.frombuffer(self._map, np.uint8)[HEADER_BYTES:]

    @property
    def kind(self) -> Kind:
        """How the image stands to its partner's."""
        return self._header.kind

    @property
    def session(self) -> str:
        """The session whose images differ from this one in no more than the marked chunks; empty: none."""
        return self._header.session

    @property
    def group(self) -> list[str]:
        """Names: of the journal that an unfinished batch may be in, then of the images that share it; empty: none."""
        return self._header.group

    @group.setter
    def group(self, group: list[str]) -> None:
        """Written by the next `change`."""
        self._header.group = group

    def forget(self) -> None:
        """The image is a new one; written by the next `change`."""
        self._header.kind, self._header.session, self._header.group = Kind.SOURCE, "", []

    def change(self, kind: Kind, session: str, *, closed: bool = False) -> None:
        """Write a new state, durably, the bitmap with it. Raises OSError."""
        header = self._header
        header.kind, header.session, header.closed, header.boot_id = kind, session, closed, _boot_id()
        header.mtime_ns = _mtime_ns(self._image)
        header.bits_digest = xxhash.xxh3_64_intdigest(self.bits.data) if closed else 0
        self._map.flush()
        os.pwrite(self._fd, _encoded(header), 0)
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of the file as it is; `change` with `closed` before it says that all is in order."""
        self.bits = np.empty(0, np.uint8)
        os.close(self._fd)
        with contextlib.suppress(BufferError):  # somebody still has a view of the bitmap; the mapping goes with it
            self._map.close()

    def _read(self, size_bytes: int) -> _Header:
        header = _decoded(os.pread(self._fd, HEADER_BYTES, 0))
        bits = os.pread(self._fd, bitmap_bytes_of(header.size_bytes), HEADER_BYTES) if header else b""
        if header is None or len(bits) != bitmap_bytes_of(header.size_bytes):
            raise EnvironmentFault(
                f"{self.path} is damaged, so nobody knows whether {self._image} is whole: "
                "delete it only if you know that the image is"
            )
        whole = not header.closed or header.bits_digest == xxhash.xxh3_64_intdigest(bits)
        if not whole or not _trusted(header, self._image, size_bytes):
            header.session = ""
        header.size_bytes = size_bytes
        return header


def _encoded(header: _Header) -> bytes:
    body = msgspec.msgpack.encode(header)
    head = _HEAD.pack(_MAGIC, xxhash.xxh3_64_intdigest(body), len(body))
    return (head + body).ljust(HEADER_BYTES, b"\0")


def _decoded(content: bytes) -> _Header | None:
    try:
        magic, digest, length = _HEAD.unpack_from(content)
        body = content[_HEAD.size : _HEAD.size + length]
        if magic != _MAGIC or len(body) != length or xxhash.xxh3_64_intdigest(body) != digest:
            return None
        return msgspec.msgpack.decode(body, type=_Header)
    except (struct.error, msgspec.DecodeError):
        return None


def _trusted(header: _Header, image: Path, size_bytes: int) -> bool:
    """Whether the session and the bitmap still say the truth about the image."""
    if header.size_bytes != size_bytes:
        return False
    if header.closed:
        return header.mtime_ns == _mtime_ns(image)
    # Of a target only what was synced counts; what a source wrote may be lost with the machine.
    return header.kind is not Kind.SOURCE or header.boot_id == _boot_id()


def _mtime_ns(image: Path) -> int:
    """When somebody wrote to the image last; 0 for a device, which can't say."""
    return image.stat().st_mtime_ns if image.is_file() else 0


def _boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()
