#!/usr/bin/env python3
"""Clients of `make bench` that no well-known tool is: run in the clients' namespace, each says its figures as JSON.

`clients.py ADDRESS upload|download SECONDS`, `clients.py ADDRESS dirty MIB_PER_S`, `clients.py ADDRESS compute ROUNDS`,
`clients.py ADDRESS gap SECONDS` (one echo after the other over one connection, until SECONDS after the line `now`
has come in on standard input and an answer has come since).

Guarantee: every wait has an end; a connection that breaks or gives other bytes ends the program with a sentence.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

WORKER_PORT, ECHO_PORT = 5201, 7
SILENCE_S_MAX = 20.0
COMPUTE_S_MAX = 120.0
WARM_S = 1.0
PIECE = bytes(range(256)) * 256
ECHO_PAUSE_S = 0.002


def connected(address: str, port: int, silence_s: float = SILENCE_S_MAX) -> socket.socket:
    """A connection on which nothing waits for ever."""
    connection = socket.create_connection((address, port), silence_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def upload(address: str, seconds: float) -> dict[str, float]:
    """Bytes that the guest has taken; what the buffers hold counts at the end as at the beginning."""
    with connected(address, WORKER_PORT) as connection:
        connection.sendall(b"sink\n")
        return _moved(lambda: connection.send(PIECE), seconds)


def download(address: str, seconds: float) -> dict[str, float]:
    """Bytes that came."""
    with connected(address, WORKER_PORT) as connection:
        connection.sendall(b"source\n")

        def take() -> int:
            if not (count := len(connection.recv(len(PIECE)))):
                raise SystemExit("the guest has ended the connection")
            return count

        return _moved(take, seconds)


def _moved(move: Callable[[], int], seconds: float) -> dict[str, float]:
    begin_s = time.monotonic() + WARM_S
    while time.monotonic() < begin_s:
        move()
    began_s, count = time.monotonic(), 0
    while (now_s := time.monotonic()) < began_s + seconds:
        count += move()
    return {"rate": count / (now_s - began_s) / 1e6}


def told(address: str, line: str, silence_s: float) -> str:
    """What the guest answers."""
    with connected(address, WORKER_PORT, silence_s) as connection:
        connection.sendall(line.encode() + b"\n")
        return connection.makefile("r").readline().strip()


def compute(address: str, rounds: int) -> dict[str, object]:
    """Rounds a second of one job, and its checksum."""
    began_s = time.monotonic()
    checksum = told(address, f"compute {rounds}", COMPUTE_S_MAX)
    if len(checksum) != 16:
        raise SystemExit(f"the guest computed {checksum!r}")
    return {"rate": rounds / (time.monotonic() - began_s), "checksum": checksum}


def gap(address: str, seconds: float) -> dict[str, float]:
    """The longest time between two answers, and when the first came after the word (time.monotonic())."""
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    with connected(address, ECHO_PORT) as connection:
        last_s, longest_s, told_s, first_s, number = time.monotonic(), 0.0, 0.0, 0.0, 0
        while not told_s or not first_s or time.monotonic() < told_s + seconds:
            number += 1
            question = number.to_bytes(8, "big")
            asked_s = time.monotonic()
            connection.sendall(question)
            said = b""
            while len(said) < len(question):
                if not (piece := connection.recv(len(question) - len(said))):
                    raise SystemExit("the guest has ended the connection")
                said += piece
            if said != question:
                raise SystemExit("the guest echoes other bytes")
            now_s = time.monotonic()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
            if told_s and not first_s and asked_s > told_s:
                first_s = now_s
            if not told_s and poll.poll(0):
                told_s = float(sys.stdin.readline())
            time.sleep(ECHO_PAUSE_S)
    return {"longest_ms": longest_s * 1000, "first_ms": (first_s - told_s) * 1000, "requests": number}


def main() -> None:
    address, kind, number = sys.argv[1:]
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "upload": lambda: upload(address, float(number)),
        "download": lambda: download(address, float(number)),
        "dirty": lambda: {"said": told(address, f"dirty {number}", SILENCE_S_MAX)},
        "compute": lambda: compute(address, int(number)),
        "gap": lambda: gap(address, float(number)),
    }
    try:
        found = kinds[kind]()
    except OSError as problem:
        raise SystemExit(f"{kind}: {problem}") from None
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
