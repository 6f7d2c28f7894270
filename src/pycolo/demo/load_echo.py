"""Echo clients over TCP, UDP and ICMP: what comes back must be what went out, byte for byte.

UDP and ICMP may lose datagrams on any network, so these clients ask again with a fresh number every 200 ms,
for 3 s unless told otherwise, as a DNS resolver does. Late answers to earlier numbers are verified too. A connection
that ends is never reopened.
"""

import hashlib
import secrets
import socket
import struct
import time
from typing import Protocol

from pycolo.demo.load_ledger import Ledger, Outcome, Request, UnansweredError, WrongBytesError

TIMEOUT_S = 10.0
RETRY_S = 0.2
GIVE_UP_S = 3.0
TCP_PAYLOAD_BYTES_MAX = 4000
DATAGRAM_BYTES_MAX = 1400
_NUMBER = struct.Struct("!Q")
_ICMP_HEADER = struct.Struct("!BBHHH")
_ICMP_ECHO_REPLY, _ICMP_ECHO = 0, 8
_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/icmp.h; the socket module has no names for them


def keeps_connection(ledger: Ledger, request: Request) -> bool:
    """Whether a lasting connection can go on after that request; its loss is written down."""
    if request.outcome in (Outcome.ANSWERED, Outcome.WRONG_BYTES):
        return True
    ledger.connection_lost(request.who, f"a request ended as {request.outcome.value if request.outcome else 'open'}")
    return False


def check_idle(ledger: Ledger, who: str, sock: socket.socket) -> None:
    """At the end of a run: an idle connection must still be open, with nothing unasked in it."""
    sock.setblocking(False)
    try:
        unasked = sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return
    except OSError as error:
        ledger.connection_lost(who, f"found at the end: {error}")
        return
    if unasked:
        ledger.trouble(who.partition("-")[0], f"{who}: bytes arrived that nobody asked for")
    else:
        ledger.connection_lost(who, "the server closed it while nothing was asked")


class TcpEcho:
    """One TCP connection, open from the first request to the end."""

    def __init__(self, name: str, ledger: Ledger, address: tuple[str, int]) -> None:
        self.name = name
        self._ledger = ledger
        self._address = address
        self._sock: socket.socket | None = None

    def step(self) -> bool:
        with self._ledger.request("tcp", self.name) as request:
            self._exchange(self._connected())
        kept = keeps_connection(self._ledger, request)
        if not kept:
            self._drop()
        return kept

    def finish(self) -> None:
        if self._sock is not None:
            check_idle(self._ledger, self.name, self._sock)
        self._drop()

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connected(self) -> socket.socket:
        if self._sock is None:
            self._sock = socket.create_connection(self._address, TIMEOUT_S)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ledger.connection_opened()
        return self._sock

    def _exchange(self, sock: socket.socket) -> None:
        payload = secrets.token_bytes(1 + secrets.randbelow(TCP_PAYLOAD_BYTES_MAX))
        deadline_s = time.monotonic() + TIMEOUT_S
        sock.settimeout(TIMEOUT_S)
        sock.sendall(payload)
        answer = bytearray()
        while len(answer) < len(payload):
            sock.settimeout(max(deadline_s - time.monotonic(), 0.001))
            part = sock.recv(len(payload) - len(answer))
            if not part:
                raise ConnectionResetError(f"the server closed after {len(answer)} of {len(payload)} bytes")
            answer += part
        if answer != payload:
            raise WrongBytesError(f"echo of {len(payload)} bytes came back different")


class DatagramPort(Protocol):
    """Sends numbered datagrams and says which numbers come back."""

    def send(self, number: int) -> None: ...

    def receive(self, timeout_s: float) -> int | None:
        """The number answered, None for a datagram that is not for us; TimeoutError; WrongBytesError."""

    def close(self) -> None: ...


class DatagramEcho:
    """Asks one numbered datagram after the other over a port, with retries."""

    def __init__(self, kind: str, name: str, ledger: Ledger, port: DatagramPort, ask_s: float = GIVE_UP_S) -> None:
        self.name = name
        self._ask_s = ask_s
        self._kind = kind
        self._ledger = ledger
        self._port = port
        self._next_number = 0

    def step(self) -> bool:
        with self._ledger.request(self._kind, self.name):
            self._ask()
        return True

    def finish(self) -> None:
        self._port.close()

    def _ask(self) -> None:
        first = self._next_number
        give_up_s = time.monotonic() + self._ask_s
        while True:
            self._port.send(self._next_number)
            self._next_number += 1
            if self._answered(first, min(time.monotonic() + RETRY_S, give_up_s)):
                return
            if time.monotonic() >= give_up_s:
                raise UnansweredError(f"no answer to {self._next_number - first} datagrams in {self._ask_s:g} s")
            self._ledger.retried(self._kind)

    def _answered(self, first: int, until_s: float) -> bool:
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                number = self._port.receive(left_s)
            except TimeoutError:
                return False
            if number is not None and number >= self._next_number:
                raise WrongBytesError(f"datagram {number} came back, which was never sent")
            if number is not None and number >= first:
                return True
        return False


class NumberedPayloads:
    """Payloads that follow from their number: any answer can be verified, however late."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)

    def of(self, number: int) -> bytes:
        head = _NUMBER.pack(number)
        digest = hashlib.shake_128(self._key + head)
        length = int.from_bytes(digest.digest(2), "big") % (DATAGRAM_BYTES_MAX - len(head))
        return head + digest.digest(2 + length)[2:]

    def number_of(self, payload: bytes) -> int:
        """The number in a payload; WrongBytesError when the payload is not exactly the one of that number."""
        if len(payload) < _NUMBER.size:
            raise WrongBytesError(f"an answer of {len(payload)} bytes is too short")
        number = int.from_bytes(payload[: _NUMBER.size], "big")
        if payload != self.of(number):
            raise WrongBytesError(f"datagram {number} of {len(payload)} bytes came back different")
        return number


class UdpPort:
    """UDP from one fixed local port to one address."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._payloads = NumberedPayloads()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.connect(address)

    def send(self, number: int) -> None:
        self._sock.settimeout(TIMEOUT_S)
        self._sock.send(self._payloads.of(number))

    def receive(self, timeout_s: float) -> int | None:
        self._sock.settimeout(timeout_s)
        return self._payloads.number_of(self._sock.recv(65535))

    def close(self) -> None:
        self._sock.close()


class IcmpPort:
    """ICMP echo (RFC 792) over a raw socket of our own, which needs CAP_NET_RAW (PermissionError without)."""

    def __init__(self, host: str) -> None:
        self._payloads = NumberedPayloads()
        self._ident = secrets.randbits(16)
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("@I", 0xFFFFFFFF & ~(1 << _ICMP_ECHO_REPLY)))
        self._sock.connect((host, 0))

    def send(self, number: int) -> None:
        self._sock.settimeout(TIMEOUT_S)
        self._sock.send(icmp_echo(_ICMP_ECHO, self._ident, number & 0xFFFF, self._payloads.of(number)))

    def receive(self, timeout_s: float) -> int | None:
        self._sock.settimeout(timeout_s)
        payload = icmp_reply_payload(self._sock.recv(65535), self._ident)
        return None if payload is None else self._payloads.number_of(payload)

    def close(self) -> None:
        self._sock.close()


def internet_checksum(data: bytes) -> int:
    """RFC 1071; 0 over data that carries its right checksum."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmp_echo(kind: int, ident: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request or reply with its checksum."""
    unsummed = _ICMP_HEADER.pack(kind, 0, 0, ident, sequence) + payload
    return _ICMP_HEADER.pack(kind, 0, internet_checksum(unsummed), ident, sequence) + payload


def icmp_reply_payload(packet: bytes, ident: int) -> bytes | None:
    """The payload of an echo reply to `ident` in an IPv4 packet, else None; WrongBytesError: bad checksum."""
    icmp = packet[(packet[0] & 15) * 4 :] if packet else b""
    if len(icmp) < _ICMP_HEADER.size:
        return None
    kind, _code, _sum, got_ident, _sequence = _ICMP_HEADER.unpack_from(icmp)
    if kind != _ICMP_ECHO_REPLY or got_ident != ident:
        return None
    if internet_checksum(icmp) != 0:
        raise WrongBytesError("an ICMP echo reply has a wrong checksum")
    return icmp[_ICMP_HEADER.size :]
