"""Frames for the data plane's tests, built by hand with right checksums; `GUEST` serves `CLIENT`."""

from __future__ import annotations

import struct
from dataclasses import dataclass

GUEST_MAC, CLIENT_MAC = bytes.fromhex("525400000002"), bytes.fromhex("525400000001")
GUEST, CLIENT = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
F, S, R, P, A, U = 1, 2, 4, 8, 16, 32


def ones_complement(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: bytes, target: bytes, protocol: int, body: bytes, *, ip_id: int = 7, fragment: int = 0x4000) -> bytes:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), ip_id, fragment, 64, protocol, 0, source, target)
    head = head[:10] + ones_complement(head).to_bytes(2) + head[12:]
    macs = CLIENT_MAC + GUEST_MAC if source == GUEST else GUEST_MAC + CLIENT_MAC
    return macs + b"\x08\x00" + head + body


def tcp(
    source: bytes, target: bytes, ports: tuple[int, int], seq: int, ack: int, flags: int, payload: bytes, options: bytes
) -> bytes:
    options += b"\0" * (-len(options) % 4)
    offset = (20 + len(options)) // 4 << 4
    body = struct.pack(">HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, offset, flags, 65_535, 0, 0) + options + payload
    pseudo = source + target + struct.pack(">HH", 6, len(body))
    body = body[:16] + ones_complement(pseudo + body).to_bytes(2) + body[18:]
    return ipv4(source, target, 6, body)


def stamps(value: int, echo: int) -> bytes:
    return b"\x01\x01\x08\x0a" + struct.pack(">II", value % 2**32, echo % 2**32)


def udp(payload: bytes, *, ip_id: int = 7, port: int = 5000, inbound: bool = False) -> bytes:
    source, target = (CLIENT, GUEST) if inbound else (GUEST, CLIENT)
    body = struct.pack(">HHHH", 53, port, 8 + len(payload), 0) + payload
    return ipv4(source, target, 17, body, ip_id=ip_id)


def arp() -> bytes:
    return b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + bytes(28)


@dataclass(frozen=True)
class Connection:
    """Builds the frames of one connection; the guest's sequence numbers count from `isn`."""

    isn: int = 1000
    client_isn: int = 70_000
    guest_port: int = 8080
    client_port: int = 40_000

    def out(self, seq: int, ack: int, flags: int = A, payload: bytes = b"", options: bytes = b"") -> bytes:
        """A guest's segment; `seq` and `ack` relative to the ISNs."""
        ports = (self.guest_port, self.client_port)
        return tcp(GUEST, CLIENT, ports, self.isn + seq, self.client_isn + ack, flags, payload, options)

    def back(self, seq: int, ack: int, flags: int = A, payload: bytes = b"", options: bytes = b"") -> bytes:
        """A client's segment; `seq` and `ack` relative to the ISNs."""
        ports = (self.client_port, self.guest_port)
        return tcp(CLIENT, GUEST, ports, self.client_isn + seq, self.isn + ack, flags, payload, options)

    def syn_ack(self, options: bytes = b"") -> bytes:
        return self.out(0, 1, S | A, options=options)
