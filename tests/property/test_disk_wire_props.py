"""The disk channel: any bytes are a message within the limits or a violation, and no change of the stream is unseen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from disk_tools import until_readable
from pycolo.core import disk_wire as wire
from pycolo.core.changed_chunks import CHUNKS_MAX
from pycolo.core.wire import HEADER
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.transport import PlainTransport
from pycolo.errors import PeerViolation
from tcp_pair import tcp_pair

WHOLE = st.integers(0, (1 << 63) - 1)
DISKS = st.integers(0, wire.DISKS_MAX - 1)
OFFSETS = st.integers(0, wire.DISK_BYTES_MAX)
SESSIONS = st.text("0123456789abcdef", max_size=32)
DIGESTS = st.binary(min_size=16, max_size=16)
CONTROLS: st.SearchStrategy[wire.Control] = st.one_of(
    st.builds(wire.Greeting, st.text(max_size=40)),
    st.builds(wire.Images, st.lists(st.builds(wire.ImageState, SESSIONS, st.binary(max_size=50)), max_size=16), WHOLE),
    st.builds(wire.Begin, st.lists(st.booleans(), max_size=16)),
    st.builds(wire.Copied, SESSIONS),
    st.builds(wire.Following),
    st.builds(wire.Adopted),
    st.builds(wire.Mark, WHOLE, DIGESTS, st.binary(max_size=80)),
    st.builds(wire.Applied, WHOLE),
)
DATA = st.builds(wire.Data, DISKS, OFFSETS, st.binary(min_size=1, max_size=30).map(memoryview))
ZEROS = st.builds(wire.Zeros, DISKS, OFFSETS, st.integers(1, wire.DISK_BYTES_MAX))
MESSAGES = st.one_of(CONTROLS, DATA, ZEROS)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text("aZ\n\u00e9", max_size=34)
    | st.binary(max_size=20)
    | st.lists(st.booleans() | st.integers(-9, 9), max_size=20)
)
NAMES = st.sampled_from(("type", "token", "images", "room_blocks", "whole", "session", "epoch", "digest", "checks"))
TYPES = st.sampled_from(("greeting", "images", "begin", "copied", "following", "adopted", "mark", "applied"))


def encoded(message: wire.Message) -> bytes:
    if isinstance(message, wire.Data):
        return (
            wire.data_header(len(message.content))
            + wire.data_body(message.disk, message.offset)
            + bytes(message.content)
        )
    if isinstance(message, wire.Zeros):
        return wire.zeros_header() + wire.zeros_body(message.disk, message.offset, message.length)
    return wire.encode_control(message)


def taken_apart(message: bytes) -> tuple[int, bytes]:
    """Kind and body, as a MessageStream gives them."""
    length, kind = wire.decode_header(message[: HEADER.size])
    assert length == len(message) - HEADER.size
    return kind, message[HEADER.size :]


def check_limits(message: wire.Message) -> None:
    match message:
        case wire.Data() | wire.Zeros():
            length = message.length if isinstance(message, wire.Zeros) else len(message.content)
            assert 0 <= message.disk < wire.DISKS_MAX
            assert 0 <= message.offset <= wire.DISK_BYTES_MAX
            assert 0 < length <= wire.DISK_BYTES_MAX
        case wire.Images():
            assert len(message.images) <= wire.DISKS_MAX
            assert message.room_blocks in range(1 << 63)
        case wire.Begin():
            assert len(message.whole) <= wire.DISKS_MAX
        case wire.Copied():
            assert set(message.session) <= set("0123456789abcdef")
            assert len(message.session) <= 32
        case wire.Mark():
            assert len(message.digest) == 16
            assert message.epoch in range(1 << 63)
        case wire.Applied():
            assert message.epoch in range(1 << 63)


@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_any_header_is_within_the_limits_or_a_violation(header: bytes) -> None:
    with contextlib.suppress(PeerViolation):
        length, kind = wire.decode_header(header)
        assert kind in set(wire.Kind)
        assert length <= wire.MESSAGE_BYTES_MAX


@given(st.sampled_from(wire.Kind), st.binary(max_size=60))
def test_any_body_is_a_message_within_the_limits_or_a_violation(kind: int, body: bytes) -> None:
    with contextlib.suppress(PeerViolation):
        check_limits(wire.decode(kind, body))


@given(st.dictionaries(NAMES, VALUES), TYPES)
def test_any_map_is_a_message_within_the_limits_or_a_violation(fields: dict[str, object], kind: str) -> None:
    with contextlib.suppress(PeerViolation):
        check_limits(wire.decode(wire.Kind.CONTROL, msgspec.msgpack.encode({**fields, "type": kind})))


@given(MESSAGES, st.data())
def test_a_damaged_message_is_a_message_within_the_limits_or_a_violation(
    message: wire.Message, data: st.DataObject
) -> None:
    kind, body = taken_apart(encoded(message))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PeerViolation):
        check_limits(wire.decode(kind, bytes(damaged)))


@given(MESSAGES)
def test_what_was_encoded_comes_back(message: wire.Message) -> None:
    assert wire.decode(*taken_apart(encoded(message))) == message


def control(**fields: object) -> tuple[int, bytes]:
    return wire.Kind.CONTROL, msgspec.msgpack.encode(fields)


def data(disk: int = 0, offset: int = 0, content: bytes = b"x") -> tuple[int, bytes]:
    return wire.Kind.DATA, wire.data_body(disk, offset) + content


def zeros(disk: int = 0, offset: int = 0, length: int = 1) -> tuple[int, bytes]:
    return wire.Kind.ZEROS, wire.zeros_body(disk, offset, length)


TOP = wire.DISK_BYTES_MAX
IMAGE = {"session": "", "changed": b""}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (data(disk=15), data(disk=16)),
        (data(offset=TOP), data(offset=TOP + 1)),
        (data(content=b"x"), data(content=b"")),
        (zeros(disk=15), zeros(disk=16)),
        (zeros(offset=TOP), zeros(offset=TOP + 1)),
        (zeros(length=TOP), zeros(length=TOP + 1)),
        (zeros(length=1), zeros(length=0)),
        (zeros(), (wire.Kind.ZEROS, zeros()[1] + b"\0")),
        (control(type="copied", session="0a" * 16), control(type="copied", session="0a" * 16 + "0")),
        (control(type="copied", session="ab"), control(type="copied", session="ab\n")),
        (control(type="copied", session=""), control(type="copied", session="AB")),
        (control(type="begin", whole=[True] * 16), control(type="begin", whole=[True] * 17)),
        (control(type="begin", whole=[]), control(type="begin", whole=[1])),
        (control(type="applied", epoch=(1 << 63) - 1), control(type="applied", epoch=1 << 63)),
        (control(type="applied", epoch=0), control(type="applied", epoch=-1)),
        (control(type="mark", epoch=1, digest=bytes(16)), control(type="mark", epoch=1, digest=bytes(15))),
        (
            control(type="mark", epoch=1, digest=bytes(16), checks=bytes(8 * wire.CHECKS_MAX)),
            control(type="mark", epoch=1, digest=bytes(16), checks=bytes(8 * wire.CHECKS_MAX + 1)),
        ),
        (
            control(type="images", images=[IMAGE] * 16, room_blocks=0),
            control(type="images", images=[IMAGE] * 17, room_blocks=0),
        ),
        (
            control(type="images", images=[{**IMAGE, "changed": bytes(CHUNKS_MAX // 8)}], room_blocks=0),
            control(type="images", images=[{**IMAGE, "changed": bytes(CHUNKS_MAX // 8 + 1)}], room_blocks=0),
        ),
        (control(type="following"), control(type="following", more=1)),
        (control(type="adopted"), control(type="adoptd")),
    ],
)
def test_every_limit_is_where_it_is(good: tuple[int, bytes], bad: tuple[int, bytes]) -> None:
    check_limits(wire.decode(*good))
    with pytest.raises(PeerViolation):
        wire.decode(*bad)


@pytest.mark.parametrize(
    ("kind", "length_max"),
    [
        (wire.Kind.CONTROL, wire.MESSAGE_BYTES_MAX),
        (wire.Kind.DATA, 9 + wire.DATA_BYTES_MAX),
        (wire.Kind.ZEROS, 17),
    ],
)
def test_the_length_is_limited_by_kind(kind: wire.Kind, length_max: int) -> None:
    assert wire.decode_header(HEADER.pack(length_max, kind)) == (length_max, kind)
    with pytest.raises(PeerViolation, match=f"announced {length_max + 1} bytes of kind {kind}"):
        wire.decode_header(HEADER.pack(length_max + 1, kind))


def test_the_largest_answer_of_a_secondary_can_be_sent() -> None:
    images = [wire.ImageState("f" * 32, b"\xff" * (CHUNKS_MAX // 8))] * wire.DISKS_MAX
    assert wire.decode_header(wire.encode_control(wire.Images(images, (1 << 63) - 1))[: HEADER.size])


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_other_kinds_are_violations(kind: int) -> None:
    with pytest.raises(PeerViolation):
        wire.decode_header(HEADER.pack(0, kind))


# ---------------------------------------------------------------- the digest between two marks

Stream = list[bytes]


def lose(stream: Stream, at: int, _: int) -> None:
    del stream[at]


def double(stream: Stream, at: int, _: int) -> None:
    stream.insert(at, stream[at])


def swap(stream: Stream, at: int, other: int) -> None:
    stream[at], stream[other] = stream[other], stream[at]


def change(stream: Stream, at: int, bit: int) -> None:
    changed = bytearray(stream[at])
    place = HEADER.size * 8 + bit % ((len(changed) - HEADER.size) * 8)
    changed[place // 8] ^= 1 << place % 8
    stream[at] = bytes(changed)


def other_kind(stream: Stream, at: int, _: int) -> None:
    """The 8 bytes of a length are content as well: one bit of the header makes one of the other."""
    changed = bytearray(stream[at])
    changed[HEADER.size - 1] ^= wire.Kind.DATA ^ wire.Kind.ZEROS
    stream[at] = bytes(changed)


def join(stream: Stream, at: int, _: int) -> None:
    """Two records become one with the bytes of both."""
    (kind, first), (_, second) = taken_apart(stream[at]), taken_apart(stream[(at + 1) % len(stream)])
    stream[at : at + 2] = [HEADER.pack(len(first) + len(second), kind) + first + second]


def digest_of_the_receiver(stream: Stream) -> bytes:
    digest = wire.StreamDigest()
    for message in stream:
        digest.add_received(*taken_apart(message))
    return digest.take()


@given(st.lists(DATA | ZEROS, max_size=8), st.data())
def test_both_ends_have_the_same_digest_however_it_is_taken(
    records: list[wire.Data | wire.Zeros], draw: st.DataObject
) -> None:
    digest = wire.StreamDigest()
    digest.add(b"an epoch before")
    digest.take()
    for message in map(encoded, records):
        cut = draw.draw(st.integers(0, len(message)))
        digest.add(message[:cut], memoryview(message)[cut:])
    assert digest.take() == digest_of_the_receiver([encoded(record) for record in records])


@pytest.mark.parametrize("harm", [lose, double, swap, change, other_kind, join], ids=lambda harm: harm.__name__)
@given(records=st.lists(DATA | ZEROS, min_size=1, max_size=8), at=st.integers(0, 7), other=st.integers(0, 1000))
def test_no_harm_to_the_stream_is_unseen(
    harm: Callable[[Stream, int, int], None], records: list[wire.Data | wire.Zeros], at: int, other: int
) -> None:
    sent = [encoded(record) for record in records]
    got = list(sent)
    harm(got, at % len(got), other if harm is change else other % len(got))
    assume(got != sent)
    try:
        digest = digest_of_the_receiver(got)
    except PeerViolation:
        return  # not even a message
    assert digest != digest_of_the_receiver(sent)


# ---------------------------------------------------------------- whole messages out of pieces


@given(st.lists(MESSAGES, min_size=1, max_size=12), st.data())
def test_a_stream_cut_anywhere_gives_the_same_messages(messages: list[wire.Message], draw: st.DataObject) -> None:
    whole = b"".join(map(encoded, messages))
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    ours, theirs = tcp_pair()
    stream = MessageStream(PlainTransport(ours), "the channel", wire.decode_header)
    try:
        got: list[wire.Message] = []
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            if start < end:
                theirs.sendall(whole[start:end])
                until_readable(stream)
                stream.read()
                got += [wire.decode(kind, body) for kind, body in stream.messages()]
        assert got == messages
        assert not stream.read()
    finally:
        stream.close()
        theirs.close()
