"""The NBD protocol: every option and command, right and wrong, and what a connection does when it can't go on."""

import errno
import struct
from collections.abc import Callable, Iterator

import pytest

import nbd_peer as peer
from nbd_peer import FLAGS, MemoryExport, Peer, go, meta, option, option_replies, request, string
from pycolo.core import nbd
from pycolo.core.nbd import NbdViolation, RequestBuffer
from pycolo.core.nbd_handshake import OPTION_BYTES_MAX, OPTIONS_MAX, ExportInfo, Handshake
from pycolo.edge import nbd_server

SIZE = 100_001
MakePeer = Callable[..., Peer]


@pytest.fixture
def disk() -> MemoryExport:
    return MemoryExport(SIZE)


@pytest.fixture
def connect() -> Iterator[MakePeer]:
    peers: list[Peer] = []

    def make(export: MemoryExport, **options: bool) -> Peer:
        peers.append(Peer({"": export}, **options))
        return peers[-1]

    yield make
    for one in peers:
        one.close()


def handshake(*names: str, read_only: bool = False) -> Handshake:
    return Handshake({name: ExportInfo(SIZE, read_only) for name in names or ("disk", "other")})


# ---- handshake


def test_export_name_gives_size_and_flags_and_zeroes_unless_refused() -> None:
    one = handshake()
    assert one.feed(FLAGS + option(peer.EXPORT_NAME, b"disk")) == struct.pack(">QH", SIZE, 1 | 4 | 8 | 32 | 64)
    other = handshake(read_only=True)
    answer = other.feed(struct.pack(">I", 1) + option(peer.EXPORT_NAME, b"disk"))
    assert answer == struct.pack(">QH", SIZE, 1 | 2 | 4 | 8) + bytes(124)
    assert other.session is not None
    assert other.session.read_only


def test_the_empty_name_is_the_first_export() -> None:
    one = handshake()
    one.feed(FLAGS + go())
    assert one.session is not None
    assert one.session.export == "disk"


def test_an_unknown_name_ends_export_name_but_not_go() -> None:
    one = handshake()
    (reply,) = option_replies(one.feed(FLAGS + go(b"nothing")))
    assert reply.kind == peer.ERR_UNKNOWN
    assert not one.over
    assert one.feed(option(peer.EXPORT_NAME, b"nothing")) == b""
    assert one.ended
    assert "does not exist" in one.violation


def test_go_tells_size_name_and_block_sizes_and_begins() -> None:
    one = handshake()
    replies = option_replies(one.feed(FLAGS + option(peer.STRUCTURED) + go(b"other", 1, 3, 2) + b"rest"))
    assert [reply.kind for reply in replies] == [peer.ACK, peer.REP_INFO, peer.REP_INFO, peer.REP_INFO, peer.ACK]
    assert replies[1].data == struct.pack(">HQH", 0, SIZE, 1 | 4 | 8 | 32 | 64 | 128)
    assert replies[2].data == b"\0\1other"
    assert replies[3].data == struct.pack(">HIII", 3, 1, 4096, 32 << 20)
    assert one.session == nbd.Session("other", SIZE, False, True, False)
    assert one.rest() == b"rest"


def test_info_tells_the_same_and_goes_on() -> None:
    one = handshake()
    replies = option_replies(one.feed(FLAGS + go(b"disk", number=peer.INFO)))
    assert [reply.kind for reply in replies] == [peer.REP_INFO, peer.REP_INFO, peer.ACK]
    assert not one.over


def test_list_names_all_exports() -> None:
    replies = option_replies(handshake().feed(FLAGS + option(peer.LIST)))
    assert [(reply.kind, reply.data) for reply in replies] == [
        (peer.SERVER, string(b"disk")),
        (peer.SERVER, string(b"other")),
        (peer.ACK, b""),
    ]


def test_abort_is_acknowledged_and_ends() -> None:
    one = handshake()
    (reply,) = option_replies(one.feed(FLAGS + option(peer.ABORT) + option(peer.LIST)))
    assert reply == (peer.ABORT, peer.ACK, b"")
    assert one.ended


def test_the_allocation_context_is_selected_for_one_export() -> None:
    one = handshake()
    replies = option_replies(
        one.feed(
            FLAGS
            + option(peer.STRUCTURED)
            + meta(peer.LIST_META, b"disk")
            + meta(peer.LIST_META, b"disk", b"base:")
            + meta(peer.LIST_META, b"disk", b"qemu:dirty-bitmap:x")
            + meta(peer.SET_META, b"disk", b"qemu:x", b"base:allocation")
        )
    )
    listed = (peer.LIST_META, peer.META, bytes(4) + b"base:allocation")
    chosen = (peer.SET_META, peer.META, b"\0\0\0\1base:allocation")
    acks = [(peer.LIST_META, peer.ACK, b""), (peer.SET_META, peer.ACK, b"")]
    assert replies[1:] == [listed, acks[0], listed, acks[0], acks[0], chosen, acks[1]]
    one.feed(go(b""))
    assert one.session is not None
    assert one.session.allocation


@pytest.mark.parametrize(
    "last",
    [
        meta(peer.SET_META, b"disk"),
        meta(peer.SET_META, b"disk", b"base:"),
        meta(peer.SET_META, b"nothing", b"base:allocation"),
        meta(peer.SET_META, b"other", b"base:allocation"),
        option(peer.SET_META, b"\0"),
    ],
)
def test_a_later_choice_of_contexts_replaces_the_first(last: bytes) -> None:
    one = handshake()
    one.feed(FLAGS + option(peer.STRUCTURED) + meta(peer.SET_META, b"disk", b"base:allocation") + last + go(b"disk"))
    assert one.session is not None
    assert not one.session.allocation


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (option(peer.STARTTLS), peer.ERR_UNSUP),
        (option(peer.PEEK), peer.ERR_UNSUP),
        (option(4711, b"whatever"), peer.ERR_UNSUP),
        (option(peer.LIST, b"x"), peer.ERR_INVALID),
        (option(peer.STRUCTURED, b"x"), peer.ERR_INVALID),
        (option(peer.GO), peer.ERR_INVALID),
        (option(peer.GO, string(b"disk") + b"\0\1"), peer.ERR_INVALID),
        (option(peer.GO, string(b"disk") + b"\0\0x"), peer.ERR_INVALID),
        (option(peer.GO, struct.pack(">I", 1 << 31)), peer.ERR_INVALID),
        (go(b"n" * 4097), peer.ERR_INVALID),
        (go(b"\xff"), peer.ERR_UNKNOWN),
        (meta(peer.SET_META, b"disk", b"base:allocation"), peer.ERR_INVALID),  # structured replies come first
        (option(peer.SET_META, string(b"disk") + struct.pack(">I", 1 << 31)), peer.ERR_INVALID),
    ],
)
def test_wrong_options_are_refused_and_the_handshake_goes_on(sent: bytes, kind: int) -> None:
    one = handshake()
    (reply,) = option_replies(one.feed(FLAGS + sent))
    assert reply.kind == kind
    assert option_replies(one.feed(go(b"disk")))[-1].kind == peer.ACK


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">I", 4),
        FLAGS + b"IHAVEOPX" + bytes(8),
        FLAGS + b"IHAVEOPT" + struct.pack(">II", peer.LIST, OPTION_BYTES_MAX + 1),
        FLAGS + b"IHAVEOPT" + struct.pack(">II", peer.LIST, (1 << 32) - 1),
        FLAGS + option(peer.STARTTLS) * (OPTIONS_MAX + 1),
    ],
)
def test_what_can_not_be_an_option_ends_the_handshake(sent: bytes) -> None:
    one = handshake()
    one.feed(sent)
    assert one.ended
    assert one.violation
    assert one.session is None


# ---- requests


def take_all(buffer: RequestBuffer) -> list[tuple[int, int, int, int, int, bytes]]:
    taken = []
    while (one := buffer.take()) is not None:
        taken.append((*one[:5], bytes(one[5])))
    return taken


def test_requests_come_out_whole_and_payloads_behind_the_buffers_end_too() -> None:
    buffer = RequestBuffer()
    data = bytes(range(256)) * 2048  # half the buffer each, so that the second one has to move
    a_round = request(peer.WRITE, 1, 5, data=data) + request(peer.READ, 2, 6, 7) + request(peer.WRITE, 3, 9, data=data)
    stream = memoryview(a_round * 3)
    taken = []
    while stream:
        space = buffer.space()
        part = stream[: min(len(space), 70_001)]
        buffer.feed(part)
        stream = stream[len(part) :]
        taken += take_all(buffer)
    once = [(0, 1, 1, 5, len(data), data), (0, 0, 2, 6, 7, b""), (0, 1, 3, 9, len(data), data)]
    assert taken == once * 3


def test_a_payload_larger_than_the_buffer_gets_its_own_and_the_standard_one_comes_back() -> None:
    buffer = RequestBuffer()
    data = bytes(nbd.PAYLOAD_BYTES_MAX)
    stream = memoryview(request(peer.WRITE, 1, data=data) + request(peer.FLUSH, 2))
    largest = 0
    taken: list[tuple[int, ...]] = []
    while stream:
        space = buffer.space()
        largest = max(largest, len(space))
        part = stream[: len(space)]
        buffer.feed(part)
        stream = stream[len(part) :]
        taken += [one[1:5] for one in iter(buffer.take, None)]
    assert largest <= nbd.PAYLOAD_BYTES_MAX + nbd.REQUEST.size
    assert taken == [(peer.WRITE, 1, 0, len(data)), (peer.FLUSH, 2, 0, 0)]
    assert len(buffer.space()) == nbd.BUFFER_BYTES


@pytest.mark.parametrize(
    "sent",
    [
        request(peer.READ, 1, magic=0x25609514),
        struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, peer.WRITE, 1, 0, (32 << 20) + 1),
    ],
)
def test_a_stream_that_can_not_be_read_on_is_a_violation(sent: bytes) -> None:
    buffer = RequestBuffer()
    buffer.feed(sent)
    with pytest.raises(NbdViolation):
        buffer.take()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EROFS, errno.EPERM), (errno.EDQUOT, errno.ENOSPC), (errno.EBADF, errno.EIO), (errno.ENOSPC, errno.ENOSPC)],
)
def test_errors_become_those_that_the_protocol_knows(number: int, expected: int) -> None:
    assert nbd.nbd_error(number) == expected


def test_extents_are_merged_and_clipped() -> None:
    extents = [(3, 0), (4, 0), (5, 3), (100, 0)]
    assert nbd.clipped(extents, 14, only_one=False) == [(7, 0), (5, 3), (2, 0)]
    assert nbd.clipped(extents, 5, only_one=False) == [(5, 0)]
    assert nbd.clipped(extents, 14, only_one=True) == [(7, 0)]


# ---- a connection


@pytest.mark.parametrize("structured", [False, True])
def test_every_command_reaches_the_disk(connect: MakePeer, disk: MemoryExport, structured: bool) -> None:
    client = connect(disk, structured=structured)
    assert client.call(peer.WRITE, 10, data=b"hello").error == 0
    assert client.call(peer.WRITE, SIZE - 2, data=b"yz", flags=peer.FUA).error == 0
    assert client.call(peer.READ, 9, 7).data == b"\0hello\0"
    assert client.call(peer.ZEROES, 11, 2, flags=peer.NO_HOLE).error == 0
    assert client.call(peer.ZEROES, 11, 1, flags=peer.FUA).error == 0
    assert client.call(peer.READ, 10, 5).data == b"h\0\0lo"
    assert client.call(peer.READ, SIZE - 2, 2).data == b"yz"
    assert client.call(peer.TRIM, 0, SIZE).error == 0
    assert client.call(peer.FLUSH).error == 0
    assert [call for call in disk.calls if call != "read"] == [
        "write fua=False",
        "write fua=True",
        "zero fua=False may_trim=False",
        "zero fua=True may_trim=True",
        "trim fua=False",
        "flush",
    ]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (request(peer.READ, 1, SIZE - 1, 2), errno.EINVAL),
        (request(peer.READ, 1, (1 << 64) - 1, 1), errno.EINVAL),
        (request(peer.READ, 1, 0, (1 << 32) - 1), errno.EINVAL),
        (request(peer.READ, 1, 0, 0), errno.EINVAL),
        (request(peer.WRITE, 1, SIZE - 1, data=b"xx"), errno.ENOSPC),
        (request(peer.WRITE, 1, 1 << 63, data=b"xx"), errno.ENOSPC),
        (request(peer.ZEROES, 1, 1, SIZE), errno.ENOSPC),
        (request(peer.ZEROES, 1, 0, (1 << 32) - 1), errno.ENOSPC),
        (request(peer.TRIM, 1, SIZE, 1), errno.EINVAL),
        (request(peer.STATUS, 1, 0, 1), errno.EINVAL),
        (request(peer.CACHE, 1, 0, 1), errno.EINVAL),
        (request(8, 1, 0, 1), errno.EINVAL),
        (request(0xFFFF, 1, 0, 1), errno.EINVAL),
        (request(peer.FLUSH, 1, 0, 1), errno.EINVAL),
        (request(peer.ZEROES, 1, 0, 1, flags=peer.FAST_ZERO), errno.EINVAL),
        (request(peer.WRITE, 1, 0, data=b"x", flags=peer.NO_HOLE), errno.EINVAL),
        (request(peer.READ, 1, 0, 1, flags=0x8000), errno.EINVAL),
    ],
)
def test_a_request_that_can_not_be_is_refused(
    connect: MakePeer, disk: MemoryExport, structured: bool, sent: bytes, error: int
) -> None:
    disk.content[:] = before = bytearray(b"\xee") * SIZE
    client = connect(disk, structured=structured)
    client.send(sent)
    assert client.reply()[:2] == (1, error)
    assert client.call(peer.READ, 3, 2).data == b"\xee\xee"
    assert disk.content == before


@pytest.mark.parametrize("command", [peer.WRITE, peer.ZEROES, peer.TRIM])
def test_a_read_only_disk_is_not_changed(connect: MakePeer, command: int) -> None:
    client = connect(MemoryExport(SIZE, read_only=True))
    data = b"x" if command == peer.WRITE else b""
    assert client.call(command, 0, 1, data).error == errno.EPERM
    assert client.call(peer.FLUSH).error == 0


def test_df_needs_structured_replies(connect: MakePeer, disk: MemoryExport) -> None:
    assert connect(disk, structured=True).call(peer.READ, 0, 3, flags=peer.DF).data == bytes(3)
    assert connect(disk).call(peer.READ, 0, 3, flags=peer.DF).error == errno.EINVAL


def test_block_status(connect: MakePeer, disk: MemoryExport) -> None:
    client = connect(disk, structured=True, status=True)
    assert client.call(peer.STATUS, 0, 9).data == struct.pack(">IIIII", 1, 6, 0, 3, 3)
    assert client.call(peer.STATUS, 0, 9, flags=peer.REQ_ONE).data == struct.pack(">III", 1, 6, 0)


def test_replies_go_out_in_the_order_of_completion(connect: MakePeer, disk: MemoryExport) -> None:
    disk.slow = True
    client = connect(disk)
    for cookie in (1, 2, 3):
        client.ask(peer.READ, cookie, 0, cookie)
    client.settle()
    disk.release(2)
    disk.release(0)
    assert client.connection.wants_write
    assert [client.reply().cookie, client.reply().cookie] == [3, 1]
    disk.release()
    assert client.reply().cookie == 2


def test_more_requests_than_the_limit_wait_their_turn(connect: MakePeer, disk: MemoryExport) -> None:
    disk.slow = True
    client = connect(disk)
    client.send(b"".join(request(peer.FLUSH, n) for n in range(200)))
    client.settle()
    assert len(disk.waiting) == nbd_server.REQUESTS_IN_FLIGHT_MAX
    assert not client.connection.wants_read
    assert not client.connection.wants_write
    disk.release()
    assert client.connection.wants_write  # a request that has come already can begin now
    client.settle()
    assert len(disk.waiting) == nbd_server.REQUESTS_IN_FLIGHT_MAX
    disk.slow = False
    while disk.waiting:
        disk.release()
    assert sorted(client.reply().cookie for _ in range(200)) == list(range(200))


def test_a_client_that_reads_no_replies_is_not_read_from(
    connect: MakePeer, disk: MemoryExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_server, "OWED_BYTES_MAX", 1 << 20)
    client = connect(disk)
    client.socket.setblocking(False)
    wanted = 60
    for cookie in range(wanted):
        client.ask(peer.READ, cookie, 0, SIZE)
    client.settle()
    assert len(disk.calls) <= (1 << 20) // SIZE + 5  # what is owed, one more, and what the sockets hold
    assert not client.connection.wants_read
    assert [client.reply().cookie for _ in range(wanted)] == list(range(wanted))


def test_goodbye_waits_for_what_was_asked_before(connect: MakePeer, disk: MemoryExport) -> None:
    disk.slow = True
    client = connect(disk)
    client.ask(peer.FLUSH, 5)
    client.ask(peer.DISC, 6)
    client.ask(peer.FLUSH, 7)
    client.settle()
    assert not client.connection.closed
    disk.release()
    assert client.reply().cookie == 5
    client.settle()
    assert client.connection.closed
    assert client.connection.why == "the client said goodbye"
    assert disk.calls == ["flush"]


def test_answers_after_the_end_are_ignored(connect: MakePeer, disk: MemoryExport) -> None:
    disk.slow = True
    client = connect(disk)
    client.ask(peer.READ, 1, 0, 5)
    client.ask(peer.FLUSH, 2)
    client.settle()
    client.socket.close()
    client.settle()
    assert client.connection.closed
    disk.release()
    disk.release()
    assert not client.connection.wants_write
    client.connection.on_writable()
    client.connection.on_readable()


def test_half_a_write_changes_nothing(connect: MakePeer, disk: MemoryExport) -> None:
    client = connect(disk)
    client.send(request(peer.WRITE, 1, 0, data=b"x" * 50_000)[:-1])
    client.settle()
    client.socket.close()
    client.settle()
    assert client.connection.closed
    assert not any(disk.content)
    assert disk.calls == []


def test_a_wrong_magic_ends_the_connection_after_what_was_right(connect: MakePeer, disk: MemoryExport) -> None:
    client = connect(disk)
    client.send(request(peer.WRITE, 1, 0, data=b"x") + request(peer.WRITE, 2, 1, data=b"y", magic=1))
    client.settle()
    assert client.connection.closed
    assert "0x00000001" in client.connection.why
    assert disk.content[:2] == b"x\0"
    assert client.socket.recv(100) == nbd.simple_reply(1)


def test_an_error_of_the_disk_reaches_the_client(connect: MakePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryExport(SIZE)
    monkeypatch.setattr(disk, "read", lambda ticket, _offset, _length: ticket.failed(errno.EUCLEAN))

    def broken(offset: int, length: int) -> list[tuple[int, int]]:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(disk, "block_status", broken)
    for structured in (False, True):
        assert connect(disk, structured=structured).call(peer.READ, 0, 5).error == errno.EIO
    assert connect(disk, structured=True, status=True).call(peer.STATUS, 0, 5).error == errno.ENOMEM
