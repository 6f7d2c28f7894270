"""The comparison benchmark's frames are what they claim to be, and its sides get and give them whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare_engines import ENGINES, PythonEngine, frames_per_s_in_memory, make_turns
from compare_frames import ACK_EVERY, Case, Splitter, framed, make_traffic, split_rows
from compare_lanes import check_that_it_compares, measure_latency_us, measure_rate, open_flows, ours
from pycolo.core.packed import pack, unpack
from pycolo.core.packet import ACK, SYN, Segment, checksum_is_right, opposite, parse_tcp
from tcp_frames import ones_complement

CASES = (Case(64, 1), Case(512, 3), Case(1448, 100))


def segments(frames: list[bytes]) -> list[Segment]:
    found = [parse_tcp(frame) for frame in frames]
    assert None not in found
    return [segment for segment in found if segment is not None]


@pytest.mark.parametrize("case", CASES)
def test_every_frame_is_a_whole_segment_with_right_checksums(case: Case) -> None:
    traffic = make_traffic(case, 900)
    for stream in (*traffic.opening, traffic.pvm, traffic.svm, traffic.client):
        frames = split_rows(stream)
        assert frames
        for frame, segment in zip(frames, segments(frames), strict=True):
            assert segment[6] == len(frame)
            assert checksum_is_right(frame, segment[4], len(frame))
            assert ones_complement(frame[14:34]) == 0


@pytest.mark.parametrize("case", CASES)
def test_each_flow_is_opened_and_its_payload_has_no_gap(case: Case) -> None:
    traffic = make_traffic(case, 900)
    ends = {key: seq + 1 for key, seq, _, flags, *_ in segments(split_rows(traffic.opening[0])) if flags & SYN}
    assert len(ends) == case.flows
    for key, seq, _, _, _, start, end in segments(split_rows(traffic.pvm)):
        assert seq == ends[key] % 2**32
        assert end - start == case.payload_bytes
        ends[key] = seq + end - start


def test_the_copies_differ_only_in_what_a_client_cannot_tell_apart() -> None:
    traffic = make_traffic(Case(512, 3), 60)
    for pvm, svm in zip(split_rows(traffic.pvm), split_rows(traffic.svm), strict=True):
        assert pvm != svm
        assert parse_tcp(pvm) == parse_tcp(svm)
        assert pvm[66:] == svm[66:]


def test_clients_acknowledge_what_has_been_sent_to_them() -> None:
    traffic = make_traffic(Case(512, 3), 90)
    sent = segments(split_rows(traffic.pvm))
    assert len(traffic.client) == 90 // ACK_EVERY // 3 * 3
    for at, (key, _, ack, flags, *_) in zip(traffic.client_at, segments(split_rows(traffic.client)), strict=True):
        their_key, seq, _, _, _, start, end = sent[at]
        assert (opposite(key), flags) == (their_key, ACK)
        assert ack == (seq + end - start) % 2**32


@given(st.lists(st.binary(max_size=60)), st.data())
def test_frames_survive_the_stream_however_it_is_cut(frames: list[bytes], data: st.DataObject) -> None:
    content = framed(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    splitter = Splitter()
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert [frame for piece in pieces for frame in splitter.feed(piece)] == frames


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_releases_everything_in_memory(name: str) -> None:
    assert frames_per_s_in_memory(ENGINES[name](), make_turns(make_traffic(Case(64, 10), 1000))) > 0


def test_an_engine_that_loses_a_frame_is_found_out() -> None:
    turns = make_turns(make_traffic(Case(64, 10), 1000))
    pvm, svm, client = turns[3]
    turns[3] = pvm, pack(unpack(svm)[:-1]), client
    with pytest.raises(SystemExit, match="did not release"):
        frames_per_s_in_memory(ENGINES["python"](), turns)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_serves_two_streams(name: str) -> None:
    traffic = make_traffic(Case(64, 10), 3000)
    with ours(ENGINES[name]) as lanes:
        open_flows(lanes, traffic)
        rate = measure_rate(lanes, traffic, 2000, 2990)
        assert rate.reordered == 0
        assert len(measure_latency_us(lanes, traffic, 2990, 3000)) == 10


class Reversing(PythonEngine):
    """Puts out each batch newest first, as QEMU does when its output is full."""

    def svm(self, packed: bytes | memoryview) -> bytes:
        return pack(unpack(super().svm(packed))[::-1])


class Spoiling(PythonEngine):
    """Changes the last byte of what it puts out."""

    def svm(self, packed: bytes | memoryview) -> bytes:
        return pack([frame[:-1] + bytes([frame[-1] ^ 1]) for frame in unpack(super().svm(packed))])


def test_frames_out_of_order_are_counted() -> None:
    traffic = make_traffic(Case(64, 10), 3000)
    with ours(Reversing) as lanes:
        open_flows(lanes, traffic)
        assert measure_rate(lanes, traffic, 2000, 3000).reordered > 0


def test_frames_that_come_out_changed_are_found_out() -> None:
    traffic = make_traffic(Case(64, 10), 3000)
    with ours(Spoiling) as lanes, pytest.raises(SystemExit, match="not what the PVM did"):
        open_flows(lanes, traffic)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_compares(name: str) -> None:
    check_that_it_compares(lambda: ours(ENGINES[name]))


def test_a_relay_does_not_pass_for_a_comparison() -> None:
    with pytest.raises(SystemExit, match="does not compare"):
        check_that_it_compares(lambda: ours(None))
