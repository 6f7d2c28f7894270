"""Checker 1: everything the clients saw is explained by one history of the guest, the one that survives."""

from __future__ import annotations

from itertools import groupby

from ..frames import ACK, RST, Segment, after, client_of, read
from ..guest import CONNECTION_AT, RESPONSE, answered, logged, response_digest
from ..history import Emission, History
from ..stack import Connection, Stack

NAME = "client_history"


def check(history: History) -> list[str]:
    """What contradicts it, in sentences; empty when nothing does."""
    said = [(emission, read(emission.frame, from_guest=True)) for emission in history.emissions]
    return [
        *history.broken,
        *_one_answer(history),
        *_in_order(history),
        *_survives(history, said),
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


def _survives(history: History, said: list[tuple[Emission, Segment]]) -> list[str]:
    """The survivor's memory and disk hold every answer that left: nothing released is lost or different."""
    if history.survivor_ram is None:
        return []
    whole = {
        segment.payload: f"{emission.speaker} at {emission.time_us}"
        for emission, segment in said
        if len(segment.payload) == RESPONSE.size
    }
    whole |= {got.response: f"somebody, heard at {got.time_us}" for got in history.receptions}
    problems = []
    for response, who in whole.items():
        client, seq, _, _ = RESPONSE.unpack(response)
        digest = response_digest(response)
        if logged(history.survivor_disk, client, seq) != digest:
            problems.append(
                f"{who} released answer {seq} of client {client}, which is not on the disk of {history.survivor}"
            )
        if answered(history.survivor_ram, client, seq) != digest:
            problems.append(f"{who} released answer {seq} of client {client}, which {history.survivor} does not know")
    return problems


def _acknowledged(history: History, said: list[tuple[Emission, Segment]]) -> list[str]:
    """What was acknowledged to a client the survivor has: the client will not send it again."""
    if history.survivor_ram is None:
        return []
    problems = []
    for emission, segment in said:
        if segment.flags is None or not segment.flags & ACK or segment.flags & RST:
            continue
        client = client_of(segment.client_port)
        state = history.survivor_ram[1 + client, CONNECTION_AT : CONNECTION_AT + Stack.STATE_BYTES - 1].tobytes()
        connection = Connection.of(state)
        if connection.port == segment.client_port and after(segment.ack, connection.expected) > 0:
            problems.append(
                f"{emission.speaker} acknowledged to client {client}, at {emission.time_us}, "
                f"{after(segment.ack, connection.expected)} bytes that {history.survivor} never got"
            )
    return problems


def _one_speaker(history: History) -> list[str]:
    """Each copy speaks in one stretch: who has been relieved never speaks again."""
    stretches = [name for name, _ in groupby(emission.speaker for emission in history.emissions)]
    return [f"{name} speaks again: {' -> '.join(stretches)}" for name in set(stretches) if stretches.count(name) > 1]
