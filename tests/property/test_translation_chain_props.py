"""A VM is taken over again and again: its connections go on, and few layers are left of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.limits import DataplaneLimits
from pycolo.core.packet import distance, parse_tcp, timestamps
from pycolo.core.translation_chain import LAYERS_MAX, STALE_MS, TranslatorChain
from secondary_twins import SecondaryTwins
from tcp_frames import A, Connection, F, stamps

TICKS = 5000
APART_MS_MAX = 900  # between the clocks of both copies, after a checkpoint
OPEN_MAX = 6
MOD = 2**32


@dataclass
class Talk:
    """An open connection: as its client knows it, and as each copy of the guest does, with its clock at time 0."""

    client: Connection
    pvm: Connection
    svm: Connection
    pvm_clock: int
    svm_clock: int
    sent: int = 1  # the guest's, in bytes
    is_opening: bool = True  # to the guest
    value: int = 0  # the last one that the guest has put into a segment
    shown: int = 0  # and what the client saw of that


class World:
    """The survivor, its secondary, and clients."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now_ms, self.taken_over_ms = 0, -MOD
        self.forced = False  # there were more layers than may be
        self.talks: list[Talk] = []
        self.chain, self.twin = TranslatorChain(100, TICKS), TranslatorChain(100, TICKS)
        self.plane = SecondaryTwins(DataplaneLimits())

    def open(self) -> None:
        """Each copy chooses its own numbers; clients know those of the PVM."""
        pvm = Connection(self.draw.randrange(MOD), client_port=40_000 + len(self.talks) % OPEN_MAX)
        svm = replace(pvm, isn=self.draw.randrange(MOD))
        talk = Talk(pvm, pvm, svm, self.draw.randrange(MOD), self.draw.randrange(MOD))
        self.talks = [one for one in self.talks if one.client.client_port != pvm.client_port]
        self.plane.svm_frames([talk.svm.syn_ack(stamps(talk.svm_clock + self.now_ms, 1))], 0)
        talk.value = talk.shown = (talk.pvm_clock + self.now_ms) % MOD
        assert self.leaves(talk.pvm.syn_ack(stamps(talk.value, 1))) == (talk.client.isn, talk.value)
        self.talks.append(talk)
        self.answer(talk)

    def leaves(self, frame: bytes, *, is_solo: bool = False) -> tuple[int, int]:
        """Sequence number and timestamp as the client sees them; the secondary is told what has changed."""
        shown = seen(self.chain.outbound([frame])[0])
        for message in [] if is_solo else self.chain.changes():
            self.twin.adopt(message, self.now_ms)
        return shown[0], shown[2]

    def speak(self, talk: Talk, *, is_lost: bool = False) -> None:
        """The guest sends a byte, and the client sees no older timestamp than before (RFC 7323, 5)."""
        talk.is_opening, value = False, (talk.pvm_clock + self.now_ms) % MOD
        seq, shown = self.leaves(talk.pvm.out(talk.sent, 1, A, b"x", stamps(value, 2)))
        assert seq == (talk.client.isn + talk.sent) % MOD
        assert distance(shown, talk.shown) >= 0
        if not is_lost:
            talk.sent, talk.value, talk.shown = talk.sent + 1, value, shown

    def answer(self, talk: Talk) -> None:
        """The client acknowledges everything: to the guest exactly that, with the timestamp that it had sent."""
        back = [talk.client.back(1, talk.sent, options=stamps(3, talk.shown))]
        inbound = self.chain.inbound(back)
        assert inbound == self.twin.inbound(back), "both hosts translate alike"
        _, ack, value, echo = seen(inbound[0])
        assert (ack, value) == ((talk.pvm.isn + talk.sent) % MOD, 3)
        assert echo == talk.value or self.forced
        assert seen(self.plane.client_frames(inbound)[0])[1] == (talk.svm.isn + talk.sent) % MOD

    def open_again(self, talk: Talk, *, is_solo: bool = False) -> None:
        """The guest has not heard that it is open, and repeats its SYN-ACK: not before its clock has gone on."""
        if talk.is_opening and self.now_ms - self.taken_over_ms > APART_MS_MAX:
            value = (talk.pvm_clock + self.now_ms) % MOD
            assert self.leaves(talk.pvm.syn_ack(stamps(value, 1)), is_solo=is_solo)[0] == talk.client.isn

    def close(self, talk: Talk) -> None:
        """Both ends do."""
        self.talks.remove(talk)
        value = (talk.pvm_clock + self.now_ms) % MOD
        assert self.leaves(talk.pvm.out(talk.sent, 1, F | A, b"", stamps(value, 2)))[0] == (
            (talk.client.isn + talk.sent) % MOD
        )
        back = [talk.client.back(1, talk.sent + 1, F | A, options=stamps(3, talk.shown))]
        inbound = self.chain.inbound(back)
        assert inbound == self.twin.inbound(back)
        self.plane.client_frames(inbound)

    def checkpoint(self) -> None:
        self.plane.loaded()
        for talk in self.talks:
            talk.svm, talk.svm_clock = talk.pvm, talk.pvm_clock - self.draw.randrange(APART_MS_MAX)

    def take_over(self) -> None:
        self.taken_over_ms = self.now_ms
        self.twin.push(self.plane.translator, self.now_ms)
        self.forced |= len(self.twin) == LAYERS_MAX
        self.now_ms += self.draw.choice((700, 3000, TICKS))
        self.chain, self.twin = self.twin, TranslatorChain(100, TICKS)
        for talk in self.talks:
            if talk.pvm != talk.svm:  # it was opened since the last checkpoint, by each copy for itself
                talk.value = (talk.value + talk.svm_clock - talk.pvm_clock) % MOD
            talk.pvm, talk.pvm_clock = talk.svm, talk.svm_clock
            if self.draw.random() < 0.2:
                self.open_again(talk, is_solo=True)
        for message in self.chain.whole(self.now_ms):
            self.twin.adopt(message, self.now_ms)
        self.plane = SecondaryTwins(DataplaneLimits())
        self.checkpoint()
        assert len(self.chain) == len(self.twin) <= LAYERS_MAX

    def step(self, op: int, number: int) -> None:
        if op == 0:
            self.open()
        elif op == 1:
            self.checkpoint()
        elif op < 4:
            self.take_over()
        elif op == 4:
            self.now_ms += number
        elif self.talks:
            talk = self.talks[number % len(self.talks)]
            if op == 10:
                self.open_again(talk)
            elif op == 11:
                self.close(talk)
            elif op != 5:
                self.speak(talk, is_lost=op == 6)
            if op in (5, 7, 8, 9):
                self.answer(talk)


def seen(frame: bytes) -> tuple[int, int, int, int]:
    """Sequence number, acknowledgement, timestamp and its echo."""
    segment = parse_tcp(frame)
    assert segment is not None
    stamped = timestamps(frame, segment[4], segment[5])
    assert stamped is not None
    return segment[1], segment[2], *stamped


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 11), st.integers(1, 3000)), max_size=80))
def test_connections_live_through_any_number_of_takeovers(seed: int, script: list[tuple[int, int]]) -> None:
    world = World(seed)
    world.open()
    for op, number in script:
        world.step(op, number)
    for talk in world.talks:
        world.speak(talk)
        world.answer(talk)


def test_connections_in_use_leave_one_layer() -> None:
    world = World(7)
    for _ in range(40):
        world.open()
        for _ in range(3):
            world.now_ms += TICKS
            for talk in world.talks:
                world.speak(talk)
                world.answer(talk)
        world.open()
        world.close(world.talks[-1])
        world.take_over()
        assert len(world.chain) == 1
        (known,) = [message for message in world.chain.whole(world.now_ms) if message.known]
        assert len(known.known) <= OPEN_MAX + 2, "those that have ended are forgotten"


def test_a_client_that_vanishes_costs_a_layer_for_a_quarter_of_an_hour() -> None:
    world = World(7)
    world.open()
    (talk,) = world.talks
    for _ in range(2):
        world.take_over()
        world.now_ms += TICKS
        world.speak(talk, is_lost=True)
    layers = []
    for _ in range(4):
        world.now_ms += int(STALE_MS / 2)
        world.take_over()
        layers.append(len(world.chain))
    assert layers[0] > 1
    assert layers[-1] == 1
