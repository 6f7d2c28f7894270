"""TCP conversations for the corpus, both directions of each as a capture beside the guest would have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

GUEST_MAC, CLIENT_MAC = "52:54:00:00:00:02", "52:54:00:00:00:01"
GUEST, CLIENT = "10.0.0.2", "10.0.0.1"
GUEST6, CLIENT6 = "fd00::2", "fd00::1"
WORDS = b"The quick brown fox jumps over the lazy dog. "

Options = list[tuple[Any, Any]]
SYN_OPTIONS: Options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1000, 0)), ("NOP", None), ("WScale", 7)]


def text(length: int, start: int = 0) -> bytes:
    """Bytes that are not the same everywhere."""
    whole = WORDS * ((start + length) // len(WORDS) + 1)
    return whole[start : start + length]


def stamps(value: int, echo: int) -> Options:
    return [("NOP", None), ("NOP", None), ("Timestamp", (value, echo))]


@dataclass
class Side:
    """One end: where it is, and how far its stream has come."""

    mac: str
    address: str
    port: int
    next: int


@dataclass
class Talk:
    """A connection between guest and client; each method appends the frame that it makes."""

    version: int = 4
    isn: int = 1_000_000
    client_isn: int = 70_000
    guest_port: int = 80
    client_port: int = 40_000
    tags: tuple[Any, ...] = ()
    frames: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        guest, client = (GUEST, CLIENT) if self.version == 4 else (GUEST6, CLIENT6)
        self.guest = Side(GUEST_MAC, guest, self.guest_port, self.isn)
        self.client = Side(CLIENT_MAC, client, self.client_port, self.client_isn)

    def say(
        self,
        side: Side,
        flags: str = "A",
        payload: bytes = b"",
        *,
        options: Options | None = None,
        seq: int | None = None,
        ack: int | None = None,
        window: int = 500,
        urgent: int = 0,
    ) -> bytes:
        """A segment; one without `seq` is the stream's next, and moves it on."""
        peer = self.client if side is self.guest else self.guest
        at = side.next if seq is None else seq
        if seq is None:
            side.next += len(payload) + ("S" in flags) + ("F" in flags)
        acked = (peer.next if ack is None else ack) if "A" in flags else 0
        head: Any = Ether(src=side.mac, dst=peer.mac)
        for tag in self.tags:
            head /= tag.copy()
        head /= IP(id=7, flags="DF") if self.version == 4 else IPv6()
        head.lastlayer().src, head.lastlayer().dst = side.address, peer.address
        segment = TCP(
            sport=side.port, dport=peer.port, flags=flags, options=options or [], window=window, urgptr=urgent
        )
        segment.seq, segment.ack = at % 2**32, acked % 2**32
        self.frames.append(bytes(head / segment / payload))
        return self.frames[-1]

    def open(self, *, by_guest: bool = False, options: Options | None = None) -> None:
        first, second = (self.guest, self.client) if by_guest else (self.client, self.guest)
        terms = SYN_OPTIONS if options is None else options
        self.say(first, "S", options=terms)
        self.say(second, "SA", options=terms)
        self.say(first, "A")

    def ask(self, request: bytes, answer: bytes, mss: int = 1000) -> None:
        self.say(self.client, "PA", request)
        self.say(self.guest, "A")
        for start in range(0, len(answer), mss):
            self.say(self.guest, "PA" if start + mss >= len(answer) else "A", answer[start : start + mss])
        self.say(self.client, "A")

    def close(self) -> None:
        self.say(self.guest, "FA")
        self.say(self.client, "FA")
        self.say(self.guest, "A")


def _plain(**where: Any) -> list[bytes]:
    talk = Talk(**where)
    talk.open()
    talk.ask(b"GET / HTTP/1.1\r\n\r\n", text(2500))
    talk.close()
    return talk.frames


def _guest_opened() -> list[bytes]:
    talk = Talk(guest_port=50_000, client_port=5432)
    talk.open(by_guest=True)
    talk.say(talk.guest, "PA", b"select 1")
    talk.say(talk.client, "PA", b"1")
    talk.close()
    return talk.frames


def _retransmission() -> list[bytes]:
    talk = Talk()
    talk.open()
    start = talk.guest.next
    talk.say(talk.guest, "PA", text(1000))
    talk.say(talk.guest, "PA", text(1000), seq=start)
    talk.say(talk.guest, "PA", text(300, 700), seq=start + 700)  # its tail again, as a loss probe sends it
    talk.say(talk.guest, "PA", text(500, 1000))
    talk.say(talk.client)
    talk.close()
    return talk.frames


def _out_of_order() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.ask(b"x" * 40, text(4000))
    frames = talk.frames
    frames[6], frames[7] = frames[7], frames[6]
    talk.close()
    return frames


def _keep_alive() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.ask(b"hello", b"world")
    talk.say(talk.guest, "A", seq=talk.guest.next - 1)
    talk.say(talk.client)
    talk.say(talk.client, "A", b"\0", seq=talk.client.next - 1)  # with the byte of garbage that RFC 9293, 3.8.4 allows
    talk.say(talk.guest)
    talk.close()
    return talk.frames


def _zero_window() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.say(talk.guest, "PA", text(500))
    talk.say(talk.client, window=0)
    talk.say(talk.guest, "A", text(1, 500), seq=talk.guest.next)  # the probe has the next byte, and is not taken
    talk.say(talk.client, window=0)
    talk.say(talk.client, window=500)
    talk.say(talk.guest, "PA", text(300, 500))
    talk.say(talk.client)
    talk.close()
    return talk.frames


def _urgent() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.say(talk.guest, "PAU", b"interrupt\xff", urgent=10)
    talk.say(talk.guest, "PA", b"and on")
    talk.say(talk.client)
    talk.close()
    return talk.frames


def _reset() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.ask(b"hello", b"world")
    talk.say(talk.guest, "RA")
    return talk.frames


def _refused() -> list[bytes]:
    talk = Talk(isn=0)
    talk.say(talk.client, "S", options=SYN_OPTIONS)
    talk.say(talk.guest, "RA")
    return talk.frames


def _simultaneous_close() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.ask(b"hello", b"world")
    last = talk.client.next
    talk.say(talk.guest, "FA")
    talk.say(talk.client, "FA", ack=talk.guest.next - 1)
    talk.say(talk.guest, "A", ack=last + 1)
    talk.say(talk.client)
    return talk.frames


def _half_closed() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.say(talk.client, "PFA", b"the whole request")
    talk.say(talk.guest)
    talk.say(talk.guest, "PFA", text(700))
    talk.say(talk.client)
    return talk.frames


def _sack() -> list[bytes]:
    talk = Talk()
    talk.open()
    start = talk.client.next
    talk.say(talk.client, "A", text(100))
    talk.say(talk.client, "A", text(100, 200), seq=start + 200)
    edges = (start + 200, start + 300)
    talk.say(talk.guest, options=[("NOP", None), ("NOP", None), ("SAck", edges)])
    talk.say(talk.client, "PA", text(200, 100))
    talk.say(talk.guest)
    talk.close()
    return talk.frames


def _timestamps() -> list[bytes]:
    talk = Talk()
    talk.open()
    talk.say(talk.client, "PA", b"hello", options=stamps(0xFFFF_FFFE, 1000))
    talk.say(talk.guest, "PA", text(700), options=stamps(1003, 0xFFFF_FFFE))
    talk.say(talk.client, "A", options=stamps(2, 1003))
    talk.close()
    return talk.frames


def _with_option(kind: int, value: bytes, *, on_data: bool) -> list[bytes]:
    """Options that the comparison can't judge, on the SYN and, some of them, on every segment."""
    talk = Talk()
    talk.open(options=[("MSS", 1460), (kind, value)])
    option: Options = [(kind, value)] if on_data else []
    talk.say(talk.client, "PA", b"hello", options=option)
    talk.say(talk.guest, "PA", text(700), options=option)
    talk.say(talk.client, "A", options=option)
    return talk.frames


def _fast_open() -> list[bytes]:
    talk = Talk()
    talk.say(talk.client, "S", b"early data", options=[("MSS", 1460), (34, b"\1\2\3\4\5\6\7\x08")])
    talk.say(talk.guest, "SA", options=[("MSS", 1460)])
    talk.say(talk.guest, "PA", b"early answer")
    talk.say(talk.client)
    talk.close()
    return talk.frames


def _several() -> list[bytes]:
    talks = [Talk(isn=1000 * n + 5, client_port=40_000 + n) for n in range(4)]
    for talk in talks:
        talk.open()
        talk.ask(b"GET", text(2500, talk.client_port % 40))
        talk.close()
    return [frame for turn in zip(*(talk.frames for talk in talks), strict=True) for frame in turn]


def _ports_again() -> list[bytes]:
    first, second = Talk(), Talk(isn=9_000_000, client_isn=900_000)
    for talk in (first, second):
        talk.open()
        talk.ask(b"GET", text(900))
        talk.close()
    return first.frames + second.frames


def _without_its_beginning() -> list[bytes]:
    talk = Talk()
    talk.ask(b"GET", text(2000))
    return talk.frames


def _padded() -> list[bytes]:
    return [frame.ljust(60, b"\xee") for frame in _plain()]


TCP_CAPTURES: dict[str, Callable[[], list[bytes]]] = {
    "tcp-client-opened": _plain,
    "tcp-guest-opened": _guest_opened,
    "tcp-retransmission": _retransmission,
    "tcp-out-of-order": _out_of_order,
    "tcp-keep-alive": _keep_alive,
    "tcp-zero-window": _zero_window,
    "tcp-urgent": _urgent,
    "tcp-reset": _reset,
    "tcp-refused": _refused,
    "tcp-simultaneous-close": _simultaneous_close,
    "tcp-half-closed": _half_closed,
    "tcp-seq-wrap": lambda: _plain(isn=2**32 - 1500, client_isn=2**32 - 3),
    "tcp-sack": _sack,
    "tcp-timestamps": _timestamps,
    "tcp-md5": lambda: _with_option(19, bytes(range(16)), on_data=True),
    "tcp-mptcp": lambda: _with_option(30, b"\x01\x81" + bytes(8), on_data=True),
    "tcp-unknown-option": lambda: _with_option(253, b"\xf9\x89", on_data=False),
    "tcp-fast-open": _fast_open,
    "tcp-several": _several,
    "tcp-ports-again": _ports_again,
    "tcp-without-its-beginning": _without_its_beginning,
    "tcp-padded": _padded,
    "tcp-ipv6": lambda: _plain(version=6),
    "tcp-vlan": lambda: _plain(tags=(Dot1Q(vlan=5, prio=3),)),
    "tcp-vlan-priority": lambda: _plain(tags=(Dot1Q(vlan=0, prio=5),)),
    "tcp-qinq": lambda: _plain(tags=(Dot1AD(vlan=100), Dot1Q(vlan=5)), version=6),
}
