"""NBD: any bytes, cut in any way; and a disk behind a connection is the same as a bytearray."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbd_peer as peer
from nbd_peer import FLAGS, MemoryExport, Peer, go, meta, option, request
from pycolo.core import nbd
from pycolo.core.nbd import NbdViolation, RequestBuffer
from pycolo.core.nbd_handshake import OPTION_BYTES_MAX, ExportInfo, Handshake

SIZE = 50_021
NAMES = st.sampled_from([b"", b"disk", b"other", b"\xff", b"x" * 5000])
QUERIES = st.lists(st.sampled_from([b"", b"base:", b"base:allocation", b"qemu:x"]), max_size=3)
OPTIONS = st.one_of(
    st.builds(option, st.integers(0, 12), st.binary(max_size=30)),
    st.builds(lambda name, number: go(name, 1, 3, number=number), NAMES, st.sampled_from([peer.GO, peer.INFO])),
    st.builds(lambda number, name, queries: meta(number, name, *queries), st.sampled_from([9, 10]), NAMES, QUERIES),
    st.just(option(peer.STRUCTURED)),
    st.binary(max_size=20),
)
HANDSHAKES = st.builds(
    lambda flags, options: flags + b"".join(options), st.sampled_from([FLAGS, b"\0\0\0\1", b"abcd"]), st.lists(OPTIONS)
)
LENGTHS = st.integers(0, 3000) | st.sampled_from([nbd.BUFFER_BYTES, 33 << 20, (1 << 32) - 1])
REQUESTS = st.one_of(
    st.builds(request, st.integers(0, 9), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), LENGTHS),
    st.builds(request, st.just(peer.WRITE), st.integers(0, 9), st.integers(0, 9), data=st.binary(max_size=3000)),
    st.binary(max_size=40),
)
STREAMS = st.lists(REQUESTS, max_size=20).map(b"".join)
Taken = tuple[int, int, int, int, int, bytes]


def pieces(stream: bytes, data: st.DataObject) -> list[bytes]:
    """The stream, cut somewhere."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])]


def shaken(parts: list[bytes]) -> tuple[bytes, nbd.Session | None, bool, str, bytes]:
    handshake = Handshake({name: ExportInfo(SIZE, False) for name in ("disk", "other")})
    out, rest = b"", b""
    for part in parts:
        if handshake.over:
            rest += part
        else:
            out += handshake.feed(part)
            assert len(handshake._in) <= OPTION_BYTES_MAX + 16 or handshake.over
    if handshake.session is not None:
        rest = handshake.rest() + rest
    return out, handshake.session, handshake.ended, handshake.violation, b"" if handshake.ended else rest


@given(HANDSHAKES, st.data())
def test_a_handshake_is_the_same_however_it_is_cut(stream: bytes, data: st.DataObject) -> None:
    assert shaken(pieces(stream, data)) == shaken([stream])


def taken(parts: list[bytes]) -> tuple[list[Taken], str]:
    buffer = RequestBuffer()
    requests: list[Taken] = []
    for part in parts:
        view = memoryview(part)
        while view:
            space = buffer.space()
            assert 0 < len(space) <= nbd.PAYLOAD_BYTES_MAX + nbd.REQUEST.size
            buffer.feed(view[: len(space)])
            view = view[len(space) :]
            try:
                for one in iter(buffer.take, None):
                    assert one is not None
                    requests.append((*one[:5], bytes(one[5])))
            except NbdViolation as violation:
                return requests, str(violation)
    return requests, ""


@given(STREAMS, st.data())
def test_requests_are_the_same_however_they_are_cut(stream: bytes, data: st.DataObject) -> None:
    assert taken(pieces(stream, data)) == taken([stream])


SESSIONS = st.builds(nbd.Session, st.just("x"), st.integers(1, 1 << 63), st.booleans(), st.booleans(), st.booleans())


@given(SESSIONS, st.integers(0, 20), st.integers(0, 9), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_what_is_not_refused_is_within_the_disk_and_the_limits(
    session: nbd.Session, flags: int, command: int, offset: int, length: int
) -> None:
    one = nbd.Request(flags, command, 1, offset, length, memoryview(b""))
    if nbd.refusal(session, nbd.flags_allowed(session), one):
        return
    if command != peer.FLUSH:
        assert length > 0
        assert offset + length <= session.size_bytes
    if command == peer.READ:
        assert length <= nbd.PAYLOAD_BYTES_MAX
    assert not (session.read_only and command in (peer.WRITE, peer.TRIM, peer.ZEROES))
    assert session.allocation or command != peer.STATUS
    assert not flags & peer.FAST_ZERO


@given(st.binary(max_size=300))
def test_any_bytes_close_a_connection_or_are_answered_and_change_nothing(garbage: bytes) -> None:
    disk = MemoryExport(SIZE)
    client = Peer({"": disk})
    try:
        client.send(garbage)
        for _ in range(10):
            client.turn()
        assert not any(disk.content)
    finally:
        client.close()


OFFSETS = st.integers(0, SIZE + 10) | st.sampled_from([0, 4096, SIZE - 1, SIZE])
OPS = st.one_of(
    st.tuples(st.just(peer.WRITE), OFFSETS, st.integers(1, 6000), st.integers(0, 255)),
    st.tuples(st.sampled_from([peer.READ, peer.ZEROES, peer.TRIM]), OFFSETS, st.integers(1, 9000), st.just(0)),
    st.tuples(st.just(peer.FLUSH), st.just(0), st.just(0), st.just(0)),
)


def modelled(model: bytearray, command: int, offset: int, length: int, fill: int) -> bytes | None:
    """What a read must give after the op; None when it must be refused."""
    if offset + length > SIZE:
        return None
    if command == peer.READ:
        return bytes(model[offset : offset + length])
    if command in (peer.WRITE, peer.ZEROES):
        model[offset : offset + length] = bytes([fill]) * length
    return b""


@pytest.mark.parametrize("structured", [False, True])
@given(ops=st.lists(OPS, max_size=40))
def test_a_disk_behind_a_connection_is_a_bytearray(structured: bool, ops: list[tuple[int, int, int, int]]) -> None:
    disk, model = MemoryExport(SIZE), bytearray(SIZE)
    client = Peer({"": disk}, structured=structured)
    try:
        for cookie, (command, offset, length, fill) in enumerate(ops):  # all of them before the first reply is read
            data = bytes([fill]) * length if command == peer.WRITE else b""
            client.ask(command, cookie, offset, length, data)
        for cookie, op in enumerate(ops):
            reply = client.reply()
            expected = modelled(model, *op)
            assert reply.cookie == cookie
            assert bool(reply.error) == (expected is None)
            assert reply.data == (expected or b"")
        assert disk.content == model
    finally:
        client.close()
