"""What an SVM and its clients may say, by chance: mostly plain segments of a few connections, now and then anything."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random

from pycolo.core.layers import locate
from pycolo.core.limits import DataplaneLimits
from tcp_model import MOD, Link, error, in_two

F, S, R, A, U = 1, 2, 4, 16, 32
LINKS = [Link(), Link(client_port=41_000), Link(6), Link(vids=(5,)), Link(6, client_port=41_000)]
TINY = DataplaneLimits(held_frames_max=6, held_bytes_max=500, flows_max=3)
CLIENT_ISN, CLOCK = 70_000, 4_000_000_000
STREAM = bytes(range(1, 120))
DATAGRAM = bytes(12) + b"\x08\x00" + struct.pack(">BBHHHBBH", 0x45, 0, 40, 7, 0, 64, 17, 0) + bytes(28)
DATAGRAM6 = bytes(12) + b"\x86\xdd" + struct.pack(">IHBB", 0x60000000, 9, 17, 64) + bytes(32 + 9)
ARP = b"\xff" * 6 + bytes(6) + b"\x08\x06" + bytes(28)
BESIDE = [DATAGRAM, DATAGRAM, DATAGRAM6, ARP, b"", b"\x08"]


@dataclass(frozen=True)
class Numbers:
    """Where the two copies begin. All zero: the SVM is a copy of the PVM."""

    pvm_isn: int
    svm_isn: int
    value_apart: int  # SVM's timestamps less the PVM's


NUMBERS = [
    Numbers(100, MOD - 7, 12345),
    Numbers(MOD - 20, 5000, MOD - 500),
    Numbers(7, 7, 0),
    Numbers(100, 100, 2**31),
    Numbers(5, 70, 0),
]


def stamps(value: int, echo: int) -> bytes:
    return b"\x08\x0a" + struct.pack(">II", value % MOD, echo % MOD)


def sack(*edges: int) -> bytes:
    return bytes([5, 2 + 4 * len(edges)]) + b"".join((edge % MOD).to_bytes(4) for edge in edges)


class Speaker:
    """Frames by chance: mostly plain ones, now and then anything."""

    def __init__(self, numbers: Numbers, seed: int) -> None:
        self.numbers, self.source = numbers, Random(seed)

    def batch(self, out: bool) -> list[bytes]:
        """A few frames of the SVM, or of clients."""
        frames = []
        for _ in range(self.source.randrange(1, 7)):
            frame = self.source.choice(BESIDE) if self.one_in(10) else self.of_svm() if out else self.of_client()
            frames.append(self.mangled(frame) if self.one_in(3) else frame)
        return frames

    def one_in(self, count: int) -> bool:
        return self.source.randrange(count) == 0

    def of_svm(self) -> bytes:
        pick, numbers = self.source, self.numbers
        flags = pick.choice([A] * 14 + [A | 8, S | A, S, A | F, R | A, A | U])
        isn, start = numbers.svm_isn + 9 * self.one_in(9) * bool(flags & S), pick.randrange(90)
        said = self.options(CLIENT_ISN, CLOCK + numbers.value_apart + pick.randrange(50), pick.randrange(9))
        payload = STREAM[start : start + pick.choice([0, 0, 1, 4, 20, 80])]
        if flags & S:
            start, payload = -1, b"fast" * self.one_in(9)
        return pick.choice(LINKS).frame(True, isn + 1 + start, CLIENT_ISN + 1 + pick.randrange(5), flags, payload, said)

    def of_client(self) -> bytes:
        pick, numbers = self.source, self.numbers
        flags = pick.choice([A] * 14 + [A | 8, S | A, S, A | F, R | A, R, A | U])
        seq = CLIENT_ISN + 1 + pick.randrange(5) - bool(flags & S)
        isn = numbers.svm_isn if self.one_in(9) else numbers.pvm_isn
        echo = pick.choice([CLOCK + pick.randrange(60)] * 6 + [CLOCK + 5000 + pick.randrange(60), 0, CLOCK - 2**31 + 9])
        said = self.options(isn, pick.randrange(99), echo)
        payload = STREAM[: pick.choice([0, 0, 7, 70])]
        return pick.choice(LINKS).frame(False, seq, isn + pick.randrange(110), flags, payload, said)

    def options(self, isn: int, value: int, echo: int) -> bytes:
        """The usual ones, or such as nobody sends, at any place."""
        stamp, edges = stamps(value, echo), sack(isn + 40, isn + 60)
        usual = [b"", b"\1\1" + stamp, b"\1\1" + stamp, b"\1\1" + stamp + b"\1\1" + edges, b"\1" + stamp + b"\1"]
        odd = [stamp + edges, b"\1\1" + edges, stamp + stamp, sack(isn + 1) + b"\1" + stamp, b"\5\x09" + edges[2:9]]
        odd += [b"\0" + stamp, stamp[:6], b"\x1e\4\1\1" + stamp, b"\x13\x12" + bytes(16), b"\x08\x02" + stamp, b"\5\0"]
        odd += [
            b"\0" + stamp + edges[:9],
            b"\x08\x06" + stamp[2:6] + b"\1\1" + edges,
            b"\1\1" + stamp + b"\1\1\1" + stamp,
        ]
        chosen = self.source.choice(odd if self.one_in(3) else usual)
        return chosen + b"\0" * (-len(chosen) % 4)

    def mangled(self, frame: bytes) -> bytes:
        """The frame with another checksum, padding, IP options, in pieces, quoted, with wrong bytes, or cut."""
        pick, layers = self.source, locate(frame)
        how = pick.choice(["sum", "sum", "pad", "options", "piece", "quote", "bytes", "bytes", "cut"])
        if how == "bytes" and len(frame) > 12:
            changed = bytearray(frame)
            changed[pick.randrange(12, min(len(frame), 100))] = pick.randrange(256)
            return bytes(changed)
        if how == "cut":
            return frame[: pick.randrange(len(frame) + 1)]
        if how == "pad" or layers is None or layers.fragment is not None:
            return frame + bytes(9)
        ip, upper, end = layers.ip, layers.upper, layers.end
        if how == "sum":
            addresses = layers.addresses(frame)
            partial: int = sum(struct.unpack(f">{len(addresses) // 2}H", addresses)) + 6 + end - upper
            value = pick.choice([0, 0xFFFF, 0x1234, partial % 0xFFFF, partial % 0xFFFF])
            return frame[: upper + 16] + value.to_bytes(2) + frame[upper + 18 :]
        if how == "options" and layers.version == 4:
            head = struct.pack(">BBH", 0x46, 0, end - ip + 4) + frame[ip + 4 : upper]
            return frame[:ip] + head + pick.choice([b"\1\1\1\1", b"\x94\4\0\0"]) + frame[upper:]
        if how == "piece" and end - upper > 64:
            return pick.choice(in_two(frame, layers, pick.randrange(2)))
        return error(frame, layers)


def opened(link: Link, numbers: Numbers, echo: int | None = CLOCK) -> tuple[bytes, bytes]:
    """The SVM's SYN-ACK, and what the client answers to that of the PVM; `echo` None: without timestamps."""
    value = CLOCK + numbers.value_apart
    theirs, ours = (b"" if echo is None else b"\1\1" + stamps(*pair) for pair in ((value, 1), (2, echo or 0)))
    return (
        link.frame(True, numbers.svm_isn, CLIENT_ISN + 1, S | A, b"", theirs),
        link.frame(False, CLIENT_ISN + 1, numbers.pvm_isn + 1, A, b"", ours),
    )
