"""Frames between packet sockets or taps and packed batches (`core/packed`) in Python: what `_frames` does, compiled.

Descriptors are non-blocking, and what passes them has a header in front of each frame (`offload`). In a packet socket
(PACKET_VNET_HDR, packet(7)) the kernel keeps a frame's outermost VLAN tag apart, and says it beside the frame.

Guarantees: a call takes in at most CALL_FRAMES_MAX frames, so that memory is bounded; what was read before an error is
returned, as the error comes again; what is longer than COMES_BYTES_MAX is cut, what has no whole header empty.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from pycolo.core.packed import FRAME_BYTES_MAX, PREFIX_BYTES, Packed, measure, pack
from pycolo.edge.boottime import boottime_s
from pycolo.edge.offload import NOTE_BYTES, TAG_BYTES, VNET_HEADER, described, settled

CALL_FRAMES_MAX = 64
COMES_BYTES_MAX = FRAME_BYTES_MAX - TAG_BYTES - NOTE_BYTES
SOL_PACKET, PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")  # linux/if_packet.h, struct tpacket_auxdata
_TAGGED, _TAG_KIND = 1 << 4, 1 << 6
_CONTROL_BYTES = 64

__all__ = ["CALL_FRAMES_MAX", "read_frames", "receive_frames", "send_frames", "write_frames"]


def receive_frames(fd: int, frames_max: int) -> tuple[bytes, int]:
    """(The frames that wait in a packet socket, packed, how many): at most `frames_max`; none of a peer that is gone.

    A frame whose header the kernel can't put (segments of what a note can't say, asked for by a guest that was not
    offered them) is lost, and an empty one comes instead: none at all would mean that nothing waits. Raises OSError.
    """
    frames: list[bytes] = []
    with socket.socket(fileno=os.dup(fd)) as end:
        try:
            while len(frames) < min(frames_max, CALL_FRAMES_MAX):
                content, control, _, _ = end.recvmsg(
                    VNET_HEADER.size + COMES_BYTES_MAX, _CONTROL_BYTES, socket.MSG_DONTWAIT
                )
                frames.append(_inside(*_with_tag(content, control)))
        except (BlockingIOError, ConnectionError):
            pass
        except OSError as error:
            if error.errno == errno.EINVAL:
                frames.append(b"")
            elif not frames:
                raise
    return pack(frames), len(frames)


def _with_tag(content: bytes, control: list[tuple[int, int, bytes]]) -> tuple[bytes, bytes]:
    """The header and the frame, with the VLAN tag that the kernel has taken out."""
    header, frame = content[: VNET_HEADER.size], content[VNET_HEADER.size :]
    for level, kind, said in control:
        if (level, kind) != (SOL_PACKET, PACKET_AUXDATA):
            continue
        status, *_, tag, tag_kind = _AUXDATA.unpack(said)
        if not status & _TAGGED or len(frame) < 12:
            break
        flags, segments, head, size, start, offset = VNET_HEADER.unpack(header)
        header = VNET_HEADER.pack(flags, segments, head, size, start + TAG_BYTES & 0xFFFF, offset)
        kind_bytes = (tag_kind if status & _TAG_KIND else 0x8100).to_bytes(2)
        return header, frame[:12] + kind_bytes + tag.to_bytes(2) + frame[12:]
    return header, frame


def _inside(header: bytes, frame: bytes) -> bytes:
    return settled(header, frame) if len(header) == VNET_HEADER.size else b""


def send_frames(fd: int, packed: Packed, at: int) -> tuple[int, int]:
    """Send frames from place `at` on through a packet socket: (the place reached, how many were sent).

    The place is before the end where the other side takes no more, or is gone; what is no whole frame, or none that an
    Ethernet or a full device takes, is passed over. Raises OSError.
    """
    count, again = 0, False
    while at < len(packed):
        behind, whole = measure(packed, at, 1)
        if not whole:
            return len(packed), count
        try:
            os.writev(fd, described(bytes(packed[at + PREFIX_BYTES : behind])))
            count += 1
        except (BlockingIOError, ConnectionError):
            break
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EMSGSIZE, errno.ENOBUFS):
                raise
            again = not again
            if again:  # the error may be that of a frame that came before
                continue
        at, again = behind, False
    return at, count


def read_frames(fd: int, frames_max: int) -> tuple[bytes, int]:
    """(The frames that wait in a tap, packed, how many): at most `frames_max`. Raises OSError."""
    frames: list[bytes] = []
    try:
        while len(frames) < min(frames_max, CALL_FRAMES_MAX):
            content = os.read(fd, VNET_HEADER.size + COMES_BYTES_MAX)
            frames.append(_inside(content[: VNET_HEADER.size], content[VNET_HEADER.size :]))
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
            os.writev(fd, described(bytes(packed[at + PREFIX_BYTES : behind])))
        except OSError:  # queue full, or a frame no Ethernet takes (too short): the network may lose any frame
            refused += 1
        at = behind
    return at, refused
