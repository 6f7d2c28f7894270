"""Bytes of the messages between hosts: what is accepted, what is refused, what it looks like on the wire."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pycolo.core import wire
from pycolo.core.packed import FRAME_BYTES_MAX, Batch, batch_of, pack
from pycolo.core.pages import PAGE_BYTES, PageBatch, PageDeltas
from pycolo.errors import PeerViolation

STAGE = wire.StageMessage(4, 9, b"registers", 2, bytes(16), 1.5)


def body_of(message: bytes) -> bytes:
    length, _ = wire.decode_header(message[: wire.HEADER.size])
    assert length == len(message) - wire.HEADER.size
    return message[wire.HEADER.size :]


@pytest.mark.parametrize(
    "message",
    [
        wire.Hello(
            1, 1, "control", "vm", "alpha", 3, "pc", 256, 1, (wire.NicShape("52:54:00:00:00:02", "san"),), "tcg"
        ),
        wire.Welcome(1, "beta", 4711, "packets", 4712, "disks", "token"),
        wire.Refused("no"),
        wire.Heartbeat(),
        wire.Committed(4),
        wire.Discarded(4, "why"),
        wire.Loaded(4, 11.25),
        wire.CheckpointWanted("divergence"),
        wire.Bye("stop"),
        STAGE,
        wire.ChannelHello("token"),
        wire.Boundary(17),
        wire.Confirm(7, [1, 2, 3]),
        wire.Translations(1, [], [b"key"], nic=3),
    ],
    ids=lambda message: type(message).__name__,
)
def test_control_messages_come_back_as_they_were(message: wire.Control) -> None:
    encoded = wire.encode_control(message)
    assert wire.decode_header(encoded[:5])[1] is wire.Kind.CONTROL
    assert wire.decode_control(body_of(encoded)) == message


def test_the_stage_message_carries_what_the_cache_verifies() -> None:
    stage = STAGE.stage()
    assert (stage.epoch, stage.boundary, stage.device_state) == (4, 9, b"registers")
    assert (stage.batch_count, stage.digest) == (2, bytes(16))


def stage_body(**change: object) -> bytes:
    fields = {**msgspec.structs.asdict(STAGE), "type": "stage", **change}
    return msgspec.msgpack.encode(fields)


def test_the_stage_body_of_these_tests_is_a_good_one() -> None:
    assert wire.decode_control(stage_body()) == STAGE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "unknown"}),
        msgspec.msgpack.encode({"type": "heartbeat", "extra": 1}),
        msgspec.msgpack.encode(["heartbeat"]),
        msgspec.msgpack.encode({"type": "committed"}),
        msgspec.msgpack.encode({"type": "committed", "epoch": "4"}),
        msgspec.msgpack.encode({"type": "committed", "epoch": -1}),
        msgspec.msgpack.encode({"type": "committed", "epoch": 1 << 63}),
        msgspec.msgpack.encode({"type": "loaded", "epoch": 1, "apply_ms": -1.0}),
        msgspec.msgpack.encode({"type": "heartbeat"}) + b"\x00",
        b"\x82\xa4type\xa3bye\xa3why\xa2\xff\xfe",  # text that is not UTF-8
        b"\x81\xa2\xff\xfe\x01",
        b"\x91" * 100_000,  # nested deeper than anybody reads
        msgspec.msgpack.encode({"type": "confirm", "nic": wire.NICS_MAX, "numbers": []}),
        msgspec.msgpack.encode({"type": "confirm", "nic": -1, "numbers": []}),
        msgspec.msgpack.encode({"type": "translations", "layer": 0, "known": [], "forgotten": [], "nic": 8}),
        stage_body(boundary=-1),
        stage_body(epoch=-1),
        stage_body(batch_count=-1),
        stage_body(digest=bytes(17)),
        stage_body(resumed_ms_ago=float("nan")),
        stage_body(resumed_ms_ago=float("inf")),
        stage_body(resumed_ms_ago=-0.5),
    ],
)
def test_bad_control_bodies_are_violations(body: bytes) -> None:
    with pytest.raises(PeerViolation):
        wire.decode_control(body)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\1\0",
        b"\0\0\0\0\0",
        b"\0\0\0\0\x09",
        wire.HEADER.pack(wire.MESSAGE_BYTES_MAX + 1, wire.Kind.PAGES),
        b"\xff\xff\xff\xff\1",
    ],
)
def test_bad_headers_are_violations(header: bytes) -> None:
    with pytest.raises(PeerViolation):
        wire.decode_header(header)


def test_the_largest_message_is_allowed() -> None:
    assert wire.decode_header(wire.HEADER.pack(wire.MESSAGE_BYTES_MAX, 2)) == (
        wire.MESSAGE_BYTES_MAX,
        wire.Kind.PAGES,
    )
    assert wire.MESSAGE_BYTES_MAX >= 16 + (PAGE_BYTES + 4) * wire.BATCH_PAGES_MAX


def test_a_page_batch_on_the_wire_is_what_the_docstring_says() -> None:
    batch = PageBatch(np.array([258], np.uint32), np.full((1, PAGE_BYTES), 7, np.uint8), np.array([5, 6], np.uint32))
    encoded = b"".join(wire.encode_pages(3, batch))
    body = body_of(encoded)
    assert encoded[4] == wire.Kind.PAGES
    assert body[:24] == (3).to_bytes(8, "big") + b"".join(count.to_bytes(4, "big") for count in (1, 2, 0, 0))
    assert body[24:36] == b"\x02\x01\0\0" + b"\x05\0\0\0" + b"\x06\0\0\0"
    assert body[36:] == b"\x07" * PAGE_BYTES


def test_deltas_on_the_wire_are_what_the_docstring_says() -> None:
    masks = np.zeros((1, 64), np.uint8)
    masks[0, :2] = 0x80, 0x40  # the words 0 and 9
    deltas = PageDeltas(np.array([258], np.uint32), masks, np.full(16, 7, np.uint8).view(np.uint64))
    batch = PageBatch(np.empty(0, np.uint32), np.empty((0, PAGE_BYTES), np.uint8), np.empty(0, np.uint32), deltas)
    body = body_of(b"".join(wire.encode_pages(3, batch)))
    assert body[8:28] == b"".join(count.to_bytes(4, "big") for count in (0, 0, 1, 2)) + b"\x02\x01\0\0"
    assert body[28:] == b"\x80\x40" + bytes(62) + b"\x07" * 16
    epoch, decoded = wire.decode_pages(body)
    image = np.zeros((300, PAGE_BYTES), np.uint8)
    decoded.apply_to(image)
    assert (epoch, int(image.sum()), image[258, :8].tolist(), image[258, 72:80].tolist()) == (3, 112, [7] * 8, [7] * 8)


@pytest.mark.parametrize(
    "body",
    [
        bytes(23),
        bytes(25),
        wire._PAGES.pack(1, 1, 0, 0, 0) + bytes(4 + PAGE_BYTES - 1),
        wire._PAGES.pack(1, 0, 1, 0, 0),
        wire._PAGES.pack(1, wire.BATCH_PAGES_MAX + 1, 0, 0, 0) + bytes((wire.BATCH_PAGES_MAX + 1) * (PAGE_BYTES + 4)),
        wire._PAGES.pack(1, wire.BATCH_PAGES_MAX, 0, 1, 0) + bytes((wire.BATCH_PAGES_MAX) * (PAGE_BYTES + 4) + 68),
        wire._PAGES.pack(1, 0, wire.BATCH_PAGES_MAX + 1, 0, 0) + bytes((wire.BATCH_PAGES_MAX + 1) * 4),
        wire._PAGES.pack(1, wire.BATCH_PAGES_MAX, 1, 0, 0) + bytes(wire.BATCH_PAGES_MAX * (PAGE_BYTES + 4) + 4),
        wire._PAGES.pack(1, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        wire._PAGES.pack(1, 0, 0, 1, 1) + bytes(4 + 64 + 8),  # a word that no bit marks
        wire._PAGES.pack(1, 0, 0, 1, 0) + bytes(4) + b"\x01" + bytes(63),  # a bit without its word
        wire._PAGES.pack(1, 0, 0, 0, 1) + bytes(8),
    ],
)
def test_bad_page_batches_are_violations(body: bytes) -> None:
    with pytest.raises(PeerViolation):
        wire.decode_pages(body)


@pytest.mark.parametrize(
    "body",
    [
        bytes(18),
        bytes(20),
        wire._FRAMES.pack(0, 1, 1, 2) + pack([b"x"]),
        wire._FRAMES.pack(0, 1, 1, 1) + pack([b"x", b"y"]),
        wire._FRAMES.pack(0, 1, 1, 1) + pack([b"xx"])[:-1],
        wire._FRAMES.pack(0, 1, 1, 1) + pack([b"x"]) + b"x",
        wire._FRAMES.pack(0, 1, 1, 1) + pack([bytes(FRAME_BYTES_MAX + 1)]),
        wire._FRAMES.pack(0, 1, 1, wire.FRAMES_MAX) + pack([b""] * (wire.FRAMES_MAX + 1)),
        wire._FRAMES.pack(0, 1, 1, wire.FRAMES_MAX + 1) + pack([b""] * (wire.FRAMES_MAX + 1)),
        wire._FRAMES.pack(wire.NICS_MAX, 1, 1, 0),
    ],
)
def test_bad_frame_batches_are_violations(body: bytes) -> None:
    with pytest.raises(PeerViolation):
        wire.decode_frames(body)


def test_frames_on_the_wire_are_what_the_docstring_says() -> None:
    encoded = b"".join(wire.encode_frames(5, 3, 9, batch_of([b"ab", b"c"])))
    assert encoded[4] == wire.Kind.FRAMES
    packed = b"\0\0\0\2ab\0\0\0\1c"
    assert body_of(encoded) == b"\5" + (3).to_bytes(8, "big") + (9).to_bytes(8, "big") + b"\0\2" + packed
    assert wire.decode_frames(body_of(encoded)) == (5, 3, 9, Batch(packed, 2))


def test_the_longest_frames_fit_into_a_message() -> None:
    head, packed = wire.encode_frames(0, 1, 0, batch_of([bytes(FRAME_BYTES_MAX)] * wire.FRAMES_MAX))
    assert wire.decode_header(bytes(head[: wire.HEADER.size]))[1] is wire.Kind.FRAMES
    assert len(packed) < wire.MESSAGE_BYTES_MAX


# ---------------------------------------------------------------- greetings of other versions


@pytest.mark.parametrize(
    ("said", "versions"),
    [
        ({"type": "hello", "version": 9, "version_min": 8, "vm": {"a": [1]}, "new": b"x"}, wire.Versions(9, 8)),
        ({"type": "salute", "version": 9, "version_min": 8}, wire.Versions(9, 8)),
        ({"version": 2}, wire.Versions(2, None)),
    ],
)
def test_the_version_of_a_greeting_is_read_whatever_else_it_says(
    said: dict[str, object], versions: wire.Versions
) -> None:
    assert wire.decode_versions(msgspec.msgpack.encode(said)) == versions


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81" * 5000,
        b"\xa1\xff",
        msgspec.msgpack.encode({"type": "hello"}),
        msgspec.msgpack.encode({"version": -1}),
        msgspec.msgpack.encode({"version": "3"}),
        msgspec.msgpack.encode({"version": 1 << 63}),
        msgspec.msgpack.encode({"version": 3, "version_min": 1.5}),
        msgspec.msgpack.encode([3]),
    ],
)
def test_a_greeting_without_a_version(body: bytes) -> None:
    with pytest.raises(PeerViolation, match="the peer sent a greeting that can't be read"):
        wire.decode_versions(body)


def test_a_limit_of_ones_own() -> None:
    header = wire.HEADER.pack(wire.GREETING_BYTES_MAX + 1, wire.Kind.CONTROL)
    assert wire.decode_header(header)[0] == wire.GREETING_BYTES_MAX + 1
    with pytest.raises(PeerViolation, match=f"a message of 16385 bytes; the limit is {wire.GREETING_BYTES_MAX}"):
        wire.decode_header(header, wire.GREETING_BYTES_MAX)


def test_names_of_strangers_are_short() -> None:
    fields = {"version": 3, "version_min": 3, "channel": "control", "vm": "vm", "host": "h" * 256, "term": 1}
    fields |= {"machine": "pc", "memory_mib": 256, "cpus": 1, "nics": [{"mac": "x"}], "accel": "tcg", "type": "hello"}
    with pytest.raises(PeerViolation, match="can't be read"):
        wire.decode_control(msgspec.msgpack.encode(fields))
    assert isinstance(wire.decode_control(msgspec.msgpack.encode(fields | {"host": "h"})), wire.Hello)
