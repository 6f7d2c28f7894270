"""The primary's end of the disk channel: the stream, what has to be copied, what is not due, the end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from primary_script import DIGEST_BYTES, EMPTY, FIRST, MIB, ROOM_BLOCKS, SESSION, SIZE, TOKEN, Primary

from disk_tools import Answer, until_readable
from pycolo.core import disk_wire as wire
from pycolo.core.block_store import BLOCK_BYTES
from pycolo.core.changed_chunks import CHUNK_BYTES_MIN
from pycolo.disk import protocol
from pycolo.disk.replica import COPY_QUEUE_BYTES
from pycolo.disk.self_check import checks_of
from pycolo.edge.disk_meta import Kind
from pycolo.errors import PeerLost, PeerViolation


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    primary = Primary(tmp_path)
    yield primary
    primary.close()


# ---------------------------------------------------------------- the stream


def test_the_stream_is_greeting_begin_content_copied(primary: Primary) -> None:
    begin, *pieces, copied = primary.copied()
    assert begin == wire.Begin([True, True])
    assert isinstance(copied, wire.Copied)
    assert len(copied.session) == 32
    contents = [b"", b""]
    for piece in pieces:
        assert isinstance(piece, wire.Data)
        assert piece.offset == len(contents[piece.disk])
        contents[piece.disk] += bytes(piece.content)
    assert contents == [FIRST, b"x" * 700]


def test_nothing_is_sent_before_the_secondary_has_said_what_it_has(primary: Primary) -> None:
    assert primary.hear(1) == [wire.Greeting(TOKEN)]
    assert primary.write().said == "done"
    primary.turn()
    assert primary.other.hears_nothing()


def test_writes_are_in_the_stream_in_order_with_the_mark_between_them(primary: Primary) -> None:
    primary.following()
    disk, other = primary.disks
    answers = [Answer() for _ in range(4)]
    disk.write(answers[0], 3, memoryview(b"one"), fua=False)
    other.write(answers[1], 100, memoryview(b"two"), fua=False)
    disk.zero(answers[2], 4096, 8192, fua=False, may_trim=False)
    primary.side.seal(2)
    disk.trim(answers[3], 0, 512, fua=False)
    heard = primary.hear(3)
    assert heard == [
        wire.Data(0, 3, memoryview(b"one")),
        wire.Data(1, 100, memoryview(b"two")),
        wire.Zeros(0, 4096, 8192),
    ]
    assert primary.hear(1) == [wire.Mark(2, primary.digest.take())]
    assert primary.hear(1) == [wire.Zeros(0, 0, 512)]
    assert [answer.said for answer in answers] == ["done"] * 4


def test_a_long_write_is_cut_into_messages_within_the_limit(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    try:
        primary.following()
        data = random.Random(2).randbytes(SIZE)
        primary.disks[0].write(Answer(), 0, memoryview(data), fua=False)
        pieces = primary.hear(2)
        assert [(p.offset, len(p.content)) for p in pieces if isinstance(p, wire.Data)] == [(0, MIB), (MIB, 512)]
        assert b"".join(bytes(p.content) for p in pieces if isinstance(p, wire.Data)) == data
    finally:
        primary.close()


def test_the_content_that_is_sent_is_that_of_the_call(primary: Primary) -> None:
    primary.following()
    data = bytearray(b"before")
    primary.disks[0].write(Answer(), 0, memoryview(data), fua=False)
    data[:] = b"after!"  # NBD's buffer is used again
    assert primary.hear(1) == [wire.Data(0, 0, memoryview(b"before"))]


def test_a_write_that_failed_is_sent_as_it_is_on_the_image(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    primary.following()
    image = primary.disks[0].image
    write = image.write

    def half(offset: int, data: memoryview) -> None:
        write(offset, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image, "write", half)
    assert primary.write().said == 28
    assert primary.hear(1) == [wire.Data(0, 0, memoryview(b"w" * 2048 + FIRST[2048:4096]))]
    assert isinstance(primary.notices[0], protocol.Trouble)
    assert not primary.notices[0].fatal


def test_the_self_check_goes_with_the_mark(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    try:
        primary.copied()
        primary.say(wire.Following())
        primary.write()
        primary.side.seal(1, primary.side.checks())
        images = [disk.image for disk in primary.disks]
        checks = checks_of([image.read for image in images], [image.size_bytes for image in images])
        assert len(checks) == 3 * 8
        primary.hear(1)
        assert primary.hear(1) == [wire.Mark(1, primary.digest.take(), checks)]
    finally:
        primary.close()


def test_the_copy_waits_while_the_secondary_does_not_read(tmp_path: Path) -> None:
    primary = Primary(tmp_path)
    try:
        replica = primary.side.replica
        assert replica is not None
        assert primary.hear(1) == [wire.Greeting(TOKEN)]
        replica.room.backlog_bytes_max = 0
        primary.say(wire.Images([EMPTY, EMPTY], ROOM_BLOCKS))
        replica.stream.queue(bytes(64 * MIB))  # more than any socket takes
        assert primary.turn() is None  # the loop calls when more can be sent
        assert replica.stream.waiting
        assert replica.stream.waiting_bytes > COPY_QUEUE_BYTES
        assert replica.copying is not None
        assert replica.copying.looked_at_bytes == 0
    finally:
        primary.close()


@pytest.mark.parametrize("left", [[0], [COPY_QUEUE_BYTES + 1, 0], [1, 0]])
def test_a_copy_that_waits_is_always_called_again(
    primary: Primary, monkeypatch: pytest.MonkeyPatch, left: list[int]
) -> None:
    """`left` bytes wait after each attempt to send: whenever none do, nobody but the clock would call."""
    replica = primary.side.replica
    assert replica is not None
    assert primary.hear(1) == [wire.Greeting(TOKEN)]
    primary.say(wire.Images([EMPTY, EMPTY], ROOM_BLOCKS))
    stream = replica.stream
    stream.queue(bytes(2 * COPY_QUEUE_BYTES))

    def flush() -> None:
        stream.waiting_bytes = left.pop(0)
        if not stream.waiting_bytes:
            stream._out.clear()

    monkeypatch.setattr(stream, "flush", flush)
    assert primary.turn() == 0.0 or stream.waiting
    monkeypatch.undo()


# ---------------------------------------------------------------- what has to be copied


def bitmap(*chunks: int) -> bytes:
    bits = np.zeros(3, np.uint8)
    for chunk in chunks:
        bits[chunk // 8] |= 1 << chunk % 8
    return bits.tobytes()


def with_session(primary: Primary, *chunks: int) -> None:
    """Both were partners; since then we have written to these chunks of the first disk."""
    for disk in primary.disks:
        disk.meta.change(Kind.SOURCE, SESSION)
    for chunk in chunks:
        primary.disks[0].changes.note(chunk * CHUNK_BYTES_MIN, 1)


def chunks_of(messages: list[wire.Message]) -> list[int]:
    """Of the first disk, those that were sent."""
    return [
        chunk
        for message in messages
        if isinstance(message, wire.Data) and not message.disk
        for chunk in range(
            message.offset // CHUNK_BYTES_MIN, -(-(message.offset + len(message.content)) // CHUNK_BYTES_MIN)
        )
    ]


def test_a_returning_partner_gets_what_either_side_has_changed(primary: Primary) -> None:
    with_session(primary, 2, 16)
    begin, *pieces, _ = primary.copied((wire.ImageState(SESSION, bitmap(3, 9)), wire.ImageState(SESSION, b"")))
    assert begin == wire.Begin([False, False])
    assert chunks_of(pieces) == [2, 3, 9, 16]
    primary.say(wire.Following())
    assert primary.notices == [protocol.Following(3 * CHUNK_BYTES_MIN + 512, whole=False)]


@pytest.mark.parametrize(
    "state",
    [EMPTY, wire.ImageState("cd" * 16, bitmap()), wire.ImageState(SESSION, bytes(1)), wire.ImageState("", bitmap(1))],
    ids=["none", "another's", "marks of another size", "forgotten"],
)
def test_whoever_is_not_the_old_partner_gets_everything(primary: Primary, state: wire.ImageState) -> None:
    with_session(primary, 2)
    begin, *pieces, _ = primary.copied((state, wire.ImageState(SESSION, b"")))
    assert begin == wire.Begin([True, False])
    assert chunks_of(pieces) == list(range(17))
    primary.say(wire.Following())
    assert primary.notices == [protocol.Following(SIZE, whole=True)]


def test_two_without_a_session_are_no_partners(primary: Primary) -> None:
    assert primary.copied((EMPTY, EMPTY))[0] == wire.Begin([True, True])


def test_marks_stay_until_the_secondary_has_adopted_and_applied(primary: Primary) -> None:
    with_session(primary, 2)
    meta = primary.disks[0].meta

    def marked() -> list[int]:
        return [chunk for chunk in range(17) if meta.bits[chunk // 8] >> chunk % 8 & 1]

    copied = primary.copied((wire.ImageState(SESSION, b""), wire.ImageState(SESSION, b"")))[-1]
    primary.write(offset=5 * CHUNK_BYTES_MIN)
    primary.say(wire.Following())
    primary.side.seal(1)
    assert marked() == [2, 5]
    assert meta.session == SESSION
    primary.write(offset=7 * CHUNK_BYTES_MIN)
    primary.say(wire.Adopted())
    assert isinstance(copied, wire.Copied)
    assert marked() == [2, 5, 7]  # until it is durable
    primary.workers.run_all()
    assert (meta.session, marked()) == (copied.session, [5, 7])
    primary.say(wire.Applied(1))
    assert marked() == [7]
    primary.side.leave()
    primary.write(offset=9 * CHUNK_BYTES_MIN)
    assert marked() == [7, 9]


def test_a_late_adoption_clears_nothing_of_another_copy(primary: Primary) -> None:
    with_session(primary, 2)
    meta = primary.disks[0].meta
    primary.copied((wire.ImageState(SESSION, b""), wire.ImageState(SESSION, b"")))
    primary.say(wire.Following())
    primary.side.seal(1)
    primary.say(wire.Adopted())
    primary.side.leave()
    primary.workers.run_all()
    assert meta.bits.any()


# ---------------------------------------------------------------- what is not due

AT_FIRST: list[wire.Control] = [
    wire.Following(),
    wire.Adopted(),
    wire.Applied(0),
    wire.Copied(SESSION),
    wire.Greeting(TOKEN),
    wire.Begin([True, True]),
    wire.Mark(1, bytes(DIGEST_BYTES)),
    wire.Images([EMPTY], ROOM_BLOCKS),
    wire.Images([EMPTY] * 3, ROOM_BLOCKS),
]


@pytest.mark.parametrize("message", AT_FIRST, ids=str)
def test_before_the_secondary_has_said_what_it_has(primary: Primary, message: wire.Control) -> None:
    with pytest.raises(PeerViolation):
        primary.say(message)


@pytest.mark.parametrize("message", [wire.Following(), wire.Adopted(), wire.Applied(0)], ids=str)
def test_while_the_copy_is_under_way(primary: Primary, message: wire.Control) -> None:
    primary.say(wire.Images([EMPTY, EMPTY], ROOM_BLOCKS))
    with pytest.raises(PeerViolation):
        primary.say(message)


@pytest.mark.parametrize(
    "messages",
    [
        [wire.Adopted()],
        [wire.Applied(0)],
        [wire.Images([EMPTY, EMPTY], ROOM_BLOCKS)],
        [wire.Following(), wire.Following()],
        [wire.Following(), wire.Adopted()],
    ],
    ids=str,
)
def test_before_the_first_mark(primary: Primary, messages: list[wire.Control]) -> None:
    primary.copied()
    with pytest.raises(PeerViolation):
        primary.say(*messages)


@pytest.mark.parametrize("messages", [[wire.Applied(1)], [wire.Adopted(), wire.Adopted()]], ids=str)
def test_after_the_first_mark(primary: Primary, messages: list[wire.Control]) -> None:
    primary.copied()
    primary.say(wire.Following())
    primary.side.seal(1)
    with pytest.raises(PeerViolation):
        primary.say(*messages)


def test_an_epoch_that_was_never_sealed_can_not_be_applied(primary: Primary) -> None:
    primary.following()
    with pytest.raises(PeerViolation):
        primary.say(wire.Applied(2))


# ---------------------------------------------------------------- the end


def test_the_end_releases_every_ticket_and_the_guest_goes_on(primary: Primary) -> None:
    primary.following()
    answers = [primary.write() for _ in range(90)]
    assert answers[-1].said is None
    primary.side.leave()
    assert [answer.said for answer in answers] == ["done"] * 90
    assert primary.write().said == "done"
    assert primary.turn(0.0) is None
    with pytest.raises(PeerLost, match="no disk channel"):
        primary.side.seal(2)
    primary.side.leave()
    assert primary.side.stats().sent_bytes == SIZE + 700
    assert primary.side.stats().backlog_bytes_max == 90 * BLOCK_BYTES


def test_a_secondary_that_goes_away_is_lost(primary: Primary) -> None:
    primary.following()
    primary.other.close()
    replica = primary.side.replica
    assert replica is not None
    until_readable(replica.stream)
    with pytest.raises(PeerLost, match="closed the disk channel"):
        replica.on_readable()
