"""A raw disk image: a file or a block device, opened by nobody else who asks the same way (flock).

Guarantees: reads and writes are whole or raise OSError; a range that was zeroed reads as zeros; a qcow2 image is not
taken for a raw one by mistake. Offsets and lengths are in bytes, within the size, and need no alignment.
Every method but `read_now` may be called from any thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path

from pycolo.edge.holes import UNSUPPORTED, seek_extent
from pycolo.edge.nbd_export import HOLE, ZERO
from pycolo.edge.whole_io import read_whole, write_whole
from pycolo.errors import EnvironmentFault

QCOW2_MAGIC = b"QFI\xfb"
EXTENTS_MAX = 1024
ZEROS = bytes(1 << 20)
READ_NOW_BYTES_MAX = 1 << 20  # longer reads would hold up the loop for too long, cached or not

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # linux/falloc.h

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class DiskImage:
    """One open image. I/O raises plain OSError."""

    def __init__(self, path: Path, *, read_only: bool = False, image_format: str | None = None) -> None:
        """`image_format="raw"` takes the bytes as they are, whatever they look like. Raises EnvironmentFault."""
        self.path, self.read_only = path, read_only
        self._fd = _open(path, read_only)
        try:
            _lock(self._fd, path)
            self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            _check_content(self._fd, path, self.size_bytes, image_format)
        except BaseException:
            os.close(self._fd)
            raise
        self._can_read_now = True  # until the file system says that it doesn't know (tmpfs)
        self._scratch = memoryview(bytearray(READ_NOW_BYTES_MAX))

    def read_now(self, offset: int, length: int) -> bytes | None:
        """What is in memory already, or None when it must be waited for. Only from one thread."""
        if length > READ_NOW_BYTES_MAX or not self._can_read_now:
            return None
        piece = self._scratch[:length]
        try:
            count = os.preadv(self._fd, (piece,), offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return None
            if error.errno not in UNSUPPORTED:
                raise
            self._can_read_now = False
            return None
        return piece.tobytes() if count == length else None

    def read(self, offset: int, length: int) -> bytes:
        """Waits for the disk."""
        data = read_whole(self._fd, offset, length)
        if len(data) < length:
            raise OSError(errno.EIO, "the image has become shorter")
        return data

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Into the page cache; `sync` makes it last."""
        write_whole(self._fd, offset, data)

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Zeros, by the file system or the device where it can; `may_trim` gives the space back."""
        try:
            self._allocate(_PUNCH_HOLE if may_trim else _ZERO_RANGE, offset, length)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._write_zeros(offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Give the space back where that is possible; what is read there afterwards is zeros or the old data."""
        try:
            self._allocate(_PUNCH_HOLE, offset, length)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise

    def sync(self) -> None:
        """Every write that has returned survives a loss of power."""
        os.fdatasync(self._fd)

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, HOLE|ZERO or 0) from `offset` on: all of the range, or its first EXTENTS_MAX extents."""
        extents: list[tuple[int, int]] = []
        at, end = offset, offset + length
        while at < end and len(extents) < EXTENTS_MAX:
            data = min(seek_extent(self._fd, at, os.SEEK_DATA, end), end)
            if data > at:
                extents.append((data - at, HOLE | ZERO))
            hole = min(seek_extent(self._fd, data, os.SEEK_HOLE, end), end) if data < end else end
            if hole > data:
                extents.append((hole - data, 0))
            at = hole
        return extents

    def hole_at(self, offset: int, length: int) -> int:
        """How many bytes from `offset` on are a hole, at most `length`; 0 when there is data."""
        return min(seek_extent(self._fd, offset, os.SEEK_DATA, offset + length) - offset, length)

    def close(self) -> None:
        """Close it and let others open it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _allocate(self, mode: int, offset: int, length: int) -> None:
        """On block devices the kernel turns this into write-zeroes or discard; it wants whole sectors there."""
        while _fallocate(self._fd, mode | _KEEP_SIZE, offset, length):
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(ZEROS)
        for start in range(0, length, len(zeros)):
            self.write(offset + start, zeros[: length - start])


def _open(path: Path, read_only: bool) -> int:
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            what = "a directory" if stat.S_ISDIR(kind) else "neither a file nor a block device"
            raise EnvironmentFault(f"{path} is {what}: name a raw image file or a block device")
        # On a block device O_EXCL refuses what is mounted or belongs to a RAID or to LVM.
        exclusive = os.O_EXCL if stat.S_ISBLK(kind) and not read_only else 0
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | exclusive)
    except FileNotFoundError:
        raise EnvironmentFault(
            f"the disk image {path} does not exist: make an empty one with `truncate -s 10G {path}`"
        ) from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise EnvironmentFault(f"{path} is in use by this machine: unmount it first") from None
        remedy = "check who may read it" if read_only else "check who may write it, or serve it with --read-only"
        raise EnvironmentFault(f"{path} can't be opened ({error.strerror}): {remedy}") from None


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EnvironmentFault(f"the disk image {path} is in use by another process: stop that one first") from None
    except OSError as error:
        raise EnvironmentFault(
            f"the disk image {path} can't be locked ({error.strerror}): put it on a file system with flock"
        ) from None


def _check_content(fd: int, path: Path, size_bytes: int, image_format: str | None) -> None:
    if not size_bytes:
        raise EnvironmentFault(f"the disk image {path} is empty: give it a size with `truncate -s 10G {path}`")
    if image_format not in (None, "raw"):
        raise EnvironmentFault(f"only raw images are served, not {image_format}: convert it with `colo disk import`")
    if image_format is None and os.pread(fd, len(QCOW2_MAGIC), 0) == QCOW2_MAGIC:
        raise EnvironmentFault(
            f"{path} is a qcow2 image, and only raw ones are served: convert it with `colo disk import {path} NEW`"
        )
