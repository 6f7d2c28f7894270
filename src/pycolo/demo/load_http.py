"""HTTP downloads, compared byte by byte with what the server must hold.

A keep-alive client uses one connection from the first request to the end and never reopens it; the other kind
opens a connection for each request. A wrong answer is read to its end too: the next starts at the right byte.
"""

import http.client
import socket
from collections.abc import Mapping

from pycolo.demo.load_echo import TIMEOUT_S, check_idle, keeps_connection
from pycolo.demo.load_ledger import Ledger, Request, UnansweredError, WrongBytesError

DOWNLOAD_BYTES_MIN = 64 * 1024
BIG2_EVERY, BIG_EVERY = 20, 50
_CHUNK_BYTES = 64 * 1024


class HttpClient:
    """Downloads the files of `contents` (name without slash -> bytes), mostly small ones."""

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        address: tuple[str, int],
        contents: Mapping[str, bytes],
        *,
        keep_alive: bool,
    ) -> None:
        self.name = name
        self._ledger = ledger
        self._address = address
        self._contents = contents
        self._small = [n for n, body in contents.items() if len(body) < DOWNLOAD_BYTES_MIN] or list(contents)
        self._keep_alive = keep_alive
        self._connection: http.client.HTTPConnection | None = None
        self._count = 0

    def step(self) -> bool:
        file = self._choose()
        kind = "http" if len(self._contents[file]) < DOWNLOAD_BYTES_MIN else "download"
        with self._ledger.request(kind, self.name) as request:
            self._download(file, request)
        goes_on = not self._keep_alive or keeps_connection(self._ledger, request)
        if not (self._keep_alive and goes_on):
            self._drop()
        return goes_on

    def finish(self) -> None:
        sock: socket.socket | None = self._connection.sock if self._connection else None
        if sock is not None and self._keep_alive:
            check_idle(self._ledger, self.name, sock)
        self._drop()

    def _choose(self) -> str:
        self._count += 1
        for every, file in ((BIG_EVERY, "big.bin"), (BIG2_EVERY, "big2.bin")):
            if self._count % every == 0 and file in self._contents:
                return file
        return self._small[self._count % len(self._small)]

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
            self._connection.auto_open = 0  # a silent reconnect would hide a lost connection
            self._connection.connect()  # sets TCP_NODELAY
            self._ledger.connection_opened()
        return self._connection

    def _download(self, file: str, request: Request) -> None:
        connection = self._connected()
        try:
            connection.request("GET", f"/{file}", headers={} if self._keep_alive else {"Connection": "close"})
            with connection.getresponse() as response:
                self._judge(file, response, request)
        except http.client.IncompleteRead as error:
            raise UnansweredError(f"/{file} stopped in the middle: {error}") from error
        except http.client.HTTPException as error:
            if isinstance(error, ConnectionError):
                raise
            raise WrongBytesError(f"/{file}: the head of the answer makes no sense: {error!r}") from error

    def _judge(self, file: str, response: http.client.HTTPResponse, request: Request) -> None:
        if response.status != http.client.OK:
            raise UnansweredError(f"/{file} answered with status {response.status}")
        compare_body(file, response, self._contents[file], request)
        if self._keep_alive and response.will_close:
            raise UnansweredError("the server ended a connection that was meant to stay open")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def compare_body(file: str, response: http.client.HTTPResponse, expected: bytes, request: Request) -> None:
    """Read to the end and compare; WrongBytesError with the place, UnansweredError when it stopped early."""
    large = len(expected) >= DOWNLOAD_BYTES_MIN
    offset, wrong_at = 0, -1
    while chunk := response.read1(_CHUNK_BYTES):
        if wrong_at < 0 and chunk != expected[offset : offset + len(chunk)]:
            wrong_at = offset
        offset += len(chunk)
        if offset > len(expected):
            raise WrongBytesError(f"/{file} is longer than its {len(expected)} bytes")
        if large:
            request.heard()
    if wrong_at >= 0:
        raise WrongBytesError(f"/{file} differs in the {_CHUNK_BYTES} bytes from offset {wrong_at} on")
    if offset < len(expected):
        raise UnansweredError(f"/{file} stopped after {offset} of {len(expected)} bytes")
