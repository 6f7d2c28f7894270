"""Where the primary's processes call: strangers cost little and never stand in its way."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from pycolo.core import disk_wire as wire
from pycolo.core import wire as packet_wire
from pycolo.disk import secondary as disk
from pycolo.disk.loop import NbdLoop
from pycolo.edge import packet_channel
from pycolo.edge.doorway import CALLERS_MAX, GREETING_BYTES_MAX, GREETING_S_MAX, Doorway
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.transport import PlainTransport
from pycolo.errors import PeerViolation

TOKEN = "token"
GREETING = wire.encode_control(wire.Greeting(TOKEN))


class Door:
    """A doorway, and who came in."""

    def __init__(self) -> None:
        self.loop = NbdLoop()
        self.came: list[MessageStream] = []
        self.refusals: list[str] = []
        self.doorway = Doorway(
            "127.0.0.1", TOKEN, self.loop, disk.GREETING, PlainTransport, self.came.append, self.refusals.append
        )
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
    "data": wire.data_header(10) + wire.data_body(0, 0) + bytes(10),
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "too long": (GREETING_BYTES_MAX + 1).to_bytes(4, "big") + b"\x01",
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_shown_out_and_the_primary_comes_in(door: Door, said: bytes) -> None:
    assert is_shown_out(door.call(said))
    assert door.came == []
    assert len(door.refusals) == 1
    door.call(GREETING)
    assert len(door.came) == 1


def test_what_comes_right_behind_the_greeting_is_not_lost(door: Door) -> None:
    behind = wire.encode_control(wire.Begin([True]))
    door.call(GREETING + behind)
    assert list(door.came[0].messages()) == [(wire.Kind.CONTROL, behind[5:])]


def test_who_takes_too_long_is_shown_out(door: Door) -> None:
    slow = door.call(GREETING[:3])
    now_s = time.monotonic()
    wait_s = door.doorway.turn(now_s)
    assert wait_s is not None
    assert 0 < wait_s <= GREETING_S_MAX
    assert not is_shown_out(slow)
    assert door.doorway.turn(now_s + GREETING_S_MAX) is None
    assert is_shown_out(slow)


def test_the_agents_greeting() -> None:
    hello = packet_wire.encode_control(packet_wire.ChannelHello("t"))
    assert packet_channel.GREETING.token(packet_wire.Kind.CONTROL, hello[5:]) == "t"
    for kind, said in ((packet_wire.Kind.CONTROL, packet_wire.Heartbeat()), (packet_wire.Kind.FRAMES, None)):
        body = packet_wire.encode_control(said)[5:] if said is not None else b""
        with pytest.raises(PeerViolation, match="did not greet"):
            packet_channel.GREETING.token(kind, body)


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
