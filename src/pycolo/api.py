"""The HTTP interface of one VM copy, on a unix socket that only its owner may open; and the client for it.

GET /status; GET /events?since=N (waits up to 10 s for news); POST /checkpoint; POST /peer {"address": "HOST:PORT"} (a
primary looks for its secondary there; "": for nobody); POST /unprotect; POST /withdraw {"term": "N"};
POST /end {"reason": "..."}; POST /switchover; POST /peer-lost {"reason": "..."};
POST /capture {"limits": "MIB SECONDS"} begins one; GET /capture; POST /capture/stop.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from pycolo.agent import protocol
from pycolo.edge.peer_greeting import address
from pycolo.edge.unix_listener import remove_stale
from pycolo.errors import EnvironmentFault, WrongState
from pycolo.manager.manager import Manager

SOCKET_NAME = "api.sock"
EVENT_WAIT_S = 10.0
EVENT_GATHER_S = 0.05  # one event seldom comes alone, and each answer costs both ends a millisecond
ANSWER_S_MAX = 15.0
NUMBER_DIGITS_MAX = 18
ADDRESS_CHARS_MAX = 300
REASON_CHARS_MAX = 200
LIMITS_CHARS_MAX = 9


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(manager: Manager) -> web.Application:
    """The routes of one VM copy."""
    routes = _Routes(manager)
    app = web.Application(client_max_size=4096, middlewares=[_refusals])
    app.on_shutdown.append(routes.leave)
    app.add_routes(
        [
            web.get("/status", routes.status),
            web.get("/events", routes.events),
            web.post("/checkpoint", routes.checkpoint),
            web.post("/peer", routes.peer),
            web.post("/unprotect", routes.unprotect),
            web.post("/withdraw", routes.withdraw),
            web.post("/end", routes.end),
            web.post("/switchover", routes.switchover),
            web.post("/peer-lost", routes.peer_lost),
            web.post("/capture", routes.start_capture),
            web.get("/capture", routes.capture),
            web.post("/capture/stop", routes.stop_capture),
        ]
    )
    return app


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except WrongState as refusal:
        raise web.HTTPConflict(text=str(refusal)) from None
    except EnvironmentFault as fault:
        raise web.HTTPInternalServerError(text=str(fault)) from None


class _Routes:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def status(self, _: web.Request) -> web.Response:
        if not self._manager.started:
            raise web.HTTPServiceUnavailable(text="the daemon is starting: ask again in a moment")
        return web.json_response(await self._manager.status())

    async def events(self, request: web.Request) -> web.Response:
        since = request.query.get("since", "0")
        if not since.isdecimal() or len(since) > NUMBER_DIGITS_MAX:
            raise web.HTTPBadRequest(text=f"since is {since!r}: give the number of an event")
        return web.json_response(await self._manager.events.wait(int(since), EVENT_WAIT_S, EVENT_GATHER_S))

    async def leave(self, _: web.Application) -> None:
        """Nobody who waits for events holds up the end of this process."""
        self._manager.events.wake()

    async def checkpoint(self, request: web.Request) -> web.Response:
        reason = request.query.get("reason", "by-hand")
        if not re.fullmatch("[a-z-]{1,20}", reason):
            raise web.HTTPBadRequest(text="a reason is up to 20 small letters and hyphens: give another")
        self._manager.want_checkpoint(reason)
        return web.json_response({"wanted": True})

    async def peer(self, request: web.Request) -> web.Response:
        where = await _text(request, "address", ADDRESS_CHARS_MAX)
        try:
            if where:
                address(where)
        except ValueError as problem:
            raise web.HTTPBadRequest(text=f"{problem}: give HOST:PORT, or nothing for nobody") from None
        self._manager.call_peer(where)
        return web.json_response({"address": where})

    async def unprotect(self, _: web.Request) -> web.Response:
        await self._manager.unprotect()
        return web.json_response({"parting": True})

    async def withdraw(self, request: web.Request) -> web.Response:
        term = await _text(request, "term", NUMBER_DIGITS_MAX)
        if not term.isdecimal():
            raise web.HTTPBadRequest(text=f"term is {term!r}: give a number")
        self._manager.withdraw(int(term))
        return web.json_response({"ending": True})

    async def end(self, request: web.Request) -> web.Response:
        self._manager.end_vm(await _text(request, "reason", REASON_CHARS_MAX))
        return web.json_response({"ending": True})

    async def switchover(self, _: web.Request) -> web.Response:
        await self._manager.switchover()
        return web.json_response({"switching": True})

    async def peer_lost(self, request: web.Request) -> web.Response:
        self._manager.peer_lost(await _text(request, "reason", REASON_CHARS_MAX))
        return web.json_response({"lost": True})

    async def start_capture(self, request: web.Request) -> web.Response:
        limits = await _text(request, "limits", LIMITS_CHARS_MAX)
        if not re.fullmatch("[1-9][0-9]{0,3} [1-9][0-9]{0,3}", limits):
            raise web.HTTPBadRequest(text=f"limits is {limits!r}: give two numbers, MiB and seconds")
        mib, seconds = map(int, limits.split())
        return _capture(await self._manager.start_capture(mib, seconds))

    async def capture(self, _: web.Request) -> web.Response:
        return _capture(await self._manager.capture())

    async def stop_capture(self, _: web.Request) -> web.Response:
        return _capture(await self._manager.stop_capture())


def _capture(capture: protocol.Capture) -> web.Response:
    return web.json_response(msgspec.structs.asdict(capture))


async def _text(request: web.Request, key: str, chars_max: int) -> str:
    """One text from a JSON body of nothing else."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.keys() != {key}:
        raise web.HTTPBadRequest(text=f'the body has to be {{"{key}": "..."}}: correct it')
    value = body[key]
    if not isinstance(value, str) or len(value) > chars_max:
        raise web.HTTPBadRequest(text=f"{key} has to be a text of at most {chars_max} characters: correct it")
    return value


@contextlib.asynccontextmanager
async def serving(manager: Manager, state_dir: Path) -> AsyncIterator[None]:
    """Serve the interface in `state_dir`. Raises EnvironmentFault when the socket can't be made."""
    path = state_dir / SOCKET_NAME
    runner = web.AppRunner(application(manager), access_log=None, shutdown_timeout=1.0)
    try:
        await _listen(runner, path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        await runner.setup()
        if not remove_stale(path):
            raise EnvironmentFault(f"another daemon serves {path}: choose another `state_dir` in host.toml")
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
    except OSError as problem:
        raise EnvironmentFault(
            f"can't serve {path} ({problem.strerror or problem}): choose another `state_dir` in host.toml"
        ) from problem


class Client:
    """Talks to the process of one VM copy."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / SOCKET_NAME
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._path)), timeout=timeout)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()

    async def status(self) -> dict[str, Any]:
        """The daemon's status. Raises EnvironmentFault when no daemon answers."""
        answer: dict[str, Any] = await self._call("GET", "/status")
        return answer

    async def events(self, since: int) -> list[dict[str, Any]]:
        """Events after number `since`."""
        answer: list[dict[str, Any]] = await self._call("GET", f"/events?since={since}")
        return answer

    async def checkpoint(self, reason: str = "by-hand") -> None:
        """Ask for a checkpoint; `reason` stands in the events."""
        await self._call("POST", f"/checkpoint?reason={reason}")

    async def call_peer(self, peer_address: str) -> None:
        """Let a primary look for its secondary there, or for nobody."""
        await self._call("POST", "/peer", {"address": peer_address})

    async def unprotect(self) -> None:
        """Send the secondary away; the VM goes on alone. Raises WrongState."""
        await self._call("POST", "/unprotect")

    async def withdraw(self, term: int) -> None:
        """The primary, which holds that term, does not need this copy. Raises WrongState: it may be the only one."""
        await self._call("POST", "/withdraw", {"term": str(term)})

    async def end(self, reason: str) -> None:
        """End both copies of the VM. Raises WrongState."""
        await self._call("POST", "/end", {"reason": reason})

    async def switchover(self) -> None:
        """Let the partner take over in good order; this side ends. Raises WrongState."""
        await self._call("POST", "/switchover")

    async def peer_lost(self, reason: str) -> None:
        """Somebody who knows says that the partner is dead. Raises WrongState."""
        await self._call("POST", "/peer-lost", {"reason": reason})

    async def start_capture(self, mib: int, seconds: int) -> protocol.Capture:
        """Record all frames into a new file. Raises WrongState where there is no primary or a capture runs."""
        return await self._capture("POST", "/capture", {"limits": f"{mib} {seconds}"})

    async def capture(self) -> protocol.Capture:
        """The capture that runs, or ran last. Raises WrongState."""
        return await self._capture("GET", "/capture")

    async def stop_capture(self) -> protocol.Capture:
        """End the capture. Raises WrongState."""
        return await self._capture("POST", "/capture/stop")

    async def _capture(self, method: str, path: str, body: dict[str, str] | None = None) -> protocol.Capture:
        return protocol.Capture(**await self._call(method, path, body))

    async def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        try:
            async with self._session.request(method, f"http://copy{path}", json=body) as response:
                if response.status != 200:
                    raise (WrongState if response.status == 409 else EnvironmentFault)(await response.text())
                return await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            cause = problem.os_error if isinstance(problem, aiohttp.ClientConnectorError) else problem
            why = getattr(cause, "strerror", None) or str(cause) or "the connection has ended"
            raise EnvironmentFault(
                f"no daemon answers on {self._path} ({why}): give the `state_dir` of one that runs, "
                "or start one with `colo daemon HOST_TOML`"
            ) from problem
