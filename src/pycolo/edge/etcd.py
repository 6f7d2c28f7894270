"""The arbiter in an etcd cluster: one key for each VM, changed only when nobody else has changed it.

Guarantees: a grant is a transaction that compares the key's `mod_revision`, or a linearizable read that finds the term
already ours. A transaction may reach several members, and each of its copies has an effect only where no other had one
before; so one that seems to have failed may be our own, and the record it left says so.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from pycolo.core.arbitration import ClaimAnswer, ClaimRecord, checked_vm_name, decide_claim, decide_end
from pycolo.edge.etcd_gateway import Answer, EtcdGateway, Question
from pycolo.errors import ArbiterUnanswered
from pycolo.quoting import quoted

ROUNDS_MAX = 4  # each lost round means that somebody else has won one


class _KeyValue(msgspec.Struct, frozen=True):
    key: bytes
    mod_revision: int
    value: bytes = b""


class _Range(Answer, frozen=True):
    kvs: tuple[_KeyValue, ...] = ()


class _RangeInTxn(msgspec.Struct, frozen=True):
    """Its header names no cluster, unlike that of the answer around it."""

    kvs: tuple[_KeyValue, ...] = ()


class _Step(msgspec.Struct, frozen=True):
    response_range: _RangeInTxn | None = None


class _Txn(Answer, frozen=True):
    succeeded: bool = False
    responses: tuple[_Step, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stored:
    """The record and the revision that a change of it has to name; 0 where there is none."""

    record: ClaimRecord | None
    revision: int


class EtcdArbiter:
    """An `edge.arbiter.Arbiter` over etcd 3.4 or newer."""

    def __init__(self, gateway: EtcdGateway, prefix: str) -> None:
        self._gateway, self._prefix = gateway, prefix

    async def claim(self, vm: str, term: int, host: str, claim_id: str = "") -> ClaimAnswer:
        """Read, decide, compare-and-set. Raises ArbiterUnanswered."""
        key = self._key(vm)
        async with self._gateway.session() as session:
            stored = await self._read(session, key)
            for _ in range(ROUNDS_MAX):
                answer = decide_claim(stored.record, vm, term, host, claim_id)
                if not answer.usable:
                    raise ArbiterUnanswered(f"the record {key} in etcd decides nothing: {answer.reason}")
                if answer.record is None:
                    return answer
                changed = await self._replace(session, key, stored.revision, answer.record)
                if changed is None:
                    return answer
                stored = changed
        raise ArbiterUnanswered(f"the record {key} in etcd changed {ROUNDS_MAX} times during one claim")

    async def end(self, vm: str, term: int, host: str) -> bool:
        """Read, decide, compare-and-set. Raises ArbiterUnanswered."""
        key = self._key(vm)
        async with self._gateway.session() as session:
            stored = await self._read(session, key)
            for _ in range(ROUNDS_MAX):
                ended = decide_end(stored.record, vm, term, host)
                if ended is None or ended == stored.record:
                    return ended is not None
                changed = await self._replace(session, key, stored.revision, ended)
                if changed is None:
                    return True
                stored = changed
        raise ArbiterUnanswered(f"the record {key} in etcd changed {ROUNDS_MAX} times while the VM ended")

    async def record(self, vm: str) -> ClaimRecord | None:
        """What is stored now. Raises ArbiterUnanswered."""
        async with self._gateway.session() as session:
            return (await self._read(session, self._key(vm))).record

    def _key(self, vm: str) -> str:
        return f"{self._prefix}/claims/{checked_vm_name(vm)}"

    async def _read(self, session: aiohttp.ClientSession, key: str) -> _Stored:
        answer = await self._gateway.ask(session, Question("/v3/kv/range", _range_of(key), _Range))
        return _stored(key, answer.kvs)

    async def _replace(
        self, session: aiohttp.ClientSession, key: str, revision: int, record: ClaimRecord
    ) -> _Stored | None:
        """None when `record` is stored in place of what had `revision`; else what stands there instead."""
        put = {"key": _base64(key.encode()), "value": _base64(msgspec.json.encode(record))}
        same = {"key": put["key"], "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        transaction = {
            "compare": [same],
            "success": [{"request_put": put}],
            "failure": [{"request_range": _range_of(key)}],
        }
        answer = await self._gateway.ask(session, Question("/v3/kv/txn", transaction, _Txn))
        if answer.succeeded:
            return None
        if len(answer.responses) != 1 or (found := answer.responses[0].response_range) is None:
            raise ArbiterUnanswered("etcd's answer to a claim lacks what stands in its place")
        return _stored(key, found.kvs)


def _range_of(key: str) -> dict[str, Any]:
    """Read through the leader's majority: a member that was cut off must not answer from its own past."""
    return {"key": _base64(key.encode()), "serializable": False}


def _stored(key: str, found: tuple[_KeyValue, ...]) -> _Stored:
    if not found:
        return _Stored(None, 0)
    pair = found[0]
    if len(found) != 1 or pair.key != key.encode() or pair.mod_revision < 1:
        raise ArbiterUnanswered(f"etcd's answer is not about the key {key}")
    try:
        return _Stored(msgspec.json.decode(pair.value, type=ClaimRecord), pair.mod_revision)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise ArbiterUnanswered(f"the record {key} in etcd is damaged ({quoted(str(problem))})") from problem


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
