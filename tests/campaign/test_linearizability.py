"""The checker of registers: against brute force, and on histories whose verdict anybody can see."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign import linearizability
from campaign.linearizability import Operation, TooManyOrders, Value, contradiction

NEVER = math.inf
UNKNOWN_MAX = 8  # in a history that is drawn: the search grows by a factor with each


def read(value: Value, begun: float, ended: float) -> Operation:
    return Operation("read", value, begun, ended)


def write(value: str, begun: float, ended: float = NEVER) -> Operation:
    return Operation("write", value, begun, ended)


def change(expected: Value, value: str, begun: float, ended: float = NEVER, *, done: bool = True) -> Operation:
    return Operation("change", value, begun, ended, expected, done)


GOOD = {
    "nothing": [],
    "in turn": [write("a", 0, 1), read("a", 2, 3), write("b", 4, 5), read("b", 6, 7)],
    "beside a write both values": [write("a", 0, 1), write("b", 2, 9), read("b", 3, 4), read("b", 5, 6)],
    "an unknown write that came late": [write("a", 0), write("b", 1, 2), read("b", 3, 4), read("a", 5, 6)],
    "an unknown write that never came": [write("a", 0), write("b", 1, 2), read("b", 3, 4)],
    "a change": [write("a", 0, 1), change("a", "b", 2, 3), read("b", 4, 5)],
    "a change refused": [write("a", 0, 1), change("x", "b", 2, 3, done=False), read("a", 4, 5)],
    "a change refused by an unknown write": [
        write("a", 0, 1),
        write("x", 2),
        change("a", "b", 3, 4, done=False),
        read("x", 5, 6),
    ],
    "an unknown change": [write("a", 0, 1), change("a", "b", 2), read("a", 3, 4), read("b", 5, 6)],
    "at the same instant is at the same time": [write("a", 0, 1), read(None, 1, 2)],
}
BAD = {
    "a lost write": [write("a", 0, 1), write("b", 2, 3), read("a", 4, 5)],
    "all lost": [write("a", 0, 1), read(None, 2, 3)],
    "from nowhere": [write("a", 0, 1), read("z", 2, 3)],
    "from the future": [read("a", 0, 1), write("a", 2, 3)],
    "back again": [write("a", 0, 1), write("b", 2, 9), read("b", 3, 4), read("a", 5, 6)],
    "an unknown write twice": [write("a", 0), write("b", 1, 2), read("a", 3, 4), write("c", 5, 6), read("a", 7, 8)],
    "an unknown write before it began": [read("a", 0, 1), write("a", 2)],
    "two changes of one value": [write("a", 0, 1), change("a", "b", 2, 3), change("a", "c", 4, 5)],
    "a change refused for nothing": [write("a", 0, 1), change("a", "b", 2, 3, done=False)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD.keys())
def test_good(history: list[Operation]) -> None:
    assert contradiction(history) == ""


@pytest.mark.parametrize("history", BAD.values(), ids=BAD.keys())
def test_bad(history: list[Operation]) -> None:
    assert "can have held" in contradiction(history)


def by_brute_force(history: list[Operation]) -> bool:
    """Every order of every choice of those without an outcome."""
    for kept in product(*[(True, False) if op.unknown else (True,) for op in history]):
        chosen = [op for op, keep in zip(history, kept, strict=True) if keep]
        if any(_explains(order) for order in permutations(chosen)):
            return True
    return False


def _explains(order: tuple[Operation, ...]) -> bool:
    if any(late.until_ms < early.from_ms for at, early in enumerate(order) for late in order[at + 1 :]):
        return False
    value: Value = None
    for op in order:
        if op.kind == "read" and op.unknown:
            continue
        now = op.after(value)
        if now is False:
            return False
        value = now
    return True


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    value = draw(st.sampled_from(["a", "b", "c"]))
    begun = draw(st.integers(0, 9))
    ended = begun + draw(st.integers(0, 6)) if draw(st.integers(0, 3)) else NEVER
    kind = draw(st.sampled_from(["read", "write", "change"]))
    if kind == "read":
        return read(draw(st.sampled_from([None, "a", "b", "c"])), begun, ended)
    if kind == "write":
        return write(value, begun, ended)
    return change(draw(st.sampled_from([None, "a", "b", "c"])), value, begun, ended, done=draw(st.booleans()))


@given(st.lists(operations(), max_size=5))
def test_as_brute_force_finds(history: list[Operation]) -> None:
    assert (contradiction(history) == "") == by_brute_force(history)


@st.composite
def lived(draw: st.DrawFn) -> list[Operation]:
    """A history of a real register: each operation takes effect at its number, some time after it began."""
    history: list[Operation] = []
    value: Value = None
    for number in range(draw(st.integers(0, 60))):
        begun = number - draw(st.floats(0, 4))
        many = sum(operation.unknown for operation in history) >= UNKNOWN_MAX
        ended = number + draw(st.floats(0, 4)) if draw(st.integers(0, 9)) or many else NEVER
        kind = draw(st.sampled_from(["read", "write", "change"]))
        if kind == "read":
            history.append(read(value, begun, ended))
            continue
        expected = draw(st.sampled_from([value, "another"])) if kind == "change" else value
        done = expected == value
        new = f"v{number}"
        history.append(write(new, begun, ended) if kind == "write" else change(expected, new, begun, ended, done=done))
        if kind == "write" or done:
            value = new
    return history


@given(lived())
def test_what_really_happened_is_explained(history: list[Operation]) -> None:
    assert contradiction(history) == ""


@given(lived(), st.data())
def test_a_value_that_nobody_wrote_is_never_explained(history: list[Operation], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, 60))
    assert contradiction([*history, read("never written", at, at + 1)]) != ""


def test_a_search_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearizability, "STATES_MAX", 100)
    history = [write(f"v{number}", 0) for number in range(10)]
    history += [read(f"v{number}", 1, 100 + number) for number in range(10)]
    with pytest.raises(TooManyOrders):
        contradiction(history)
