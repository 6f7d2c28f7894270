"""Checker 1: everything the clients saw is explained by one history of the guest, the one that its heirs go on with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from ..clients import WINDOW
from ..frames import ACK, MOD, RST, SYN, Segment, after, client_of, is_older, read
from ..guest import CONNECTION_AT, RESPONSE, answered, logged, response_digest
from ..history import Emission, Heir, History
from ..stack import Connection, Stack

NAME = "client_history"

Said = tuple[Emission, Segment]
"""What a copy let go, and as its receiver reads it."""


def check(history: History) -> list[str]:
    """What contradicts it, in sentences; empty when nothing does."""
    said = [(emission, read(emission.frame, from_guest=True)) for emission in history.emissions]
    return [
        *history.broken,
        *_one_answer(history),
        *_in_order(history),
        *_inherited(history, said),
        *_acknowledged(history, said),
        *_one_speaker(history),
    ]


def _one_answer(history: History) -> list[str]:
    """A request has one answer, however often it is sent, and only requests are answered."""
    problems = []
    answers: dict[tuple[int, int], bytes] = {}
    for got in history.receptions:
        if got.seq > history.sent.get(got.client, 0):
            problems.append(f"client {got.client} got an answer to request {got.seq}, which it never sent")
        if answers.setdefault((got.client, got.seq), got.response) != got.response:
            problems.append(f"client {got.client} got two different answers to request {got.seq}")
    return problems


def _in_order(history: History) -> list[str]:
    """The first answers of a client come in the order of its requests, with none left out."""
    problems = []
    newest: dict[int, int] = {}
    for got in history.receptions:
        last = newest.get(got.client, 0)
        if got.seq > last + 1:
            problems.append(f"client {got.client} got answer {got.seq} after {last}")
        newest[got.client] = max(last, got.seq)
    return problems


def _heirs(history: History) -> list[Heir]:
    """Whoever takes over, as it begins to speak, and the survivor at the end."""
    if history.survivor is None or history.survivor_ram is None:
        return history.takeovers
    end = Heir(history.survivor, len(history.emissions), history.survivor_ram, history.survivor_disk)
    return [*history.takeovers, end]


def _inherited(history: History, said: list[Said]) -> list[str]:
    """Memory and disk of every heir hold each answer of which all bytes had left: nothing is lost or different.

    The bytes of a stream are put together, however they were cut.
    """
    released = _released(said)
    problems = []
    for heir in _heirs(history):
        for number, response in released:
            client, seq, _, _ = RESPONSE.unpack(response)
            digest, who = response_digest(response), said[number][0]
            if number >= heir.emissions:
                break
            answer = f"{who.speaker} at {who.time_us} released answer {seq} of client {client}, which"
            if seq > history.sent.get(client, 0):
                problems.append(f"{answer} never asked for it")
                continue
            if logged(heir.disk, client, seq) != digest:
                problems.append(f"{answer} is not on the disk of {heir.name}")
            if answered(heir.ram, client, seq) != digest:
                problems.append(f"{answer} {heir.name} does not know")
    return problems


def _released(said: list[Said]) -> list[tuple[int, bytes]]:
    """The answers, each with the number of the emission that completed it."""
    released: list[tuple[int, bytes]] = []
    streams: dict[tuple[int, int], dict[int, int]] = {}  # by port and first number: a SYN-ACK that got lost has its own
    for number, (_, segment) in enumerate(said):
        if segment.flags is None:
            released.append((number, segment.payload))
        elif segment.flags & SYN:
            streams.setdefault((segment.client_port, (segment.seq + 1) % MOD), {})
        for (port, start), stream in streams.items() if segment.payload else ():
            if port == segment.client_port and 0 <= (place := after(segment.seq, start)) < WINDOW:
                stream.update(enumerate(segment.payload, place))
                released += [(number, whole) for whole in _whole_answers(stream, place, place + len(segment.payload))]
    return released


def _whole_answers(stream: dict[int, int], begin: int, end: int) -> Iterator[bytes]:
    """Those of which some bytes lie between the two places, and none is missing."""
    for first in range(begin - begin % RESPONSE.size, end, RESPONSE.size):
        places = range(first, first + RESPONSE.size)
        if all(at in stream for at in places):
            yield bytes(stream[at] for at in places)


def _acknowledged(history: History, said: list[Said]) -> list[str]:
    """What was acknowledged to a client, on its newest connection, every heir has: the client will not send it again.

    Of the connections before it an heir keeps nothing but the answers.
    """
    problems = []
    for heir in _heirs(history):
        for emission, segment in said[: heir.emissions]:
            if segment.flags is None or not segment.flags & ACK or segment.flags & RST:
                continue
            client = client_of(segment.client_port)
            state = heir.ram[1 + client, CONNECTION_AT : CONNECTION_AT + Stack.STATE_BYTES - 1].tobytes()
            connection = Connection.of(state)
            said_what = f"{emission.speaker} acknowledged to client {client}, at {emission.time_us},"
            if not connection.port or is_older(connection.port, segment.client_port):
                problems.append(f"{said_what} a connection that {heir.name} does not know")
            ahead = after(segment.ack, connection.expected)
            if connection.port == segment.client_port and ahead > 0:
                problems.append(f"{said_what} {ahead} bytes that {heir.name} never got")
    return problems


def _one_speaker(history: History) -> list[str]:
    """Each copy speaks in one stretch: who has been relieved never speaks again."""
    stretches = [name for name, _ in groupby(emission.speaker for emission in history.emissions)]
    return [f"{name} speaks again: {' -> '.join(stretches)}" for name in set(stretches) if stretches.count(name) > 1]
