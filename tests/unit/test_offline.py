"""The comparison of captures: over the corpus, and over anything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import captures
from corpus_edit import flipped, payload_span, resegmented
from pycolo.core.limits import DataplaneLimits
from pycolo.core.offline import Comparison
from tcp_frames import A, Connection, F, arp, udp

WELL_FORMED = [name for name in captures() if not name.startswith("malformed")]
COMPARED = [name for name in WELL_FORMED if name not in ("icmpv6-neighbours", "icmpv6-listeners")]  # link control
KEEP_ALIVE = 10  # its only byte stands below what is acknowledged, and may be any (RFC 1122, 4.2.3.6)
TALK = Connection()


def compared(ours: Sequence[bytes], theirs: Sequence[bytes], limits: DataplaneLimits | None = None) -> Comparison:
    comparison = Comparison(limits) if limits else Comparison()
    for at_ms, (our, their) in enumerate(zip_longest(ours, theirs)):
        comparison.primary([] if our is None else [our], at_ms)
        comparison.secondary([] if their is None else [their], at_ms)
    comparison.finish()
    return comparison


@pytest.mark.parametrize("name", captures())
def test_a_capture_is_equal_to_itself(name: str) -> None:
    frames = captures()[name]
    comparison = compared(frames, frames)
    assert comparison.divergences == []
    assert comparison.frames_primary == comparison.frames_secondary == len(frames)
    if name in WELL_FORMED:
        assert comparison.released == len(frames)


@pytest.mark.parametrize("name", COMPARED)
def test_one_flipped_byte_is_one_divergence(name: str) -> None:
    frames = captures()[name]
    tried = 0
    for number, frame in enumerate(frames, 1):
        span = payload_span(frame)
        if span is None or (name, number) == ("tcp-keep-alive", KEEP_ALIVE):
            continue
        for byte in {0, (span.end - span.start) // 2, span.end - span.start - 1}:
            other = flipped(frames, number, byte)
            assert other != frames
            tried += 1
            for pair in ((frames, other), (other, frames)):
                found = compared(*pair).divergences
                assert len(found) == 1, (number, byte, found)
                assert found[0].what in ("payload", "contradiction", "missing", "header"), found
    assert tried or all(payload_span(frame) is None for frame in frames)


@pytest.mark.parametrize("sizes", [[1], [3, 5], [7], [2, 100], [1448]], ids=str)
@pytest.mark.parametrize("name", WELL_FORMED)
def test_other_segments_are_the_same_stream(name: str, sizes: list[int]) -> None:
    frames = captures()[name]
    other = resegmented(frames, sizes)
    assert compared(frames, other).divergences == []
    assert compared(other, frames).divergences == []


def test_the_sides_need_not_keep_step() -> None:
    frames = captures()["tcp-several"]
    comparison = Comparison()
    comparison.secondary(frames, 0)
    comparison.primary(frames, 0)
    comparison.finish()
    assert comparison.divergences == []
    assert comparison.flows == 4


def test_what_one_side_lacks_is_said() -> None:
    talk = [TALK.syn_ack(), TALK.out(1, 1, A, b"hello "), TALK.out(7, 1, A, b"world"), TALK.out(12, 1, A | F)]
    (found,) = compared(talk, talk[:2]).divergences
    assert (found.what, found.offset, found.pvm, found.pvm_frame) == ("missing", 6, b"world", 3)
    (found,) = compared(talk[:2], talk).divergences
    assert (found.what, found.offset, found.svm) == ("surplus", 6, b"world")
    (found,) = compared([udp(b"x"), udp(b"y")], [udp(b"x")]).divergences
    assert (found.protocol, found.what, found.pvm) == ("udp", "missing", b"y")
    (found,) = compared([], [udp(b"y")]).divergences
    assert (found.source, found.what) == ("10.0.0.2:53", "surplus")
    assert compared([arp()], []).divergences == [], "link control is no output of an application"


def test_each_flow_is_reported_once() -> None:
    ours = [udp(bytes([port, n]), port=port) for n in range(5) for port in range(4)]
    theirs = [udp(bytes([port, n + 1]), port=port) for n in range(5) for port in range(4)]
    found = compared(ours, theirs).divergences
    assert sorted(each.target for each in found) == [f"10.0.0.1:{port}" for port in range(4)]
    assert {each.offset for each in found} == {1}


@pytest.mark.parametrize("swapped", [True, False])
def test_memory_is_bounded(swapped: bool) -> None:
    """One side alone says more than may be kept."""
    limits = DataplaneLimits(
        held_frames_max=50, held_bytes_max=20_000, stream_bytes_max=5000, unreleased_bytes_max=20_000, datagrams_max=20
    )
    stream = [TALK.syn_ack()] + [TALK.out(1 + 500 * n, 1, A, bytes(500)) for n in range(100)]
    loud = stream + [udp(bytes(100), port=port % 7) for port in range(300)]
    comparison = Comparison(limits)
    for frame in loud:
        (comparison.secondary if swapped else comparison.primary)([frame], 0)
        plane = comparison._plane
        assert plane.stats.held_frames <= 51
        assert plane._budget.used_bytes <= 20_000
    comparison.finish()
    assert {each.what for each in comparison.divergences} == {"surplus" if swapped else "missing"}
    assert len(comparison.divergences) == 8


def test_a_long_one_way_stream_needs_little_memory() -> None:
    comparison = Comparison()
    payload = bytes(1400)
    for n in range(5000):
        frame = TALK.out(1 + 1400 * n, 1, A, payload)
        comparison.primary([frame], n)
        comparison.secondary([frame], n)
    assert comparison._plane._budget.used_bytes < 3 << 20
    comparison.finish()
    assert comparison.divergences == []


pool = [frame for name, frames in captures().items() for frame in frames[:40]]
TINY = DataplaneLimits(held_frames_max=5, flows_max=3, stream_bytes_max=40, unreleased_bytes_max=90, datagrams_max=2)
picked = st.lists(st.one_of(st.sampled_from(pool), st.binary(max_size=90)), max_size=30)


@settings(max_examples=150)
@given(picked, picked, st.booleans())
def test_anything_can_be_compared(ours: list[bytes], theirs: list[bytes], tiny: bool) -> None:
    limits = TINY if tiny else None
    comparison = compared(ours, theirs, limits)
    assert all(each.sentence() for each in comparison.divergences)
    assert comparison.released <= len(ours)
    assert compared(ours, ours, limits).divergences == []
