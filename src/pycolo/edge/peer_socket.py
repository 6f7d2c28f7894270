"""What every TCP connection between two hosts is set to, whichever process holds it."""

from __future__ import annotations

import socket

UNACKNOWLEDGED_MS_MAX = 3000  # a single connection that is black-holed ends, although heartbeats go on in another


def prepare_peer_socket(connection: socket.socket) -> None:
    """Send at once, and give up what the peer's kernel does not acknowledge (TCP_USER_TIMEOUT, RFC 5482)."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX)
