"""Frames for the comparison benchmark: what two copies of a server send to clients, and how it travels on a stream.

Guarantees
* Both copies' frames carry the same payload at the same place of the same TCP flow, with right checksums; what a client
  can't tell apart (IP id, timestamps) differs, as between real copies.
* Frame number `i` belongs to flow `i % flows`, and a row's frames are equally long: an engine that releases each frame
  when the second of the pair arrives puts out the primary's stream byte by byte.
* On a stream a frame is its length (32 bit, big endian) and its bytes: what QEMU's socket chardevs carry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.uint8]
"""A frame a row, its length in front: the bytes of a stream."""

LENGTH_BYTES = 4
IP_AT, TCP_AT, PAYLOAD_AT = 14, 34, 66  # in the frame; the TCP header has timestamps, as between Linux machines
SYN_ACK, ACK, PUSH_ACK = 0x12, 0x10, 0x18
SCALE_14 = np.array([3, 3, 14, 1], np.uint8)  # windows of 8 MB: nothing is beyond them
CLIENTS_PER_ADDRESS = 16
ACK_EVERY = 8  # segments of a flow for each acknowledgement; a client behind GRO acknowledges about as seldom
GUEST_ADDRESS, GUEST_PORT = 0x0A000002, 8080
GUEST_MAC, CLIENT_MAC = bytes.fromhex("525400000002"), bytes.fromhex("525400000001")
_LENGTH = struct.Struct(">I")


class Case(NamedTuple):
    """One row of the table."""

    payload_bytes: int
    flows: int


class Copy(NamedTuple):
    """What differs between the two copies of a VM although a client can't tell."""

    ip_id: int
    stamp: int


PVM, SVM, CLIENT = Copy(7, 1_000_000), Copy(40_000, 7_000_000), Copy(1, 5_000_000)


@dataclass(frozen=True)
class Traffic:
    """What one row of the table is measured with; `opening` are the SYN-ACKs that begin its flows."""

    case: Case
    count: int
    opening: tuple[Matrix, Matrix]
    pvm: Matrix
    svm: Matrix
    client: Matrix
    client_at: npt.NDArray[np.int64]  # after which of the PVM's frames each of the client's is sent

    @cached_property
    def frame_bytes(self) -> int:
        """Of each frame of the VM, without its length."""
        return PAYLOAD_AT + self.case.payload_bytes


def make_traffic(case: Case, count: int, seed: int = 1) -> Traffic:
    """`count` frames of each copy, and the acknowledgements of the clients."""
    rng = np.random.default_rng(seed)
    flow, turn = np.arange(count) % case.flows, np.arange(count) // case.flows
    isn = rng.integers(0, 1 << 32, case.flows, np.uint32)
    client_isn = rng.integers(0, 1 << 32, case.flows, np.uint32)
    seq = isn[flow] + (1 + turn * case.payload_bytes).astype(np.uint32)
    payload = np.frombuffer(rng.bytes(count * case.payload_bytes), np.uint8).reshape(count, case.payload_bytes)
    opened = np.arange(case.flows)
    opening, data = (
        [_from_guest(copy, *numbers) for copy in (PVM, SVM)]
        for numbers in (
            (opened, isn, client_isn + np.uint32(1), SYN_ACK, np.tile(SCALE_14, (case.flows, 1))),
            (flow, seq, client_isn[flow] + np.uint32(1), PUSH_ACK, payload),
        )
    )
    acked = np.flatnonzero(turn % ACK_EVERY == ACK_EVERY - 1)
    ends = seq[acked] + np.uint32(case.payload_bytes)
    nothing = np.empty((len(acked), 0), np.uint8)
    client = _from_client(flow[acked], client_isn[flow[acked]] + np.uint32(1), ends, ACK, nothing)
    return Traffic(case, count, (opening[0], opening[1]), data[0], data[1], client, acked)


def make_upload(case: Case, count: int, seed: int = 1) -> Matrix:
    """`count` frames of clients on the connections that `make_traffic` opens with the same seed, with payload."""
    rng = np.random.default_rng(seed)
    flow, turn = np.arange(count) % case.flows, np.arange(count) // case.flows
    isn = rng.integers(0, 1 << 32, case.flows, np.uint32)
    client_isn = rng.integers(0, 1 << 32, case.flows, np.uint32)
    seq = client_isn[flow] + (1 + turn * case.payload_bytes).astype(np.uint32)
    payload = np.frombuffer(rng.bytes(count * case.payload_bytes), np.uint8).reshape(count, case.payload_bytes)
    return _from_client(flow, seq, isn[flow] + np.uint32(1), PUSH_ACK, payload)


def _from_guest(
    copy: Copy,
    flow: npt.NDArray[np.int64],
    seq: npt.NDArray[np.uint32],
    ack: npt.NDArray[np.uint32],
    flags: int,
    payload: Matrix,
) -> Matrix:
    address, port = _endpoint(flow)
    guest = np.full(len(flow), GUEST_ADDRESS, np.uint32), np.full(len(flow), GUEST_PORT, np.uint32)
    return _frames(copy, CLIENT_MAC + GUEST_MAC, guest, (address, port), seq, ack, flags, payload)


def _from_client(
    flow: npt.NDArray[np.int64],
    seq: npt.NDArray[np.uint32],
    ack: npt.NDArray[np.uint32],
    flags: int,
    payload: Matrix,
) -> Matrix:
    address, port = _endpoint(flow)
    guest = np.full(len(flow), GUEST_ADDRESS, np.uint32), np.full(len(flow), GUEST_PORT, np.uint32)
    return _frames(CLIENT, GUEST_MAC + CLIENT_MAC, (address, port), guest, seq, ack, flags, payload)


Endpoint = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]
"""Address and port, for each frame."""


def _endpoint(flow: npt.NDArray[np.int64]) -> Endpoint:
    address = (0x0A010000 + flow // CLIENTS_PER_ADDRESS).astype(np.uint32)
    return address, (32768 + flow % CLIENTS_PER_ADDRESS).astype(np.uint32)


def _frames(
    copy: Copy,
    macs: bytes,
    source: Endpoint,
    target: Endpoint,
    seq: npt.NDArray[np.uint32],
    ack: npt.NDArray[np.uint32],
    flags: int,
    payload: Matrix,
) -> Matrix:
    count, payload_bytes = payload.shape
    frame_bytes = PAYLOAD_AT + payload_bytes
    stream = np.zeros((count, LENGTH_BYTES + frame_bytes), np.uint8)
    stream[:, :LENGTH_BYTES] = np.frombuffer(_LENGTH.pack(frame_bytes), np.uint8)
    frames = stream[:, LENGTH_BYTES:]
    head = macs + b"\x08\x00" + struct.pack(">BBHHHBB", 0x45, 0, frame_bytes - IP_AT, 0, 0x4000, 64, 6)
    frames[:, : len(head)] = np.frombuffer(head, np.uint8)
    numbers = np.arange(count, dtype=np.uint32)
    _put(frames, IP_AT + 4, 2, copy.ip_id + numbers)
    for at, (address, port) in ((0, source), (1, target)):
        _put(frames, IP_AT + 12 + 4 * at, 4, address)
        _put(frames, TCP_AT + 2 * at, 2, port)
    _put(frames, TCP_AT + 4, 4, seq)
    _put(frames, TCP_AT + 8, 4, ack)
    header = 0x90 if flags == SYN_ACK else 0x80  # a SYN-ACK's payload is options too
    frames[:, TCP_AT + 12 : TCP_AT + 16] = header, flags, 1, 0xF4  # and a window
    frames[:, TCP_AT + 20 : TCP_AT + 24] = 1, 1, 8, 10
    _put(frames, TCP_AT + 24, 4, copy.stamp + numbers)
    _put(frames, TCP_AT + 28, 4, CLIENT.stamp + numbers)
    frames[:, PAYLOAD_AT:] = payload
    _put(frames, IP_AT + 10, 2, _checksum(frames, IP_AT, TCP_AT))
    pseudo_at = IP_AT + 12  # the addresses; protocol and length complete the pseudo header
    _put(frames, TCP_AT + 16, 2, _checksum(frames, pseudo_at, frame_bytes, 6 + frame_bytes - TCP_AT))
    return stream


def _put(frames: Matrix, at: int, width: int, values: npt.NDArray[np.uint32]) -> None:
    octets = values.astype(">u4").view(np.uint8).reshape(-1, 4)
    frames[:, at : at + width] = octets[:, 4 - width :]


def _checksum(frames: Matrix, start: int, end: int, more: int = 0) -> npt.NDArray[np.uint32]:
    """The Internet checksum (RFC 1071) of these bytes of each frame, whose number is even, and of `more`."""
    words = frames[:, start:end]
    total = words[:, ::2].sum(1, np.uint32) * np.uint32(256) + words[:, 1::2].sum(1, np.uint32) + np.uint32(more)
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    folded: npt.NDArray[np.uint32] = ~total & np.uint32(0xFFFF)
    return folded


# ---------------------------------------------------------------- streams


def split_rows(stream: Matrix) -> list[bytes]:
    """The frames of a matrix."""
    content, row_bytes = stream.tobytes(), stream.shape[1]
    return [content[at + LENGTH_BYTES : at + row_bytes] for at in range(0, len(content), row_bytes)]


def framed(frames: Sequence[bytes]) -> bytes:
    """The frames as they travel."""
    return b"".join([piece for frame in frames for piece in (_LENGTH.pack(len(frame)), frame)])


class Splitter:
    """Bytes of a stream in, whole frames out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, content: bytes) -> Iterator[bytes]:
        """The frames that are complete by now."""
        content, at = self._rest + content, 0
        while len(content) - at >= LENGTH_BYTES:
            end = at + LENGTH_BYTES + _LENGTH.unpack_from(content, at)[0]
            if end > len(content):
                break
            yield content[at + LENGTH_BYTES : end]
            at = end
        self._rest = content[at:]
