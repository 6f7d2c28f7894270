"""Any bytes into the reader of captures; what was written comes back."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from capture_blocks import Blocks, pcap
from pycolo.edge.capture_file import CaptureReader
from pycolo.edge.capture_source import FRAME_BYTES_MAX, CaptureRecord, Direction
from pycolo.edge.capture_writer import CaptureWriter
from pycolo.errors import CaptureDamaged, EnvironmentFault

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
FRAMES = st.binary(max_size=80)
DIRECTIONS: st.SearchStrategy[Direction | None] = st.sampled_from(("in", "out", None))
WRITTEN = st.tuples(FRAMES, U64, st.integers(0, 2), DIRECTIONS, st.text(max_size=20))
ORDERS = st.sampled_from("<>")


@st.composite
def captures(draw: st.DrawFn) -> tuple[bytes, int]:
    """A whole capture of either format, and how many frames it has."""
    order = draw(ORDERS)
    frames = draw(st.lists(st.tuples(FRAMES, U32, U32), max_size=6))
    if draw(st.booleans()):
        magic = draw(st.sampled_from((0xA1B2C3D4, 0xA1B23C4D)))
        records = [(seconds, ticks, frame, len(frame)) for frame, seconds, ticks in frames]
        return pcap(records, order=order, magic=magic), len(frames)
    blocks = Blocks(order)
    resolution = blocks.option(9, bytes([draw(st.integers(0, 255))]))
    content = blocks.section() + blocks.interface(options=resolution)
    for frame, high, low in frames:
        make = draw(st.sampled_from((blocks.packet, blocks.old_packet)))
        content += make(frame, high << 32 | low)
    return content, len(frames)


def read(content: bytes) -> tuple[list[CaptureRecord], EnvironmentFault | None]:
    """The records, and the failure at the end of them."""
    records: list[CaptureRecord] = []
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            with CaptureReader(Path(file.name)) as reader:
                records.extend(reader)
        except EnvironmentFault as failure:
            return records, failure
    return records, None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_capture_or_a_failure(data: bytes) -> None:
    for head in (b"", *(capture[:24] for capture in (pcap([]), pcap([], order=">")))):
        for content in (head + data, gzip.compress(head + data), b"\x1f\x8b\x08" + data):
            for record in read(content)[0]:
                assert len(record.frame) <= FRAME_BYTES_MAX


@given(ORDERS, st.binary(max_size=300), st.integers(0, 7), st.binary(max_size=40))
def test_any_block_is_read_or_a_failure(order: str, body: bytes, kind: int, behind: bytes) -> None:
    blocks = Blocks(order)
    block = blocks.block(kind, body + bytes(-len(body) % 4))
    records, failure = read(blocks.section() + blocks.interface() + block + behind)
    assert len(records) <= 1 + len(behind) // 16
    assert failure is None or isinstance(failure, EnvironmentFault)


@given(captures(), st.data())
def test_a_damaged_capture_is_a_capture_or_a_failure(capture: tuple[bytes, int], data: st.DataObject) -> None:
    content = bytearray(capture[0])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(content))
    read(gzip.compress(bytes(content)))
    packed = bytearray(gzip.compress(capture[0]))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(packed))


@given(captures(), st.data())
def test_what_is_whole_before_the_cut_is_delivered(capture: tuple[bytes, int], data: st.DataObject) -> None:
    content, count = capture
    whole, failure = read(content)
    assert (len(whole), failure) == (count, None)
    cut = data.draw(st.integers(24, len(content)))
    records, failure = read(content[:cut])
    assert records == whole[: len(records)]
    assert failure is None or isinstance(failure, CaptureDamaged)


@given(st.lists(WRITTEN, max_size=8), st.integers(300, 1000))
def test_what_was_written_comes_back(
    written: list[tuple[bytes, int, int, Direction | None, str]], bytes_max: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pcapng"
        with CaptureWriter(path, ["a", "b", "ü"], bytes_max) as writer:
            accepted = sum(writer.write(*one) for one in written)
        assert accepted == writer.frames == len(written) - writer.frames_not_written
        content = path.read_bytes()
    assert len(content) <= bytes_max
    records, failure = read(content)
    assert failure is None
    expected = [(frame, ts_ns, interface, way) for frame, ts_ns, interface, way, _ in written[:accepted]]
    assert [(one.frame, one.ts_ns, one.interface, one.direction) for one in records] == expected
