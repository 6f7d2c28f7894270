"""A connection to a process of the peer, made while other things go on."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable

from pycolo.edge.transport import Transport, Wrap
from pycolo.errors import PeerLost


def dial(host: str, port: int, where: str, wait: Callable[[Callable[[], bool]], bool], wrap: Wrap) -> Transport:
    """Connect, and shake hands; `wait(condition)` passes the time and returns False when it takes too long.

    `where` names the peer in failures. Raises PeerLost, PeerUntrusted when it is not the host that `wrap` expects.
    """
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    connection.setblocking(False)
    try:
        if connection.connect_ex((host, port)) not in (0, errno.EINPROGRESS):
            raise PeerLost(f"{where} can't be reached")
        transport = wrap(connection)
        if not wait(lambda: _connected(connection, where) and transport.shake()):
            raise PeerLost(f"{where} does not answer in time")
    except PeerLost:
        connection.close()
        raise
    except OSError as problem:
        connection.close()
        raise PeerLost(f"{where} can't be reached: {problem.strerror}") from None
    return transport


def _connected(connection: socket.socket, where: str) -> bool:
    if not select.select([], [connection], [], 0)[1]:
        return False
    failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise PeerLost(f"{where} can't be reached: {os.strerror(failure)}")
    return True
