"""Targets for HTTP: requests to a daemon and to a VM copy, and what another daemon answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, cast
from unittest import mock
from urllib.parse import quote

import aiohttp
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from host_parts import ScriptedCopy, host_config, vm_config

from pycolo import api as copy_api
from pycolo.agent import protocol
from pycolo.errors import EnvironmentFault, PycoloError, WrongState
from pycolo.events import EventLog
from pycolo.host import daemon as host_daemon
from pycolo.host import models as m
from pycolo.host.caller import Caller
from pycolo.host.client import DaemonClient
from pycolo.host.daemon import HostDaemon
from pycolo.host.handlers import Call, Handlers
from pycolo.host.record import Record
from pycolo.host.routes import ROUTES
from pycolo.host.security import Door, Scope, Security, load_tokens, new_token
from pycolo.host.server import BODY_BYTES_MAX, application
from pycolo.manager.manager import Manager

from .disks import folder
from .files import assert_told
from .peers import run
from .reader import Reader

STATUSES = {200, 400, 401, 403, 404, 405, 409, 413, 500, 502}
_ANSWER_BYTES_MAX = 1 << 20
_PLACE = "web"


class _Mild(Handlers):
    """Those that would start or end something only look at what they are asked."""

    async def hosts(self, _: Call) -> m.HostList:
        return m.HostList(hosts=[])

    async def drain(self, call: Call) -> m.DrainAnswer:
        return m.DrainAnswer(draining=not call.asked(m.DrainRequest).undo, outcomes={})

    async def protect(self, call: Call) -> m.VmStatus:
        request = call.asked(m.ProtectRequest)
        assert request.vm.cards
        return await self._daemon.status(self._daemon.copy(request.vm.name))

    async def offer(self, call: Call) -> m.OfferAnswer:
        request = call.asked(m.OfferRequest)
        if call.caller and call.caller != request.primary:
            raise EnvironmentFault("a host asks for itself")
        return m.OfferAnswer(offer=request.offer, address="127.0.0.1:1")

    async def stop(self, call: Call) -> m.Done:
        self._copy(call)
        return m.Done()

    unprotect = switchover = stop

    async def test_failover(self, call: Call) -> m.FailoverCost:
        self._copy(call)
        return m.FailoverCost(survivor="h2", takeover_ms=1.0, protected_again_ms=1.0)


@cache
def _daemon() -> tuple[web.Application, web.Application, str]:
    """A daemon with one VM whose copy is scripted: its owner's application, that of the network, and a token."""
    return run(_started())


async def _started() -> tuple[web.Application, web.Application, str]:
    with mock.patch.object(host_daemon, "Copy", ScriptedCopy):
        tokens = folder() / "tokens"
        token = new_token(tokens, Scope.READ, "fuzz") if not tokens.exists() else ""
        config = host_config(folder(), token_file=tokens)
        config.state_dir.mkdir(parents=True, exist_ok=True)
        daemon = HostDaemon(config, Security(insecure=True))
        record = Record(vm=vm_config(_PLACE, protect=False), role="primary", home="h1", protect=False)
        await daemon.start(record)
    handlers = _Mild(daemon)
    door = Door(config, Security(server=ssl.create_default_context()), load_tokens(tokens))
    return application(handlers, None), application(handlers, door), token


def requests(data: bytes) -> None:
    """Any request to the API v1: a good answer, or one sentence; never a bug."""
    reader = Reader(data)
    owner, network, token = _daemon()
    route = reader.choice(ROUTES)
    path = route.path.replace("{name}", _one_of(reader, _PLACE, "other", lambda: _quoted(reader, 4)))
    path = path.replace("{offer}", _one_of(reader, "ab" * 16, lambda: _quoted(reader, 4)))
    query = _one_of(
        reader, "", "?follow=false", lambda: f"?offset={reader.number(3)}", lambda: f"?{_quoted(reader, 12)}"
    )
    if route.name == "events" and "follow=false" not in query:
        query = "?follow=false"  # the other one goes on for as long as the client wants
    headers = {"Authorization": _one_of(reader, "", f"Bearer {token}", f"Bearer {token}x", lambda: _text(reader))}
    headers["Last-Event-ID"] = _one_of(reader, "", "00000000-1", lambda: _text(reader))
    app = network if reader.flag() else owner
    run(_requested(app, route.method, path + query, headers, reader.rest()))


def _one_of(reader: Reader, *choices: str | Callable[[], str]) -> str:
    """Bytes are taken only for what is chosen."""
    chosen = reader.choice(choices)
    return chosen if isinstance(chosen, str) else chosen()


def _quoted(reader: Reader, count: int) -> str:
    """A part of a URL."""
    return quote(reader.take(count), safe="=&")


def _text(reader: Reader) -> str:
    """What may stand in a header."""
    return "".join(letter for letter in reader.take(40).decode("latin-1") if letter.isprintable())


class _Sink(asyncio.Transport):
    """Takes what a stream writes."""

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return False


async def _requested(app: web.Application, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    status, text = await _answered(app, method, path, headers, body)
    assert status in STATUSES, (status, text)
    assert len(text) <= _ANSWER_BYTES_MAX
    if status >= 400:
        failure = m.Failure.model_validate_json(text)
        assert failure.error
        assert "bug" not in failure.error


async def _answered(
    app: web.Application, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, bytes]:
    payload = aiohttp.StreamReader(mock.Mock(_reading_paused=False), 1 << 20, loop=asyncio.get_running_loop())
    payload.feed_data(body)
    payload.feed_eof()
    writer = mock.Mock(write_headers=mock.AsyncMock(), write=mock.AsyncMock(), write_eof=mock.AsyncMock())
    writer.drain = mock.AsyncMock()
    request = make_mocked_request(
        method,
        path,
        headers,
        payload=payload,
        writer=writer,
        app=app,
        client_max_size=BODY_BYTES_MAX,
        transport=_Sink(),
    )
    app.freeze()
    try:
        response = await app._handle(request)
    except web.HTTPException as refusal:
        return refusal.status, (refusal.text or "").encode()
    said = response.body if isinstance(response, web.Response) else b""
    return response.status, bytes(said) if isinstance(said, bytes | bytearray) else b""


# ---------------------------------------------------------------- a VM copy


class _Manager:
    """In the place of a manager: refuses what begins with a vowel, as some procedure would."""

    started = True

    def __init__(self) -> None:
        self.events = EventLog("h1")
        self.events.add("running")

    async def status(self) -> dict[str, Any]:
        return {"state": "solo"}

    async def switchover(self) -> None:
        raise WrongState("this copy is alone: protect it first")

    async def unprotect(self) -> None:
        pass

    def want_checkpoint(self, reason: str) -> None:
        assert reason.isprintable()

    def call_peer(self, address: str) -> None:
        assert len(address) <= copy_api.ADDRESS_CHARS_MAX

    def withdraw(self, term: int) -> None:
        assert 0 <= term < 10**copy_api.NUMBER_DIGITS_MAX

    def peer_lost(self, why: str) -> None:
        assert len(why) <= copy_api.REASON_CHARS_MAX

    end_vm = peer_lost

    async def start_capture(self, mib: int, seconds: int) -> protocol.Capture:
        assert 1 <= mib <= 9999
        assert 1 <= seconds <= 9999
        return protocol.Capture()

    async def capture(self) -> protocol.Capture:
        return protocol.Capture()

    stop_capture = capture


_COPY_ROUTES = [
    *(("GET", "/status"), ("GET", "/events"), ("POST", "/checkpoint"), ("POST", "/peer"), ("POST", "/unprotect")),
    *(("POST", "/withdraw"), ("POST", "/end"), ("POST", "/switchover"), ("POST", "/peer-lost"), ("POST", "/capture")),
    *(("GET", "/capture"), ("POST", "/capture/stop")),
]


@cache
def _copy_app() -> web.Application:
    return copy_api.application(cast(Manager, _Manager()))


def copy_requests(data: bytes) -> None:
    """Any request to a VM copy: a good answer or a refusal; never a bug."""
    reader = Reader(data)
    method, path = reader.choice(_COPY_ROUTES)
    query = _one_of(reader, "", "?since=0", lambda: f"?{_quoted(reader, 24)}")
    kind = _one_of(reader, "application/json", "application/json; charset=utf-16", lambda: _text(reader))
    headers = {"Content-Type": kind}
    with mock.patch.object(copy_api, "EVENT_WAIT_S", 0.0):
        answered = _answered(_copy_app(), method, path + query, headers, reader.rest())
        status, text = run(answered)
    assert status in STATUSES - {500}, (status, text)


# ---------------------------------------------------------------- what another daemon answers


class _Lines:
    """The content of an answer."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(self._content), size):
            yield self._content[at : at + size]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for line in self._content.splitlines(keepends=True):
            yield line


class _Session:
    """An HTTP client to whom always the same is answered."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status, self.content = status, _Lines(content)

    @asynccontextmanager
    async def request(self, *_: object, **__: object) -> AsyncIterator[_Session]:
        yield self

    get = request


_ANSWERS: list[type[m.Body]] = [
    *(m.HostReportBody, m.HostList, m.VmStatus, m.VmList, m.OfferAnswer, m.Done, m.DrainAnswer, m.LogPart),
    *(m.CaptureReport, m.FailoverCost, m.HeartbeatAnswer),
]


def answers(data: bytes) -> None:
    """A daemon that answers anything: an answer that fits its model, or a failure of ours."""
    reader = Reader(data)
    model, status, stream = reader.choice(_ANSWERS), reader.choice([200, 200, 200, 400, 404, 500]), reader.flag()
    session = cast(aiohttp.ClientSession, _Session(status, reader.rest()))
    run(_answers(session, model, stream=stream))


async def _answers(session: aiohttp.ClientSession, model: type[m.Body], *, stream: bool) -> None:
    client = DaemonClient.__new__(DaemonClient)
    client._caller = Caller.__new__(Caller)
    client._caller._session, client._caller._base, client._caller._who = session, "http://h2", "host h2"
    client._caller._tls, client._caller._unanswered, client._caller._remedy = None, EnvironmentFault, "see to it"
    client._caller._certified_as = None
    try:
        if stream:
            async for number, event in client.events(_PLACE, follow=False):
                assert isinstance(number, str)
                assert isinstance(event, dict)
        else:
            assert isinstance(await client._caller.call("GET", "/v1/host", model), model)
    except PycoloError as failure:
        assert_told(failure)
