"""What every TCP connection between two hosts is set to, whichever process holds it."""

from __future__ import annotations

import socket

UNACKNOWLEDGED_S_MAX = 3.0  # a single connection that is black-holed ends, although heartbeats go on in another


def prepare_peer_socket(connection: socket.socket) -> None:
    """Send at once, and give up what the peer's kernel does not acknowledge."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit_unacknowledged(connection, UNACKNOWLEDGED_S_MAX)


def limit_unacknowledged(connection: socket.socket, seconds: float) -> None:
    """TCP_USER_TIMEOUT (RFC 5482): how long the peer's kernel may leave what was sent without an acknowledgement."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
