"""Seeds for the targets of another host, and of disks."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nbd_peer import (
    EXPORT_NAME,
    FLAGS,
    FUA,
    GO,
    INFO,
    LIST,
    LIST_META,
    SET_META,
    STRUCTURED,
    WRITE,
    go,
    meta,
    option,
    request,
    string,
)
from pycolo.core import disk_wire, wire
from pycolo.core.packed import batch_of, pack
from tcp_frames import arp, udp

from .peers import HELLO, TOKEN
from .reader import piece_of

Seeds = Iterator[tuple[str, bytes]]


# ---------------------------------------------------------------- another host


def _controls() -> list[wire.Control]:
    stage = wire.StageMessage(2, 5, b"state", 3, bytes(16), 1.5)
    known = wire.Offsets(b"k" * 12, 7, 9, None, 4, None, True, None, 5, 70_000, False, False, False)
    return [
        *(HELLO, wire.Welcome(5, "h2", 1, "p", 2, "d", TOKEN), wire.Refused("no"), wire.Heartbeat(), wire.Committed(3)),
        *(
            wire.Discarded(3, "late"),
            wire.Loaded(3, 7.5),
            wire.CheckpointWanted("late"),
            wire.Bye("over"),
            wire.Dismiss("go"),
        ),
        *(wire.Rebase(4), wire.Rebased(4), stage, wire.ChannelHello(TOKEN), wire.Boundary(9)),
        *(wire.Translations(0, [known], [b"k"], nic=1), wire.Confirm(1, [1, 2, 3])),
    ]


def control() -> Seeds:
    for each in _controls():
        yield type(each).__name__.lower(), msgspec.msgpack.encode(each)


def pages() -> Seeds:
    no_words = bytes([0, 0, 0, 0, 0])
    good = bytes([0, 2, 1, 2, 1, 3, 9]) + no_words
    yield "committed", good + good + bytes([7, 1]) + bytes([0, 1, 5, 0, 0]) + no_words + bytes([7, 1])
    yield "changed", good + bytes([0, 0, 0, 0, 3, 1, 2, 7, 2, 0x81, 0, 0xFF, 0, 0, 7, 1])
    yield "ahead", good + bytes([6, 4]) + good + bytes([7, 1])
    yield "beyond", bytes([0, 1, 8, 0, 0]) + no_words
    yield "raw", b"\x03" + piece_of((1).to_bytes(8) + (0).to_bytes(4) + (1).to_bytes(4) + (2).to_bytes(4, "little"))
    yield "stage", b"\x05" + piece_of(msgspec.msgpack.encode(_controls()[12]))


def channel() -> Seeds:
    frames = b"".join(wire.encode_frames(1, 3, 7, batch_of([arp(), udp(b"x")])))
    notes = b"".join(wire.encode_control(each) for each in _controls()[14:])
    yield "to-secondary", bytes([0, 6]) + frames + notes + frames
    yield "to-primary", bytes([1, 60]) + frames * 3


def _message(body: bytes, kind: int) -> bytes:
    return wire.HEADER.pack(len(body), kind) + body


def disk_messages() -> Seeds:
    session, digest = "ab" * 16, bytes(16)
    controls: list[disk_wire.Control] = [
        *(
            disk_wire.Greeting("t"),
            disk_wire.Images([disk_wire.ImageState(session, b"\1")], 100),
            disk_wire.Begin([True]),
        ),
        *(disk_wire.Copied(session), disk_wire.Following(), disk_wire.Working(), disk_wire.Adopted()),
        *(disk_wire.Mark(3, digest, bytes(8)), disk_wire.Applied(3)),
    ]
    stream = b"".join(map(disk_wire.encode_control, controls))
    stream += _message(disk_wire.data_body(0, 512) + b"content", disk_wire.Kind.DATA)
    stream += _message(disk_wire.zeros_body(1, 0, 4096), disk_wire.Kind.ZEROS)
    yield "all", bytes([9]) + stream
    yield "large", bytes([255]) + stream[::-1][:50][::-1] + _message(disk_wire.zeros_body(99, 1 << 60, 0), 3)


def greetings() -> Seeds:
    calls = [wire.encode_control(HELLO)]
    calls.append(wire.encode_control(msgspec.structs.replace(HELLO, channel="bulk", token=TOKEN)))
    for number in range(4):
        yield f"pair-{number}", bytes([number]) + b"".join(map(piece_of, calls))
    again = wire.encode_control(msgspec.structs.replace(HELLO, resume=True))
    newer = wire.encode_control(msgspec.structs.replace(HELLO, term=4))
    yield "again", b"\0" + b"".join(map(piece_of, [*calls, again, newer, calls[1]]))
    future = msgspec.msgpack.encode({"type": "hello", "version": 99, "version_min": 98, "more": [1, {}]})
    yield "future", b"\0" + piece_of(wire.HEADER.pack(len(future), 1) + future) + piece_of(calls[0][:30])


def welcomes() -> Seeds:
    for each in _controls()[1:3]:
        yield type(each).__name__.lower(), wire.encode_control(each)
    yield "old", wire.encode_control(msgspec.structs.replace(_controls()[1], version=4))


# ---------------------------------------------------------------- agents and the disk process


def _frames_said(what: int, card: int, frame: bytes, tail: bytes = b"") -> bytes:
    return bytes([what, card]) + piece_of(pack([frame])) + tail


def primary_agent() -> Seeds:
    sealed = bytes([8, 10, 2])
    talk = _frames_said(4, 0, udp(b"ask", inbound=True)) + _frames_said(3, 0, udp(b"same"))
    equal = _frames_said(2, 0, udp(b"same"), bytes([2, 0, 0]))
    yield "equal", b"\0" + sealed + talk + equal + bytes([5, 0]) + piece_of(b"x" * 99)
    yield "differs", b"\1" + sealed + talk + _frames_said(2, 0, udp(b"else"), bytes([2, 0, 0])) + bytes([9, 10, 3])
    yield "solo", b"\0" + talk + b"\x0b" + sealed + talk
    note = msgspec.msgpack.encode(wire.Confirm(0, [1]))
    yield "not-due", b"\0" + sealed + bytes([1, 0]) + piece_of(note)


def secondary_agent() -> Seeds:
    client = _frames_said(2, 1, udp(b"ask", inbound=True), bytes([0, 0, 5]))
    boundary = bytes([1, 0]) + piece_of(msgspec.msgpack.encode(wire.Boundary(5)))
    confirm = bytes([1, 0]) + piece_of(msgspec.msgpack.encode(wire.Confirm(1, [0, 1])))
    yield "replay", b"\0" + boundary + client + bytes([8, 0, 5]) + _frames_said(3, 1, udp(b"same")) + confirm + client
    yield (
        "tiny",
        b"\1" + bytes([9, 0, 0]) + _frames_said(3, 1, udp(b"one")) + _frames_said(4, 1, udp(b"x", inbound=True)),
    )


def disk_side() -> Seeds:
    write = bytes([0, 0, 0x10, 0x10]) + piece_of(b"content" * 99) + bytes([3, 1, 0, 5, 0, 99])
    copied, mark, commit, work = (bytes([what, 0, 0, 0]) for what in (4, 5, 6, 7))
    own = bytes([9, 0, 0x10, 0x20]) + piece_of(b"own" * 20)
    begun = b"\1" + write + copied + work + mark + work + commit + own
    yield "committed", begun + write + mark + own + commit + work + work
    yield "staged", begun + write + work + own + write + mark + mark + commit
    yield "not-due", b"\0" + write
    yield "raw", begun + bytes([8, 0, 0, 0]) + piece_of(disk_wire.encode_control(disk_wire.Copied("")))


def disk_replica() -> Seeds:
    images = bytes([0, 0, 0]) + piece_of(b"") + b"\0" + piece_of(b"") + b"\4\0"
    known = bytes([0, 0, 1]) + piece_of(b"") + b"\1" + piece_of(b"\1") + b"\4\0"
    write, zero = bytes([4, 0, 0, 9, 5, 0, 1, 7]), bytes([5, 1, 0, 9, 5, 0, 0])
    turn, seal, work = b"\x0a", b"\x09", b"\x08"
    talk = write + turn + bytes([1, 0]) + seal + zero + bytes([1, 2]) + work + bytes([2, 1]) + write + seal
    yield "whole", b"\0" + images + turn + talk
    yield "known", b"\1" + known + turn * 3 + talk
    yield "full", b"\0" + bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) + turn + write * 9 + turn + seal
    yield "not-due", b"\0" + bytes([1, 0]) + images + images


# ---------------------------------------------------------------- disks


def nbd_handshake() -> Seeds:
    options = option(STRUCTURED) + meta(LIST_META, b"root", b"base:") + meta(SET_META, b"", b"base:allocation")
    yield "go", bytes([7]) + FLAGS + options + option(LIST) + go(b"root", 1, 3, number=INFO) + go(b"data", 3, number=GO)
    yield "by-name", bytes([255]) + FLAGS + option(EXPORT_NAME, b"root") + b"rest"
    yield "odd", bytes([1]) + FLAGS + option(99, b"x") + go(b"nothing") + option(LIST, b"x") + option(2)
    yield "long", bytes([9]) + FLAGS + meta(SET_META, b"\xff" * 40, *([b""] * 30)) + option(EXPORT_NAME, string(b"no"))


def _requests() -> bytes:
    said = request(WRITE, 1, 512, data=b"content" * 9, flags=FUA) + request(0, 2, 500, 100) + request(3, 3)
    said += request(4, 4, 0, 4096) + request(6, 5, 4096, 4096, flags=2) + request(7, 6, 0, 65536, flags=8)
    return said + request(0, 7, 1 << 63, 1) + request(9, 8) + request(2, 9)


def nbd_requests() -> Seeds:
    yield "all", (27).to_bytes(2) + _requests()
    yield "wrong", (4000).to_bytes(2) + _requests() + request(0, 1, magic=7)
    yield "large", (4000).to_bytes(2) + request(WRITE, 1, 0, (32 << 20) + 1)


def nbd_connection() -> Seeds:
    for number, (structured, status, slow) in enumerate([(0, 0, 0), (1, 1, 0), (1, 1, 1)]):
        yield (
            f"all-{number}",
            bytes([structured, status, 0, slow]) + piece_of(_requests()[:200]) + piece_of(_requests()[200:]),
        )
    yield "shakes", bytes([0, 0, 1, 0]) + piece_of(FLAGS + go(b"")) + piece_of(_requests())


def disk_meta() -> Seeds:
    header = {"kind": "target", "session": "ab" * 16, "size_bytes": 4096, "boot_id": "", "closed": False, "mtime_ns": 0}
    header |= {"bits_digest": 0, "group": ["journal", "root"]}
    for name, changed in (
        ("target", {}),
        ("source", {"kind": "source", "closed": True}),
        ("large", {"size_bytes": 5 << 30}),
    ):
        yield name, bytes([1, 2]) + piece_of(b"\1") + msgspec.msgpack.encode(header | changed)
    yield "negative", bytes([1, 2]) + piece_of(b"\1") + msgspec.msgpack.encode(header | {"size_bytes": -1})
    yield "raw", bytes([0, 2]) + piece_of(b"") + b"COLOIMG1" + bytes(100)


def journal() -> Seeds:
    records = bytes([3]) + b"\x02\x00\0" + piece_of(b"content" * 20) + b"\x0f\xff\1" + piece_of(b"zeros") + bytes(5)
    yield "whole", records + bytes([0, 0])
    yield "torn", records + bytes([1, 0x10, 0x05, 1, 1, 0x10, 0x20])
    yield "raw", bytes([0, 0, 0]) + b"COLOJRN1" + bytes(40)
