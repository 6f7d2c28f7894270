"""Clients of a small model TCP talk to a VM through checkpoints and takeovers, and see one unbroken stream."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus import captures
from pycolo.core.layers import locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packet import ACK, checksum_is_right, distance, opposite, parse_tcp
from pycolo.core.quotes import Quote, quoted_segment
from pycolo.core.secondary import SecondaryDataplane, advance_ticks
from pycolo.core.translation import Translator, parse
from pycolo.core.translation_chain import TranslatorChain
from secondary_twins import SecondaryTwins
from tcp_model import CLOCKS_APART_MS, FIRST_PIECE_BYTES, MOD, SYN_AGAIN_MS, Link, Stack, as_one, error, heard, in_two

LIMITS = DataplaneLimits()
TAKEOVERS_MAX = 2


@dataclass
class Talk:
    """One connection: the client, both copies of the guest, and what is on its way between them."""

    client: Stack
    pvm: Stack
    svm: Stack
    by_guest: bool
    is_known: bool = False  # an acknowledgement has come in one piece: fragments teach no offsets
    held: list[tuple[int, int, bytes]] = field(default_factory=list)  # the PVM's: end, acknowledged to, frame
    pvm_inbox: list[bytes] = field(default_factory=list)
    svm_inbox: list[bytes] = field(default_factory=list)


class World:
    """Hosts with a chain each, the secondary's plane, and all connections; loss is up to the script."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.talks: list[Talk] = []
        self.plane = SecondaryTwins(LIMITS)
        self.chain, self.twin = self._new_chain(), self._new_chain()
        self.now_ms = self.takeovers = self.out_no = 0
        self.held_since_ms: int | None = None
        self.loses = True

    def _new_chain(self) -> TranslatorChain:
        return TranslatorChain(LIMITS.flows_max, advance_ticks(LIMITS))

    # ---------------------------------------------------------------- the network

    def _lost(self) -> bool:
        return self.loses and self.source.random() < 0.2

    def to_client(self, talk: Talk, frames: list[bytes]) -> None:
        """What leaves, in the clients' numbers already."""
        for frame in frames:
            if not self._lost():
                answer = talk.client.hear(frame, self.now_ms)
                if answer is not None:
                    self.from_client(talk, answer)

    def from_client(self, talk: Talk, frame: bytes | None) -> None:
        if frame is None or self._lost():
            return
        frames, layers = [frame], locate(frame)
        assert layers is not None
        if talk.is_known and layers.end - layers.upper > FIRST_PIECE_BYTES and self.source.random() < 0.2:
            frames = in_two(frame, layers, self.source.randrange(2**16))[:: self.source.choice((1, -1))]
        talk.is_known |= talk.client.is_open
        inbound = self.chain.inbound(frames)
        assert inbound == self.twin.inbound(frames), "both hosts translate alike"
        talk.pvm_inbox.append(as_one(inbound) if inbound[1:] else inbound[0])
        seen = self.plane.client_frames(inbound)
        talk.svm_inbox.append(as_one(seen) if seen[1:] else seen[0])

    # ---------------------------------------------------------------- the copies

    def pvm_said(self, talk: Talk, frame: bytes | None) -> None:
        if frame is not None:
            segment = parse_tcp(frame)
            assert segment is not None
            end = (segment[1] - talk.pvm.isn) % MOD + segment[6] - segment[5]
            talk.held.append((end, talk.pvm.last_ack_sent, frame))
        self.release(talk)

    def release(self, talk: Talk) -> None:
        """Rules 1 and 2, as the primary's plane keeps them."""
        while talk.held:
            end, acked, frame = talk.held[0]
            if talk.svm.next < max(end, 1) or talk.svm.last_ack_sent < acked:
                return
            del talk.held[0]
            self.leave(talk, [frame])

    def leave(self, talk: Talk, frames: list[bytes]) -> None:
        shown = self.chain.outbound(frames)
        for message in self.chain.changes():
            self.twin.adopt(message, self.now_ms)
        for before, frame in zip(frames, shown, strict=True):
            if self.source.random() < 0.1:
                self.router_quotes(talk, before, frame)
        self.to_client(talk, shown)

    def router_quotes(self, talk: Talk, before: bytes, shown: bytes) -> None:
        """An error about a segment that has left reaches both copies in their own numbers."""
        (error,) = self.chain.inbound([error_about(shown)])
        assert error == self.twin.inbound([error_about(shown)])[0]
        quote, said = quoted(error), parse_tcp(before)
        assert said is not None
        assert (quote.seq, quote.value) == (said[1], heard(before).value)
        own = quoted(self.plane.client_frames([error])[0])
        place = (own.seq - talk.svm.isn) % MOD
        assert place == (said[1] - talk.pvm.isn) % MOD
        assert place <= talk.svm.next
        assert own.value is not None
        assert place == 0 or abs(distance(own.value, talk.svm.last_value)) <= CLOCKS_APART_MS

    def svm_said(self, talk: Talk, frame: bytes | None) -> None:
        if frame is not None:
            self.plane.svm_frames([frame], self.out_no)
            self.out_no += 1
        self.release(talk)

    def pvm_hears(self, talk: Talk) -> None:
        inbox, talk.pvm_inbox = talk.pvm_inbox, []
        for frame in inbox:
            self.pvm_said(talk, talk.pvm.hear(frame, self.now_ms))

    def svm_hears(self, talk: Talk) -> None:
        inbox, talk.svm_inbox = talk.svm_inbox, []
        for frame in inbox:
            self.svm_said(talk, talk.svm.hear(frame, self.now_ms))

    # ---------------------------------------------------------------- what happens to the pair

    def open(self, by_guest: bool) -> None:
        draw = self.source
        number = len(self.talks)
        link = Link(draw.choice((4, 6)), draw.choice(((), (5,), (100, 5))), 40_000 + number)
        said, asked = draw.randbytes(draw.randrange(6000)), draw.randbytes(draw.randrange(6000))

        def guest() -> Stack:
            isn = draw.choice((draw.randrange(MOD), MOD - draw.randrange(6000)))
            return Stack(link, True, isn, draw.randrange(MOD), said, asked)

        client = Stack(link, False, draw.randrange(MOD), draw.randrange(MOD), asked, said)
        talk = Talk(client, guest(), guest(), by_guest)
        self.talks.append(talk)
        if not by_guest:
            self.from_client(talk, client.open(self.now_ms))

    def checkpoint(self) -> None:
        self.plane.loaded()
        for talk in self.talks:
            lag_ms = self.source.randrange(900)
            talk.svm = deepcopy(talk.pvm)
            talk.svm.clock -= lag_ms
            talk.svm_inbox = self.plane.client_frames(talk.pvm_inbox)
            frames, talk.held = [frame for _, _, frame in talk.held], []
            self.leave(talk, frames)

    def take_over(self) -> None:
        if self.takeovers == TAKEOVERS_MAX:
            return
        self.takeovers += 1
        if not all(talk.client.is_open for talk in self.talks):
            self.now_ms += SYN_AGAIN_MS  # a survivor that repeats an opening does so later than its clock is behind
        owners = {key_of(talk.client.link.frame(True, 0, 0, ACK)): talk for talk in self.talks}
        released = self.twin.outbound(self.plane.take_over())
        self.twin.push(self.plane.translator, self.now_ms)
        self.chain, self.twin = self.twin, self._new_chain()
        for message in self.chain.whole(self.now_ms):
            self.twin.adopt(message, self.now_ms)
        for talk in self.talks:
            talk.pvm, talk.pvm_inbox, talk.held = talk.svm, talk.svm_inbox, []
        self.plane = SecondaryTwins(LIMITS)
        self.checkpoint()  # protected again: nothing is said in between
        for frame in released:
            self.to_client(owners[key_of(frame)], [frame])

    def step(self, op: int, number: int, size: int) -> None:
        if op == 0:
            self.open(bool(size % 2))
        elif op == 1:
            self.checkpoint()
        elif op == 2:
            self.take_over()
        elif op == 3:
            self.now_ms += size
        elif self.talks:
            self.talk_step(op, self.talks[number % len(self.talks)], size)
        self._take_what_is_late()

    def _take_what_is_late(self) -> None:
        """Neither copy is behind the other for longer than `hold_ms_max`: the PVM runs, a checkpoint helps the SVM."""
        if not any(talk.held or talk.svm.next > talk.pvm.next for talk in self.talks):
            self.held_since_ms = None
        elif self.held_since_ms is None:
            self.held_since_ms = self.now_ms
        elif self.now_ms - self.held_since_ms >= LIMITS.hold_ms_max:
            for talk in self.talks:
                self.talk_step(4, talk, 700)
            self.checkpoint()
            self.held_since_ms = None

    def talk_step(self, op: int, talk: Talk, size: int) -> None:
        if op in (4, 5):
            self.pvm_hears(talk)
            self.pvm_said(talk, self.guest_speaks(talk, talk.pvm, size))
        elif op in (6, 7):
            self.svm_hears(talk)
            self.svm_said(talk, self.guest_speaks(talk, talk.svm, size))
        elif op == 8:
            self.from_client(talk, talk.client.speak(size, self.now_ms))
        elif op == 9:
            self.pvm_said(talk, talk.pvm.again(self.now_ms))
        elif op == 10:
            self.svm_said(talk, talk.svm.again(self.now_ms))
        else:
            self.from_client(talk, talk.client.again(self.now_ms))

    def guest_speaks(self, talk: Talk, guest: Stack, size: int) -> bytes | None:
        if talk.by_guest and guest.next == 0:
            return guest.open(self.now_ms)
        return guest.speak(size, self.now_ms)

    def finish(self) -> None:
        """Nothing is lost any more: every stream comes to its end."""
        self.loses = False
        for _ in range(60):
            for talk in self.talks:
                for op in (4, 6, 8, 4, 6, 11, 4, 6, 9, 10):
                    self.talk_step(op, talk, 700)
                self.now_ms += 40
        for talk in self.talks:
            assert talk.client.is_done
            assert talk.pvm.is_done


def key_of(frame: bytes) -> bytes:
    segment = parse_tcp(frame)
    assert segment is not None
    return segment[0]


def quoted(frame: bytes) -> Quote:
    layers = locate(frame)
    assert layers is not None
    quote = quoted_segment(frame, layers)
    assert quote is not None
    return quote


steps = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 9), st.integers(1, 1400)), max_size=120)


@settings(max_examples=150)
@given(st.integers(0, 2**32), steps)
@example(2094, [(4, 0, 1), (1, 0, 1), (2, 0, 1), (9, 0, 1), (2, 0, 1), (9, 0, 1)])
def test_every_stream_is_unbroken(seed: int, script: list[tuple[int, int, int]]) -> None:
    world = World(seed)
    world.open(bool(seed % 2))
    for step in script:
        world.step(*step)
    world.finish()


# ---------------------------------------------------------------- there and back


def translator_of(frames: list[bytes], sign: int) -> Translator:
    """Every connection of the capture with offsets, or with their opposites."""
    translator = Translator(LIMITS.flows_max, 0)
    for n, frame in enumerate(frames, 1):
        segment, layers = parse(frame), locate(frame)
        quote = None if layers is None else quoted_segment(frame, layers)
        for key in (segment and opposite(segment[0]), quote and quote.key):
            connection = None if key is None or key in translator.connections else translator.admit(key)
            if connection is not None:
                connection.seq_add, connection.value_add = sign * 0x89ABCDEF * n % MOD, sign * 0x13579BDF * n % MOD
    return translator


@pytest.mark.parametrize("name", sorted(captures()))
def test_there_and_back_is_where_we_were(name: str) -> None:
    frames = captures()[name]
    frames += [error_about(frame) for frame in frames if parse_tcp(frame) is not None]
    there, back = translator_of(frames, 1), translator_of(frames, -1)
    translated = there.inbound(frames)
    assert back.inbound(translated) == frames
    changed = [frame for frame, other in zip(frames, translated, strict=True) if frame != other]
    acknowledging = [segment for segment in map(parse, frames) if segment is not None and segment[3] & ACK]
    assert bool(changed) == bool(acknowledging)
    for frame, other in zip(frames, translated, strict=True):
        check_unchanged(frame, other)


def check_unchanged(frame: bytes, other: bytes) -> None:
    """Only acknowledgement, checksum and options may differ in a segment, only what is quoted in an error."""
    segment = parse(frame)
    assert len(frame) == len(other)
    if segment is None:
        return
    _, _, _, flags, at, start, end = segment
    before, after = parse(other) or segment, segment
    assert before[0] == after[0]
    assert frame[: at + 8] == other[: at + 8]
    assert frame[at + 12 : at + 16] == other[at + 12 : at + 16]
    assert frame[start:] == other[start:]
    assert checksum_is_right(frame, at, end) == checksum_is_right(other, at, end)
    assert flags & ACK or frame == other


def error_about(frame: bytes) -> bytes:
    """An ICMP error for the sender of the segment, which quotes it."""
    layers = locate(frame)
    assert layers is not None
    return error(frame, layers)


@settings(max_examples=500)
@given(
    st.sampled_from([frame for frames in captures().values() for frame in frames]),
    st.lists(st.tuples(st.integers(12, 110), st.integers(0, 255)), max_size=4),
    st.integers(0, 120),
    st.booleans(),
)
def test_no_bytes_make_the_translation_raise(
    frame: bytes, changes: list[tuple[int, int]], length: int, quotes: bool
) -> None:
    layers = locate(frame)
    mangled = bytearray(error(frame, layers) if quotes and layers is not None else frame)
    for at, value in changes:
        if at < len(mangled):
            mangled[at] = value
    frames = [bytes(mangled), bytes(mangled[:length])]
    plane = SecondaryDataplane(LIMITS)
    plane.translator = translator_of(frames, 1)
    assert [len(each) for each in plane.client_frames(frames)] == [len(each) for each in frames]
    plane.svm_frames(frames, 0)
    plane.take_over()
    for translate in (plane.translator.inbound, plane.translator.outbound):
        assert [len(each) for each in translate(frames)] == [len(each) for each in frames]
