"""Whether what clients saw of a register can be explained by one order of all operations that respects real time.

Guarantees: `contradiction` is "" exactly when there is such an order. An operation without an outcome may have taken
effect at any time after it began, or never. Raises TooManyOrders rather than to search without an end.

The search goes forward in time and keeps every state that the register could be in: its value, and which of the
operations under way have taken effect already ("just in time", after Lowe; each state is looked at once, as Wing and
Gong's search with a memory does).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

STATES_MAX = 200_000

Value = str | None


class TooManyOrders(Exception):
    """Too many operations without an outcome to look at every order."""


@dataclass(frozen=True)
class Operation:
    """What a client asked of one register, and what it was told; `until_ms` is infinite without an outcome.

    `read` was answered by `value`; `write` has put `value`; `change` has put `value` if `expected` was there, and was
    told by `done` whether it was.
    """

    kind: Literal["read", "write", "change"]
    value: Value
    from_ms: float
    until_ms: float = math.inf
    expected: Value = None
    done: bool = True
    who: str = ""

    @property
    def unknown(self) -> bool:
        """Whether it had no outcome."""
        return math.isinf(self.until_ms)

    def after(self, value: Value) -> Value | Literal[False]:
        """The register's value when this took effect on `value`; False when what was told says that it can't have."""
        if self.kind == "write":
            return self.value
        if self.kind == "read":
            return value if value == self.value else False
        fits = value == self.expected
        if self.unknown:
            return self.value if fits else value
        if self.done != fits:
            return False
        return self.value if fits else value

    def __str__(self) -> str:
        told = "no outcome" if self.unknown else f"{self.from_ms:.1f} to {self.until_ms:.1f} ms"
        expected = f" for {self.expected!r} ({'done' if self.done else 'refused'})" if self.kind == "change" else ""
        return f"{self.who} {self.kind} {self.value!r}{expected} ({told})"


State = tuple[Value, frozenset[int]]


def contradiction(operations: Iterable[Operation], initial: Value = None) -> str:
    """Why no order explains it, in a sentence; "" when one does."""
    ops = _relevant(list(operations))
    ends = [(op.until_ms, 1, number) for number, op in enumerate(ops) if not op.unknown]
    states: set[State] = {(initial, frozenset())}
    under_way: set[int] = set()
    for _, ended, number in sorted([(op.from_ms, 0, number) for number, op in enumerate(ops)] + ends):
        if not ended:
            under_way.add(number)
            continue
        before, states = states, _with_effect(states, number, under_way, ops)
        under_way.discard(number)
        if not states:
            possible = sorted({repr(value) for value, _ in before})
            return f"{ops[number]}, while the register can have held {', '.join(possible)} only"
    return ""


def _relevant(ops: Sequence[Operation]) -> list[Operation]:
    """Without those that may never have happened and that nobody has noticed."""
    noticed = {op.value for op in ops if op.kind == "read" and not op.unknown}
    noticed |= {op.expected for op in ops if op.kind == "change"}
    refused = any(op.kind == "change" and not op.done for op in ops)
    return [op for op in ops if not op.unknown or (op.kind != "read" and (refused or op.value in noticed))]


def _with_effect(states: set[State], number: int, under_way: set[int], ops: Sequence[Operation]) -> set[State]:
    """All states in which that operation has taken effect, and is no longer counted as under way."""
    found: set[State] = set()
    seen = set(states)
    waiting = list(states)
    while waiting:
        value, effective = waiting.pop()
        if number in effective:
            found.add((value, effective - {number}))
            continue
        for other in under_way - effective:
            now = ops[other].after(value)
            if now is False:
                continue
            state = (now, effective | {other})
            if state not in seen:
                seen.add(state)
                waiting.append(state)
        if len(seen) > STATES_MAX:
            raise TooManyOrders(f"more than {STATES_MAX} states of one register at {ops[number]}")
    return found
