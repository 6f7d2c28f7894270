"""The primary's compiled side and its Python twin side by side: each step goes to both, and they must agree; and what
is said on a few connections whose two copies begin with other numbers.
"""

from __future__ import annotations

import struct
from collections import defaultdict

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.hot_dataplane import HotDataplane
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packet import parse_tcp

F, S, R, A, U = 1, 2, 4, 16, 32
GUEST, CLIENT = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
GUEST6, CLIENT6 = bytes([253, *[0] * 14, 2]), bytes([253, *[0] * 14, 1])
STREAM = bytes(i & 1 for i in range(40))
STAMPS = b"\x01\x01\x08\x0a" + bytes(8)
SACK = b"\x01\x01\x05\x0a" + bytes(8)
HTTP = 1080
TINY = DataplaneLimits(
    held_frames_max=12, held_bytes_max=900, flows_max=3, stream_bytes_max=24, unreleased_bytes_max=60, datagrams_max=2
)


def response(number: int, side: int) -> bytes:
    """Each names a second; that of the SVM's is now and then another one. Five are as long as a trim is worth."""
    second = number + (side == 1 and number % 3 == 0)
    return b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jun 2026 10:59:%02d GMT\r\nContent-Length: 900\r\n\r\n" % second + bytes(
        900
    )


def segment(six: bool, out: bool, port: int, seq: int, ack: int, flags: int, payload: bytes, options: bytes) -> bytes:
    """Checksums are nobody's business here."""
    offset = (20 + len(options)) // 4 << 4
    guest_port = 80 if port == HTTP else 81
    ports = (guest_port, port) if out else (port, guest_port)
    body = struct.pack(">HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, offset, flags, 9, 0, 0) + options + payload
    guest, client = (GUEST6, CLIENT6) if six else (GUEST, CLIENT)
    ends = guest + client if out else client + guest
    if six:
        return bytes(12) + b"\x86\xdd\x60\0\0\0" + struct.pack(">HBB", len(body), 6, 64) + ends + body
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, 6, 0)
    return bytes(12) + b"\x08\x00" + head + ends + body


def opened(port: int, six: bool) -> list[tuple[int, bytes]]:
    """A connection that both copies have opened, and whose client has said something."""
    return [
        (0, segment(six, True, port, 100, 5001, S | A, b"", STAMPS)),
        (1, segment(six, True, port, 2**32 - 7, 5001, S | A, b"", STAMPS)),
        (2, segment(six, False, port, 5001, 101, A, b"", STAMPS)),
        (0, segment(six, True, port, 101, 5001, A, b"", STAMPS)),
        (1, segment(six, True, port, 2**32 - 6, 5001, A, b"", STAMPS)),
    ]


def by_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    """The order across flows is nobody's promise."""
    flows: dict[bytes, list[bytes]] = defaultdict(list)
    for frame in frames:
        parsed = parse_tcp(frame)
        flows[b"" if parsed is None else parsed[0]].append(frame)
    return flows


def give(plane: PrimaryDataplane, side: int, frames: list[bytes], no: int, now_ms: float) -> list[bytes]:
    if side == 0:
        return plane.pvm_frames(frames, now_ms)
    if side == 1:
        return plane.svm_frames(plane.epoch, no, frames, now_ms)
    return plane.client_frames(frames, now_ms)


def both(
    twin: PrimaryDataplane, hot: HotDataplane, step: object, no: int, now_ms: float
) -> tuple[list[bytes], list[bytes]]:
    if isinstance(step, list):
        outs: tuple[list[bytes], list[bytes]] = ([], [])
        batches: list[tuple[int, list[bytes]]] = []
        for side, frame in step:
            if not batches or batches[-1][0] != side:
                batches.append((side, []))
            batches[-1][1].append(frame)
        for side, frames in batches:
            for plane, out in zip((twin, hot), outs, strict=True):
                out += give(plane, side, frames, no, now_ms)
            assert by_flow(outs[0]) == by_flow(outs[1])
        return outs
    if step == "seal":
        assert twin.seal(twin.epoch + 1) == hot.seal(hot.epoch + 1)
    elif step == "solo":
        return twin.go_solo(), hot.go_solo()
    elif step == "commit":
        return twin.commit(twin.epoch, now_ms), hot.commit(hot.epoch, now_ms)
    elif step == "hold":
        twin.hold_until_commit()
        hot.hold_until_commit()
    return [], []


def agree(twin: PrimaryDataplane, hot: HotDataplane, now_ms: float) -> None:
    """What they count, hold, confirm, found to differ and want by now is the same."""
    assert twin.stats == hot.stats
    assert twin._budget.used_bytes == hot._budget.used_bytes
    assert twin.take_confirmations() == hot.take_confirmations()
    assert [each.sentence() for each in twin.take_divergences()] == [each.sentence() for each in hot.take_divergences()]
    assert twin.next_due_ms(now_ms) == hot.next_due_ms(now_ms)
    assert twin.due(now_ms) == hot.due(now_ms)
