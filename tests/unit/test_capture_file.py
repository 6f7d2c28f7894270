"""Reading captures: what is in them comes out, with scapy as the second opinion; damage is one sentence."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapWriter

from capture_blocks import Blocks, pcap
from pycolo.edge.capture_file import CaptureReader
from pycolo.edge.capture_source import FRAME_BYTES_MAX, CaptureRecord
from pycolo.errors import CaptureDamaged, EnvironmentFault

FRAMES = [bytes([n]) * (60 + n) for n in range(5)]
LITTLE, BIG = Blocks("<"), Blocks(">")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pcap"


def read(path: Path, content: bytes | None = None) -> list[CaptureRecord]:
    if content is not None:
        path.write_bytes(content)
    with CaptureReader(path) as reader:
        return list(reader)


def damaged(path: Path, content: bytes) -> tuple[list[bytes], str]:
    """Frames before the damage, and the sentence."""
    path.write_bytes(content)
    frames: list[bytes] = []
    with CaptureReader(path) as reader, pytest.raises(CaptureDamaged) as caught:
        frames.extend(record.frame for record in reader)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"{path} is damaged at byte ")
    return frames, sentence


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault) as caught, CaptureReader(path) as reader:
        list(reader)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- pcap


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "ns_per_tick"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_in_both_byte_orders_and_resolutions(path: Path, order: str, magic: int, ns_per_tick: int) -> None:
    content = pcap([(5, 7, FRAMES[0], len(FRAMES[0])), (6, 999_999, FRAMES[1], 1500)], order=order, magic=magic)
    first, second = read(path, content)
    assert [first, second] == [
        (1, 5_000_000_000 + 7 * ns_per_tick, FRAMES[0], 0, None, 60),
        (2, 6_000_000_000 + 999_999 * ns_per_tick, FRAMES[1], 0, None, 1500),
    ]
    assert (first.is_cut, second.is_cut) == (False, True)


def test_a_capture_without_frames(path: Path) -> None:
    assert read(path, pcap([])) == []
    assert read(path, LITTLE.section()) == []
    assert read(path, LITTLE.section() + LITTLE.interface()) == []


def test_counts(path: Path) -> None:
    path.write_bytes(pcap([(5, 7, FRAMES[0], 60), (6, 0, FRAMES[1], 1500)]))
    with CaptureReader(path) as reader:
        assert len(list(reader)) == reader.frames == 2
        assert (reader.frames_cut, reader.frames_skipped) == (1, 0)
        assert reader.position_bytes == reader.size_bytes == path.stat().st_size


@pytest.mark.parametrize("nanoseconds", [False, True])
def test_what_scapy_writes(path: Path, nanoseconds: bool) -> None:
    with PcapWriter(str(path), nano=nanoseconds) as writer:
        for n, frame in enumerate(FRAMES):
            packet = Ether(frame)
            packet.time = 1000 + n / 4
            writer.write(packet)
    assert [(record.ts_ns, record.frame) for record in read(path)] == [
        (1_000_000_000_000 + n * 250_000_000, frame) for n, frame in enumerate(FRAMES)
    ]


def test_a_frame_that_the_file_does_not_end(path: Path) -> None:
    content = pcap([(1, 0, FRAMES[0], 60), (2, 0, FRAMES[1], 61)])
    for cut in (1, 60, 61 + 15):
        frames, sentence = damaged(path, content[:-cut])
        assert frames == FRAMES[:1]
        assert "byte 100 of the file: the file ends inside the record that begins there; only what is" in sentence


def test_a_frame_that_is_too_long(path: Path) -> None:
    content = pcap([(1, 0, FRAMES[0], 60)]) + struct.pack("<IIII", 1, 0, FRAME_BYTES_MAX + 1, 0) + bytes(300_000)
    frames, sentence = damaged(path, content)
    assert frames == FRAMES[:1]
    assert "byte 100 of the file: a frame of 262145 bytes" in sentence


# ---------------------------------------------------------------- what is no capture of Ethernet frames


def test_what_is_not_a_capture(path: Path) -> None:
    assert refused(path, b"") == f"{path} is empty: name a pcap or pcapng file, which may be gzipped"
    for content in (b"a", b"\xd4\xc3\xb2", b"hello, world", b"\x34\xcd\xb2\xa1" + bytes(40), gzip.compress(b"hello")):
        assert refused(path, content) == f"{path} is not a capture: name a pcap or pcapng file, which may be gzipped"


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(EnvironmentFault) as caught:
            CaptureReader(path)
        assert str(caught.value) == f"{path} can't be read ({why}): name a capture file that can be read"


@pytest.mark.parametrize(("link_type", "kind"), [(113, "113, Linux cooked (SLL)"), (101, "101, raw IP"), (147, "147")])
def test_other_link_types(path: Path, link_type: int, kind: str) -> None:
    begins = f"{path} holds frames of link type {kind}, and only Ethernet (1) can be compared: capture on "
    assert refused(path, pcap([], link_type=link_type)).startswith(begins)
    only_other = LITTLE.section() + LITTLE.interface(link_type) + LITTLE.packet(b"x" * 40)
    assert refused(path, only_other).startswith(begins)


def test_other_versions(path: Path) -> None:
    assert "at byte 4 of the file: version 3 of pcap is unknown" in refused(path, pcap([], version=3))
    assert "at byte 0 of the file: version 2 of pcapng is unknown" in refused(path, LITTLE.section(major=2))


# ---------------------------------------------------------------- pcapng


@pytest.mark.parametrize("blocks", [LITTLE, BIG], ids=["little", "big"])
def test_pcapng_in_both_byte_orders(path: Path, blocks: Blocks) -> None:
    nanoseconds = blocks.option(2, b"tap0") + blocks.option(9, b"\x09") + blocks.option(0, b"")
    flags = [blocks.option(2, struct.pack(blocks.order + "I", value)) for value in (1, 2, 0, 0x1FD)]
    content = blocks.section(options=blocks.option(4, b"hand"))
    content += blocks.interface() + blocks.interface(options=nanoseconds)
    content += blocks.packet(FRAMES[0], 3_000_000, 0, flags[0]) + blocks.packet(FRAMES[1], 1 << 40, 1, flags[1])
    content += blocks.block(0xBAD, b"whatever") + blocks.old_packet(FRAMES[2], 4_000_000, 0, flags[2])
    content += blocks.simple(FRAMES[3]) + blocks.packet(FRAMES[4], 9, 1, flags[3], original=9000)
    assert read(path, content) == [
        (1, 3_000_000_000, FRAMES[0], 0, "in", 60),
        (2, 1 << 40, FRAMES[1], 1, "out", 61),
        (3, 4_000_000_000, FRAMES[2], 0, None, 62),
        (4, 4_000_000_000, FRAMES[3], 0, None, 63),
        (5, 9, FRAMES[4], 1, "in", 9000),
    ]


def test_each_section_has_its_own_byte_order_and_interfaces(path: Path) -> None:
    seconds = BIG.interface(options=BIG.option(9, b"\x00") + BIG.option(14, struct.pack(">q", -5)))
    binary = LITTLE.interface(options=LITTLE.option(9, b"\x81"))
    content = BIG.section() + seconds + BIG.packet(FRAMES[0], 7)
    content += LITTLE.section() + binary + LITTLE.packet(FRAMES[1], 3)
    assert [record.ts_ns for record in read(path, content)] == [2_000_000_000, 1_500_000_000]
    _, sentence = damaged(path, content + BIG.section() + BIG.packet(FRAMES[0]))
    assert "a frame of interface 0, which was not described" in sentence


def test_frames_of_other_interfaces_are_counted(path: Path) -> None:
    content = LITTLE.section() + LITTLE.interface(113) + LITTLE.interface()
    content += LITTLE.packet(b"cooked", interface=0) + LITTLE.packet(FRAMES[0], interface=1) + LITTLE.simple(b"cooked")
    path.write_bytes(content)
    with CaptureReader(path) as reader:
        assert [(record.number, record.frame) for record in reader] == [(2, FRAMES[0])]
        assert (reader.frames, reader.frames_skipped) == (1, 2)


def test_a_simple_packet_is_cut_at_the_snap_length(path: Path) -> None:
    content = LITTLE.section() + LITTLE.interface(snap_bytes=6) + LITTLE.simple(b"abcdef", original=60)
    (record,) = read(path, content)
    assert (record.frame, record.original_bytes, record.is_cut) == (b"abcdef", 60, True)


def test_what_scapy_writes_as_pcapng(path: Path) -> None:
    with PcapNgWriter(str(path)) as writer:
        for n, frame in enumerate(FRAMES):
            packet = Ether(frame)
            packet.time = 1000 + n / 4
            packet.direction = 1 + n % 2
            packet.comment = b"frame %d" % n
            writer.write(packet)
    assert [(record.ts_ns, record.frame) for record in read(path)] == [
        (1_000_000_000_000 + n * 250_000_000, frame) for n, frame in enumerate(FRAMES)
    ]


HEAD = LITTLE.section() + LITTLE.interface()
GOOD = HEAD + LITTLE.packet(FRAMES[0])


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"\x06", "the file ends inside the block that begins there"),
        (LITTLE.packet(FRAMES[1])[:-1], "the file ends inside the block that begins there"),
        (LITTLE.block(0xBAD, bytes(70_000))[:-9], "the file ends inside the block that begins there"),
        (LITTLE.section()[:20], "the file ends inside the section header that begins there"),
        (struct.pack("<III", 6, 8, 8), "a block can't be 8 bytes long"),
        (struct.pack("<II", 6, 33) + bytes(40), "a block can't be 33 bytes long"),
        (struct.pack("<II", 6, 1 << 30) + bytes(40), "a block can't be 1073741824 bytes long"),
        (struct.pack("<II", 9, 0xFFFFFFFC) + bytes(40), "a block can't be 4294967292 bytes long"),
        (LITTLE.packet(FRAMES[1])[:-4] + bytes(4), "a block says that it has 96 bytes, and at its end 0"),
        (LITTLE.packet(FRAMES[1], interface=1), "a frame of interface 1, which was not described"),
        (LITTLE.block(6, struct.pack("<IIIII", 0, 0, 0, 5, 5) + b"four"), "a frame of 5 bytes in a block with room"),
        (LITTLE.packet(bytes(FRAME_BYTES_MAX + 4)), "a frame of 262148 bytes in a block with room for 262144"),
        (LITTLE.simple(b"four", original=5)[:-8], "the file ends inside the block"),
        (LITTLE.block(3, struct.pack("<I", 9) + b"four"), "a frame of 9 bytes in a block with room for 4"),
        (LITTLE.packet(FRAMES[1], options=struct.pack("<HH", 2, 400)), "an option reaches beyond its block"),
        (LITTLE.interface() * 256, "a section has more than 256 interfaces"),
        (b"\x0a\x0d\x0d\x0a" + struct.pack("<II", 28, 5) + bytes(16), "a section header without byte-order magic"),
    ],
)
def test_damaged_blocks(path: Path, block: bytes, why: str) -> None:
    frames, sentence = damaged(path, GOOD + block)
    assert frames == FRAMES[:1]
    assert why in sentence
    at = len(GOOD) + (len(LITTLE.interface()) * 255 if "interfaces" in why else 0)
    assert f"is damaged at byte {at} of the file" in sentence


# ---------------------------------------------------------------- gzip


def test_gzipped(path: Path) -> None:
    plain = read(path, GOOD)
    assert read(path, gzip.compress(GOOD)) == plain
    assert read(path, gzip.compress(GOOD[:50]) + gzip.compress(GOOD[50:])) == plain


def test_gzip_data_that_is_damaged(path: Path) -> None:
    content = pcap([(1, n, os.urandom(1000), 1000) for n in range(200)])
    whole = gzip.compress(content)
    expected = [content[24 + n * 1016 + 16 :][:1000] for n in range(200)]
    frames, sentence = damaged(path, whole[: len(whole) // 2])
    assert 80 < len(frames) < 200
    assert frames == expected[: len(frames)]
    assert "of the unpacked content: the gzip data can't be unpacked any further (Compressed file ended" in sentence
    frames, sentence = damaged(path, whole[:-8] + b"\0\0\0\0" + whole[-4:])
    assert (frames, "CRC check failed" in sentence) == (expected, True)
    assert damaged(path, whole + b"surplus")[0] == expected


def test_gzip_data_that_unpacks_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycolo.edge.capture_source.GZIP_CONTENT_BYTES_MAX", 1 << 20)
    assert "unpacks to more than 0 GiB" in refused(path, gzip.compress(HEAD + LITTLE.packet(bytes(1000)) * 2000))


def test_memory_stays_bounded(path: Path) -> None:
    """10 MB of blocks, half of them of a kind that is passed over, in a few KB of gzip."""
    path.write_bytes(gzip.compress(HEAD + (LITTLE.packet(bytes(1000)) + LITTLE.block(0xBAD, bytes(1 << 20))) * 10))
    tracemalloc.start()
    with CaptureReader(path) as reader:
        assert sum(1 for _ in reader) == 10
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
