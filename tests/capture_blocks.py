"""Capture files by hand, for what no tool writes: both byte orders, old blocks, damage."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path


def pcap(
    records: Sequence[tuple[int, int, bytes, int]],
    *,
    order: str = "<",
    magic: int = 0xA1B2C3D4,
    version: int = 2,
    link_type: int = 1,
) -> bytes:
    """Records are (seconds, fraction, frame, original length)."""
    parts = [struct.pack(order + "IHHiIII", magic, version, 4, 0, 0, 65535, link_type)]
    for seconds, fraction, frame, original in records:
        parts += struct.pack(order + "IIII", seconds, fraction, len(frame), original), frame
    return b"".join(parts)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


class Blocks:
    """Blocks of a pcapng section in one byte order."""

    def __init__(self, order: str) -> None:
        self.order = order

    def block(self, kind: int, body: bytes) -> bytes:
        length = struct.pack(self.order + "I", 12 + len(body))
        return struct.pack(self.order + "I", kind) + length + body + length

    def option(self, code: int, value: bytes) -> bytes:
        return struct.pack(self.order + "HH", code, len(value)) + padded(value)

    def section(self, major: int = 1, options: bytes = b"") -> bytes:
        return self.block(0x0A0D0D0A, struct.pack(self.order + "IHHq", 0x1A2B3C4D, major, 0, -1) + options)

    def interface(self, link_type: int = 1, snap_bytes: int = 0, options: bytes = b"") -> bytes:
        return self.block(1, struct.pack(self.order + "HHI", link_type, 0, snap_bytes) + options)

    def packet(
        self, frame: bytes, ticks: int = 0, interface: int = 0, options: bytes = b"", original: int | None = None
    ) -> bytes:
        return self._packet("IIIII", 6, frame, ticks, interface, options, original)

    def old_packet(self, frame: bytes, ticks: int = 0, interface: int = 0, options: bytes = b"") -> bytes:
        return self._packet("H2xIIII", 2, frame, ticks, interface, options, None)

    def _packet(
        self, fields: str, kind: int, frame: bytes, ticks: int, interface: int, options: bytes, original: int | None
    ) -> bytes:
        full = len(frame) if original is None else original
        head = struct.pack(self.order + fields, interface, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), full)
        return self.block(kind, head + padded(frame) + options)

    def simple(self, frame: bytes, original: int | None = None) -> bytes:
        full = len(frame) if original is None else original
        return self.block(3, struct.pack(self.order + "I", full) + padded(frame))


def write_pcap(path: Path, frames: Sequence[bytes], *, start_us: int = 0, step_us: int = 1000) -> Path:
    """A capture of these frames, one every `step_us`."""
    times = [start_us + number * step_us for number in range(len(frames))]
    path.write_bytes(
        pcap([(at // 10**6, at % 10**6, frame, len(frame)) for at, frame in zip(times, frames, strict=True)])
    )
    return path
