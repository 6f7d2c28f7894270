"""A host's way to the others, made slow: this kernel has no netem, so frames go through us, each late by a fixed time.

clients' namespace:  peerN --- us --- late1 | late0 --- bridge peers
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from fault_matrix import ETH_P_ALL, LISTEN_BYTES, SO_RCVBUFFORCE
from pair import socket_in
from pycolo.demo.lab import Lab

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
FRAME_BYTES_MAX = 1 << 17  # the kernel hands over what it has not cut into segments yet, and takes it back so
FRAMES_AT_ONCE_MAX = 256


class SlowLink:
    """While it is there, what goes between the host with that number and the others is late by `delay_ms` each way."""

    def __init__(self, lab: Lab, number: int, delay_ms: float) -> None:
        self._space, self._port = lab.clients, f"peer{number}"
        self._delay_s = delay_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._space.ip("link", "add", "late0", "type", "veth", "peer", "name", "late1")
        self._space.ip("link", "set", "late0", "master", "peers", "up")
        self._space.ip("link", "set", "late1", "up")
        self._space.ip("link", "set", self._port, "nomaster")
        self._ends = [self._listen(name) for name in (self._port, "late1")]
        for source, sink in (self._ends, reversed(self._ends)):
            self._loop.add_reader(source, self._pass, source, sink)

    def _listen(self, name: str) -> socket.socket:
        end = socket_in(self._space, socket.AF_PACKET, socket.SOCK_RAW)
        end.setblocking(False)
        end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        for option in (SO_RCVBUFFORCE, SO_RCVBUFFORCE - 1):  # SO_SNDBUFFORCE
            end.setsockopt(socket.SOL_SOCKET, option, LISTEN_BYTES)
        end.bind((name, ETH_P_ALL))
        return end

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(FRAMES_AT_ONCE_MAX):
                self._loop.call_later(self._delay_s, self._deliver, sink, source.recv(FRAME_BYTES_MAX))

    def _deliver(self, sink: socket.socket, frame: bytes) -> None:
        if self._open:
            with contextlib.suppress(OSError):  # lost, as on any link
                sink.send(frame)

    async def close(self) -> None:
        """The link is as it was; what is under way is lost."""
        self._open = False
        for end in self._ends:
            self._loop.remove_reader(end)
            end.close()
        self._space.ip("link", "set", self._port, "master", "peers")
        self._space.ip("link", "del", "late0")
