"""Model clients: one request at a time, sent again until it is answered, by UDP or by TCP.

A TCP client notices what a real one would: an acknowledgement of what it never sent, a number outside the window, a
reset, other bytes at the same place, and timestamps that run backwards, whose segments it drops (PAWS, RFC 7323).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .frames import ACK, MOD, PSH, RST, SYN, Damaged, Segment, after, build, port_of, read
from .guest import PLAIN, RANDOM_BIT, RANDOM_NUMBER, REQUEST, RESPONSE, TIME_OF_DAY
from .history import History, Reception
from .scheduler import Host, Scheduler

RESEND_US = 15_000
THINK_US = (200, 1_500)
REQUESTS_PER_CONNECTION = (2, 14)
WINDOW = 1 << 16
_KINDS = (PLAIN, RANDOM_BIT, RANDOM_NUMBER, TIME_OF_DAY)
_WEIGHTS = (70, 8, 7, 15)

Send = Callable[[bytes], None]


class UdpSocket:
    """One datagram a request."""

    def __init__(self, client: int, send: Send) -> None:
        self._port, self._send = port_of(client, 0), send
        self.on_response: Callable[[bytes], None] = lambda _: None

    def ask(self, request: bytes, *, again: bool) -> None:
        """Send a request."""
        del again
        self._send(build(Segment(self._port, request), from_guest=False))

    def hear(self, segment: Segment) -> None:
        """Take in a datagram."""
        self.on_response(segment.payload)


class TcpSocket:
    """One connection after the other; numbers of 32 bits as they stand in the segments."""

    def __init__(self, client: int, send: Send, dice: random.Random, now_ms: Callable[[], int], history: History):
        self._client, self._send, self._dice, self._now_ms, self._history = client, send, dice, now_ms, history
        self._clock = dice.getrandbits(32)
        self._connections = 0
        self._left = 0
        self.on_response: Callable[[bytes], None] = lambda _: None
        self._port = -1

    def _begin(self) -> None:
        self._port = port_of(self._client, self._connections)
        self._connections += 1
        self._left = self._dice.randint(*REQUESTS_PER_CONNECTION)
        self._isn = self._next = self._acked = self._dice.getrandbits(32)
        self._request_at: int | None = None
        self._established = False
        self._heard_to = self._recent = self._first = 0
        self._stream = bytearray()
        self._taken = 0
        self._first_echo = self._stamp()

    def _stamp(self) -> int:
        return (self._clock + self._now_ms()) % MOD

    def _say(self, flags: int, seq: int, payload: bytes = b"") -> None:
        ack = self._heard_to if flags & ACK else 0
        echo = self._recent if flags & ACK else 0
        segment = Segment(self._port, payload, flags, seq, ack, self._stamp(), echo)
        self._send(build(segment, from_guest=False))

    def ask(self, request: bytes, *, again: bool) -> None:
        """Send a request, in a new connection now and then."""
        if not again:
            self._left -= 1
            if self._left < 0:
                self._begin()
            self._request, self._request_at = request, None
        if self._established:
            self._transmit()
        else:
            self._next = (self._isn + 1) % MOD
            self._say(SYN, self._isn)

    def _transmit(self) -> None:
        """What is acknowledged is not said again: from then on it is the guest's to answer, however long it takes."""
        if self._request_at is None:
            self._request_at, self._next = self._next, (self._next + len(self._request)) % MOD
        elif self._acked == self._next:
            return
        self._say(ACK | PSH, self._request_at, self._request)

    def hear(self, segment: Segment) -> None:
        """Take in a segment."""
        assert segment.flags is not None
        if segment.client_port != self._port:
            return
        if segment.flags & RST:
            if self._established and segment.seq == self._heard_to:
                self._complain("was reset")
            return
        if not self._acceptable(segment):
            return
        if segment.flags & SYN:
            self._hear_opening(segment)
        elif self._established:
            self._hear_data(segment)

    def _acceptable(self, segment: Segment) -> bool:
        """Whether it acknowledges what was sent, and echoes it."""
        if after(segment.ack, self._next) > 0 or after(segment.ack, self._isn) <= 0:
            return self._complain("heard an acknowledgement of what it never sent")
        if after(segment.echo, self._stamp()) > 0 or after(segment.echo, self._first_echo) < 0:
            return self._complain("heard an echo of what it never sent")
        if after(segment.ack, self._acked) > 0:
            self._acked = segment.ack
        return True

    def _complain(self, what: str) -> bool:
        self._history.broken.append(f"client {self._client} {what} on port {self._port} at {self._now_ms()} ms")
        return False

    def _hear_opening(self, segment: Segment) -> None:
        if self._established:  # again: it gets what we know
            self._say(ACK, self._next)
            return
        self._established = True
        self._heard_to = self._first = (segment.seq + 1) % MOD
        self._recent = segment.value
        self._transmit()

    def _hear_data(self, segment: Segment) -> None:
        place = after(segment.seq, self._first)
        if abs(after(segment.seq, self._heard_to)) > WINDOW or place < 0:
            self._complain("heard a segment outside its window")
            return
        if after(segment.value, self._recent) < 0:
            return  # an old one, says PAWS
        known = self._stream[place : place + len(segment.payload)]
        if known != segment.payload[: len(known)]:
            self._complain(f"heard other bytes at place {place}")
            return
        if place <= len(self._stream):
            self._recent = segment.value
            self._stream += segment.payload[len(known) :]
        if segment.payload:
            self._heard_to = (self._first + len(self._stream)) % MOD
            self._say(ACK, self._next)
            self._take_responses()

    def _take_responses(self) -> None:
        while len(self._stream) - self._taken >= RESPONSE.size:
            self._taken += RESPONSE.size
            self.on_response(bytes(self._stream[self._taken - RESPONSE.size : self._taken]))


class Client:
    """One client: its requests, and how it sends them."""

    def __init__(
        self, number: int, scheduler: Scheduler, world: Host, send: Send, history: History, seed: str, *, by_udp: bool
    ) -> None:
        self._number, self._scheduler, self._world, self._history = number, scheduler, world, history
        self._random = random.Random(seed)
        self._seq = 0
        self._request = b""
        self.left = 0
        self.waiting = False
        self._socket: UdpSocket | TcpSocket = UdpSocket(number, send)
        if not by_udp:
            dice = random.Random(f"{seed} numbers")
            self._socket = TcpSocket(number, send, dice, lambda: scheduler.now_us // 1000, history)
        self._socket.on_response = self._hear

    def start(self, requests: int) -> None:
        """Send that many requests, counted from now; `waiting` while one is not answered."""
        self.left = requests
        if not self.waiting:
            self._think()

    @property
    def quiet(self) -> bool:
        """Everything asked is answered, and nothing more will be asked."""
        return not self.waiting and not self.left

    def _think(self) -> None:
        self._scheduler.call_later(self._random.randint(*THINK_US), self._world, self._ask)

    def _ask(self) -> None:
        if self.waiting or not self.left:
            return
        self.left -= 1
        self._seq += 1
        self.waiting = True
        self._history.sent[self._number] = self._seq
        kind = self._random.choices(_KINDS, _WEIGHTS)[0]
        self._request = REQUEST.pack(self._number, self._seq, kind)
        self._send(self._seq, again=False)

    def _send(self, seq: int, *, again: bool) -> None:
        if self.waiting and seq == self._seq:
            self._socket.ask(self._request, again=again)
            self._scheduler.call_later(RESEND_US, self._world, lambda: self._send(seq, again=True))

    def receive(self, frame: bytes) -> None:
        """A frame came in."""
        try:
            segment = read(frame, from_guest=True)
        except Damaged as damage:
            self._history.broken.append(f"client {self._number} got {damage}")
            return
        self._socket.hear(segment)

    def _hear(self, response: bytes) -> None:
        """A response; one that answers nothing open is only recorded."""
        seq = RESPONSE.unpack(response)[1]
        self._history.receptions.append(Reception(self._scheduler.now_us, self._number, seq, response))
        if self.waiting and seq == self._seq:
            self.waiting = False
            self._think()
