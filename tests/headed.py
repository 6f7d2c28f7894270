"""A socket in the place of a tap: in front of each frame is the header that a tap has there (`edge/offload`)."""

from __future__ import annotations

import socket

from pycolo.edge.offload import NO_HEADER

FRAME_BYTES_MAX = 70_000
BUFFER_BYTES = 4 << 20


class Headed:
    """The far end of one, at which frames come and go without their headers; what goes says nothing in it."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, frame: bytes) -> None:
        self.end.send(NO_HEADER + frame)

    def recv(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
        return self.end.recv(len(NO_HEADER) + frame_bytes_max)[len(NO_HEADER) :]

    def fileno(self) -> int:
        return self.end.fileno()

    def setblocking(self, flag: bool) -> None:
        self.end.setblocking(flag)

    def close(self) -> None:
        self.end.close()


def headed_pair(kind: int = socket.SOCK_DGRAM) -> tuple[socket.socket, Headed]:
    """(Our end, which does not block, the far end). A datagram, or a packet, is a frame."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    ours.setblocking(False)
    return ours, Headed(theirs)
