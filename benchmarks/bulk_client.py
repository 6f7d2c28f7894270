#!/usr/bin/env python3
"""One connection to the guest's Redis that only sends, or only takes, as much as goes; says how much that was.

`bulk_client.py ADDRESS upload|download SECONDS [BUFFER]`, in the clients' namespace; BUFFER is what each of the
socket's buffers holds, in bytes. An upload is SETs of one large value without waiting for the answers, as far as
`AHEAD` commands ahead of them; a download is GETs likewise.

Guarantees: what counts has been answered, and each answer has been looked at byte by byte; a connection that is reset
or stands still ends the program with a sentence.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

REDIS_PORT = 6379
VALUE_BYTES = 256 << 10
VALUE = bytes(range(256)) * (VALUE_BYTES // 256)
AHEAD = 16
WARM_S = 1.0
SILENCE_S_MAX = 10.0
READ_BYTES = 1 << 18


def command(*words: bytes) -> bytes:
    """A command as Redis wants it (RESP)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


SET, SET_ANSWER = command(b"SET", b"bulk", VALUE), b"+OK\r\n"
GET, GET_ANSWER = command(b"GET", b"bulk"), b"$%d\r\n%s\r\n" % (VALUE_BYTES, VALUE)


class Answers:
    """Counts equal answers in a stream; anything else ends the program."""

    def __init__(self, answer: bytes) -> None:
        self._answer, self._at, self.count = answer, 0, 0

    def feed(self, content: bytes) -> None:
        """The next bytes of the stream."""
        done = 0
        while done < len(content):
            piece = content[done : done + len(self._answer) - self._at]
            if piece != self._answer[self._at : self._at + len(piece)]:
                raise SystemExit(f"Redis gave a wrong answer: {piece[:60]!r}")
            done += len(piece)
            self._at += len(piece)
            if self._at == len(self._answer):
                self._at, self.count = 0, self.count + 1


class Bulk:
    """Commands out, answers in."""

    def __init__(self, connection: socket.socket, request: bytes, answer: bytes) -> None:
        connection.setblocking(False)
        self._connection, self._request, self._answers = connection, request, Answers(answer)
        self._begun, self._rest = 0, memoryview(b"")

    def until(self, ends_s: float, count: int = 0) -> int:
        """Go on until that time, or until `count` answers more; how many there are by then."""
        wanted, last_s = self._answers.count + count, time.monotonic()
        while time.monotonic() < ends_s and not (count and self._answers.count >= wanted):
            if self._turn():
                last_s = time.monotonic()
            elif time.monotonic() - last_s > SILENCE_S_MAX:
                raise SystemExit(f"no answer for {SILENCE_S_MAX:.0f} s")
        return self._answers.count

    def _turn(self) -> bool:
        """Send and take once; whether an answer is complete."""
        before = self._answers.count
        if not self._rest and self._begun - before < AHEAD:
            self._rest, self._begun = memoryview(self._request), self._begun + 1
        readable, writable, _ = select.select([self._connection], [self._connection] if self._rest else [], [], 0.2)
        if writable:
            self._rest = self._rest[self._connection.send(self._rest) :]
        if readable:
            content = self._connection.recv(READ_BYTES)
            if not content:
                raise SystemExit("the guest has closed the connection")
            self._answers.feed(content)
        return self._answers.count > before


def measure(address: tuple[str, int], direction: str, seconds: int, buffer_bytes: int) -> list[float]:
    """MB/s of values in each second, one after the other."""
    with _connected(address, buffer_bytes) as connection:
        Bulk(connection, SET, SET_ANSWER).until(time.monotonic() + SILENCE_S_MAX, AHEAD)  # there is a value to get
    with _connected(address, buffer_bytes) as connection:
        bulk = Bulk(connection, *((SET, SET_ANSWER) if direction == "upload" else (GET, GET_ANSWER)))
        began_s = time.monotonic() + WARM_S
        counts = [bulk.until(began_s + second) for second in range(seconds + 1)]
    return [(after - before) * VALUE_BYTES / 1e6 for before, after in pairwise(counts)]


def _connected(address: tuple[str, int], buffer_bytes: int) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(SILENCE_S_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffer_bytes:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
    connection.connect(address)
    return connection


def main(arguments: Sequence[str]) -> None:
    """Prints one line of JSON."""
    address, direction, seconds, *more = arguments
    print(json.dumps(measure((address, REDIS_PORT), direction, int(seconds), int(more[0]) if more else 0)))


if __name__ == "__main__":
    main(sys.argv[1:])
