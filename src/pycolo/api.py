"""The daemon's HTTP interface on a unix socket that only its owner may open; and the client for it.

GET /status; GET /events?since=N (waits up to 10 s for news); POST /checkpoint.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from pycolo.edge.unix_listener import remove_stale
from pycolo.errors import EnvironmentFault
from pycolo.manager.common import Manager
from pycolo.manager.primary import PrimaryManager

SOCKET_NAME = "api.sock"
EVENT_WAIT_S = 10.0
ANSWER_S_MAX = 15.0
NUMBER_DIGITS_MAX = 18


def application(manager: Manager) -> web.Application:
    """The routes of one daemon."""
    routes = _Routes(manager)
    app = web.Application(client_max_size=4096)
    app.add_routes(
        [
            web.get("/status", routes.status),
            web.get("/events", routes.events),
            web.post("/checkpoint", routes.checkpoint),
        ]
    )
    return app


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
        return web.json_response(await self._manager.events.wait(int(since), EVENT_WAIT_S))

    async def checkpoint(self, request: web.Request) -> web.Response:
        reason = request.query.get("reason", "by-hand")
        if not re.fullmatch("[a-z-]{1,20}", reason):
            raise web.HTTPBadRequest(text="a reason is up to 20 small letters and hyphens: give another")
        if not isinstance(self._manager, PrimaryManager) or not self._manager.protected:
            raise web.HTTPConflict(text="this host is not the primary of a protected VM: ask the primary")
        self._manager.want_checkpoint(reason)
        return web.json_response({"wanted": True})


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
    """Talks to one daemon."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / SOCKET_NAME
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._path)), timeout=timeout)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
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

    async def _call(self, method: str, path: str) -> Any:
        try:
            async with self._session.request(method, f"http://daemon{path}") as response:
                if response.status != 200:
                    raise EnvironmentFault(await response.text())
                return await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            why = problem.os_error.strerror if isinstance(problem, aiohttp.ClientConnectorError) else str(problem)
            raise EnvironmentFault(
                f"no daemon answers on {self._path} ({why}): give the `state_dir` of one that runs, "
                "or start one with `colo daemon`"
            ) from problem
