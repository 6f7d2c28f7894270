"""The two memfds through which device state leaves and enters QEMU: no name in any file system, nothing stays
behind.
"""

import mmap
import os

from pycolo.core.mailbox import MAILBOX_DATA_OFFSET, build_mailbox
from pycolo.core.memory_cache import DEVICE_STATE_BYTES_MAX

MAILBOX_BYTES = DEVICE_STATE_BYTES_MAX + (64 << 10)  # room for what is written behind the state
_AFTER_THE_END = bytes(8)


class DeviceStateFile:
    """Where QEMU writes the state it saves; it opens `fd` anew by its /proc path and truncates it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("colo-device-state", os.MFD_CLOEXEC)

    def content(self) -> bytes:
        """What was saved last. ValueError when it is larger than the mailbox of the other host."""
        size_bytes = os.fstat(self.fd).st_size
        if size_bytes > DEVICE_STATE_BYTES_MAX:
            raise ValueError(f"the device state has {size_bytes} bytes, more than {DEVICE_STATE_BYTES_MAX}")
        return os.pread(self.fd, size_bytes, 0)

    def close(self) -> None:
        """May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Mailbox:
    """Where QEMU reads the state it loads; QEMU keeps only the image's metadata, so the data may be written
    behind its back.
    """

    def __init__(self) -> None:
        image = build_mailbox(MAILBOX_BYTES)
        self.fd = os.memfd_create("colo-mailbox", os.MFD_CLOEXEC)
        # Of the image only what is before the data takes memory.
        os.ftruncate(self.fd, len(image))
        os.pwrite(self.fd, image[:MAILBOX_DATA_OFFSET], 0)
        self._mapping = mmap.mmap(self.fd, len(image))

    def put(self, state: bytes) -> None:
        """The state that the next `snapshot-load` loads. ValueError when it is too large."""
        if len(state) > DEVICE_STATE_BYTES_MAX:
            raise ValueError(f"the device state has {len(state)} bytes, more than {DEVICE_STATE_BYTES_MAX}")
        end = MAILBOX_DATA_OFFSET + len(state)
        self._mapping[MAILBOX_DATA_OFFSET:end] = state
        self._mapping[end : end + len(_AFTER_THE_END)] = _AFTER_THE_END

    def close(self) -> None:
        """May be called twice."""
        if self.fd >= 0:
            self._mapping.close()
            os.close(self.fd)
        self.fd = -1
