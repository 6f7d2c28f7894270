"""Frames with VLAN tags, IPv6 and fragments, built by hand for tests of the data plane."""

from __future__ import annotations

import struct

from tcp_frames import CLIENT_MAC, GUEST_MAC, ones_complement

GUEST6, CLIENT6 = bytes.fromhex("fd00" + "00" * 13 + "02"), bytes.fromhex("fd00" + "00" * 13 + "01")
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60


def ipv6(source: bytes, target: bytes, protocol: int, body: bytes, headers: bytes = b"", first: int = -1) -> bytes:
    """`headers` are extension headers, the first of type `first`; the last one has to name `protocol` itself."""
    head = struct.pack(">IHBB", 0x60012345, len(headers) + len(body), first if headers else protocol, 64)
    macs = CLIENT_MAC + GUEST_MAC if source == GUEST6 else GUEST_MAC + CLIENT_MAC
    return macs + b"\x86\xdd" + head + source + target + headers + body


def tcp6(
    source: bytes, target: bytes, ports: tuple[int, int], seq: int, ack: int, flags: int, payload: bytes, options: bytes
) -> bytes:
    """One segment, header and payload, with the right checksum for these addresses (of either version)."""
    options += b"\0" * (-len(options) % 4)
    offset = (20 + len(options)) // 4 << 4
    body = struct.pack(">HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, offset, flags, 500, 0, 0) + options + payload
    pseudo = source + target + struct.pack(">II", len(body), 6)
    return body[:16] + ones_complement(pseudo + body).to_bytes(2) + body[18:]


def tagged(frame: bytes, *vids: int) -> bytes:
    """With 802.1Q tags, the outer one first (of 802.1ad when there are two)."""
    tags = b""
    for place, vid in enumerate(vids):
        kind = b"\x88\xa8" if place + 1 < len(vids) else b"\x81\x00"
        tags += kind + (0x2000 | vid).to_bytes(2)
    return frame[:12] + tags + frame[12:]


def cut4(frame: bytes, ident: int, *sizes: int) -> list[bytes]:
    """An untagged IPv4 packet without options in fragments of these payload sizes (multiples of 8) and the rest."""
    body, pieces, at = frame[34:], [], 0
    for size in (*sizes, len(body)):
        piece = body[at : at + size]
        if not piece:
            break
        more = 0x2000 if at + len(piece) < len(body) else 0
        head = bytearray(frame[14:34])
        struct.pack_into(">HHH", head, 2, 20 + len(piece), ident, more | at // 8)
        pieces.append(frame[:14] + bytes(head) + piece)
        at += len(piece)
    return pieces


def cut6(frame: bytes, ident: int, *sizes: int) -> list[bytes]:
    """An untagged IPv6 packet without extension headers in fragments."""
    body, pieces, at = frame[54:], [], 0
    for size in (*sizes, len(body)):
        piece = body[at : at + size]
        if not piece:
            break
        more = int(at + len(piece) < len(body))
        head = bytearray(frame[14:54])
        struct.pack_into(">HB", head, 4, 8 + len(piece), FRAGMENT)
        pieces.append(frame[:14] + bytes(head) + struct.pack(">BxHI", frame[20], at | more, ident) + piece)
        at += len(piece)
    return pieces
