"""Where the primary's disk process calls: strangers cost little and never stand in its way."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pycolo.core import disk_wire as wire
from pycolo.disk.doorway import CALLERS_MAX, GREETING_BYTES_MAX, Doorway
from pycolo.disk.loop import NbdLoop
from pycolo.edge.message_stream import MessageStream

TOKEN = "token"
GREETING = wire.encode_control(wire.Greeting(TOKEN))


class Door:
    """A doorway, and who came in."""

    def __init__(self) -> None:
        self.loop = NbdLoop()
        self.came: list[MessageStream] = []
        self.doorway = Doorway("127.0.0.1", TOKEN, self.loop, self.came.append)
        self.callers: list[socket.socket] = []

    def call(self, said: bytes = b"") -> socket.socket:
        caller = socket.create_connection(("127.0.0.1", self.doorway.port), timeout=5)
        self.callers.append(caller)
        self.turn()
        caller.sendall(said)
        self.turn()
        return caller

    def turn(self) -> None:
        for _ in range(10):
            self.loop.turn(0.005)

    def close(self) -> None:
        self.doorway.close()
        for stream in self.came:
            stream.close()
        for caller in self.callers:
            caller.close()
        self.loop.close()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


def is_shown_out(caller: socket.socket) -> bool:
    """Whether the doorway has closed the connection."""
    caller.settimeout(0.05)
    try:
        return caller.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_who_shows_the_token_comes_in_once(door: Door) -> None:
    door.call(GREETING)
    assert len(door.came) == 1
    with pytest.raises(ConnectionRefusedError):
        door.call(GREETING)


@pytest.mark.parametrize("cut", [1, 4, 5, len(GREETING) - 1])
def test_a_greeting_may_come_in_pieces(door: Door, cut: int) -> None:
    caller = door.call(GREETING[:cut])
    assert door.came == []
    caller.sendall(GREETING[cut:])
    door.turn()
    assert len(door.came) == 1


STRANGERS = {
    "wrong token": wire.encode_control(wire.Greeting("guess")),
    "other letters": wire.encode_control(wire.Greeting("t\u00f6ken")),
    "another message": wire.encode_control(wire.Following()),
    "more than a greeting": GREETING + wire.encode_control(wire.Begin([True])),
    "data": wire.data_header(10) + wire.data_body(0, 0) + bytes(10),
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "too long": (GREETING_BYTES_MAX + 1).to_bytes(4, "big") + b"\x01",
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_shown_out_and_the_primary_comes_in(door: Door, said: bytes) -> None:
    assert is_shown_out(door.call(said))
    assert door.came == []
    door.call(GREETING)
    assert len(door.came) == 1


def test_the_oldest_silent_stranger_makes_room(door: Door) -> None:
    silent = [door.call() for _ in range(CALLERS_MAX + 1)]
    assert is_shown_out(silent[0])
    assert not is_shown_out(silent[1])
    door.call(GREETING)
    assert len(door.came) == 1
    assert all(map(is_shown_out, silent))


def test_it_can_be_closed_twice(door: Door) -> None:
    caller = door.call()
    door.doorway.close()
    door.doorway.close()
    assert is_shown_out(caller)
