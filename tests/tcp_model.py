"""A small TCP (RFC 9293, 7323, 2018): enough to notice when a number, timestamp or SACK is not one of its own.

Both the guest's copies and the client are a `Stack`. It raises AssertionError at what a real one would drop for ever.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pycolo.core.fragments import Reassembly
from pycolo.core.layers import Layers, locate
from pycolo.core.packet import ACK, SYN, checksum_is_right, distance, parse_tcp, timestamps

MOD = 2**32
WINDOW = 1 << 16
FIRST_PIECE_BYTES = 64
SYN_AGAIN_MS = 1000  # RFC 6298, 2.1
CLOCKS_APART_MS = 4000  # by how much an echo may be off: lag between copies, and between repeated SYNs


def _sum(data: bytes) -> int:
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    return 0xFFFF - (sum(words) % 0xFFFF or 0xFFFF)


@dataclass(frozen=True)
class Link:
    """How the segments of one connection are put into frames."""

    version: int = 4
    vids: tuple[int, ...] = ()
    client_port: int = 40_000

    def frame(
        self, from_guest: bool, seq: int, ack: int, flags: int, payload: bytes = b"", options: bytes = b""
    ) -> bytes:
        """One segment with the right checksum."""
        size = 4 if self.version == 4 else 16
        guest, client = bytes(size - 1) + b"\x02", bytes(size - 1) + b"\x01"
        source, target = (guest, client) if from_guest else (client, guest)
        ports = (80, self.client_port) if from_guest else (self.client_port, 80)
        offset = (20 + len(options)) // 4 << 4
        body = struct.pack(">HHIIBBHHH", *ports, seq % MOD, ack % MOD, offset, flags, 65_000, 0, 0) + options + payload
        pseudo = source + target + struct.pack(">II", len(body), 6)
        body = body[:16] + _sum(pseudo + body).to_bytes(2) + body[18:]
        if self.version == 4:
            kind, head = b"\x08\x00", struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0x4000, 64, 6, 0)
        else:
            kind, head = b"\x86\xdd", struct.pack(">IHBB", 0x60000000, len(body), 6, 64)
        tags = b"".join(b"\x81\x00" + vid.to_bytes(2) for vid in self.vids)
        return bytes([from_guest]) * 12 + tags + kind + head + source + target + body


def error(frame: bytes, layers: Layers) -> bytes:
    """What a router says about a packet with these layers that is too big for its way, to who sent it."""
    ip, source = layers.ip, layers.addresses(frame)[: 4 if layers.version == 4 else 16]
    quoted = frame[ip : min(layers.end, ip + 200)]
    router = bytes(len(source) - 1) + b"\xfe"
    if layers.version == 4:
        body = struct.pack(">BBHHH", 3, 4, 0, 0, 1400) + quoted
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, 64, 1, 0) + router + source
        return frame[:ip] + head + body[:2] + _sum(body).to_bytes(2) + body[4:]
    body = struct.pack(">BBHI", 2, 0, 0, 1280) + quoted
    pseudo = router + source + struct.pack(">II", len(body), 58)
    body = body[:2] + _sum(pseudo + body).to_bytes(2) + body[4:]
    return frame[:ip] + struct.pack(">IHBB", 0x60000000, len(body), 58, 64) + router + source + body


def in_two(frame: bytes, layers: Layers, ident: int) -> list[bytes]:
    """A packet without options or extension headers as two fragments, of which the first has the whole TCP header."""
    ip, upper, cut = layers.ip, layers.upper, layers.upper + FIRST_PIECE_BYTES
    pieces = []
    for place, end in ((upper, cut), (cut, layers.end)):
        more, body = end < layers.end, frame[place:end]
        head = bytearray(frame[:upper])
        if layers.version == 4:
            struct.pack_into(">HHH", head, ip + 2, 20 + len(body), ident, more << 13 | (place - upper) // 8)
        else:
            struct.pack_into(">HB", head, ip + 4, 8 + len(body), 44)
            head += struct.pack(">BBHI", 6, 0, place - upper | more, ident)
        pieces.append(bytes(head) + body)
    return pieces


def as_one(pieces: list[bytes]) -> bytes:
    """The packet that these fragments make."""
    together: Reassembly[int] = Reassembly()
    for number, piece in enumerate(pieces):
        layers = locate(piece)
        assert layers is not None
        whole = together.add(number, piece, layers)
    assert whole is not None
    return whole.frame


@dataclass(frozen=True)
class Said:
    """A segment as it was heard."""

    seq: int
    ack: int
    flags: int
    payload: bytes
    value: int
    echo: int
    sacks: tuple[int, ...]


def heard(frame: bytes) -> Said:
    """The segment in `frame`, whose checksum has to be right."""
    segment = parse_tcp(frame)
    assert segment is not None
    _, seq, ack, flags, at, start, end = segment
    assert checksum_is_right(frame, at, end)
    stamps = timestamps(frame, at, start)
    assert stamps is not None
    edges = frame[at + 36 : start]  # behind NOP, NOP, timestamps and NOP, NOP, SACK, length
    return Said(seq, ack, flags, frame[start:end], *stamps, struct.unpack(f">{len(edges) // 4}I", edges))


@dataclass
class Stack:
    """One end. Own numbers count from its ISN (0 is the SYN), the peer's from the peer's."""

    link: Link
    is_guest: bool
    isn: int
    clock: int  # its timestamp at time 0
    stream: bytes
    expected: bytes
    peer_isn: int | None = None
    next: int = 0
    acked: int = 0
    heard_to: int = 0  # the next byte of the peer
    apart: dict[int, bytes] = field(default_factory=dict)  # behind a gap
    first_value: int | None = None
    last_value: int = 0
    recent: int = 0
    last_ack_sent: int = 0
    opened_behind: bool = False  # its peer's opening came again with an older timestamp: a survivor's answer to a SYN
    opened_at: int | None = None  # by its own clock, which its timers go by: a copy that is behind repeats later

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done."""
        return self.acked > 0 and self.heard_to > 0

    @property
    def is_done(self) -> bool:
        """Everything is said, acknowledged and heard."""
        return self.acked == len(self.stream) + 1 and self.heard_to == len(self.expected) + 1

    # ---------------------------------------------------------------- speaking

    def _say(self, place: int, payload: bytes, flags: int, now_ms: int) -> bytes:
        value = (self.clock + now_ms) % MOD
        self.first_value = value if self.first_value is None else self.first_value
        self.last_value = value
        ack = 0
        if self.peer_isn is not None:
            flags, ack = flags | ACK, self.peer_isn + self.heard_to
            self.last_ack_sent = self.heard_to
        options = b"\x01\x01\x08\x0a" + struct.pack(">II", value, self.recent)
        if self.apart and flags & ACK:
            start = min(self.apart)
            edges = (self.peer_isn or 0) + start, (self.peer_isn or 0) + start + len(self.apart[start])
            options += b"\x01\x01\x05\x0a" + struct.pack(">II", edges[0] % MOD, edges[1] % MOD)
        return self.link.frame(self.is_guest, self.isn + place, ack, flags, payload, options)

    def open(self, now_ms: int) -> bytes:
        """The SYN or SYN-ACK, maybe again."""
        self.next, self.opened_at = max(self.next, 1), self.clock + now_ms
        return self._say(0, b"", SYN, now_ms)

    def speak(self, size: int, now_ms: int) -> bytes | None:
        """The next bytes of its stream."""
        payload = self.stream[self.next - 1 : self.next - 1 + size]
        if not self.is_open or not payload or self.next - self.acked > WINDOW // 2:
            return None
        place, self.next = self.next, self.next + len(payload)
        return self._say(place, payload, 0, now_ms)

    def again(self, now_ms: int) -> bytes | None:
        """What is not acknowledged, once more."""
        if self.next == 0 or self.acked == self.next:
            return self._say(self.next, b"", 0, now_ms) if self.is_open else None
        if self.acked == 0:
            is_due = self.opened_at is not None and self.clock + now_ms - self.opened_at >= SYN_AGAIN_MS
            return self.open(now_ms) if is_due else None
        return self._say(self.acked, self.stream[self.acked - 1 : self.next - 1][:1000], 0, now_ms)

    # ---------------------------------------------------------------- hearing

    def hear(self, frame: bytes, now_ms: int) -> bytes | None:
        """Take in a segment; returns the answer to it."""
        said = heard(frame)
        if said.flags & ACK:
            self._check_echo(said)
            place = distance(said.ack, self.isn % MOD)
            assert 0 < place <= self.next, "an acknowledgement of what was never said"
            self.acked = max(self.acked, place)
            assert all(0 < distance(edge, self.isn % MOD) <= self.next for edge in said.sacks), "SACK of other numbers"
        if said.flags & SYN:
            return self._hear_syn(said, now_ms)
        if self.peer_isn is None:
            return None
        return self._hear_data(said, now_ms)

    def _check_echo(self, said: Said) -> None:
        assert self.first_value is not None
        assert distance(said.echo, self.first_value) >= -CLOCKS_APART_MS, "an echo of what was never said"
        assert distance(said.echo, self.last_value) <= CLOCKS_APART_MS, "an echo from the future"

    def _hear_syn(self, said: Said, now_ms: int) -> bytes | None:
        if self.peer_isn is None:
            self.peer_isn, self.heard_to, self.recent = said.seq, 1, said.value
        if said.seq != self.peer_isn:
            # The survivor's repeated SYN-ACK in its own numbers: the client answers with what it knows.
            assert not self.is_guest
        self.opened_behind |= distance(said.value, self.recent) < 0
        return self.open(now_ms) if self.acked == 0 else self._say(self.next, b"", 0, now_ms)

    def _hear_data(self, said: Said, now_ms: int) -> bytes | None:
        assert self.peer_isn is not None
        place = distance(said.seq, self.peer_isn)
        end = place + len(said.payload)
        assert 0 < place <= self.heard_to + WINDOW, "out of the window"
        assert self.expected[place - 1 : end - 1] == said.payload, "another stream"
        if distance(said.value, self.recent) < 0:
            assert end <= self.heard_to or self.opened_behind, "PAWS drops what the client needs"
            return None
        if place <= self.last_ack_sent:
            self.recent = said.value
        if said.payload:
            self._take(place, said.payload)
            return self._say(self.next, b"", 0, now_ms)
        return None

    def _take(self, place: int, payload: bytes) -> None:
        if place > self.heard_to:
            self.apart[place] = max(payload, self.apart.get(place, b""), key=len)
        self.heard_to = max(self.heard_to, place + len(payload)) if place <= self.heard_to else self.heard_to
        for start in sorted(self.apart):
            if start <= self.heard_to:
                self.heard_to = max(self.heard_to, start + len(self.apart.pop(start)))
