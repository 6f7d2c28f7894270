"""The API v1 on a unix socket and on the network: who may ask is settled before anything else is looked at.

Guarantees: whatever comes in, what goes out is a good answer or one sentence with an exit status; bodies, their
time and the waiting streams are bounded; the unix socket is its owner's only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog
from aiohttp import web
from pydantic import ValidationError

from pycolo.config_messages import sentences
from pycolo.edge.peer_greeting import address
from pycolo.edge.unix_listener import remove_stale
from pycolo.errors import (
    EnvironmentFault,
    NotAllowed,
    PeerLost,
    PycoloError,
    UnknownVm,
    WrongState,
)
from pycolo.host.daemon import HostDaemon
from pycolo.host.handlers import Call, Handlers
from pycolo.host.listener import Handler, Listener
from pycolo.host.models import Body, Failure
from pycolo.host.routes import JSON, ROUTES, Route
from pycolo.host.security import Door, Scope, Security, load_tokens, may

BODY_BYTES_MAX = 256 << 10
BODY_S_MAX = 10.0
_STATUS: tuple[tuple[type[PycoloError], int], ...] = (
    (UnknownVm, 404),
    (WrongState, 409),
    (NotAllowed, 403),
    (PeerLost, 502),
    (EnvironmentFault, 400),
)


def http_status(failure: PycoloError) -> int:
    """The HTTP status of a failure; 500 for one that is nobody's request's fault."""
    return next((status for kind, status in _STATUS if isinstance(failure, kind)), 500)


def application(handlers: Handlers, door: Door | None) -> web.Application:
    """The API for whom `door` lets in; without a door, for an owner who may do everything."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_sentences])
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _handler(handlers, door, route))
    return app


def _handler(handlers: Handlers, door: Door | None, route: Route) -> Handler:
    carry_out: Callable[[Call], Awaitable[Body | web.StreamResponse]] = getattr(handlers, route.name)

    async def handle(request: web.Request) -> web.StreamResponse:
        caller = _let_in(door, route, request)
        body = await _body(route, request)
        answer = await carry_out(Call(request, body, caller))
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(text=answer.model_dump_json(), content_type=JSON)

    return handle


def _let_in(door: Door | None, route: Route, request: web.Request) -> str:
    """The name of the host that asks, empty for an operator. Raises NotAllowed, HTTPUnauthorized."""
    if door is None:
        return ""
    who = door.who(request)
    if who is None:
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
    scope, name = who
    if not may(scope, route.needs, peers_too=route.peers_too):
        has = f"the host {name}" if scope is Scope.PEER else f"a token with scope {scope.value}"
        raise NotAllowed(f"{has} may not {route.method} {route.path}: show a token with scope {route.needs.value}")
    return name


async def _body(route: Route, request: web.Request) -> Body | None:
    try:
        async with asyncio.timeout(BODY_S_MAX):
            content = await request.read()
    except TimeoutError:
        raise EnvironmentFault(f"the body did not come in {BODY_S_MAX:.0f} s: send it at once") from None
    if route.body is None:
        if content.strip() not in (b"", b"{}"):
            raise EnvironmentFault(f"{route.method} {route.path} takes no body: leave it out")
        return None
    try:
        return route.body.model_validate_json(content)
    except ValidationError as problem:
        raise EnvironmentFault(f"the body will not do: {'; '.join(sentences(problem, route.body)[:5])}") from None


@web.middleware
async def _sentences(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure in the one shape."""
    try:
        return await handler(request)
    except PycoloError as failure:
        return _failure(http_status(failure), str(failure), failure.exit_status)
    except web.HTTPUnauthorized as stranger:
        sentence = "nothing shows who you are: show a token, or the certificate of a host that is a peer here"
        return _failure(stranger.status, sentence, NotAllowed.exit_status, {"WWW-Authenticate": "Bearer"})
    except web.HTTPException as refusal:
        sentence = f"{request.method} {request.path[:200]}: {refusal.reason}: see /v1/openapi.json"
        return _failure(refusal.status, sentence, EnvironmentFault.exit_status)
    except Exception as bug:  # noqa: BLE001 - a bug in one operation must not look like the daemon's end
        structlog.get_logger().exception("a bug in the API", path=request.path, error=str(bug))
        return _failure(500, "this is a bug of pycolo: see the daemon's log", PycoloError.exit_status)


def _failure(http: int, sentence: str, status: int, headers: dict[str, str] | None = None) -> web.Response:
    text = Failure(error=sentence, status=status).model_dump_json()
    return web.Response(status=http, text=text, content_type=JSON, headers=headers)


@contextlib.asynccontextmanager
async def serving(daemon: HostDaemon, security: Security) -> AsyncIterator[None]:
    """Serve on the unix socket, and on the network if it is secured or said to be. Raises EnvironmentFault."""
    handlers, config = Handlers(daemon), daemon.config
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_serving_owner(config.socket, application(handlers, None)))
        if security.server is not None or security.insecure:
            door = Door(config, security, load_tokens(config.token_file))
            app = application(handlers, door)
            await stack.enter_async_context(_serving_network(config.listen, security, app))
        stack.push_async_callback(handlers.close)  # first, so that streams end and are not cut
        yield


@contextlib.asynccontextmanager
async def _serving_owner(path: Path, app: web.Application) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not remove_stale(path):
            raise EnvironmentFault(f"another daemon serves {path}: stop it, or choose another `state_dir`")
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
    except OSError as problem:
        await runner.cleanup()
        raise EnvironmentFault(
            f"can't serve {path} ({problem.strerror or problem}): choose another `state_dir` in host.toml"
        ) from None
    try:
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _serving_network(listen: str, security: Security, app: web.Application) -> AsyncIterator[None]:
    host, port = address(listen)
    listener = Listener(app)
    try:
        await listener.start(host, port, security.server)
    except OSError as problem:
        await listener.close()
        raise EnvironmentFault(
            f"can't listen on {listen} ({problem.strerror or problem}): choose a free `listen` address in host.toml"
        ) from None
    try:
        yield
    finally:
        await listener.close()
