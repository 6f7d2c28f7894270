"""The claim: the one atomic step by which a side gets the right to go solo (rule 5).

Guarantees: for one VM and one term at most one host is ever granted, and asking again after a lost answer is safe
(rule 6). Why: what is stored is replaced only by the next term, so each term is stored at most once, with one holder;
and a yes is said only about what is stored after the step. Questions that are lost, late or repeated and answers that
are lost change nothing about either half.

A pair may lose and find itself again while the arbiter does not answer. Claims that were made meanwhile are given up,
and may be granted later all the same: `claim_id` tells them apart from the host's next ones, so that nobody acts upon
an old grant that it has not heard of; its holder, which knows that, goes on to the next term in the same step. The
other side can't: so, as soon as the arbiter answers, both agree on the record that stands there as the new base, the
secondary first. Until the primary knows that, its own claims are for a term that only the holder can leave behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
_VM_NAME = re.compile(_NAME)
# What is stored may be damaged, or somebody else's: it gets into sentences.
_Name = Annotated[str, msgspec.Meta(pattern=rf"^{_NAME}\Z")]
_ClaimId = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{0,64}\Z")]


class ClaimRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the arbiter keeps of one VM: the newest term, the host that holds it, and by which of its claims.

    `ended` says that the holder has ended the VM in good order: no copy of it lives.
    """

    vm: _Name
    term: int
    holder: _Name
    claim_id: _ClaimId = ""
    ended: bool = False


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """The arbiter's yes or no, with its reason in a sentence; `record` is what has to be stored before a yes counts.

    `term` is what a yes grants: the claimed one, or the next when the claimed one is the host's by a claim given up.

    `usable` is False when the record can decide nothing: it is missing, older than the pair, or another VM's. That is
    neither a yes nor a no, so nobody may be fenced by it.
    """

    granted: bool
    record: ClaimRecord | None
    reason: str
    usable: bool = True
    term: int = 0


def checked_vm_name(vm: str) -> str:
    """`vm`, if it is fit to be part of a file's name or of a key. Raises ValueError."""
    if not _VM_NAME.fullmatch(vm):
        raise ValueError(f"{vm!r} is not the name of a VM")
    return vm


def decide_claim(record: ClaimRecord | None, vm: str, term: int, host: str, claim_id: str = "") -> ClaimAnswer:
    """Answer `host`'s claim of `term` for `vm`, given what is stored now.

    The pair was formed under the term before. `claim_id` is another one for each loss of the peer; who never finds a
    lost peer again needs none. The caller stores `ClaimAnswer.record` in the same atomic step. Raises ValueError for a
    term below 1.
    """
    if term < 1:
        raise ValueError(f"a term is at least 1, not {term}")
    if record is not None and record.vm != vm:
        return ClaimAnswer(False, None, f"the record is of VM {record.vm}, not of {vm}", usable=False)
    newest, holder, last_id = (record.term, record.holder, record.claim_id) if record else (0, "nobody", "")
    if holder == host and last_id == claim_id and (newest == term or (claim_id and newest == term + 1)):
        return ClaimAnswer(True, None, f"{host} holds term {newest} already", term=newest)
    if (newest, holder) == (term, host):
        reason = f"{host} holds term {term} by a claim that it had given up, and goes on to {term + 1}"
        return ClaimAnswer(True, ClaimRecord(vm, term + 1, host, claim_id), reason, term=term + 1)
    if newest >= term:
        return ClaimAnswer(False, None, f"term {newest} belongs to {holder}, so {host} can't have term {term}")
    if newest == term - 1:
        reason = f"{host} is the first to claim term {term}"
        return ClaimAnswer(True, ClaimRecord(vm, term, host, claim_id), reason, term=term)
    reason = (
        f"the newest term stored is {newest}, which does not tell if {host} may have term {term}: the record was reset"
    )
    return ClaimAnswer(False, None, reason, usable=False)


def decide_end(record: ClaimRecord | None, vm: str, term: int, host: str) -> ClaimRecord | None:
    """What `host` may store when it has ended the VM in good order under `term`; None when the term is not its own."""
    if record is None or (record.vm, record.term, record.holder) != (vm, term, host):
        return None
    return msgspec.structs.replace(record, ended=True)
