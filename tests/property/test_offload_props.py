"""Frames with headers through real descriptors, compiled and in Python: both do the same; what leaves comes back."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st

from headed import headed_pair
from long_segments import FRAMES, noted
from pycolo.core.packed import pack, unpack
from pycolo.edge import frames_io, frames_twin
from pycolo.edge.offload import (
    CHECKSUM_AT,
    NEEDS_CHECKSUM,
    SEGMENTS_ECN,
    SEGMENTS_TCP4,
    SEGMENTS_TCP6,
    VNET_HEADER,
    described,
    find_tcp,
    settled,
)

WAYS = (frames_io, frames_twin)
KINDS = [0, SEGMENTS_TCP4, SEGMENTS_TCP6, SEGMENTS_TCP4 | SEGMENTS_ECN, 3, 5]


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Mostly a long segment, or the beginning of one, with a byte changed, a note or padding behind it."""
    frame = bytearray(draw(st.sampled_from(list(FRAMES.values()))))
    if draw(st.booleans()):
        frame[draw(st.integers(0, 100))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del frame[draw(st.integers(0, len(frame))) :]
    return bytes(frame) + draw(st.binary(max_size=3))


HEADERS = st.builds(
    VNET_HEADER.pack,
    *(st.sampled_from([0, NEEDS_CHECKSUM]), st.sampled_from(KINDS), st.integers(0, 65_535)),
    *(st.integers(0, 3000), st.sampled_from([14, 34, 38, 54, 60]) | st.integers(0, 65_535), st.integers(0, 20)),
)


def came_in(way: ModuleType, contents: list[bytes], kind: int) -> list[bytes]:
    with ExitStack() as ends:
        ours, theirs = headed_pair(kind)
        ends.callback(ours.close)
        ends.callback(theirs.close)
        for content in contents:
            os.write(theirs.fileno(), content)
        receive = way.receive_frames if kind == socket.SOCK_DGRAM else way.read_frames
        packed, count = receive(ours.fileno(), len(contents))
        assert count == len(contents)
        return unpack(packed)


def went_out(way: ModuleType, sent: list[bytes], kind: int) -> list[bytes]:
    with ExitStack() as ends:
        ours, theirs = headed_pair(kind)
        ends.callback(ours.close)
        ends.callback(theirs.close)
        packed = pack(sent)
        if kind == socket.SOCK_DGRAM:
            assert way.send_frames(ours.fileno(), packed, 0) == (len(packed), len(sent))
        else:
            assert way.write_frames(ours.fileno(), packed, float("inf")) == (len(packed), 0)
        return [os.read(theirs.fileno(), 70_000) for _ in sent]


@given(
    st.lists(st.tuples(HEADERS, frames()), min_size=1, max_size=8), st.sampled_from(["SOCK_DGRAM", "SOCK_SEQPACKET"])
)
def test_both_make_the_same_of_what_comes(said: list[tuple[bytes, bytes]], kind: str) -> None:
    contents = [header + frame for header, frame in said]
    expected = [settled(header, frame) for header, frame in said]
    for way in WAYS:
        assert came_in(way, contents, getattr(socket, kind)) == expected


@given(st.lists(frames(), min_size=1, max_size=8), st.sampled_from(["SOCK_DGRAM", "SOCK_SEQPACKET"]))
def test_both_say_the_same_of_what_leaves(sent: list[bytes], kind: str) -> None:
    expected = [b"".join(described(frame)) for frame in sent]
    for way in WAYS:
        assert went_out(way, sent, getattr(socket, kind)) == expected


@given(HEADERS, frames())
def test_what_has_come_in_leaves_and_comes_in_the_same(header: bytes, frame: bytes) -> None:
    inside = settled(header, frame)
    leaves_with, left = described(inside)
    again, place = settled(leaves_with, left), find_tcp(inside)
    if place is None or not any(leaves_with):
        assert again == left
    else:  # to be cut; by then its checksum is right
        summed = place.at + CHECKSUM_AT
        assert (again[:summed], again[summed + 2 :]) == (inside[:summed], inside[summed + 2 :])


@given(st.sampled_from(sorted(FRAMES)), st.integers(1, 4095))
def test_a_note_survives(name: str, size: int) -> None:
    assert settled(*described(noted(FRAMES[name], size))) == noted(FRAMES[name], size)
