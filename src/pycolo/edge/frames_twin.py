"""Frames between sockets or taps and packed batches (`core/packed`) in Python: what `_frames` does, compiled.

Descriptors are non-blocking.

Guarantees: a call takes in at most CALL_FRAMES_MAX frames, so that memory is bounded; what was read before an error is
returned, as the error comes again.
"""

from __future__ import annotations

from os import read, write

from pycolo.core.packed import FRAME_BYTES_MAX, PREFIX_BYTES, Packed, measure, pack
from pycolo.edge.boottime import boottime_s

CALL_FRAMES_MAX = 64

__all__ = ["CALL_FRAMES_MAX", "read_frames", "receive_datagrams", "send_datagrams", "write_frames"]


def receive_datagrams(fd: int, frames_max: int) -> tuple[bytes, int]:
    """(The datagrams that wait in a socket, packed, how many): at most `frames_max`; none of a peer that is gone.

    An empty one is a frame as well. One longer than FRAME_BYTES_MAX is cut. Raises OSError.
    """
    try:
        return read_frames(fd, frames_max)
    except ConnectionError:
        return b"", 0


def send_datagrams(fd: int, packed: Packed, at: int) -> tuple[int, int]:
    """Send frames from place `at` on: (the place reached, how many were sent).

    The place is before the end where the peer takes no more, or is gone; what is no whole frame is passed over. Raises
    OSError.
    """
    count = 0
    try:
        while at < len(packed):
            behind, whole = measure(packed, at, 1)
            if not whole:
                return len(packed), count
            write(fd, packed[at + PREFIX_BYTES : behind])
            at, count = behind, count + 1
    except (BlockingIOError, ConnectionError):
        pass
    return at, count


def read_frames(fd: int, frames_max: int) -> tuple[bytes, int]:
    """(The frames that wait in a tap, packed, how many): at most `frames_max`. Raises OSError."""
    frames: list[bytes] = []
    try:
        while len(frames) < min(frames_max, CALL_FRAMES_MAX):
            frames.append(read(fd, FRAME_BYTES_MAX))
    except BlockingIOError:
        pass
    except OSError:
        if not frames:
            raise
    return pack(frames), len(frames)


def write_frames(fd: int, packed: Packed, deadline_s: float) -> tuple[int, int]:
    """Write frames into a tap: (the place reached, how many the kernel would not take).

    The place is before the end when a frame's turn came after `deadline_s` (of `boottime_s`), which is asked right
    before each frame; what is no whole frame is passed over.
    """
    at = refused = 0
    while at < len(packed):
        behind, whole = measure(packed, at, 1)
        if not whole:
            return len(packed), refused
        if boottime_s() > deadline_s:
            break
        try:
            write(fd, packed[at + PREFIX_BYTES : behind])
        except OSError:  # queue full, or a frame no Ethernet takes (too short): the network may lose any frame
            refused += 1
        at = behind
    return at, refused
