"""The claim: the one atomic step by which a side gets the right to go solo (rule 5).

Guarantees: for one VM and one term at most one host is ever granted; asking again after a lost answer is safe (rule 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class ClaimRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the arbiter keeps of one VM: the newest term and the host that holds it."""

    vm: str
    term: int
    holder: str


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """The arbiter's yes or no, with its reason in a sentence; `record` is what has to be stored before a yes counts.

    `usable` is False when the record can decide nothing: it is missing, older than the pair, or another VM's. That is
    neither a yes nor a no, so nobody may be fenced by it.
    """

    granted: bool
    record: ClaimRecord | None
    reason: str
    usable: bool = True


def decide_claim(record: ClaimRecord | None, vm: str, term: int, host: str) -> ClaimAnswer:
    """Answer `host`'s claim of `term` for `vm`, given what is stored now.

    The caller stores `ClaimAnswer.record` in the same atomic step. Raises ValueError for a term below 1.
    """
    if term < 1:
        raise ValueError(f"a term is at least 1, not {term}")
    if record is not None and record.vm != vm:
        return ClaimAnswer(False, None, f"the record is of VM {record.vm}, not of {vm}", usable=False)
    newest = record.term if record else 0
    if record is not None and record.term == term and record.holder == host:
        return ClaimAnswer(True, None, f"{host} holds term {term} already")
    if newest == term - 1:
        return ClaimAnswer(True, ClaimRecord(vm, term, host), f"{host} is the first to claim term {term}")
    if newest >= term:
        holder = record.holder if record else "nobody"
        return ClaimAnswer(False, None, f"term {newest} belongs to {holder}, so {host} can't have term {term}")
    reason = (
        f"the newest term stored is {newest}, which does not tell if {host} may have term {term}: the record was reset"
    )
    return ClaimAnswer(False, None, reason, usable=False)
