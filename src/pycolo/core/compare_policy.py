"""What becomes of the PVM's output by protocol and port: compared, released at once, or kept for a checkpoint.

Guarantees
* The first rule that fits decides; what no rule fits is treated as `default` says. A look-up is one index into a table.
* No policy releases a protocol with connections (`CONNECTIONS`) uncompared: `Policy` can't be built with such a rule.
* A port that nobody can tell (a later fragment) never makes the verdict less careful: of all the rules that might
  fit, the most careful verdict counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from pycolo.core.layers import TCP, UDP


class Verdict(IntEnum):
    """What becomes of a frame, the less careful first."""

    RELEASE = 0  # it leaves uncompared: it carries no state that a client could miss after a takeover
    COMPARE = 1  # it leaves when the SVM has said the same, or by a checkpoint
    CHECKPOINT = 2  # comparing is in vain: it asks for a checkpoint at once


RELEASE, COMPARE, CHECKPOINT = Verdict.RELEASE, Verdict.COMPARE, Verdict.CHECKPOINT

DCCP, SCTP = 33, 132
WITH_PORTS = frozenset({TCP, UDP})
CONNECTIONS = frozenset({TCP, DCCP, SCTP})
"""Their peers keep count of what was said: a client that has heard and acknowledged what the SVM has not said yet has
left the survivor behind for good (rules 1 and 2; the SVM's own connection stops at once, design section 3)."""

_PORTS = 1 << 16
_ALL = (0, _PORTS - 1)
_NO_PORT = _PORTS  # the place in a table for a port that nobody can tell
_BY_NUMBER = tuple(Verdict)

PlainRule = tuple[int, int, int, int]
"""Protocol, first port, last port, verdict; the ports are 0 and 65535 for all of them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy; `ports` are the guest's, first and last, None for any and for what has no ports."""

    protocol: int
    verdict: Verdict
    ports: tuple[int, int] | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last port for which it is meant."""
        return self.ports or _ALL


class Policy:
    """Rules, compiled. Raises ValueError with one sentence for a rule that can't be."""

    def __init__(self, rules: Sequence[Rule] = (), default: Verdict = Verdict.COMPARE) -> None:
        if default == Verdict.RELEASE:
            raise ValueError(
                "the default can't be to release, as TCP must be compared: release single protocols by rules"
            )
        for rule in rules:
            _check(rule)
        self._rules, self.default = tuple(rules), default
        self._tables = {protocol: self._table(protocol) for protocol in {rule.protocol for rule in rules} & WITH_PORTS}
        self._plain = {rule.protocol: rule.verdict for rule in reversed(rules) if rule.protocol not in WITH_PORTS}

    def verdict(self, protocol: int, guest_port: int | None) -> Verdict:
        """For output of the IP protocol with this number from the guest's port; None when it can't be told."""
        table = self._tables.get(protocol)
        if table is None:
            return self._plain.get(protocol, self.default)
        return _BY_NUMBER[table[_NO_PORT if guest_port is None else guest_port]]

    def _table(self, protocol: int) -> bytes:
        """A verdict per port, and one behind them for none; the first rules are written last."""
        table = bytearray([self.default]) * (_PORTS + 1)
        for rule in reversed(self._rules):
            if rule.protocol == protocol:
                first, last = rule.span
                table[first : last + 1] = bytes([rule.verdict]) * (last + 1 - first)
                fits_surely = rule.span == _ALL
                table[_NO_PORT] = rule.verdict if fits_surely else max(table[_NO_PORT], rule.verdict)
        return bytes(table)

    # ---------------------------------------------------------------- plain data, for another process

    def encode(self) -> tuple[int, list[PlainRule]]:
        """The default and the rules as numbers."""
        return int(self.default), [(rule.protocol, *rule.span, int(rule.verdict)) for rule in self._rules]

    @classmethod
    def decode(cls, default: int, plain: Iterable[PlainRule]) -> Policy:
        """What `encode` gave. Raises ValueError for what it can't have given."""
        rules = [
            Rule(protocol, Verdict(verdict), None if (first, last) == _ALL else (first, last))
            for protocol, first, last, verdict in plain
        ]
        return cls(rules, Verdict(default))


def _check(rule: Rule) -> None:
    if not 0 <= rule.protocol <= 255:
        raise ValueError(f"there is no IP protocol {rule.protocol}: numbers go from 0 to 255")
    if rule.verdict == Verdict.RELEASE and rule.protocol in CONNECTIONS:
        raise ValueError(
            f"protocol {rule.protocol} has connections, which a takeover would break if they were released uncompared: "
            "use compare or checkpoint"
        )
    if rule.ports is None:
        return
    if rule.protocol not in WITH_PORTS:
        raise ValueError(f"protocol {rule.protocol} has no ports that could be told: leave them out")
    first, last = rule.ports
    if not 0 <= first <= last < _PORTS:
        raise ValueError(f"ports {first}-{last} are no range: give the lower one first, and none above 65535")
