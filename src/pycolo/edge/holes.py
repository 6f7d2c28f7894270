"""Where data and holes of a file or a block device begin."""

from __future__ import annotations

import errno
import os

UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EPERM)
"""What a file system or a device says that lacks a call."""


def seek_extent(fd: int, offset: int, whence: int, end: int) -> int:
    """Where the next data or hole (`whence`: SEEK_DATA, SEEK_HOLE) begins; `end` where there is none.

    All is data where the system can't tell. Raises OSError.
    """
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        if error.errno in UNSUPPORTED:
            return offset if whence == os.SEEK_DATA else end
        raise
