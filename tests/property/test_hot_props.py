"""The compiled side and its Python twin give the same verdicts on the same input, whatever it is and in any order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane_twins import (
    HTTP,
    SACK,
    STAMPS,
    STREAM,
    TINY,
    A,
    F,
    R,
    S,
    U,
    agree,
    both,
    by_flow,
    give,
    opened,
    response,
    segment,
)
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.hot_dataplane import HotDataplane
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import pack, unpack


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


beginnings = st.lists(st.sampled_from([(1000, False), (1001, False), (1000, True), (HTTP, False)]), unique=True)
steps = st.lists(
    st.one_of(
        st.lists(spoken(), min_size=1, max_size=8),
        st.sampled_from(["seal", "commit", "commit", "solo", "hold"]),
        st.integers(0, 2000),
    ),
    max_size=40,
)


@settings(max_examples=500)
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
        assert given_frames - left == hot.stats.held_frames
        agree(twin, hot, now_ms)


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


LONG_HTTP = b"".join(response(number % 60, 0) for number in range(300))


def stretch(
    side: int, first: int, start: int, length: int, what: str, port: int = 1000, stream: bytes = LONG
) -> tuple[int, bytes]:
    """A segment with a part of the stream, or only nearly."""
    payload = stream[start : start + length]
    payload = payload[:-1] + b"?" if what == "wrong" else payload
    options = b"\x1e\x04\0\0" if what == "fetch" else STAMPS
    return side, segment(False, True, port, first + start, 5001, A, payload, options)


@settings(max_examples=300)
@given(walk, events, st.booleans(), st.sampled_from([(1000, LONG), (HTTP, LONG), (HTTP, LONG_HTTP)]))
def test_long_streams_are_the_twins(
    script: list[tuple[str, int, int]], what: dict[int, str], tiny: bool, said: tuple[int, bytes]
) -> None:
    """Streams of many blocks: cut otherwise by each copy, repeated, acknowledged, and rebased by checkpoints.

    Where a server's dates may differ, and it speaks HTTP or does not.
    """
    port, stream = said
    limits = DataplaneLimits(stream_bytes_max=12000, unreleased_bytes_max=20000) if tiny else DataplaneLimits()
    twin, hot = PrimaryDataplane(limits, 1), HotDataplane(limits, 1)
    both(twin, hot, opened(port, False), 0, 0)
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
            both(twin, hot, [stretch(side, firsts[side], start, length, event, port, stream)], no, no)
            at[side] = max(at[side], start + length)
        if who in ("client", "answered"):
            acked = 101 + max(0, min(at) - back)
            both(twin, hot, [(2, segment(False, False, port, 5001, acked, A, b"", STAMPS))], 0, no)
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


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 2))
def test_any_packed_bytes_are_taken(packed: bytes, side: int) -> None:
    hot = HotDataplane(DataplaneLimits(), 1)
    if side == 0:
        assert len(unpack(hot.pvm_packed(packed, 0))) + hot.stats.held_frames == len(unpack(packed))
    elif side == 1:
        hot.svm_packed(1, 0, packed, 0)
    else:
        hot.client_packed(packed, 0)
