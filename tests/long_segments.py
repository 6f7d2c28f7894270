"""Segments of TCP longer than a wire takes, over all that may stand in front of one; checksums are right."""

from __future__ import annotations

from pycolo.edge.offload import NOTE_BYTES
from tcp_frames import Connection, ones_complement

SIZE = 1448
LONG = Connection().out(1, 1, payload=bytes(range(256)) * 16)
TCP_AT = 34
TAGS = bytes.fromhex("88a80001"), bytes.fromhex("81000002")


def ipv6(frame: bytes, extensions: bytes = b"") -> bytes:
    """The same segment over IPv6, its checksum right."""
    segment, addresses = bytearray(frame[TCP_AT:]), bytes(range(32))
    segment[16:18] = bytes(2)
    pseudo = addresses + len(segment).to_bytes(4) + (6).to_bytes(4)
    segment[16:18] = ones_complement(pseudo + segment).to_bytes(2)
    first = 60 if extensions else 6
    body = extensions + segment
    return frame[:12] + b"\x86\xdd\x60\0\0\0" + len(body).to_bytes(2) + bytes([first, 64]) + addresses + body


def pseudo_header(frame: bytes) -> bytes:
    """What the checksum of a segment over plain IPv4 covers besides (RFC 9293, 3.1)."""
    return frame[26:34] + (6).to_bytes(2) + (len(frame) - TCP_AT).to_bytes(2)


def partial(frame: bytes) -> bytes:
    """The same segment over plain IPv4 with the sum of that in its checksum's place, to be completed."""
    return frame[:50] + (ones_complement(pseudo_header(frame)) ^ 0xFFFF).to_bytes(2) + frame[52:]


def tagged(frame: bytes, *tags: bytes) -> bytes:
    return frame[:12] + b"".join(tags) + frame[12:]


FRAMES = {
    "IPv4": LONG,
    "IPv6": ipv6(LONG),
    "extension": ipv6(LONG, bytes([6, 0, 1, 4, 0, 0, 0, 0])),
    "tag": tagged(LONG, TAGS[1]),
    "two tags": tagged(ipv6(LONG), *TAGS),
}


def noted(frame: bytes, size: int = SIZE) -> bytes:
    return frame + size.to_bytes(NOTE_BYTES)
