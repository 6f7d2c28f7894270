"""A TCP connection to a process of the peer, made while other things go on."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable

from pycolo.errors import PeerLost


def dial(host: str, port: int, where: str, wait: Callable[[Callable[[], bool]], bool]) -> socket.socket:
    """Connect; `wait(condition)` passes the time and returns False when it takes too long.

    `where` names the peer in failures. Raises PeerLost.
    """
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    connection.setblocking(False)
    try:
        if connection.connect_ex((host, port)) not in (0, errno.EINPROGRESS):
            raise PeerLost(f"{where} can't be reached")
        if not wait(lambda: bool(select.select([], [connection], [], 0)[1])):
            raise PeerLost(f"{where} does not answer in time")
        failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise PeerLost(f"{where} can't be reached: {os.strerror(failure)}")
    except (PeerLost, OSError) as problem:
        connection.close()
        raise PeerLost(str(problem)) from None
    return connection
