"""The links between etcd's members, which a test can cut: each member reaches the others by a proxy of its own.

etcd takes HTTPS_PROXY for the way to its peers (Go's `http.ProxyFromEnvironment`), unless their host is a loopback
address; so peers are called `m0.test`, and the proxies know that all of them live on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import Any

HOST_SUFFIX = ".test"
CHUNK_BYTES = 1 << 16
IDLE_S_MAX = 300.0


class PeerLinks:
    """One proxy for each member."""

    def __init__(self, names: list[str]) -> None:
        self.cut_off: set[str] = set()
        self._lock = threading.Lock()
        self._open: list[tuple[set[str], socket.socket]] = []
        self._proxies = {name: _Proxy(name, self) for name in names}
        for proxy in self._proxies.values():
            threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()

    def environment(self, name: str) -> dict[str, str]:
        """What makes a member use its proxy."""
        return {"HTTPS_PROXY": f"http://127.0.0.1:{self._proxies[name].server_address[1]}"}

    def cut(self, name: str) -> None:
        """Nobody hears this member any more, and it hears nobody; its clients still reach it."""
        with self._lock:
            self.cut_off.add(name)
            for ends, connection in self._open:
                if name in ends:
                    _shut(connection)

    def mend(self) -> None:
        with self._lock:
            self.cut_off.clear()

    def close(self) -> None:
        with self._lock:
            for _, connection in self._open:
                _shut(connection)
        for proxy in self._proxies.values():
            proxy.shutdown()
            proxy.server_close()

    def join(self, one: str, other: str, *connections: socket.socket) -> bool:
        """Whether the link between two members is there; `cut` will close the connections."""
        with self._lock:
            if {one, other} & self.cut_off:
                return False
            self._open.extend(({one, other}, connection) for connection in connections)
            return True

    def forget(self, *connections: socket.socket) -> None:
        with self._lock:
            self._open = [entry for entry in self._open if entry[1] not in connections]


class _Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, name: str, links: PeerLinks) -> None:
        self.name, self.links = name, links
        super().__init__(("127.0.0.1", 0), _Tunnel)


class _Tunnel(socketserver.StreamRequestHandler):
    rbufsize = 0  # what follows the header is not ours to read

    def handle(self) -> None:
        proxy: Any = self.server
        header = b""
        while not header.endswith(b"\r\n\r\n"):
            if not (byte := self.connection.recv(1)):
                return
            header += byte
        host, port = header.split()[1].decode().rsplit(":", 1)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))) as peer:
            if not proxy.links.join(proxy.name, host.removesuffix(HOST_SUFFIX), self.connection, peer):
                return
            try:
                self.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pump, args=(peer, self.connection), daemon=True)
                back.start()
                _pump(self.connection, peer)
                back.join(IDLE_S_MAX)
            finally:
                proxy.links.forget(self.connection, peer)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(CHUNK_BYTES):
            target.sendall(content)
    _shut(source)
    _shut(target)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
