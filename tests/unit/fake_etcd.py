"""etcd's JSON gateway as far as an arbiter needs it, with faults: several members over one store."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from pycolo.config import EtcdArbiterConfig
from pycolo.edge.arbiter import make_arbiter
from pycolo.edge.etcd import EtcdArbiter

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
CLUSTER_ID = "4747035540086285240"


class FakeMember:
    """One endpoint. `before` may answer in its place; `after` may keep the answer back once the work is done."""

    def __init__(self, store: FakeEtcd, cluster_id: str) -> None:
        self.store, self.cluster_id = store, cluster_id
        self.before: Fault | None = None
        self.after: Fault | None = None
        self.asked: list[str] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        question = await request.json()
        if self.before is not None and (instead := await self.before(request)) is not None:
            return instead
        answer = self.store.answer(request.path, question)
        if self.after is not None and (instead := await self.after(request)) is not None:
            return instead
        return web.json_response({"header": {"cluster_id": self.cluster_id, "revision": "9"}, **answer})


class FakeEtcd:
    """The store: one revision for all keys, and compare-and-set."""

    def __init__(self) -> None:
        self.revision = 1
        self.values: dict[str, tuple[str, int]] = {}
        self.members: list[FakeMember] = []

    def answer(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        if path == "/v3/kv/range":
            assert question["serializable"] is False
            return self._range(question)
        assert path == "/v3/kv/txn"
        (compare,) = question["compare"]
        _, revision = self.values.get(compare["key"], ("", 0))
        if int(compare["mod_revision"]) != revision:
            found = {"header": {"revision": "9"}, **self._range(question["failure"][0]["request_range"])}
            return {"responses": [{"response_range": found}]}
        put = question["success"][0]["request_put"]
        self.revision += 1
        self.values[put["key"]] = (put["value"], self.revision)
        return {"succeeded": True, "responses": [{"response_put": {"header": {"revision": str(self.revision)}}}]}

    def _range(self, question: dict[str, Any]) -> dict[str, Any]:
        if question["key"] not in self.values:
            return {}
        value, revision = self.values[question["key"]]
        return {"kvs": [{"key": question["key"], "mod_revision": str(revision), "value": value}], "count": "1"}

    def records(self) -> list[dict[str, Any]]:
        """What is stored."""
        return [json.loads(b64decode(value)) for value, _ in self.values.values()]

    def arbiter(self, **changed: Any) -> EtcdArbiter:
        """One that asks the members in their order."""
        values = {"kind": "etcd", "endpoints": [member.url for member in self.members], "insecure": True}
        arbiter = make_arbiter(EtcdArbiterConfig.model_validate({**values, **changed}))
        assert isinstance(arbiter, EtcdArbiter)
        return arbiter


@asynccontextmanager
async def fake_etcd(*cluster_ids: str) -> AsyncIterator[FakeEtcd]:
    """Members on the loopback, one for each cluster id."""
    store, runners = FakeEtcd(), []
    try:
        for cluster_id in cluster_ids or (CLUSTER_ID,) * 2:
            member = FakeMember(store, cluster_id)
            app = web.Application()
            app.router.add_post("/{path:.*}", member.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            member.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            store.members.append(member)
        yield store
    finally:
        for runner in runners:
            await runner.cleanup()


async def hang(_: web.Request) -> web.StreamResponse | None:
    """Never answer."""
    await asyncio.sleep(60)
    return None


def say(content: bytes | str | dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Fault:
    """Answer with this."""
    body = json.dumps(content).encode() if isinstance(content, dict) else content
    body = body.encode() if isinstance(body, str) else body

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers=headers)

    return answer


def only(path: str, fault: Fault) -> Fault:
    """The fault for requests to this path."""

    async def answer(request: web.Request) -> web.StreamResponse | None:
        return await fault(request) if request.path == path else None

    return answer
