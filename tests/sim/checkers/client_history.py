"""Checker 1: everything the clients saw is explained by one history of the guest, the one that survives."""

from __future__ import annotations

from itertools import pairwise

from ..guest import RESPONSE, answered, logged, response_digest
from ..history import ALONE, History

NAME = "client_history"


def check(history: History) -> list[str]:
    """What contradicts it, in sentences; empty when nothing does."""
    return [*_one_answer(history), *_in_order(history), *_survives(history), *_one_speaker(history)]


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


def _survives(history: History) -> list[str]:
    """The survivor's memory and disk hold every answer that left: nothing released is lost or different."""
    if history.survivor_ram is None:
        return []
    problems = []
    for emission in history.emissions:
        client, seq, _, _ = RESPONSE.unpack(emission.response)
        digest = response_digest(emission.response)
        if logged(history.survivor_disk, client, seq) != digest:
            problems.append(
                f"{emission.host} released answer {seq} of client {client} ({emission.why}, at {emission.time_us}),"
                f" which is not on the disk of the survivor {history.survivor}"
            )
        if answered(history.survivor_ram, client, seq) != digest:
            problems.append(
                f"{emission.host} released answer {seq} of client {client} ({emission.why}, at {emission.time_us}),"
                f" which the survivor {history.survivor} does not know"
            )
    return problems


def _one_speaker(history: History) -> list[str]:
    """From the moment a host speaks alone no other host ever does."""
    alone = [emission for emission in history.emissions if emission.why in ALONE]
    for before, after in pairwise(alone):
        if before.host != after.host and (before.why != "unprotected" or after.why == "unprotected"):
            return [f"{after.host} speaks alone at {after.time_us} after {before.host} did at {before.time_us}"]
    return []
