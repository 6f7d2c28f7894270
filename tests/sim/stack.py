"""The guest's TCP: one connection for each client, in the client's page. Two copies of it choose different numbers.

What is not acknowledged it sends again, when asked again or after a time. Like a real one it drops segments
that acknowledge what it has never sent, and connections that it does not know it resets.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from .frames import ACK, MOD, PSH, RST, SYN, Segment, after, is_older

_CONNECTION = struct.Struct(">HIIIIIB")
_SECRET = struct.Struct(">II")  # whether there is one, and what it is
CLOCKS_APART_MS = 1000  # by how much an echo may be off: two copies hear the same segment at different times

Write = Callable[[int, int, bytes], None]
Answer = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as it stands in RAM; `unacked` counts bytes of the last response."""

    port: int
    client_isn: int
    isn: int
    next: int  # the next number that we send
    expected: int  # the next number of the client
    recent: int  # the client's newest timestamp
    unacked: int

    @classmethod
    def of(cls, state: bytes) -> Connection:
        return cls(*_CONNECTION.unpack(state))

    @property
    def state(self) -> bytes:
        return _CONNECTION.pack(
            self.port, self.client_isn, self.isn, self.next, self.expected, self.recent, self.unacked
        )


class Stack:
    """What of a guest speaks TCP."""

    STATE_BYTES = _CONNECTION.size + 1  # so that what lies before it is whole words of 8 bytes

    def __init__(self, entropy: random.Random, write: Write, now_ms: Callable[[], int]) -> None:
        """`write(page, at, bytes)` writes RAM."""
        self._entropy, self._write, self._now_ms = entropy, write, now_ms

    def hear(
        self, segment: Segment, state: bytes, place: tuple[int, int], secret: bytes, answer: Answer
    ) -> list[Segment]:
        """Take in a segment of the client whose connection is `state`, at `place` in RAM; returns what is said."""
        connection, clock = Connection.of(state[: _CONNECTION.size]), self._clock(secret)
        assert segment.flags is not None
        if segment.flags & SYN:
            connection, said = self._open(segment, connection)
        elif segment.client_port != connection.port:
            return [Segment(segment.client_port, b"", RST, segment.ack, 0, clock, segment.value)]
        else:
            connection, said = self._hear_data(segment, connection, clock, answer)
        self._write(*place, connection.state)
        return [replace(one, value=clock, echo=connection.recent) for one in said]

    def again(self, state: bytes, secret: bytes, response: bytes) -> list[Segment]:
        """What the client of the connection `state` has not acknowledged of the last `response`."""
        connection = Connection.of(state[: _CONNECTION.size])
        if not connection.unacked:
            return []
        seq = (connection.next - connection.unacked) % MOD
        said = _segment(connection, seq, response[-connection.unacked :])
        return [replace(said, value=self._clock(secret), echo=connection.recent)]

    def _clock(self, secret: bytes) -> int:
        """The timestamp now, counted from a secret that is made when it is first needed."""
        exists, offset = _SECRET.unpack(secret)
        if not exists:
            offset = self._entropy.getrandbits(32)
            self._write(0, 0, _SECRET.pack(1, offset))
        return (self._now_ms() + int(offset)) % MOD

    def _open(self, segment: Segment, known: Connection) -> tuple[Connection, list[Segment]]:
        connection = known
        if known.port and is_older(segment.client_port, known.port):
            return connection, []  # a late copy, of a connection that is over
        if (known.port, known.client_isn) != (segment.client_port, segment.seq):
            isn = self._entropy.getrandbits(32)
            expected = (segment.seq + 1) % MOD
            connection = Connection(segment.client_port, segment.seq, isn, (isn + 1) % MOD, expected, segment.value, 0)
        elif known.expected != (segment.seq + 1) % MOD:
            return connection, []  # a late copy: the connection is in use
        return connection, [Segment(connection.port, b"", SYN | ACK, connection.isn, connection.expected)]

    def _hear_data(
        self, segment: Segment, connection: Connection, clock: int, answer: Answer
    ) -> tuple[Connection, list[Segment]]:
        plain = _segment(connection)
        if after(segment.ack, connection.next) > 0 or after(segment.echo, clock) > CLOCKS_APART_MS:
            return connection, [plain]  # nobody has said that: RFC 9293, 3.10.7.4; a wrong echo is as bad
        unacked = min(connection.unacked, max(0, after(connection.next, segment.ack)))
        connection = replace(connection, unacked=unacked)
        if not segment.payload:
            return connection, []
        if segment.seq == connection.expected:
            response = answer(segment.payload)
            recent = segment.value if after(segment.value, connection.recent) > 0 else connection.recent
            heard = replace(
                connection,
                expected=(connection.expected + len(segment.payload)) % MOD,
                recent=recent,
                next=(connection.next + len(response)) % MOD,
                unacked=len(response),
            )
            return heard, self._in_some_way(connection.next, response, heard)
        if after(segment.seq, connection.expected) < 0 and unacked:
            response = answer(segment.payload)[-unacked:]
            return connection, [_segment(connection, (connection.next - len(response)) % MOD, response)]
        return connection, [plain]

    def _in_some_way(self, seq: int, response: bytes, connection: Connection) -> list[Segment]:
        """The bytes are the answer; how they are cut, and when is acknowledged, is chance."""
        way = self._entropy.randrange(5) if response else 4
        if way in (0, 3):
            return [_segment(connection, seq, b""), _segment(connection, seq, response)]
        if way == 1:
            cut = self._entropy.randrange(1, len(response))
            second = _segment(connection, (seq + cut) % MOD, response[cut:])
            return [_segment(connection, seq, response[:cut]), second]
        return [_segment(connection, seq, response)]


def _segment(connection: Connection, seq: int | None = None, payload: bytes = b"") -> Segment:
    flags = ACK | PSH if payload else ACK
    return Segment(connection.port, payload, flags, connection.next if seq is None else seq, connection.expected)
