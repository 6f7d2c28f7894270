"""MessageStream over TLS: whole messages whatever the pieces, nothing left behind, and nobody who is not known."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from pycolo.core import disk_wire as wire
from pycolo.core import peer
from pycolo.core.wire import HEADER
from pycolo.disk import secondary as disk
from pycolo.disk.loop import NbdLoop
from pycolo.edge.dial import dial
from pycolo.edge.doorway import CALLERS_MAX, Doorway
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.tls import client_context, server_context
from pycolo.edge.transport import (
    CHUNK_BYTES,
    PlainTransport,
    TlsTransport,
    Transport,
    Wrap,
    wrap_accepted,
    wrap_dialled,
)
from pycolo.errors import PeerLost, PeerUntrusted, PeerViolation
from tcp_pair import tcp_pair
from tls_tools import INTRUDERS, Pki

SECRET = "secret"
WAIT_S_MAX = 30.0  # a busy machine takes its time


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("tls") / "pki")


def stream(transport: Transport) -> MessageStream:
    return MessageStream(transport, "the disk channel", wire.decode_header)


class Ends:
    """Both ends of a connection that is being secured; `client` is h1."""

    def __init__(self, pki: Pki, expected: str | None = "h2") -> None:
        self.near, self.far = tcp_pair()
        client, server = client_context(pki.files("h1")), server_context(pki.files("h2"))
        self.client = TlsTransport(self.near, client, "the secondary", server_side=False, expected=expected)
        self.server = TlsTransport(self.far, server, "the primary", server_side=True)

    def shake(self) -> None:
        until(lambda: self.client.shake() & self.server.shake())

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def ends(pki: Pki) -> Iterator[Ends]:
    ends = Ends(pki)
    yield ends
    ends.close()


def until(condition: Callable[[], bool], pause_s: float = 0.001) -> None:
    ends_at = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(pause_s)


def test_a_handshake_says_who_the_other_is(ends: Ends) -> None:
    assert (ends.client.ready, ends.server.ready) == (False, False)
    ends.shake()
    assert (ends.client.certified, ends.server.certified) == (frozenset({"h2"}), frozenset({"h1"}))
    assert ends.server._tls.version() == "TLSv1.3"


def test_payload_waits_for_the_handshake_without_a_busy_loop(ends: Ends) -> None:
    channel = stream(ends.client)
    channel.queue(b"early")
    ends.client.shake()
    channel.flush()
    assert channel.waiting_bytes == 5
    assert not channel.waiting  # epoll would say at once that the socket takes more
    ends.shake()
    assert channel.waiting
    channel.flush()
    assert not channel.waiting
    assert ends.server.receive() == b"early"


def test_whole_messages_go_over_in_both_directions(ends: Ends) -> None:
    ends.shake()
    left, right = stream(ends.client), stream(ends.server)
    sizes = [1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, wire.DATA_BYTES_MAX]
    for sender, receiver in ((left, right), (right, left)):
        sent = [bytes([number]) * size for number, size in enumerate(sizes * 3)]
        for content in sent:
            sender.queue(wire.data_header(len(content)) + wire.data_body(0, 0), content)
        got: list[bytes] = []

        def goes_on(sender: MessageStream = sender, receiver: MessageStream = receiver, got: list[bytes] = got) -> bool:
            sender.flush()
            receiver.read()
            got += [body[9:] for _, body in receiver.messages()]
            return len(got) == len(sizes) * 3

        until(goes_on)
        assert got == sent
        assert sender.waiting_bytes == 0
        assert sender.sent_bytes == sum(map(len, sent)) + (HEADER.size + 9) * len(sent)


def test_small_buffers_become_one_record(ends: Ends) -> None:
    ends.shake()
    assert ends.client.send([b"a", memoryview(b"bc"), b"d" * 10]) == 13
    assert ends.server.receive() == b"abc" + b"d" * 10


def test_a_full_kernel_makes_it_wait_and_nothing_is_lost(ends: Ends) -> None:
    ends.shake()
    channel = stream(ends.client)
    content = bytes(range(256)) * (64 << 10)
    channel.queue(content)
    channel.flush()
    assert channel.waiting
    assert channel.waiting_bytes > 0
    got = bytearray()

    def goes_on() -> bool:
        channel.flush()
        if select.select([ends.far], [], [], 0.01)[0]:
            got.extend(ends.server.receive())
        return len(got) == len(content)

    until(goes_on)
    assert got == content
    assert not channel.waiting


def test_what_waits_in_the_cipher_asks_for_the_loop(ends: Ends) -> None:
    """All is encrypted, and the kernel does not take it: the loop must call again."""
    ends.shake()
    with suppress(BlockingIOError):
        while True:
            ends.client.send([bytes(CHUNK_BYTES)])
    channel = stream(ends.client)
    assert ends.client.pending
    assert channel.waiting
    assert channel.waiting_bytes == 0


@pytest.mark.parametrize("piece", [1, 7, 300])
def test_ciphertext_in_pieces(pki: Pki, piece: int) -> None:
    """What epoll says of the socket says nothing of what can be decrypted."""
    ends = Ends(pki)
    front, back = tcp_pair()
    server = TlsTransport(back, server_context(pki.files("h2")), "the primary", server_side=True)
    try:
        ends.far.setblocking(False)
        front.setblocking(False)

        def pump() -> None:
            for source, target in ((ends.far, front), (front, ends.far)):
                try:
                    data = source.recv(piece)
                except BlockingIOError:
                    continue
                target.sendall(data)

        def shaken() -> bool:
            pump()
            return ends.client.shake() & server.shake()

        until(shaken, 0.0)  # thousands of pieces
        ends.client.send([b"x" * 1000])
        got = b""
        ends_at = time.monotonic() + WAIT_S_MAX
        while len(got) < 1000 and time.monotonic() < ends_at:
            pump()
            try:
                got += server.receive()
            except BlockingIOError:
                continue
        assert got == b"x" * 1000
    finally:
        ends.close()
        server.close()
        front.close()


def test_all_that_has_come_is_decrypted_at_once(ends: Ends) -> None:
    ends.shake()
    for _ in range(3):
        ends.client.send([bytes(CHUNK_BYTES)])
    got = 0
    while select.select([ends.far], [], [], 0.05)[0]:  # as the loop: it calls only while the socket is readable
        got += len(ends.server.receive())
    assert got == 3 * CHUNK_BYTES


def test_the_end_of_the_peer_is_seen_behind_what_it_said_last(ends: Ends) -> None:
    ends.shake()
    ends.client.send([b"last"])
    ends.client.close()
    channel = stream(ends.server)
    assert channel.read()
    with pytest.raises(PeerLost, match="the peer closed the disk channel"):
        channel.read()


@pytest.mark.parametrize("how", ["replayed", "changed", "cut"])
def test_a_stream_that_somebody_touched(ends: Ends, how: str) -> None:
    ends.shake()
    with socket.socket() as lost:  # what the client encrypts goes through our hands
        real, ends.client._connection = ends.client._connection, lost
        ends.client._tls.write(b"payload")
        record = ends.client._outgoing.read()
        ends.client._connection = real
    touched = {"replayed": record * 2, "changed": record[:-1] + bytes([record[-1] ^ 1]), "cut": record[:-1]}[how]
    ends.near.sendall(touched)
    channel = stream(ends.server)
    if how == "cut":
        ends.near.shutdown(socket.SHUT_WR)
        with pytest.raises(PeerLost, match="closed the disk channel"):
            channel.read()
        return
    with pytest.raises(PeerViolation, match="the primary broke the TLS connection"):
        channel.read()


def test_a_host_that_is_not_the_expected_one(pki: Pki) -> None:
    ends = Ends(pki, expected="h3")
    try:
        with pytest.raises(PeerUntrusted, match="the secondary shows a certificate of h2 instead of h3"):
            ends.shake()
        with pytest.raises(BlockingIOError):
            ends.client.send([b"token"])
    finally:
        ends.close()


# ---------------------------------------------------------------- dialling


def test_dialling_goes_on_with_other_things_and_ends_in_time(pki: Pki) -> None:
    turns: list[bool] = []

    def wait(condition: Callable[[], bool]) -> bool:
        while len(turns) < 50:
            turns.append(condition())
            time.sleep(0.001)
        return turns[-1]

    wrap = wrap_dialled(client_context(pki.files("h1")), "the secondary", "h2")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        with pytest.raises(PeerLost, match="the secondary does not answer in time"):
            dial("127.0.0.1", silent.getsockname()[1], "the secondary", wait, wrap)
        assert turns == [False] * 50
        accepted, _ = silent.accept()
        accepted.close()


@pytest.mark.parametrize(
    ("said", "says"), [(b"SSH-2.0-x\r\n", "does not speak TLS 1.3"), (b"", "closed the connection")]
)
def test_dialling_somebody_else(pki: Pki, said: bytes, says: str) -> None:
    wrap = wrap_dialled(client_context(pki.files("h1")), "the secondary", "h2")
    with socket.create_server(("127.0.0.1", 0)) as other:

        def wait(condition: Callable[[], bool]) -> bool:
            condition()
            accepted, _ = other.accept()
            with accepted:
                accepted.sendall(said)
                accepted.shutdown(socket.SHUT_WR)
                until(condition)
            return True

        with pytest.raises(PeerLost, match=f"the secondary {says}"):
            dial("127.0.0.1", other.getsockname()[1], "the secondary", wait, wrap)


# ---------------------------------------------------------------- the doorway


class Door:
    """A doorway with TLS, who came in, and callers."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        self.loop = NbdLoop()
        self.came: list[MessageStream] = []
        self.refusals: list[str] = []
        wrap = wrap_accepted(server_context(pki.files("h2")), "the primary's disk process")
        self.doorway = Doorway(
            "127.0.0.1", SECRET, self.loop, disk.GREETING, wrap, self.came.append, self.refusals.append
        )
        self._callers: list[Transport] = []

    def call(self, wrap: Wrap) -> Transport:
        caller = wrap(socket.create_connection(("127.0.0.1", self.doorway.port), timeout=5))
        self._callers.append(caller)
        return caller

    def greet(self, context: ssl.SSLContext, token: str) -> str:
        """Call as a primary would; returns how it ended: "in", or why not."""
        caller = self.call(wrap_dialled(context, "the secondary", "h2"))
        channel = stream(caller)
        channel.queue(wire.encode_control(wire.Greeting(token)))
        ends_at = time.monotonic() + WAIT_S_MAX
        try:
            while time.monotonic() < ends_at and not self.came:
                if caller.shake():
                    channel.flush()
                    channel.read()
                self.loop.turn(0.001)
        except PeerLost as lost:
            return str(lost)
        return "in" if self.came else "nothing"

    def turn(self) -> None:
        for _ in range(10):
            self.loop.turn(0.005)

    def close(self) -> None:
        self.doorway.close()
        for stream in self.came:
            stream.close()
        for caller in self._callers:
            caller.close()
        self.loop.close()


@pytest.fixture
def door(pki: Pki) -> Iterator[Door]:
    door = Door(pki)
    yield door
    door.close()


def test_the_host_that_the_token_is_for_comes_in(door: Door) -> None:
    token = peer.channel_token(SECRET, "h1")
    assert door.greet(client_context(door.pki.files("h1")), token) == "in"
    assert door.came[0].certified == frozenset({"h1"})
    assert door.refusals == []


@pytest.mark.parametrize("token", [SECRET, peer.channel_token(SECRET, "h1"), peer.channel_token(SECRET, "h2"), "", "é"])
def test_another_host_of_our_ca_can_not_use_a_token(door: Door, token: str) -> None:
    assert "closed" in door.greet(client_context(door.pki.files("h3")), token)
    assert door.came == []
    assert door.refusals == ["somebody called for the disk channel without the token of this pair"]


@pytest.fixture
def own_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("own") / "pki")


@pytest.mark.parametrize(("make", "says"), INTRUDERS.values(), ids=INTRUDERS)
def test_who_is_not_known_gets_nothing_and_is_told_of(
    own_pki: Pki, make: Callable[[Pki], ssl.SSLContext], says: str
) -> None:
    door = Door(own_pki)
    try:
        assert door.greet(make(own_pki), peer.channel_token(SECRET, "h1")) != "in"
        assert len(door.refusals) == 1
        assert door.refusals[0].startswith(
            ("the certificate of the primary's disk process", "the primary's disk process")
        )
        assert says in door.refusals[0]
        assert door.greet(client_context(own_pki.files("h1")), peer.channel_token(SECRET, "h1")) == "in"
    finally:
        door.close()


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, wire.encode_control(wire.Greeting(SECRET))]
)
def test_who_does_not_speak_tls_is_shown_out(door: Door, said: bytes) -> None:
    caller = door.call(PlainTransport)
    caller.send([said])
    door.turn()
    assert len(door.refusals) == 1
    assert "does not speak TLS 1.3 with a certificate" in door.refusals[0]
    assert door.greet(client_context(door.pki.files("h1")), peer.channel_token(SECRET, "h1")) == "in"


def test_slow_handshakes_neither_block_nor_stand_in_the_way(door: Door) -> None:
    """As many as fit, each with the beginning of a real handshake, and no end of it."""
    beginnings = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = client_context(door.pki.files("h1")).wrap_bio(*beginnings)
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    said = beginnings[1].read()
    for number in range(CALLERS_MAX + 3):
        door.call(PlainTransport).send([said[: len(said) * (number % 3) // 2]])
        door.turn()
    assert len(door.doorway._callers) == CALLERS_MAX
    assert door.doorway.turn(time.monotonic() + 10) is None
    assert door.doorway._callers == {}
    for _ in range(CALLERS_MAX):
        door.call(PlainTransport)
        door.turn()
    assert door.greet(client_context(door.pki.files("h1")), peer.channel_token(SECRET, "h1")) == "in"
