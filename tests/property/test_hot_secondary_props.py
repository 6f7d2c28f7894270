"""The secondary's compiled side and its Python twin do the same on the same input, whatever it is and in any order."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import captures
from pycolo.core import engines
from pycolo.core.layers import locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import pack
from secondary_twins import SecondaryTwins
from tcp_model import MOD, Link, error, in_two

pytestmark = pytest.mark.skipif(not engines.COMPILED, reason="nothing is compiled here")

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


WHAT = ["svm"] * 6 + ["client"] * 6 + ["confirm", "confirm", "loaded", "take over"]
steps = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 2**32 - 1)), max_size=40)
openings = st.lists(st.tuples(st.sampled_from(LINKS), st.sampled_from([None, CLOCK, 0])), max_size=6)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(NUMBERS), openings, steps, st.booleans(), st.integers(0, 3))
def test_both_do_the_same(
    numbers: Numbers, begin: list[tuple[Link, int | None]], script: list[tuple[str, int]], tiny: bool, rest: int
) -> None:
    """`rest`: so many bytes of a frame that is cut stand at the end of a batch; 0: it is a list of frames."""
    planes, no = SecondaryTwins(TINY if tiny else DataplaneLimits(), 2**64 - 1 - rest), 0
    for link, echo in begin:
        syn_ack, answer = opened(link, numbers, echo)
        planes.svm_frames([syn_ack], no)
        planes.client_frames([answer])
        no += 1
    for what, seed in script:
        frames = Speaker(numbers, seed).batch(what == "svm")
        if what == "svm":
            planes.svm_packed(pack(frames) + bytes(rest), no) if rest else planes.svm_frames(frames, no)
            no += len(frames)
        elif what == "client":
            planes.client_packed(pack(frames) + bytes(rest)) if rest else planes.client_frames(frames)
        elif what == "confirm":
            planes.confirm([no - 1, no - 3, no + 9])
        elif what == "loaded":
            planes.loaded()
        else:
            planes.take_over()
            said = Speaker(numbers, seed).batch(True)
            assert planes.twin.translator.outbound(said) == planes.hot.translator.outbound(said)
            assert planes.twin.translator.inbound(frames) == planes.hot.translator.inbound(frames)
        planes.agree()
    planes.take_over()


@pytest.mark.parametrize("name", sorted(captures()))
def test_both_translate_real_traffic_alike(name: str) -> None:
    frames = captures()[name]
    planes = SecondaryTwins(DataplaneLimits())
    for n, frame in enumerate(frames, 1):
        planes.know(frame, 0x89ABCDEF * n % MOD, 0x13579BDF * n % MOD)
    planes.client_packed(pack(frames))
    planes.svm_packed(pack(frames), 0)
    planes.take_over()


@pytest.mark.parametrize("addresses", [b"", bytes.fromhex("ffd8000000000001")], ids=["", "sum 0"])
def test_both_treat_every_checksum_alike(addresses: bytes) -> None:
    """Those of the two zeros, and the one that covers the pseudo header alone, are rare otherwise."""
    planes, place = SecondaryTwins(DataplaneLimits()), slice(34 + 16, 34 + 18)
    _, answer = opened(Link(), NUMBERS[0])
    answer = answer[:26] + (addresses or answer[26:34]) + answer[34:]
    planes.know(answer, 0x89ABCDEF, 0x13579BDF)
    frames = [answer[: place.start] + each.to_bytes(2) + answer[place.stop :] for each in range(2**16)]
    translated = planes.client_frames(frames)
    partial = sum(frame[place] == other[place] for frame, other in zip(frames, translated, strict=True))
    assert partial == 1 + bool(addresses)


@pytest.mark.parametrize("frame", [DATAGRAM, DATAGRAM6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("to", [bytes(6), bytes.fromhex("0180c2000000")], ids=["a host", "bridges"])
def test_both_retain_the_same_of_what_looks_like_a_datagram(frame: bytes, to: bytes) -> None:
    """What is no whole packet and goes to bridges is link control."""
    frame, planes = to + frame[6:], SecondaryTwins(DataplaneLimits())
    frames = [frame[:cut] for cut in range(len(frame))]
    for at in range(12, 30):
        frames += [frame[:at] + value.to_bytes() + frame[at + 1 :] for value in range(256)]
    for no, each in enumerate(frames):
        planes.svm_frames([each], no)
        planes.agree()
    assert planes.client_frames(frames) == frames
    assert len(planes.take_over()) > 1000


def test_a_batch_that_was_given_up_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = engines.secondary_dataplane(DataplaneLimits(), seed=7)
    with monkeypatch.context() as patch:
        patch.setattr(plane, "_client_frame", None)
        with pytest.raises(TypeError):
            plane.client_frames([DATAGRAM, ARP])
    assert plane.client_frames([ARP, DATAGRAM6]) == [ARP, DATAGRAM6]


def test_plain_segments_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests here would compare the twin with itself."""
    numbers = NUMBERS[0]
    planes = SecondaryTwins(DataplaneLimits())
    datagrams = [DATAGRAM, DATAGRAM6]
    links = [link for link in LINKS if not link.vids]
    for no, link in enumerate(links):
        syn_ack, answer = opened(link, numbers)
        planes.svm_frames([syn_ack], no)
        planes.client_frames([answer])
    for name in ("_client_frame", "_svm_frame"):
        monkeypatch.setattr(planes.hot, name, None)
    planes.svm_frames(datagrams, 5)
    planes.client_frames(datagrams)
    said = b"\1\1" + stamps(5, CLOCK + 9) + b"\1\1" + sack(numbers.pvm_isn + 3, numbers.pvm_isn + 5)
    for link in links:
        for n in range(20):
            seq, ack = numbers.svm_isn + 1 + n, numbers.pvm_isn + n
            planes.svm_frames([link.frame(True, seq, CLIENT_ISN + 1, A, b"x" * (n % 3))], 10 + 2 * n)
            planes.client_frames([link.frame(False, CLIENT_ISN + 1, ack, A, b"y" * (n % 2), said)])


def test_of_too_many_segments_on_their_way_the_oldest_is_not_known_any_more() -> None:
    planes, link, numbers = SecondaryTwins(DataplaneLimits()), Link(), NUMBERS[0]
    syn_ack, answer = opened(link, numbers, None)
    planes.svm_frames([syn_ack], 0)
    planes.client_frames([answer])
    frames = [link.frame(True, numbers.svm_isn + 1 + n, CLIENT_ISN + 1, A, b"x") for n in range(5000)]
    for start in range(0, 5000, 1000):
        planes.svm_frames(frames[start : start + 1000], 1 + start)
        planes.agree()
        planes.client_frames([link.frame(False, CLIENT_ISN + 1, numbers.pvm_isn + 200 + start // 100, A)])
        planes.agree()
    planes.client_frames([link.frame(False, CLIENT_ISN + 1, numbers.pvm_isn + 4500, A)])
    assert 500 < len(planes.take_over()) < 1500
    planes.client_frames([link.frame(False, CLIENT_ISN + 1, numbers.pvm_isn + 5001, A)])
    planes.agree()


@pytest.mark.parametrize("limits", [DataplaneLimits(), DataplaneLimits(held_frames_max=0), TINY], ids=str)
def test_what_is_retained_is_bounded_for_all_together(limits: DataplaneLimits) -> None:
    planes = SecondaryTwins(limits)
    for no in range(0, 3000, 2):
        seq = 1 + no
        planes.svm_frames([LINKS[no // 2 % 5].frame(True, seq, 1, A, b"x" * (no % 9)), DATAGRAM], no)
        planes.agree()
        if no % 100 == 0:
            planes.svm_frames([DATAGRAM + bytes(no)], no)  # the number comes again
            planes.confirm([no // 2, no - 5])
            planes.agree()
    planes.loaded()
    assert planes.take_over() == []


def test_a_frame_that_no_network_card_gives_goes_as_well() -> None:
    planes = SecondaryTwins(DataplaneLimits())
    frames = [DATAGRAM, bytes(70_000), DATAGRAM]
    assert planes.client_frames(frames) == frames
    planes.svm_frames(frames, 0)
    assert planes.take_over() == frames


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_packed_bytes_are_taken(packed: bytes) -> None:
    planes = SecondaryTwins(TINY)
    planes.client_packed(packed)
    planes.svm_packed(packed, 0)
    planes.client_packed(packed)
    planes.take_over()
