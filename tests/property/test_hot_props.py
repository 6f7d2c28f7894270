"""The compiled side and its Python twin give the same verdicts on the same input, whatever it is and in any order."""

from __future__ import annotations

import struct
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.hot_dataplane import HotDataplane
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import pack, unpack
from pycolo.core.packet import parse_tcp

F, S, R, A, U = 1, 2, 4, 16, 32
GUEST, CLIENT = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
GUEST6, CLIENT6 = bytes([253, *[0] * 14, 2]), bytes([253, *[0] * 14, 1])
STREAM = bytes(i & 1 for i in range(40))
STAMPS = b"\x01\x01\x08\x0a" + bytes(8)
SACK = b"\x01\x01\x05\x0a" + bytes(8)
HTTP = 1080
TINY = DataplaneLimits(
    held_frames_max=12, held_bytes_max=900, flows_max=3, stream_bytes_max=24, unreleased_bytes_max=60, datagrams_max=2
)


def response(number: int, side: int) -> bytes:
    """Each names a second; that of the SVM's is now and then another one. The bodies are as long as a trim is worth."""
    second = number + (side == 1 and number % 3 == 0)
    return b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jun 2026 10:59:%02d GMT\r\nContent-Length: 900\r\n\r\n" % second + bytes(
        900
    )


def segment(six: bool, out: bool, port: int, seq: int, ack: int, flags: int, payload: bytes, options: bytes) -> bytes:
    """Checksums are nobody's business here."""
    offset = (20 + len(options)) // 4 << 4
    guest_port = 80 if port == HTTP else 81
    ports = (guest_port, port) if out else (port, guest_port)
    body = struct.pack(">HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, offset, flags, 9, 0, 0) + options + payload
    guest, client = (GUEST6, CLIENT6) if six else (GUEST, CLIENT)
    ends = guest + client if out else client + guest
    if six:
        return bytes(12) + b"\x86\xdd\x60\0\0\0" + struct.pack(">HBB", len(body), 6, 64) + ends + body
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, 6, 0)
    return bytes(12) + b"\x08\x00" + head + ends + body


@st.composite
def spoken(draw: st.DrawFn) -> tuple[int, bytes]:
    """(side, frame): two connections, each copy with its own numbers; mostly plain, now and then anything."""
    side = draw(st.sampled_from([0, 0, 0, 1, 1, 1, 2]))
    port, six = draw(st.sampled_from([(1000, False), (1001, False), (1000, True), (HTTP, False)]))
    isn = 2**32 - 7 if side == 1 and draw(st.booleans()) else 100
    start, length = draw(st.integers(0, 30)), draw(st.sampled_from([0, 0, 1, 3, 8, 20]))
    payload = STREAM[start : start + length]
    if port == HTTP:
        number, start = draw(st.integers(0, 30)), draw(st.sampled_from([0, 0, 0, 20]))
        payload = response(number, side)[start : draw(st.sampled_from([None, None, 60]))]
        start += number * len(response(0, 0))
    if draw(st.integers(0, 15)) == 0 and payload:
        payload = payload[:-1] + bytes([payload[-1] ^ 1])
    flags = draw(st.sampled_from([A] * 12 + [A | 8, S | A, S | A, A | F, R | A, R, A | U, S]))
    options = draw(st.sampled_from([b"", b"", STAMPS, STAMPS, SACK, b"\x1e\x04\0\0"]))
    client_at = draw(st.integers(0, 12))
    if side == 2:
        return side, segment(six, False, port, 5000 + client_at, 101 + start, flags, payload, options)
    seq = isn if flags & S else isn + 1 + start
    return side, segment(six, True, port, seq, 5001 + client_at, flags, payload, options)


def opened(port: int, six: bool) -> list[tuple[int, bytes]]:
    """A connection that both copies have opened, and whose client has said something."""
    return [
        (0, segment(six, True, port, 100, 5001, S | A, b"", STAMPS)),
        (1, segment(six, True, port, 2**32 - 7, 5001, S | A, b"", STAMPS)),
        (2, segment(six, False, port, 5001, 101, A, b"", STAMPS)),
        (0, segment(six, True, port, 101, 5001, A, b"", STAMPS)),
        (1, segment(six, True, port, 2**32 - 6, 5001, A, b"", STAMPS)),
    ]


beginnings = st.lists(st.sampled_from([(1000, False), (1001, False), (1000, True), (HTTP, False)]), unique=True)
steps = st.lists(
    st.one_of(
        st.lists(spoken(), min_size=1, max_size=8),
        st.sampled_from(["seal", "commit", "commit", "solo", "hold"]),
        st.integers(0, 2000),
    ),
    max_size=40,
)


def by_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    """The order across flows is nobody's promise."""
    flows: dict[bytes, list[bytes]] = defaultdict(list)
    for frame in frames:
        parsed = parse_tcp(frame)
        flows[b"" if parsed is None else parsed[0]].append(frame)
    return flows


def give(plane: PrimaryDataplane, side: int, frames: list[bytes], no: int, now_ms: float) -> list[bytes]:
    if side == 0:
        return plane.pvm_frames(frames, now_ms)
    if side == 1:
        return plane.svm_frames(plane.epoch, no, frames, now_ms)
    plane.client_frames(frames, now_ms)
    return []


def both(
    twin: PrimaryDataplane, hot: HotDataplane, step: object, no: int, now_ms: float
) -> tuple[list[bytes], list[bytes]]:
    if isinstance(step, list):
        outs: tuple[list[bytes], list[bytes]] = ([], [])
        batches: list[tuple[int, list[bytes]]] = []
        for side, frame in step:
            if not batches or batches[-1][0] != side:
                batches.append((side, []))
            batches[-1][1].append(frame)
        for side, frames in batches:
            for plane, out in zip((twin, hot), outs, strict=True):
                out += give(plane, side, frames, no, now_ms)
            assert by_flow(outs[0]) == by_flow(outs[1])
        return outs
    if step == "seal":
        assert twin.seal(twin.epoch + 1) == hot.seal(hot.epoch + 1)
    elif step == "solo":
        return twin.go_solo(), hot.go_solo()
    elif step == "commit":
        return twin.commit(twin.epoch, now_ms), hot.commit(hot.epoch, now_ms)
    elif step == "hold":
        twin.hold_until_commit()
        hot.hold_until_commit()
    return [], []


@settings(max_examples=500, deadline=None)
@given(beginnings, steps, st.booleans(), st.integers(0, 2**64 - 1))
def test_the_verdicts_are_those_of_the_twin(
    begin: list[tuple[int, bool]], script: list[object], tiny: bool, seed: int
) -> None:
    limits = TINY if tiny else DataplaneLimits()
    twin, hot = PrimaryDataplane(limits, 1), HotDataplane(limits, 1, seed=seed)
    now_ms, given_frames, left = 0.0, 0, 0
    for no, step in enumerate([opened(*which) for which in begin] + script):
        if isinstance(step, int):
            now_ms += step
        ours, theirs = both(twin, hot, step, 100 * no, now_ms)
        given_frames += sum(side == 0 for side, _ in step) if isinstance(step, list) else 0
        left += len(theirs)
        assert by_flow(ours) == by_flow(theirs)
        assert twin.stats == hot.stats
        assert given_frames - left == hot.stats.held_frames
        assert twin._budget.used_bytes == hot._budget.used_bytes
        assert twin.take_confirmations() == hot.take_confirmations()
        assert [each.sentence() for each in twin.take_divergences()] == [
            each.sentence() for each in hot.take_divergences()
        ]
        assert twin.next_due_ms(now_ms) == hot.next_due_ms(now_ms)
        assert twin.due(now_ms) == hot.due(now_ms)


LONG = bytes((i * i >> 7) & 0xFF for i in range(1 << 19))
walk = st.lists(
    st.tuples(
        st.sampled_from(["pvm", "svm", "client", "both", "both", "answered", "answered", "answered"]),
        st.sampled_from([0, 1, 100, 700, 1448, 1448, 3000, 9000]),
        st.sampled_from([0, 0, 0, 0, 1, 700, 3000]),
    ),
    max_size=40,
)
events = st.dictionaries(st.integers(0, 40), st.sampled_from(["wrong", "fetch", "checkpoint", "seal", "commit"]))


def stretch(side: int, first: int, start: int, length: int, what: str) -> tuple[int, bytes]:
    """A segment with a part of LONG, or only nearly."""
    payload = LONG[start : start + length]
    payload = payload[:-1] + b"?" if what == "wrong" else payload
    options = b"\x1e\x04\0\0" if what == "fetch" else STAMPS
    return side, segment(False, True, 1000, first + start, 5001, A, payload, options)


@settings(max_examples=300, deadline=None)
@given(walk, events, st.booleans())
def test_long_streams_are_the_twins(script: list[tuple[str, int, int]], what: dict[int, str], tiny: bool) -> None:
    """Streams of many blocks: cut otherwise by each copy, repeated, acknowledged, and rebased by checkpoints."""
    limits = DataplaneLimits(stream_bytes_max=12000) if tiny else DataplaneLimits()
    twin, hot = PrimaryDataplane(limits, 1), HotDataplane(limits, 1)
    both(twin, hot, opened(1000, False), 0, 0)
    at, firsts = [0, 0], [101, 2**32 - 6]
    for no, (who, length, back) in enumerate(script):
        event = what.get(no, "")
        if event in ("seal", "checkpoint"):
            both(twin, hot, "seal", 0, no)
            at[1], firsts[1] = at[0], firsts[0]
        if event in ("commit", "checkpoint"):
            both(twin, hot, "commit", 0, no)
        if who in ("both", "answered"):
            at = [max(at)] * 2
        for side in {"pvm": [0], "svm": [1], "client": []}.get(who, [0, 1]):
            start = max(0, at[side] - back)
            both(twin, hot, [stretch(side, firsts[side], start, length, event)], no, no)
            at[side] = max(at[side], start + length)
        if who in ("client", "answered"):
            acked = 101 + max(0, min(at) - back)
            both(twin, hot, [(2, segment(False, False, 1000, 5001, acked, A, b"", STAMPS))], 0, no)
        assert twin.stats == hot.stats
        assert twin._budget.used_bytes == hot._budget.used_bytes
        assert twin.due(no) == hot.due(no)


def test_a_long_stream_stays_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong place in the blocks would be found by the twin, and hidden by it."""
    twin, hot = PrimaryDataplane(DataplaneLimits(), 1), HotDataplane(DataplaneLimits(), 1)
    both(twin, hot, opened(1000, False), 0, 0)
    monkeypatch.setattr(hot, "_fetch", lambda key: pytest.fail(f"{key!r} went back to the twin"))
    at = 0
    for no in range(120):
        length = (1448, 1000, 64, 5000)[no % 4]
        for side, first in ((0, 101), (1, 2**32 - 6)):
            both(twin, hot, [stretch(side, first, at, length, "")], no, no)
        both(twin, hot, [stretch(0, 101, max(at - 2000, 0), 500, "")], no, no)
        at += length
        acked = 101 + max(0, at - (8000, 8000, 2000)[no // 10 % 3])
        both(twin, hot, [(2, segment(False, False, 1000, 5001, acked, A, b"", STAMPS))], 0, no)
        assert twin.stats == hot.stats


def test_a_server_whose_dates_may_differ_is_compiled_as_well() -> None:
    hot, twin = HotDataplane(DataplaneLimits(), 1), PrimaryDataplane(DataplaneLimits(), 1)
    hot_before = 0
    for plane in (hot, twin):
        for side, frame in opened(HTTP, False):
            give(plane, side, [frame], 0, 0)
        length = len(response(0, 0))
        for number in range(30):
            ours, theirs = (
                segment(False, True, HTTP, isn + number * length, 5001, A, response(number, side), STAMPS)
                for side, isn in ((0, 101), (1, 2**32 - 6))
            )
            hot_before += plane is hot and len(hot._hot)
            assert plane.svm_frames(1, 0, [theirs], 0) == []
            assert plane.pvm_frames([ours], 0) == [ours], number
            plane.client_frames([segment(False, False, HTTP, 5001, 101 + (number + 1) * length, A, b"", STAMPS)], 0)
    assert hot.stats == twin.stats
    assert hot_before > 5


def test_plain_connections_are_compiled() -> None:
    """Else the test above would compare the twin with itself."""
    hot = HotDataplane(DataplaneLimits(), 1)
    for which in ((1000, False), (1001, False), (1000, True)):
        for side, frame in opened(*which):
            give(hot, side, [frame], 0, 0)
    assert len(hot._hot) == 3
    ours = [segment(False, True, 1000, 101 + 5 * n, 5001, A, bytes(5), STAMPS) for n in range(50)]
    theirs = [segment(False, True, 1000, 2**32 - 6 + 10 * n, 5001, A, bytes(10), b"") for n in range(25)]
    assert hot.pvm_frames(ours, 0) == []
    assert hot.svm_frames(1, 0, theirs, 0) == ours
    assert len(hot._hot) == 3
    assert hot.stats.released_equal == 56


@given(st.lists(st.binary(max_size=50), max_size=10), st.binary(max_size=9))
def test_packed_frames_are_the_frames(frames: list[bytes], rest: bytes) -> None:
    packed = pack(frames)
    assert unpack(packed) == frames
    assert unpack(packed + rest)[: len(frames)] == frames
    for cut in range(len(packed)):
        whole = unpack(packed[:cut])
        assert whole == frames[: len(whole)]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2))
def test_any_packed_bytes_are_taken(packed: bytes, side: int) -> None:
    hot = HotDataplane(DataplaneLimits(), 1)
    if side == 0:
        assert len(unpack(hot.pvm_packed(packed, 0))) + hot.stats.held_frames == len(unpack(packed))
    elif side == 1:
        hot.svm_packed(1, 0, packed, 0)
    else:
        hot.client_packed(packed, 0)
