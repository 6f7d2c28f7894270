"""The header in front of a frame: what it says is done, or stands behind the frame until it leaves."""

from __future__ import annotations

import pytest

from long_segments import FRAMES, LONG, SIZE, TAGS, TCP_AT, ipv6, noted, partial, tagged
from pycolo.edge.offload import (
    NEEDS_CHECKSUM,
    NO_HEADER,
    SEGMENTS_ECN,
    SEGMENTS_TCP4,
    SEGMENTS_TCP6,
    VNET_HEADER,
    described,
    find_tcp,
    settled,
)
from tcp_frames import A, Connection, udp


@pytest.fixture(params=FRAMES)
def frame(request: pytest.FixtureRequest) -> bytes:
    return FRAMES[request.param]


def test_a_segment_to_be_cut_goes_in_whole_and_comes_out_to_be_cut(frame: bytes) -> None:
    header, leaves = described(noted(frame))
    flags, kind, head_bytes, size, start, offset = VNET_HEADER.unpack(header)
    place = find_tcp(frame)
    assert place is not None
    assert (flags, size, start, offset) == (NEEDS_CHECKSUM, SIZE, place.at, 16)
    assert kind == (SEGMENTS_TCP6 if place.v6 else SEGMENTS_TCP4)
    assert head_bytes == len(frame) - 4096
    assert leaves != frame
    assert settled(header, leaves) == noted(frame)


def test_what_is_left_to_complete_is_the_pseudo_header() -> None:
    assert described(noted(LONG))[1] == partial(LONG)


def test_only_the_first_of_the_segments_says_cwr() -> None:
    frame = Connection().out(1, 1, A | 0x80, payload=bytes(4096))
    assert VNET_HEADER.unpack(described(noted(frame))[0])[1] == SEGMENTS_TCP4 | SEGMENTS_ECN
    assert settled(*described(noted(frame))) == noted(frame)


@pytest.mark.parametrize("size", [0, 4096, 65_535])
def test_what_is_not_longer_than_a_segment_is_not_cut(size: int) -> None:
    assert described(noted(LONG, size)) == (NO_HEADER, LONG)


def test_without_a_header_all_stays_as_it_is(frame: bytes) -> None:
    for one in (frame, frame + b"padding", b"", b"x", udp(b"hello"), udp(b"hello") + b"xx"):
        assert settled(NO_HEADER, one) == one
        assert described(one) == (NO_HEADER, one)


@pytest.mark.parametrize("said", [0, 60, 65_535])
def test_a_guest_may_leave_the_length_to_the_card(frame: bytes, said: int) -> None:
    header, leaves = described(noted(frame))
    place = find_tcp(frame)
    assert place is not None
    at = place.network + (4 if place.v6 else 2)
    wrong = leaves[:at] + said.to_bytes(2) + leaves[at + 2 :]
    assert settled(header, wrong) == noted(frame)


def test_padding_does_not_pass_for_a_note(frame: bytes) -> None:
    assert settled(NO_HEADER, frame + b"\x05\xa8") == frame
    assert settled(NO_HEADER, noted(frame, 0)) == frame


def test_a_checksum_is_completed() -> None:
    """As it comes from a guest: the sum of the pseudo header in its place."""
    whole = Connection().out(1, 1, payload=b"hello")
    assert settled(VNET_HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, TCP_AT, 16), partial(whole)) == whole


def test_a_checksum_of_nothing_is_not_zero() -> None:
    """Zero would mean "none" in UDP (RFC 768)."""
    frame = settled(VNET_HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, 4, 2), b"head\xff\xff\0\0")
    assert frame == b"head\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "header",
    [
        (NEEDS_CHECKSUM, 0, 0, 0, len(LONG), 16),
        (NEEDS_CHECKSUM, 0, 0, 0, 65_535, 65_534),
        (NEEDS_CHECKSUM, 0, 0, 0, TCP_AT, 17),
        (0, SEGMENTS_TCP6, 0, SIZE, 0, 0),
        (0, 3, 0, SIZE, 0, 0),  # UDP, fragments
        (0, 5, 0, SIZE, 0, 0),  # UDP, datagrams
        (0, 0x80, 0, SIZE, 0, 0),
    ],
)
def test_what_nobody_could_take_is_empty(header: tuple[int, ...]) -> None:
    assert settled(VNET_HEADER.pack(*header), LONG) == b""


@pytest.mark.parametrize(
    "frame",
    [
        LONG[:50],
        LONG[:14] + b"\x44" + LONG[15:],
        LONG[:20] + b"\x20\x00" + LONG[22:],  # a fragment
        LONG[:23] + b"\x11" + LONG[24:],  # UDP
        tagged(LONG, TAGS[0], TAGS[0], TAGS[1]),
        ipv6(LONG)[:50],
        FRAMES["extension"][:54] + b"\x06\xff" + FRAMES["extension"][56:],
    ],
)
def test_no_tcp_is_found_where_none_is_whole(frame: bytes) -> None:
    assert find_tcp(frame) is None
    assert settled(VNET_HEADER.pack(0, SEGMENTS_TCP4, 0, SIZE, 0, 0), frame) == b""
    assert described(frame + b"\x01\x00") == (NO_HEADER, frame + b"\x01\x00")
