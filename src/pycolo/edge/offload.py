"""What a network card is spared: checksums and the cutting of long TCP segments; the rules, in Python.

A frame comes from a tap, or from the guest, with a header (`struct virtio_net_hdr`, linux/virtio_net.h; VIRTIO 1.3,
5.1.6) that may say: its checksum is still to be completed; it is to be cut into segments of so many bytes. Inside, a
frame is whole and its checksum right, so that comparing, translating and recording know nothing of this. Where a TCP
segment is to be cut stands in a *note* behind the datagram, where Ethernet has padding and nobody looks: two bytes, the
payload of each segment. Who sends the frame on takes the note off and leaves cutting to who is next, kernel or guest.

Guarantees: no other frame that comes in has exactly two bytes behind a TCP segment; whatever the header says, nothing
raises; what nobody could take becomes an empty frame.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pycolo.core.layers import TCP
from pycolo.core.packet import CWR, sum_of

VNET_HEADER = struct.Struct("=BBHHHH")
"""Flags, kind of segments, length of the headers, payload of a segment, where to sum from, where the sum belongs."""

NOTE_BYTES = 2
HEAD_BYTES_MAX = 256
TAG_BYTES = 4
NEEDS_CHECKSUM = 1
SEGMENTS_TCP4, SEGMENTS_TCP6, SEGMENTS_ECN = 1, 4, 0x80
CHECKSUM_AT = 16  # in a TCP header
NOT_USED = (
    *("host_ufo", "guest_ufo", "host_uso", "guest_uso4", "guest_uso6"),
    *("host_tunnel", "host_tunnel_csum", "guest_tunnel", "guest_tunnel_csum"),
)
"""Properties of QEMU's card: what a guest may leave to it besides (UDP, tunnels), which no note can say."""

NO_HEADER = bytes(VNET_HEADER.size)
_EXTENSIONS = (0, 43, 60)  # of IPv6, that may stand before a whole TCP segment (RFC 8200, 4)


class Place(NamedTuple):
    """Where IP and TCP begin in a frame, and where the datagram ends."""

    network: int
    at: int
    end: int
    v6: bool


def _be16(frame: bytes, at: int) -> int:
    return int.from_bytes(frame[at : at + 2])


def _folded(data: bytes) -> int:
    """The sum of 16-bit words (RFC 1071), as if zeros followed: of its two zeros the one that adding would leave."""
    return sum_of(data) or (0xFFFF if any(data) else 0)


def _network(frame: bytes) -> tuple[int, int]:
    """(What is behind Ethernet and up to two VLAN tags, where); nothing at the end of a frame too short for that."""
    at = 12
    while at < 20 and at + 2 <= len(frame) and _be16(frame, at) in (0x8100, 0x88A8):
        at += TAG_BYTES
    return (_be16(frame, at), at + 2) if at + 2 <= len(frame) else (0, len(frame))


def find_tcp(frame: bytes) -> Place | None:
    """Where TCP is in a frame with up to two VLAN tags; None for all else and for a fragment."""
    kind, network = _network(frame)
    place = _in_ipv4(frame, network) if kind == 0x0800 else _in_ipv6(frame, network) if kind == 0x86DD else None
    if place is None or not place.at + 20 <= min(place.end, HEAD_BYTES_MAX) or place.end > len(frame):
        return None
    return place


def _in_ipv4(frame: bytes, at: int) -> Place | None:
    if at + 20 > len(frame) or frame[at] >> 4 != 4 or frame[at] & 15 < 5:
        return None
    if frame[at + 9] != TCP or _be16(frame, at + 6) & 0x3FFF:
        return None
    return Place(at, at + 4 * (frame[at] & 15), at + _be16(frame, at + 2), v6=False)


def _in_ipv6(frame: bytes, at: int) -> Place | None:
    if at + 40 > len(frame) or frame[at] >> 4 != 6:
        return None
    after, behind = frame[at + 6], at + 40
    while after in _EXTENSIONS and behind + 8 <= len(frame):
        after, behind = frame[behind], behind + 8 + 8 * frame[behind + 1]
    return Place(at, behind, at + 40 + _be16(frame, at + 4), v6=True) if after == TCP else None


def _fitted(frame: bytes) -> bytes:
    """With the length of the frame in IP's header: who cuts a long segment goes by the frame, so that some guests leave
    it to their card to say.
    """
    kind, at = _network(frame)
    length = len(frame) - at
    if kind == 0x0800 and 20 <= length <= 65_535 and frame[at] >> 4 == 4 and _be16(frame, at + 2) != length:
        head_bytes = 4 * (frame[at] & 15)
        if 20 <= head_bytes <= length:
            head = frame[at : at + 2] + length.to_bytes(2) + frame[at + 4 : at + 10] + bytes(2)
            head += frame[at + 12 : at + head_bytes]
            return frame[:at] + head[:10] + (_folded(head) ^ 0xFFFF).to_bytes(2) + head[12:] + frame[at + head_bytes :]
    if kind == 0x86DD and 40 <= length <= 65_575 and frame[at] >> 4 == 6:
        return frame[: at + 4] + (length - 40).to_bytes(2) + frame[at + 6 :]
    return frame


def settled(header: bytes, frame: bytes) -> bytes:
    """A frame as it is inside, from one that came with this header; empty when nobody could take it."""
    flags, kind, _, size, start, offset = VNET_HEADER.unpack(header)
    if flags & NEEDS_CHECKSUM:
        if offset & 1 or start + offset + 2 > len(frame):
            return b""
        total = _folded(frame[start:]) ^ 0xFFFF
        place = start + offset
        frame = frame[:place] + (total or 0xFFFF).to_bytes(2) + frame[place + 2 :]
    if not kind:
        return without_note(frame)  # what looks like one
    frame = _fitted(frame)
    found = find_tcp(frame)
    if found is None or kind & ~SEGMENTS_ECN != _kind_of(found):
        return b""
    note: bytes = size.to_bytes(NOTE_BYTES)
    return frame[: found.end] + note


def _kind_of(place: Place) -> int:
    return SEGMENTS_TCP6 if place.v6 else SEGMENTS_TCP4


def _before_note(frame: bytes) -> Place | None:
    """Where TCP is in a frame with a note; None for all others."""
    place = find_tcp(frame)
    return place if place is not None and len(frame) == place.end + NOTE_BYTES else None


def without_note(frame: bytes) -> bytes:
    """The frame alone."""
    place = _before_note(frame)
    return frame if place is None else frame[: place.end]


def described(frame: bytes) -> tuple[bytes, bytes]:
    """The header that a frame leaves with, and the frame then: its note taken off, and where it is to be cut, its
    checksum left to be completed.
    """
    place = _before_note(frame)
    if place is None:
        return NO_HEADER, frame
    frame, size = frame[: place.end], _be16(frame, place.end)
    data_at = place.at + 4 * (frame[place.at + 12] >> 4)
    if not size or data_at < place.at + 20 or len(frame) <= data_at + size:
        return NO_HEADER, frame
    addresses = (
        frame[place.network + 8 : place.network + 40] if place.v6 else frame[place.network + 12 : place.network + 20]
    )
    pseudo = _folded(addresses + TCP.to_bytes(2) + (len(frame) - place.at).to_bytes(2))
    kind = _kind_of(place)
    if frame[place.at + 13] & CWR:  # only the first of the segments says it
        kind |= SEGMENTS_ECN
    summed = place.at + CHECKSUM_AT
    header = VNET_HEADER.pack(NEEDS_CHECKSUM, kind, data_at, size, place.at, CHECKSUM_AT)
    return header, frame[:summed] + pseudo.to_bytes(2) + frame[summed + 2 :]
