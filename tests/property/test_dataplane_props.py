"""Rules 1 and 2 against an oracle that knows nothing of sequence numbers; and no input makes anything raise."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.layers import locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.messages import is_link_control, message, whole_frame
from pycolo.core.packed import unpack
from pycolo.core.packet import (
    checksum_is_right,
    distance,
    parse_tcp,
    rewrite,
    timestamps,
)
from pycolo.core.secondary import SecondaryDataplane

F, S, R, A = 1, 2, 4, 16
GUEST, CLIENT, CLIENT_ISN = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]), 2**32 - 20
TOTAL = 24  # bytes each guest says, small enough that equal bytes at wrong places are common


def segment(
    source: bytes, ports: tuple[int, int], seq: int, ack: int, flags: int, payload: bytes = b"", options: bytes = b""
) -> bytes:
    target = CLIENT if source == GUEST else GUEST
    offset = (20 + len(options)) // 4 << 4
    body = struct.pack(">HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, offset, flags, 9, 0, 0) + options + payload
    pseudo = source + target + struct.pack(">HH", 6, len(body)) + body + b"\0" * (len(body) % 2)
    checksum = 0xFFFF - (sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo)) % 0xFFFF or 0xFFFF)
    body = body[:16] + struct.pack(">H", checksum) + body[18:]
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0x4000, 64, 6, 0, source, target)
    return bytes(12) + b"\x08\x00" + head + body


def udp(payload: bytes, port: int) -> bytes:
    body = struct.pack(">HHHH", 53, port, 8 + len(payload), 0) + payload
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0, GUEST, CLIENT)
    return bytes(12) + b"\x08\x00" + head + body


# ---------------------------------------------------------------- two guests, one client, and what they have said


@dataclass(frozen=True)
class Said:
    """One segment in the oracle's words: offsets in the stream, no sequence numbers."""

    kind: str  # "syn", "data", "ack", "fin", "rst"
    start: int
    payload: bytes
    ack: int  # bytes of the client acknowledged, its FIN one more


@dataclass
class Guest:
    """One VM's end of a connection."""

    isn: int
    stream: bytes
    port: int
    opened: bool = False
    sent: int = 0
    ack: int = 0
    ended: bool = False
    reset: bool = False

    def speak(self, what: int, size: int, client_sent: int) -> tuple[Said, bytes] | None:
        """Say the next thing; `what` and `size` choose."""
        if self.reset:
            return None
        if not self.opened:
            self.opened = True
            return self._frame(Said("syn", -1, b"", 0), S | A)
        if what % 3:
            self.ack = min(client_sent, self.ack + size % 7)
        if what % 11 == 10:
            self.reset = True
            return self._frame(Said("rst", self.sent, b"", self.ack), R | A)
        if what % 5 == 0:
            return self._frame(Said("ack", self.sent, b"", self.ack), A)
        if what % 5 == 1 and self.sent:
            start = size % self.sent
            return self._frame(Said("data", start, self.stream[start : min(self.sent, start + 9)], self.ack), A)
        if self.sent == len(self.stream):
            self.ended = True
            return self._frame(Said("fin", self.sent, b"", self.ack), F | A)
        start, self.sent = self.sent, min(len(self.stream), self.sent + 1 + size % 12)
        return self._frame(Said("data", start, self.stream[start : self.sent], self.ack), A)

    def _frame(self, said: Said, flags: int) -> tuple[Said, bytes]:
        seq = self.isn + 1 + said.start + (1 if self.ended and said.kind == "ack" else 0)
        return said, segment(GUEST, (8080, self.port), seq, CLIENT_ISN + 1 + said.ack, flags, said.payload)


@dataclass
class Knowledge:
    """What the SVM has said in this epoch, or is known to have in its state by the last commit."""

    opened: bool = False
    said: dict[int, int] = field(default_factory=dict)
    ack: int = -1
    fin_at: int | None = None
    reset: bool = False

    def hear(self, said: Said) -> None:
        self.opened |= said.kind == "syn"
        self.said.update(enumerate(said.payload, said.start))
        self.ack = max(self.ack, said.ack)
        self.fin_at = said.start if said.kind == "fin" else self.fin_at
        self.reset |= said.kind == "rst"

    def allows(self, said: Said, client_sent: int, *, client_gone: bool, pvm_reset: bool) -> bool:
        """The rules, as they stand in the design."""
        if client_gone:
            return True
        has_all_data = self.ack >= client_sent
        if any(self.said.get(at) != byte for at, byte in enumerate(said.payload, said.start)):
            return False
        if said.kind == "rst":
            return self.reset or (self.fin_at is not None and has_all_data)
        if said.ack > self.ack and not (self.reset and (has_all_data or pvm_reset)):
            return False
        ends_alike = self.fin_at == said.start or (self.reset and pvm_reset and self.fin_at is None)
        return {"syn": self.opened, "fin": ends_alike}.get(said.kind, True)


class World:
    """One connection through the primary's data plane; every release is checked as it happens."""

    def __init__(
        self, isns: tuple[int, int], streams: tuple[bytes, bytes], port: int, opened: bool, *, lossy: bool = False
    ) -> None:
        self.plane = PrimaryDataplane(DataplaneLimits(), 1)
        self.opened, self.port, self.lossy = opened, port, lossy
        self.pvm = Guest(isns[0], streams[0], port, opened)
        self.svm = Guest(isns[0] if opened else isns[1], streams[1], port, opened)
        self.heard = Knowledge(opened=opened)
        self.produced: list[tuple[Said, bytes]] = []
        self.left = 0
        self.client_sent, self.client_gone = 0, False
        self.now_ms = 0.0
        self.at_seal: tuple[Guest, int] | None = None

    def pvm_speaks(self, what: int, size: int) -> None:
        spoken = self.pvm.speak(what, size, self.client_sent)
        if spoken is not None:
            self.produced.append(spoken)
            self.check(self.plane.pvm_frames([spoken[1]], self.now_ms))

    def svm_speaks(self, what: int, size: int) -> None:
        spoken = self.svm.speak(what, size, self.client_sent)
        if spoken is None:
            return
        if self.lossy and size % 8 == 0:
            return
        if self.at_seal is None:
            self.heard.hear(spoken[0])
            self.check(self.plane.svm_frames(self.plane.epoch, 0, [spoken[1]], self.now_ms))
        else:  # it doesn't know of the checkpoint yet
            assert self.plane.svm_frames(self.plane.epoch - 1, 0, [spoken[1]], self.now_ms) == []

    def client_speaks(self, size: int) -> None:
        start, self.client_sent = self.client_sent, self.client_sent + size % 8
        payload = bytes(self.client_sent - start)
        has = max((said.start + len(said.payload) for said, _ in self.produced[: self.left]), default=0)
        ack = min(size % (TOTAL + 1), max(has, 0))
        frame = segment(CLIENT, (self.port, 8080), CLIENT_ISN + 1 + start, self.pvm.isn + 1 + ack, A, payload)
        if self.left and (self.opened or self.left > 1):
            self.client_gone = False
            assert self.plane.client_frames([frame], self.now_ms) == []
        else:
            self.client_sent = start

    def client_resets(self, by: int) -> None:
        """As one that has closed, as one that was asked what it knows nothing of, or as somebody who forges it."""
        if not self.left or self.client_gone or not (self.opened or self.left > 1):
            return
        asked, asks = self.produced[self.left - 1][0].ack, max(said.ack for said, _ in self.produced)
        place = (asks, asked, by % (self.client_sent + 20))[by % 3]
        self.client_gone = place in (asks, asked)
        frame = segment(CLIENT, (self.port, 8080), CLIENT_ISN + 1 + place, 0, R, b"")
        self.check(self.plane.client_frames([frame], self.now_ms))

    def check(self, out: list[bytes]) -> None:
        """What leaves is what comes next in the PVM's order, and the rules allow it."""
        for frame in out:
            said, expected = self.produced[self.left]
            assert frame == expected
            gone, reset = self.client_gone, self.pvm.reset
            allowed = self.heard.allows(said, self.client_sent, client_gone=gone, pvm_reset=reset)
            assert allowed, (said, self.heard)
            self.left += 1

    def seal(self) -> None:
        """The PVM is copied."""
        assert self.plane.seal(self.plane.epoch + 1) >= 0
        copy = Guest(**vars(self.pvm))
        self.at_seal = copy, len(self.produced)

    def commit(self) -> None:
        """The SVM is the copy; what was sealed leaves, and then the rules hold again."""
        if self.at_seal is None:
            return
        self.svm, sealed = self.at_seal
        self.at_seal = None
        self.heard = Knowledge(opened=self.svm.opened, ack=self.svm.ack if sealed else -1, reset=False)
        for said, _ in self.produced[:sealed]:
            self.heard.hear(said)
        out = self.plane.commit(self.plane.epoch, self.now_ms)
        by_commit = sealed - self.left
        assert out[:by_commit] == [frame for _, frame in self.produced[self.left : sealed]]
        self.left = sealed
        self.check(out[by_commit:])

    def step(self, op: int, what: int, size: int) -> None:
        self.now_ms += 1
        if op < 4:
            self.pvm_speaks(what, size)
        elif op < 8:
            self.svm_speaks(what, size)
        elif op < 10:
            self.client_speaks(size)
        elif op == 11:
            self.client_resets(what)
        elif what % 3 == 0:
            self.seal()
        else:
            self.commit()


numbers = st.integers(0, 2**16)
steps = st.lists(st.tuples(st.integers(0, 11), numbers, numbers), max_size=80)
near = st.integers(-40, 40)
streams = st.binary(min_size=TOTAL, max_size=TOTAL).map(lambda drawn: bytes(each & 1 for each in drawn))


@settings(max_examples=400)
@given(
    st.integers(0, 2**32 - 1), near, streams, st.integers(0, TOTAL), st.booleans(), st.booleans(), st.booleans(), steps
)
def test_nothing_leaves_that_the_svm_has_not_said(
    isn: int,
    apart: int,
    stream: bytes,
    differs_at: int,
    opened: bool,
    shifted: bool,
    lossy: bool,
    script: list[tuple[int, int, int]],
) -> None:
    other = stream[:differs_at] + (
        stream[differs_at + 1 :] if shifted else bytes(1 ^ each for each in stream[differs_at:])
    )
    world = World((isn, (isn + apart) % 2**32), (stream, other), 999, opened, lossy=lossy)
    for step in script:
        world.step(*step)
    world.commit()
    world.seal()
    world.commit()
    assert world.left == len(world.produced), "a committed checkpoint releases everything, once and in order"
    assert world.plane.stats.held_frames == world.plane.stats.held_bytes == 0


@settings(max_examples=300)
@given(st.integers(0, 2**32 - 1), near, streams, st.booleans(), steps)
def test_equal_streams_are_released_without_divergence(
    isn: int, apart: int, stream: bytes, opened: bool, script: list[tuple[int, int, int]]
) -> None:
    world = World((isn, (isn + apart) % 2**32), (stream, stream), 999, opened)
    if opened:  # both come from the same checkpoint and begin where it stands
        world.svm_speaks(2, 0)
        world.pvm_speaks(2, 0)
    for op, what, size in script:
        world.step(op % 11, what if what % 11 != 10 else what + 1, size)  # no resets
    world.commit()
    for guest in (world.pvm_speaks, world.svm_speaks):
        for _ in range(TOTAL + 5):
            guest(2, 0)  # the rest of the stream, and the FIN
    world.svm.ack = world.client_sent
    world.svm_speaks(0, 0)
    assert world.plane.stats.diverged == 0
    assert world.left == len(world.produced)
    assert world.plane.next_due_ms(0) is None


# ---------------------------------------------------------------- datagrams


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2), st.integers(0, 2)), max_size=40), st.integers(0, 40))
def test_datagrams_leave_only_with_a_twin_at_the_same_place(script: list[tuple[bool, int, int]], seal_at: int) -> None:
    plane = PrimaryDataplane(DataplaneLimits(), 1)
    said: dict[int, list[bytes]] = {1: [], 2: []}
    produced: dict[int, list[bytes]] = {1: [], 2: []}
    left: dict[int, list[bytes]] = {1: [], 2: []}
    for i, (is_pvm, port, letter) in enumerate(script):
        frame = udp(bytes([letter]), port)
        if is_pvm:
            produced[port].append(frame)
            out = plane.pvm_frames([frame], i)
        else:
            said[port].append(frame)
            out = plane.svm_frames(plane.epoch, i, [frame], i)
        for each in out:
            where = int.from_bytes(each[36:38])
            left[where].append(each)
            assert said[where][len(left[where]) - 1] == each
        if i == seal_at:
            plane.seal(2)
            held = plane.commit(2)
            for each in held:
                left[int.from_bytes(each[36:38])].append(each)
            said = {port: list(left[port]) for port in (1, 2)}
            assert left == produced
    for port in (1, 2):
        assert left[port] == produced[port][: len(left[port])]
    assert len(plane.take_confirmations()) == plane.stats.released_equal


# ---------------------------------------------------------------- translation


@settings(max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 1000),
    st.integers(0, 50),
    st.lists(st.integers(1, 30), min_size=1, max_size=10),
    st.integers(0, 10),
)
def test_the_clients_view_is_one_stream(
    pvm_isn: int, svm_isn: int, pvm_clock: int, svm_clock: int, behind_ms: int, acked: int, sizes: list[int], split: int
) -> None:
    """The client has had `acked` bytes of the PVM when it dies; the survivor sends its stream in pieces of `sizes`."""
    plane = SecondaryDataplane(DataplaneLimits())

    def stamps(value: int, echo: int) -> bytes:
        return b"\x01\x01\x08\x0a" + struct.pack(">II", value % 2**32, echo % 2**32)

    def of_svm(seq: int, payload: bytes, clock: int, flags: int = A) -> bytes:
        frame_stamps = stamps(svm_clock + clock, 7)
        return segment(GUEST, (80, 999), svm_isn + seq, CLIENT_ISN + 1, flags, payload, frame_stamps)

    def of_client(ack: int, echo: int) -> bytes:
        return segment(CLIENT, (999, 80), CLIENT_ISN + 1, pvm_isn + ack, A, b"", stamps(9, echo))

    stream = bytes(range(256))
    plane.svm_frames([of_svm(0, b"", 0, S | A)], 0)
    plane.client_frames([of_client(1, pvm_clock or 1)])
    sent: list[bytes] = []
    at = 1
    for i, size in enumerate(sizes):
        sent.append(of_svm(at, stream[at - 1 : at - 1 + size], 100 + i))
        at += size
    before, after = sent[:split], sent[split:]
    plane.svm_frames(before, 1)
    newest = pvm_clock + 100 + behind_ms
    first_unacked = min(1 + acked, 1 + sum(sizes[:split]))
    plane.client_frames([of_client(first_unacked, newest)])
    shown = plane.take_over() + plane.translator.outbound(after)
    has, value = first_unacked, newest % 2**32
    for frame in shown:
        parsed = parse_tcp(frame)
        assert parsed is not None
        _, seq, _, _, head, start, end = parsed
        assert checksum_is_right(frame, head, end)
        place = distance(seq, (pvm_isn + 1) % 2**32)
        assert frame[start:end] == stream[place : place + end - start]
        assert place + 1 <= has, "no gap"
        has = max(has, place + 1 + end - start)
        found = timestamps(frame, head, start)
        assert found is not None
        assert distance(found[0], value) >= 0, "PAWS"
        value = found[0]
    assert has == max(first_unacked, at)
    (back,) = plane.translator.inbound([of_client(at, value)])
    parsed = parse_tcp(back)
    assert parsed is not None
    assert checksum_is_right(back, parsed[4], parsed[6])
    assert parsed[2] == (svm_isn + at) % 2**32
    echoed = timestamps(back, parsed[4], parsed[5])
    if shown and echoed is not None and value:
        assert echoed[0] == 9
        assert echoed[1] == (svm_clock + 100 + len(sizes) - 1) % 2**32


# ---------------------------------------------------------------- any input


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A frame that was right once."""
    flags = draw(st.sampled_from([A, S, S | A, R, R | A, F | A, A | 32, 0, 255]))
    options = draw(st.sampled_from([b"", b"\x01\x01\x08\x0a" + bytes(8), b"\x05\x0a" + bytes(10), b"\x08\x04\x03\x09"]))
    source = draw(st.sampled_from([GUEST, CLIENT]))
    ports = (80, 999) if source == GUEST else (999, 80)
    small = st.integers(-3, 40)
    frame = bytearray(segment(source, ports, draw(small), draw(small), flags, draw(st.binary(max_size=9)), options))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=3)):
        if at < len(frame):
            frame[at] = value
    return bytes(frame[: draw(st.integers(0, 100))]) if draw(st.integers(0, 3)) == 0 else bytes(frame)


frames = st.one_of(st.binary(max_size=90), mangled(), mangled())
tiny = DataplaneLimits(held_frames_max=8, flows_max=2, stream_bytes_max=16, unreleased_bytes_max=40, datagrams_max=2)


@settings(max_examples=300)
@given(frames)
def test_no_bytes_make_a_parser_raise(frame: bytes) -> None:
    is_link_control(frame, locate(frame))
    for key, comparable, payload_at in filter(None, (message(frame, locate(frame)), whole_frame(frame))):
        assert payload_at <= len(comparable) <= len(frame)
        assert key
    parsed = parse_tcp(frame)
    if parsed is not None:
        _, _, _, _, at, start, end = parsed
        assert 34 <= at <= start - 20 <= end - 20 <= len(frame) - 20
        timestamps(frame, at, start)
        changed = rewrite(frame, at, start, end, seq_add=3, ack_add=2**32 - 1, value_add=-5, echo_add=7)
        assert len(changed) == len(frame)
        assert (
            rewrite(changed, at, start, end, seq_add=-3, ack_add=1, value_add=5, echo_add=-7)[: at + 16]
            == frame[: at + 16]
        )


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 9), st.lists(frames, max_size=4)), max_size=30), st.booleans())
def test_no_bytes_make_the_primary_raise_nor_lose_a_frame(script: list[tuple[int, list[bytes]]], small: bool) -> None:
    plane = PrimaryDataplane(tiny if small else DataplaneLimits(), 1)
    given_frames: list[bytes] = []
    left: list[bytes] = []
    for now_ms, (op, batch) in enumerate(script):
        if op < 4:
            given_frames += batch
            left += plane.pvm_frames(batch, now_ms)
        elif op < 7:
            left += plane.svm_frames(plane.epoch, now_ms * 10, batch, now_ms)
        elif op == 7:
            left += plane.client_frames(batch, now_ms)
        elif op == 8:
            plane.seal(plane.epoch + 1)
        else:
            left += plane.commit(plane.epoch)
        held = len(given_frames) - len(left)
        assert plane.stats.held_frames == held
        assert 0 <= plane._budget.used_bytes <= (40 if small else 2**30) or held
        plane.due(now_ms)
        plane.next_due_ms(now_ms)
    left += plane.go_solo()
    assert sorted(left) == sorted(given_frames)
    assert plane.stats.held_frames == plane.stats.held_bytes == 0


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 5), st.lists(frames, max_size=4)), max_size=30), st.booleans())
def test_no_bytes_make_the_secondary_raise(script: list[tuple[int, list[bytes]]], small: bool) -> None:
    plane = SecondaryDataplane(tiny if small else DataplaneLimits())
    taken_over = False
    given, fed = list[int](), list[int]()  # lengths: what is beyond the SVM's window is fed later
    for no, (op, batch) in enumerate(script):
        if op == 5:
            plane.take_over()
            taken_over = True
            fed += map(len, unpack(plane.take_freed()))
            assert sorted(fed) == sorted(given)
        elif taken_over:
            assert len(plane.translator.inbound(batch)) == len(plane.translator.outbound(batch)) == len(batch)
        elif op < 2:
            given += map(len, batch)
            fed += map(len, plane.client_frames(batch))
            fed += map(len, unpack(plane.take_freed()))
        elif op < 4:
            plane.svm_frames(batch, no * 10)
        else:
            plane.confirm(range(no * 10))
        assert not small or len(plane.translator.connections) <= 2
    assert all(low <= high for low, high in pairwise([0, len(plane.take_over()), 10**6]))
