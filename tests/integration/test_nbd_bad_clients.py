"""Several clients at once, and clients that misbehave: an error or the end of their own connection, never a byte."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from pathlib import Path

import pytest

import nbd_peer as peer
from disk_server import SIZE, Server
from nbd_peer import FLAGS, go, option, request


def shake_hands(client: socket.socket) -> None:
    client.sendall(FLAGS + option(peer.EXPORT_NAME))
    received = b""
    while len(received) < 18 + 10:
        received += client.recv(100)


def ended(client: socket.socket) -> bool:
    """Whether the server closes the connection, whatever it says before."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(1 << 16):
            pass
    return True


def test_several_clients_at_once_see_one_disk(disk_server: Server) -> None:
    clients = [disk_server.connect() for _ in range(70)]  # more than are served at a time
    for number, client in enumerate(clients[:60]):
        shake_hands(client)
        client.sendall(request(peer.WRITE, number, number * 512, data=bytes([number]) * 512))
    for client in clients[:60]:
        assert client.recv(16)[4:8] == bytes(4)
    for client in clients[:60]:
        client.close()
    for client in clients[60:]:
        shake_hands(client)
        client.sendall(request(peer.READ, 1, 59 * 512, 512))
        assert client.recv(16 + 512, socket.MSG_WAITALL)[16:] == bytes([59]) * 512
        client.close()


GARBAGE = {
    "random bytes": os.urandom(5000),
    "zeros": bytes(5000),
    "unknown client flags": b"\0\0\0\xff",
    "an endless option": FLAGS + b"IHAVEOPT\0\0\0\7\xff\xff\xff\xff" + bytes(100_000),
    "too many options": FLAGS + option(peer.LIST) * 100,
    "an unknown export": FLAGS + option(peer.EXPORT_NAME, b"nothing"),
    "a wrong magic": FLAGS + go() + request(peer.READ, 1, 0, 5, magic=1),
    "a huge write": FLAGS + go() + request(peer.WRITE, 1, 0, (1 << 32) - 1) + bytes(100_000),
    "goodbye": FLAGS + option(peer.ABORT),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_ends_its_own_connection_only(disk_server: Server, garbage: bytes) -> None:
    before = disk_server.image.read_bytes()
    good, bad = disk_server.connect(), disk_server.connect()
    shake_hands(good)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        bad.sendall(garbage)
    assert ended(bad)
    good.sendall(request(peer.READ, 1, 0, 100))
    assert good.recv(116, socket.MSG_WAITALL)[16:] == before[:100]
    assert disk_server.image.read_bytes() == before
    good.close()
    bad.close()


@pytest.mark.parametrize(
    "last_words",
    [
        b"",
        FLAGS[:2],
        FLAGS + option(peer.GO)[:9],
        FLAGS + go() + request(peer.READ, 1, 0, 5)[:20],
        FLAGS + go() + request(peer.WRITE, 1, 0, data=b"x" * 100_000)[:-1],
        FLAGS + go() + request(peer.WRITE, 1, 0, 32 << 20) + b"x" * 3_000_000,
        FLAGS + go() + request(peer.READ, 1, 0, 1 << 20) * 100,
    ],
    ids=["nothing", "half flags", "half option", "half request", "half write", "half large write", "unread replies"],
)
def test_a_client_that_vanishes_changes_nothing(disk_server: Server, last_words: bytes) -> None:
    before = disk_server.image.read_bytes()
    client = disk_server.connect()
    client.sendall(last_words)
    time.sleep(0.1)
    client.close()
    with disk_server.connect() as other:
        shake_hands(other)
        other.sendall(request(peer.READ, 1, 0, 100))
        assert other.recv(116, socket.MSG_WAITALL)[16:] == before[:100]
    assert disk_server.image.read_bytes() == before


def test_a_request_beyond_the_end_is_an_error_and_the_client_goes_on(disk_server: Server) -> None:
    with disk_server.connect() as client:
        shake_hands(client)
        client.sendall(request(peer.WRITE, 1, SIZE - 1, data=b"xy") + request(peer.READ, 2, SIZE - 1, 1))
        replies = client.recv(16 + 17, socket.MSG_WAITALL)
        assert replies[:16] == bytes.fromhex("674466980000001c0000000000000001")
        assert replies[16:32] == bytes.fromhex("67446698000000000000000000000002")
    assert disk_server.image.stat().st_size == SIZE


def test_a_stop_does_not_wait_for_clients(raw_image: Path) -> None:
    server = Server(raw_image)
    with server.connect() as client:
        shake_hands(client)
        client.sendall(request(peer.WRITE, 1, 0, data=b"x" * 100) + request(peer.WRITE, 2, 0, 1 << 20) + b"half")
        assert len(client.recv(16, socket.MSG_WAITALL)) == 16
        assert server.stop() == 0
        assert ended(client)
    assert raw_image.read_bytes()[:101] != b"x" * 101
    assert raw_image.read_bytes()[:100] == b"x" * 100


def test_many_clients_that_leave_at_any_moment(disk_server: Server) -> None:
    before = disk_server.image.read_bytes()
    stream = FLAGS + go() + request(peer.READ, 1, 0, 1 << 20) + request(peer.FLUSH, 2) * 70 + request(peer.DISC, 3)
    rng = random.Random(5)
    for _ in range(500):
        with disk_server.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(stream[: rng.randrange(len(stream) + 1)])
            client.settimeout(0.001)
            if rng.random() < 0.5:
                with contextlib.suppress(TimeoutError):
                    client.recv(rng.randrange(1, 100_000))
    with disk_server.connect() as client:
        shake_hands(client)
        client.sendall(request(peer.READ, 1, 0, 100))
        assert client.recv(116, socket.MSG_WAITALL)[16:] == before[:100]
    assert disk_server.image.read_bytes() == before
