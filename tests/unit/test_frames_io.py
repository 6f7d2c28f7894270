"""Frames in packed batches through real descriptors, compiled and in Python: both do the same."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headed import Headed, headed_pair
from pycolo.core.packed import FRAME_BYTES_MAX, measure, measure_in_python, pack, unpack
from pycolo.edge import frames_io, frames_twin
from pycolo.edge.frames_twin import COMES_BYTES_MAX

WAYS = [frames_twin]
with contextlib.suppress(ImportError):
    from pycolo.edge import _frames

    WAYS.append(_frames)

MEASURES = [measure_in_python, measure]
Ends = tuple[socket.socket, Headed]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__.rpartition(".")[2])
def way(request: pytest.FixtureRequest) -> ModuleType:
    assert isinstance(request.param, ModuleType)
    return request.param


def pair(kind: int) -> Iterator[Ends]:
    """Ours does not block."""
    ours, theirs = headed_pair(kind)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def datagrams() -> Iterator[Ends]:
    yield from pair(socket.SOCK_DGRAM)


@pytest.fixture
def tap() -> Iterator[Ends]:
    """Whose reads and writes are of one frame each, as a tap's are."""
    yield from pair(socket.SOCK_SEQPACKET)


def numbered(count: int) -> list[bytes]:
    return [b"%06d" % number for number in range(count)]


def test_what_is_picked_is_whole() -> None:
    assert all(getattr(frames_io, name) is getattr(WAYS[-1], name) for name in frames_twin.__all__)


# ---------------------------------------------------------------- places


@given(st.lists(st.binary(max_size=30), max_size=20), st.binary(max_size=10), st.data())
def test_places_are_alike(frames: list[bytes], rest: bytes, data: st.DataObject) -> None:
    packed = pack(frames) + rest
    at, frames_max = data.draw(st.integers(0, len(packed) + 9)), data.draw(st.integers(0, 30))
    for buffer in (packed, memoryview(packed), memoryview(b"x" + packed)[1:]):
        found = [one(buffer, at, frames_max) for one in MEASURES]
        assert found[:-1] == found[1:]
    before = len(pack(frames[:3]))
    end, count = MEASURES[0](packed, before, len(frames) - 3)
    assert unpack(packed[before:end]) == frames[3 : 3 + count]


@pytest.mark.parametrize("one", MEASURES)
def test_a_frame_that_is_too_long_is_none(one: Callable[[bytes, int, int], tuple[int, int]]) -> None:
    packed = pack([b"a", bytes(FRAME_BYTES_MAX), bytes(FRAME_BYTES_MAX + 1), b"b"])
    assert one(packed, 0, 9) == (5 + 4 + FRAME_BYTES_MAX, 2)
    assert one(b"", 0, 9) == (0, 0)
    assert one(b"\xff\xff\xff\xff", 0, 9) == (0, 0)


# ---------------------------------------------------------------- sockets


def test_datagrams_come_in_as_they_were_sent(way: ModuleType, datagrams: Ends) -> None:
    ours, theirs = datagrams
    frames = [b"x" * size for size in (1, 0, 14, 1514, COMES_BYTES_MAX)]
    for frame in frames:
        theirs.send(frame)
    packed, count = way.receive_frames(ours.fileno(), 3)
    assert (unpack(packed), count) == (frames[:3], 3)
    packed, count = way.receive_frames(ours.fileno(), 64)
    assert (unpack(packed), count) == (frames[3:], 2)
    assert way.receive_frames(ours.fileno(), 64) == (b"", 0)


def test_a_call_takes_in_so_many(way: ModuleType, datagrams: Ends) -> None:
    for frame in numbered(100):
        datagrams[1].send(frame)
    fd = datagrams[0].fileno()
    assert way.receive_frames(fd, 0) == way.receive_frames(fd, -1) == (b"", 0)
    first, second = way.receive_frames(fd, 1000), way.receive_frames(fd, 1000)
    assert (first[1], second[1]) == (way.CALL_FRAMES_MAX, 100 - way.CALL_FRAMES_MAX)
    assert unpack(first[0] + second[0]) == numbered(100)


def test_what_is_too_long_is_cut(way: ModuleType, datagrams: Ends) -> None:
    datagrams[1].send(bytes(COMES_BYTES_MAX) + b"more")
    datagrams[1].send(b"next")
    packed, count = way.receive_frames(datagrams[0].fileno(), 64)
    assert (unpack(packed), count) == ([bytes(COMES_BYTES_MAX), b"next"], 2)


def test_datagrams_go_out_from_a_place_on(way: ModuleType, datagrams: Ends) -> None:
    ours, theirs = datagrams
    frames = [b"not this", b"", b"x", bytes(COMES_BYTES_MAX), *numbered(200)]
    packed = memoryview(pack(frames))
    assert way.send_frames(ours.fileno(), packed, 12) == (len(packed), len(frames) - 1)
    assert [theirs.recv(70_000) for _ in frames[1:]] == frames[1:]
    assert way.send_frames(ours.fileno(), packed, len(packed)) == (len(packed), 0)
    assert way.send_frames(ours.fileno(), b"", 0) == (0, 0)


def test_a_full_socket_takes_as_much_as_it_does(way: ModuleType, datagrams: Ends) -> None:
    ours, theirs = datagrams
    theirs.setblocking(False)
    packed, at, read = pack([frame + bytes(1500) for frame in numbered(5000)]), 0, list[bytes]()
    while at < len(packed):
        before = at
        at, count = way.send_frames(ours.fileno(), packed, at)
        assert count == len(unpack(packed[before:at])) > 0
        with contextlib.suppress(BlockingIOError):
            while True:
                read.append(theirs.recv(2000)[:6])
    assert read == numbered(5000)


def test_what_is_no_whole_frame_is_passed_over(way: ModuleType, datagrams: Ends, tap: Ends) -> None:
    packed = pack([b"whole"]) + b"\0\0\0\x09cut"
    assert way.send_frames(datagrams[0].fileno(), packed, 0) == (len(packed), 1)
    assert datagrams[1].recv(100) == b"whole"
    assert way.write_frames(tap[0].fileno(), packed, math.inf) == (len(packed), 0)
    assert tap[1].recv(100) == b"whole"


def test_a_peer_that_is_gone_is_no_error(way: ModuleType, datagrams: Ends) -> None:
    ours, theirs = datagrams
    theirs.send(b"last words")
    theirs.close()
    assert way.receive_frames(ours.fileno(), 9) == (pack([b"last words"]), 1)
    assert way.send_frames(ours.fileno(), pack([b"a"]), 0) == (0, 0)
    assert way.receive_frames(ours.fileno(), 9) == (b"", 0)


def test_other_errors_are(way: ModuleType, tmp_path: os.PathLike[str]) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for call, arguments in (
            (way.receive_frames, (9,)),
            (way.send_frames, (pack([b"a"]), 0)),
            (way.read_frames, (9,)),
        ):
            with pytest.raises(OSError, match=r"Errno"):
                call(fd, *arguments)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- taps


def test_frames_are_read_one_by_one(way: ModuleType, tap: Ends) -> None:
    ours, theirs = tap
    frames = [b"x" * size for size in (14, 1514, COMES_BYTES_MAX)] + numbered(100)
    for frame in frames:
        theirs.send(frame)
    read: list[bytes] = []
    for _ in range(3):
        packed, count = way.read_frames(ours.fileno(), 63)
        assert count <= 63
        assert len(unpack(packed)) == count
        read += unpack(packed)
    assert read == frames
    assert way.read_frames(ours.fileno(), 63) == (b"", 0)


def test_frames_are_written_one_by_one(way: ModuleType, tap: Ends) -> None:
    ours, theirs = tap
    frames = numbered(100)
    assert way.write_frames(ours.fileno(), pack(frames), math.inf) == (len(pack(frames)), 0)
    assert [theirs.recv(100) for _ in frames] == frames
    theirs.close()
    assert way.write_frames(ours.fileno(), pack(frames), math.inf) == (len(pack(frames)), 100)


def test_nothing_is_written_too_late(way: ModuleType, tap: Ends) -> None:
    packed, now_s = pack(numbered(3)), time.monotonic()
    assert way.write_frames(tap[0].fileno(), packed, now_s - 0.001) == (0, 0)
    assert way.write_frames(tap[0].fileno(), packed, now_s + 60) == (len(packed), 0)


def test_the_time_is_looked_at_before_each_frame(way: ModuleType, tap: Ends) -> None:
    """It stands still within one write, as a process does that is frozen, until somebody makes room."""
    ours, theirs = tap
    ours.setblocking(True)
    theirs.setblocking(False)
    packed, read = pack([bytes(50_000)] * 1000), list[bytes]()

    def read_all() -> None:
        time.sleep(0.3)
        with contextlib.suppress(BlockingIOError):
            while True:
                read.append(theirs.recv(70_000))

    thread = threading.Thread(target=read_all)
    thread.start()
    at, refused = way.write_frames(ours.fileno(), packed, time.monotonic() + 0.1)
    thread.join()
    assert 0 < at < len(packed)
    assert refused == 0
    read_all()
    assert len(read) == len(unpack(packed[:at]))
