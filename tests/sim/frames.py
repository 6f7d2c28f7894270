"""The frames of the model: TCP with timestamps (RFC 9293, 7323) and UDP between one guest and its clients.

A client goes by its ports: client `n` uses the ports from `port_of(n, 0)` on, one for each connection.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tcp_frames import CLIENT, GUEST, ipv4, ones_complement, stamps, tcp

SYN, RST, PSH, ACK = 2, 4, 8, 16
MOD = 1 << 32
GUEST_PORT = 80
FIRST_PORT, PORTS_PER_CLIENT = 10_000, 1000
TCP, UDP = 6, 17
_UPPER_AT = 14 + 20
_STAMPED_BYTES = 32  # of a TCP header with timestamps and nothing else


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment or, with `flags` None, a UDP datagram, as its receiver reads it."""

    client_port: int
    payload: bytes
    flags: int | None = None
    seq: int = 0
    ack: int = 0
    value: int = 0
    echo: int = 0


class Damaged(Exception):
    """A frame that no network card would hand on: its checksum is wrong."""


def port_of(client: int, connection: int) -> int:
    """The port of a client's connection."""
    return FIRST_PORT + client * PORTS_PER_CLIENT + connection % PORTS_PER_CLIENT


def client_of(port: int) -> int:
    """Whose port it is."""
    return (port - FIRST_PORT) // PORTS_PER_CLIENT


def is_older(port: int, other: int) -> bool:
    """Whether a client's connection of that port came before the other one."""
    return (other - port) % PORTS_PER_CLIENT in range(1, PORTS_PER_CLIENT // 2)


def after(place: int, other: int) -> int:
    """How far `place` lies behind `other` in numbers of 32 bits; negative when it lies before."""
    return (place - other + MOD // 2) % MOD - MOD // 2


def build(segment: Segment, *, from_guest: bool) -> bytes:
    """The frame of a segment."""
    source, target = (GUEST, CLIENT) if from_guest else (CLIENT, GUEST)
    ports = (GUEST_PORT, segment.client_port) if from_guest else (segment.client_port, GUEST_PORT)
    if segment.flags is not None:
        options = stamps(segment.value, segment.echo)
        return tcp(source, target, ports, segment.seq, segment.ack, segment.flags, segment.payload, options)
    body = struct.pack(">HHHH", *ports, 8 + len(segment.payload), 0) + segment.payload
    pseudo = source + target + struct.pack(">HH", UDP, len(body))
    body = body[:6] + (ones_complement(pseudo + body) or 0xFFFF).to_bytes(2) + body[8:]
    return ipv4(source, target, UDP, body)


def read(frame: bytes, *, from_guest: bool) -> Segment:
    """The segment in a frame of the model. Raises Damaged."""
    addresses, body = frame[26:_UPPER_AT], frame[_UPPER_AT:]
    protocol = frame[23]
    if ones_complement(addresses + struct.pack(">HH", protocol, len(body)) + body):
        raise Damaged(f"a frame of protocol {protocol} with a wrong checksum")
    source_port, target_port = struct.unpack_from(">HH", body)
    port = target_port if from_guest else source_port
    if protocol == UDP:
        return Segment(port, body[8:])
    seq, ack, _, flags = struct.unpack_from(">IIBB", body, 4)
    value, echo = struct.unpack_from(">II", body, 24)
    return Segment(port, body[_STAMPED_BYTES:], flags, seq, ack, value, echo)
