"""Targets for whole data planes: the compiled side and its Python twin get the same, and must agree after each step."""

from __future__ import annotations

import socket
from contextlib import suppress
from types import ModuleType

from dataplane_twins import HTTP, SACK, STAMPS, STREAM, TINY, A, F, R, S, U, agree, both, by_flow, response
from dataplane_twins import opened as opened_connection
from dataplane_twins import segment as segment_of
from pycolo.core import engines
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.hot_dataplane import HotDataplane
from pycolo.core.hot_windows import HotReceiveWindows
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import measure_in_python, pack, unpack
from pycolo.core.receive_windows import ReceiveWindows, Windows
from pycolo.core.translation import Translator
from pycolo.core.translation_chain import TranslatorChain
from pycolo.core.wire import Translations, decode_control
from pycolo.edge import frames_io, frames_twin
from pycolo.errors import PeerViolation
from secondary_speaker import CLOCK, LINKS, NUMBERS, Speaker, opened
from secondary_speaker import TINY as TINY_SECONDARY
from secondary_twins import SecondaryTwins

from .reader import Reader

STEPS_MAX = 200
assert engines.COMPILED, "without compiled code these targets compare the twins with themselves"
_CONNECTIONS = [(1000, False), (1001, False), (1000, True), (HTTP, False)]
_FLAGS = [A] * 9 + [A | 8, S | A, A | F, R | A, R, A | U, S]
_OPTIONS = [b"", STAMPS, SACK, b"\x1e\x04\0\0", b"\1\1\1\1", b"\x13\x12" + bytes(18), b"\x08\x06\0\0\0\0\1\1"]
_EVENTS = ["seal", "commit", "solo", "hold"]


class _Primaries:
    """Both primaries, and what came to them and left."""

    def __init__(self, tiny: bool, seed: int) -> None:
        limits = TINY if tiny else DataplaneLimits()
        self.twin, self.hot = PrimaryDataplane(limits, 1), HotDataplane(limits, 1, seed=seed)
        self._now_ms, self._no, self._given, self._left = 0.0, 0, 0, 0

    def step(self, step: object) -> None:
        ours, theirs = both(self.twin, self.hot, step, self._no, self._now_ms)
        if isinstance(step, list):
            self._no += len(step)
            self._given += sum(side == 0 for side, _ in step)
        self._left += len(theirs)
        assert by_flow(ours) == by_flow(theirs)
        assert self._given - self._left == self.hot.stats.held_frames
        agree(self.twin, self.hot, self._now_ms)

    def packed(self, side: int, data: bytes) -> None:
        """A batch as it came, cut anywhere; the twin gets the frames that are whole in it."""
        frames, twin, hot = unpack(data), self.twin, self.hot
        view = memoryview(data)
        if side == 0:
            self._given += len(frames)
            ours, theirs = twin.pvm_frames(frames, self._now_ms), unpack(hot.pvm_packed(view, self._now_ms))
        elif side == 1:
            view = view if frames else view[:0]  # the channel lets no batch without a whole frame through
            ours = twin.svm_frames(twin.epoch, self._no, frames, self._now_ms)
            theirs = unpack(hot.svm_packed(hot.epoch, self._no, view, self._now_ms))
            self._no += len(frames)
        else:
            ours, theirs = twin.client_frames(frames, self._now_ms), unpack(hot.client_packed(view, self._now_ms))
        self._left += len(theirs)
        assert by_flow(ours) == by_flow(theirs)
        assert self._given - self._left == hot.stats.held_frames
        agree(twin, hot, self._now_ms)

    def wait(self, ms: int) -> None:
        self._now_ms += ms


def _said(reader: Reader) -> tuple[int, bytes]:
    """(side, frame) of one of a few connections."""
    side = reader.number() % 3
    port, six = reader.choice(_CONNECTIONS)
    isn = 2**32 - 7 if side == 1 and reader.flag() else 100
    start, length, flags, options = (
        reader.number() % 64,
        reader.number(),
        reader.choice(_FLAGS),
        reader.choice(_OPTIONS),
    )
    payload = STREAM[start : start + length % 40]
    if port == HTTP:
        whole = response(start % 31, side)
        payload, start = whole[: length * 4], (start % 31) * len(whole)
    elif length >= 200:
        start, payload = start * 50, STREAM * (length - 199)
    if length & 7 == 7 and payload:
        payload = payload[:-1] + bytes([payload[-1] ^ 1])
    client_at = reader.number() % 16
    if side == 2:
        return side, segment_of(six, False, port, 5000 + client_at, 101 + start, flags, payload, options)
    seq = isn if flags & S else isn + 1 + start
    return side, segment_of(six, True, port, seq, 5001 + client_at, flags, payload, options)


def dataplane(data: bytes) -> None:
    """A few connections whose segments the bytes choose."""
    reader = Reader(data)
    planes = _Primaries(reader.flag(), reader.number())
    begun = reader.number()
    for number, which in enumerate(_CONNECTIONS):
        if begun >> number & 1:
            planes.step(opened_connection(*which))
    for _ in range(STEPS_MAX):
        if not reader:
            break
        what = reader.number()
        if what < 200:
            planes.step([_said(reader) for _ in range(what % 6 + 1)])
        elif what < 216:
            planes.step(_EVENTS[what % 4])
        else:
            planes.wait(reader.number(2))


def dataplane_raw(data: bytes) -> None:
    """Batches of any bytes."""
    reader = Reader(data)
    planes = _Primaries(reader.flag(), reader.number())
    for _ in range(STEPS_MAX):
        if not reader:
            break
        what = reader.number()
        if what < 200:
            planes.packed(what % 3, reader.piece())
        elif what < 216:
            planes.step(_EVENTS[what % 4])
        else:
            planes.wait(reader.number(2))


def secondary(data: bytes) -> None:
    """A few connections; whose segments, a generator of numbers says that begins with a seed out of the bytes."""
    reader = Reader(data)
    numbers, tiny, rest = reader.choice(NUMBERS), reader.flag(), reader.number() % 4
    planes, no = SecondaryTwins(TINY_SECONDARY if tiny else DataplaneLimits(), 2**64 - 1 - rest), 0
    for _ in range(reader.number() % 7):
        syn_ack, answer = opened(reader.choice(LINKS), numbers, reader.choice([None, CLOCK, 0]))
        planes.svm_frames([syn_ack], no)
        planes.client_frames([answer])
        no += 1
    for _ in range(STEPS_MAX):
        if not reader:
            break
        what, seed = reader.number() % 16, reader.number(2)
        frames = Speaker(numbers, seed).batch(what < 6)
        if what < 6:
            planes.svm_packed(pack(frames) + bytes(rest), no)
            no += len(frames)
        elif what < 12:
            planes.client_packed(pack(frames) + bytes(rest))
        else:
            _happens(planes, what, no, frames)
        planes.agree()
    planes.take_over()


def secondary_raw(data: bytes) -> None:
    """Batches of any bytes; a client's connection gets offsets now and then, so that something is translated."""
    reader = Reader(data)
    planes, no = SecondaryTwins(TINY_SECONDARY if reader.flag() else DataplaneLimits(), reader.number()), 0
    for _ in range(STEPS_MAX):
        if not reader:
            break
        what, batch = reader.number() % 16, reader.piece()
        if what < 6:
            planes.svm_packed(batch, no)
            no += len(unpack(batch))
        elif what < 11:
            planes.client_packed(batch)
        elif what == 11:
            for frame in unpack(batch):
                planes.know(frame, 0x89ABCDEF, 0x13579BDF)
        else:
            _happens(planes, what, no, unpack(batch))
        planes.agree()
    planes.take_over()


def _happens(planes: SecondaryTwins, what: int, no: int, frames: list[bytes]) -> None:
    if what == 12:
        planes.confirm([no - 1, no - 3, no + 9])
    elif what == 13:
        planes.loaded()
    else:
        planes.take_over()
        twin, hot = planes.twin.translator, planes.hot.translator
        assert twin.outbound(frames) == hot.outbound(frames)
        assert twin.inbound(frames) == hot.inbound(frames)


def windows(data: bytes) -> None:
    """Which of the clients' frames wait for the SVM's window."""
    reader = Reader(data)
    flows_max, bytes_max = reader.choice([1, 2, 5]), reader.choice([500, 10_000])
    twin, hot = ReceiveWindows(Windows(flows_max, bytes_max)), HotReceiveWindows(flows_max, bytes_max, seed=7)
    for _ in range(STEPS_MAX):
        if not reader:
            break
        what = reader.number() % 8
        if what == 0:
            for each in (twin, hot):
                each.loaded()
        elif what == 1:
            for each in (twin, hot):
                each.give_up()
        elif what < 5:
            batch = reader.piece()
            assert unpack(twin.client_packed(batch)) == unpack(hot.client_packed(memoryview(batch)))
        else:
            batch = reader.piece()
            twin.svm_packed(batch)
            hot.svm_packed(memoryview(batch))
        assert unpack(twin.take_freed()) == unpack(hot.take_freed())


def translation(data: bytes) -> None:
    """What a survivor translates, with what its peer says of that: one for one, and of the same length."""
    reader = Reader(data)
    chain, now_ms = TranslatorChain(3, 5000), 0.0
    for _ in range(STEPS_MAX):
        if not reader:
            break
        what, piece = reader.number() % 8, reader.piece()
        now_ms += what
        if what < 3:
            frames = unpack(piece)
            assert list(map(len, chain.inbound(frames))) == list(map(len, frames))
        elif what < 6:
            frames = unpack(piece)
            assert list(map(len, chain.outbound(frames))) == list(map(len, frames))
        elif what == 6:
            with suppress(PeerViolation):
                said = decode_control(piece)
                if isinstance(said, Translations):
                    chain.adopt(said, now_ms)
        else:
            _told(chain, now_ms, whole=bool(piece))
            if len(piece) > 3 and len(chain) < 8:
                chain.push(Translator(3, 5000), now_ms)


def _told(chain: TranslatorChain, now_ms: float, *, whole: bool) -> None:
    """What a new secondary is told it can take, and tell in the same words."""
    said = chain.whole(now_ms) if whole else chain.changes()
    if whole:
        other = TranslatorChain(3, 5000)
        for each in said:
            other.adopt(each, now_ms)
        assert len(other) == len(chain)


# ---------------------------------------------------------------- frames through descriptors


class _Ends:
    """Socket pairs for both ways, made once; `kept_bytes` is far below what they hold."""

    def __init__(self) -> None:
        self.pairs = {
            kind: socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
        }
        for pair in self.pairs.values():
            for end in pair:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
                end.setblocking(False)


_ends: list[_Ends] = []


def descriptors(data: bytes) -> None:
    """Frames into sockets and out of them, compiled and in Python."""
    if not _ends:
        _ends.append(_Ends())
    outcomes = [_through(way, other, data) for way, other in ((frames_io, frames_twin), (frames_twin, frames_io))]
    assert outcomes[0] == outcomes[1]


def _through(way: ModuleType, other: ModuleType, data: bytes) -> list[object]:
    outcome: list[object] = []
    ours, theirs = _ends[0].pairs[socket.SOCK_DGRAM]
    at = 0
    while at < len(data):
        reached, count = way.send_frames(ours.fileno(), data, at)
        came = b""
        while count_left := count - len(unpack(came)):
            packed, received = other.receive_frames(theirs.fileno(), 64)
            assert 0 < received <= count_left
            came += packed
        outcome.append((reached, count, came))
        assert reached > at
        at = reached
    ours, theirs = _ends[0].pairs[socket.SOCK_SEQPACKET]
    whole = measure_in_python(data, 0, 4)[0]
    outcome.append(way.write_frames(ours.fileno(), data[:whole], float("inf")))
    outcome.append(other.read_frames(theirs.fileno(), 64))
    return outcome
