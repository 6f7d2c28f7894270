"""Seeds for the targets of frames and data planes."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from corpus import captures
from pycolo.core import wire
from pycolo.core.layers import locate
from pycolo.core.packed import pack
from pycolo.core.packet import parse_tcp
from tcp_frames import A, Connection, F, P, R, S, arp, stamps, udp
from tcp_model import Link, error, in_two

from .reader import piece_of

Seeds = Iterator[tuple[str, bytes]]


# ---------------------------------------------------------------- frames


def _short_frames(bytes_max: int = 300) -> list[tuple[str, bytes]]:
    """The longest frame of each capture that is not too long."""
    found = []
    for name, frames in sorted(captures().items()):
        short = [frame for frame in frames if len(frame) <= bytes_max]
        found += [
            (f"{name}-{no}", frame)
            for no, frame in enumerate(sorted(set(short), key=lambda frame: (len(frame), frame))[-1:])
        ]
    return found


def layers() -> Seeds:
    yield from _short_frames()


def segment() -> Seeds:
    yield from ((name, frame) for name, frame in _short_frames() if parse_tcp(frame) is not None)


def messages() -> Seeds:
    yield from ((name, frame) for name, frame in _short_frames() if parse_tcp(frame) is None)


def quotes() -> Seeds:
    yield from (
        (name, frame) for name, frame in _short_frames() if "icmp" in name or "error" in name or "quote" in name
    )
    for number, link in enumerate((Link(), Link(6), Link(vids=(5,)))):
        frame = link.frame(True, 1000, 2000, A, b"payload", stamps(1, 2))
        located = locate(frame)
        assert located is not None
        yield f"error-{number}", error(frame, located)


def pieces() -> Seeds:
    for name, frames in sorted(captures().items()):
        parts = [frame for frame in frames if (found := locate(frame)) is not None and found.fragment is not None]
        if parts:
            yield name, b"".join(piece_of(frame) for frame in parts)[:2400]
    for version in (4, 6):
        frame = Link(version).frame(True, 1, 2, A, bytes(range(200)))
        located = locate(frame)
        assert located is not None
        yield f"in-two-{version}", b"".join(map(piece_of, in_two(frame, located, 7)[::-1]))


def packed() -> Seeds:
    yield "frames", pack([arp(), b"", udp(b"x")])
    yield "cut", pack([arp(), udp(b"x")])[:-3]
    yield "too-long", (70_000).to_bytes(4) + b"x"


def http_dates() -> Seeds:
    date = b"Date: Mon, 01 Jun 2026 10:59:%02d GMT\r\n"
    lengths = b"HTTP/1.1 200 OK\r\n" + date % 7 + b"Content-Length: 5\r\n\r\nhello"
    chunks = b"HTTP/1.1 200 OK\r\n" + date % 8 + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
    none = b"HTTP/1.1 304 Not Modified\r\n" + date % 9 + b"\r\nHTTP/1.0 100 Continue\r\n\r\n"
    head = bytes([6, 2]) + (17 + 28).to_bytes(2) + b"\x01" + (300).to_bytes(2) + b"\x20"
    yield "length", head + lengths + chunks
    yield "chunks", head + chunks + none + lengths
    yield "head", head + lengths[:-5] + lengths


def protocol_view() -> Seeds:
    yield from ((name, piece_of(frame) + frame) for name, frame in _short_frames(200))


# ---------------------------------------------------------------- data planes


def dialogue() -> list[tuple[int, bytes]]:
    """(side, frame): 0 PVM, 1 SVM, 2 client; a connection from its opening to its end."""
    ours, theirs = Connection(), Connection(isn=2**32 - 50)
    said = [(2, ours.back(0, 0, S, options=stamps(1, 0)))]
    for side, copy in ((0, ours), (1, theirs)):
        said.append((side, copy.out(0, 1, S | A, options=b"\x03\x03\x02\x01" + stamps(5, 1))))
    said.append((2, ours.back(1, 1, A, b"GET / HTTP/1.1\r\n\r\n", stamps(2, 5))))
    for side, copy in ((0, ours), (1, theirs)):
        said.append((side, copy.out(1, 19, A, options=stamps(6, 2))))
        said.append((side, copy.out(1, 19, A | P, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", stamps(6, 2))))
    said.append((2, ours.back(19, 42, A, options=stamps(3, 6))))
    for side, copy in ((0, ours), (1, theirs)):
        said.append((side, copy.out(42, 19, F | A, options=stamps(7, 3))))
    said += [(2, ours.back(19, 43, F | A, options=stamps(4, 7))), (0, ours.out(43, 20)), (1, theirs.out(43, 20))]
    said += [
        (0, udp(b"same")),
        (1, udp(b"same")),
        (0, arp()),
        (2, udp(b"question", inbound=True)),
        (2, ours.back(20, 43, R)),
    ]
    return said


def dataplane() -> Seeds:
    yield "all-open", bytes([0, 7, 15]) + bytes(range(200)) + bytes([201, 200, 202, 203, 220, 1, 0]) + bytes(range(100))
    yield "tiny", bytes([1, 7, 15]) + bytes(range(0, 200, 3)) * 4
    yield (
        "http",
        bytes([0, 7, 8]) + (bytes([1]) + bytes([0, 3, 0, 9, 99, 0, 1, 4]) + bytes([1, 3, 0, 9, 99, 0, 1, 4])) * 9,
    )
    yield (
        "opens-itself",
        bytes([0, 9, 0]) + bytes([2, 0, 0, 0, 0, 10, 1, 0, 1, 0, 0, 0, 0, 10, 1, 0]) * 6 + bytes([200, 201]),
    )


def dataplane_raw() -> Seeds:
    said = dialogue()
    each = b"".join(bytes([side]) + piece_of(pack([frame])) for side, frame in said)
    yield "dialogue", bytes([0, 7]) + each
    yield "checkpoint", bytes([0, 7]) + each[:700] + bytes([200, 201]) + each[:700]
    for name in ("fragments", "icmp", "ipv6"):
        frames = next((frames for other, frames in sorted(captures().items()) if name in other), [])
        batch = pack([frame for frame in frames if len(frame) < 300][:6])
        yield name, bytes([1, 7, 0]) + piece_of(batch) + b"\x01" + piece_of(batch)


def secondary() -> Seeds:
    for number in range(5):
        steps = b"".join(
            bytes([what, 0, seed]) for seed, what in enumerate([0, 6, 1, 7, 12, 2, 8, 13, 3, 9, 0, 6, 14, 6, 0])
        )
        yield f"numbers-{number}", bytes([number, number & 1, number % 4, 3, 0, 1, 1, 1, 2, 1]) + steps


def secondary_raw() -> Seeds:
    said = dialogue()
    each = b"".join(bytes([0 if side == 1 else 6]) + piece_of(pack([frame])) for side, frame in said if side)
    yield "dialogue", bytes([0, 9]) + each
    clients = pack([frame for side, frame in said if side == 2])
    yield (
        "known",
        bytes([1, 0, 11]) + piece_of(clients) + b"\x06" + piece_of(clients) + each + b"\x0e" + piece_of(clients),
    )


def windows() -> Seeds:
    said = dialogue()
    each = b"".join(bytes([5 if side == 1 else 2]) + piece_of(pack([frame])) for side, frame in said if side)
    yield "dialogue", bytes([2, 1]) + each
    yield "loaded", bytes([0, 0]) + each[:400] + b"\0" + each + b"\1"


def translation() -> Seeds:
    frame = Connection().back(1, 1)
    parsed = parse_tcp(Connection().out(1, 1))
    assert parsed is not None
    known = wire.Offsets(parsed[0], 7, 9, 5, 4, 3, False, 1000, 5, 70_000, True, False, False)
    told = [
        wire.Translations(0, [], [], afresh=True),
        wire.Translations(0, [known], []),
        wire.Translations(0, [], [known.key]),
    ]
    adopted = b"".join(b"\x06" + piece_of(msgspec.msgpack.encode(each)) for each in told[:2])
    talk = b"\x00" + piece_of(pack([frame])) + b"\x03" + piece_of(pack([Connection().out(1, 1, A, b"x", stamps(5, 6))]))
    yield (
        "adopted",
        adopted + talk + b"\x07" + piece_of(b"x") + b"\x06" + piece_of(msgspec.msgpack.encode(told[2])) + talk,
    )
    yield "taken-over", b"\x07" + piece_of(b"long") + talk + talk + b"\x07" + piece_of(b"long") + talk


def descriptors() -> Seeds:
    yield from packed()
