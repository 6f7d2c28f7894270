"""The loop of the disk server: it follows what its connections want, and nobody's end holds up the others."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbd_peer as peer
from nbd_peer import FLAGS, MemoryExport, option, request
from pycolo.disk import serve
from pycolo.disk.loop import NbdLoop
from pycolo.edge.nbd_server import REQUESTS_IN_FLIGHT_MAX
from pycolo.edge.unix_listener import UnixListener

GREETING_BYTES = 18 + 10


class Rig:
    def __init__(self, path: Path) -> None:
        self.disk = MemoryExport(1000, slow=True)
        self.path = path
        self.listener = UnixListener(path)
        self.loop = NbdLoop()
        clients = serve.Clients(self.loop, self.listener, {"": self.disk})
        self.loop.after_turn = clients.admit
        self.sockets: list[socket.socket] = []

    def turn(self) -> None:
        for _ in range(20):
            self.loop.turn(0)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.setblocking(False)
        self.sockets.append(client)
        client.send(FLAGS + option(peer.EXPORT_NAME))
        self.turn()
        return client


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "s")
    yield rig
    rig.loop.close()
    rig.listener.close()
    for client in rig.sockets:
        client.close()
    assert not rig.path.exists()


def test_a_client_that_vanishes_while_it_is_not_read_from_is_dropped(rig: Rig) -> None:
    client = rig.connect()
    client.send(request(peer.FLUSH, 1) * 500)
    rig.turn()
    assert len(rig.disk.waiting) == REQUESTS_IN_FLIGHT_MAX
    client.close()
    rig.turn()
    assert rig.loop.client_count == 0
    while rig.disk.waiting:
        rig.disk.release()
    rig.turn()
    assert len(rig.disk.calls) == REQUESTS_IN_FLIGHT_MAX


def test_a_client_that_is_gone_before_it_was_greeted_is_dropped(rig: Rig) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(rig.path))
    rig.turn()
    assert rig.loop.client_count == 0
    assert len(rig.connect().recv(100)) == GREETING_BYTES


def test_a_number_that_a_client_had_may_be_watched_in_the_same_turn(rig: Rig) -> None:
    client = rig.connect()
    ours, theirs = socket.socketpair()
    seen: list[bytes] = []

    def watch(end: socket.socket) -> None:
        rig.sockets.append(end)
        rig.loop.watch(end.fileno(), lambda: seen.append(end.recv(10)))

    def replace() -> None:
        ours.recv(1)
        pair = socket.socketpair()  # one of them gets the number of the client's connection
        for end in pair:
            watch(end)
            end.send(b"xyz")

    rig.sockets += [ours, theirs]
    rig.loop.watch(ours.fileno(), replace)
    client.send(bytes(28))  # no request
    theirs.send(b"x")
    rig.turn()
    assert rig.loop.client_count == 0
    assert seen == [b"xyz"] * 2


def test_what_another_handler_completes_is_sent(rig: Rig) -> None:
    client = rig.connect()
    client.send(request(peer.FLUSH, 1) + request(peer.FLUSH, 2))
    rig.turn()
    ours, theirs = socket.socketpair()
    rig.sockets += [ours, theirs]

    def complete() -> None:
        ours.recv(1)
        rig.disk.release()
        rig.disk.release()

    rig.loop.watch(ours.fileno(), complete)
    theirs.send(b"x")
    rig.loop.turn(5)
    assert len(client.recv(100)) == GREETING_BYTES + 2 * 16
    rig.loop.unwatch(ours.fileno())
    theirs.send(b"x")
    rig.turn()
    assert ours.recv(1) == b"x"


def test_clients_beyond_the_limit_wait_for_a_place(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CLIENTS_MAX", 2)
    first, second, third = (rig.connect() for _ in range(3))
    assert len(second.recv(100)) == GREETING_BYTES
    with pytest.raises(BlockingIOError):
        third.recv(100)
    first.close()
    rig.turn()
    assert len(third.recv(100)) == GREETING_BYTES
