"""The API v1 on real sockets: who gets in, what is refused and how, and streams that miss nothing."""

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from host_parts import (
    OFFER,
    Certificates,
    ScriptedCopy,
    host_config,
    running,
    scripted,
    vm_config,
)
from openapi_spec_validator import OpenAPIV31SpecValidator

from pycolo.config import NicConfig
from pycolo.errors import EnvironmentFault, NotAllowed, UnknownVm, WrongState
from pycolo.host import event_stream, listener, models
from pycolo.host.client import DaemonClient
from pycolo.host.daemon import HostDaemon
from pycolo.host.models import CaptureRequest, OfferRequest, ProtectRequest
from pycolo.host.openapi import document
from pycolo.host.routes import ROUTES, Route
from pycolo.host.security import Scope, Security, load_tokens, new_token
from pycolo.host.server import BODY_BYTES_MAX


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycolo.host.daemon.Copy", ScriptedCopy)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostDaemon]:
    async with running(host_config(tmp_path)) as one:
        yield one


async def asked(
    daemon: HostDaemon, method: str, path: str, body: Any = None, **options: Any
) -> tuple[int, dict[str, Any]]:
    """(HTTP status, body) of a request on the unix socket."""
    connector = aiohttp.UnixConnector(str(daemon.config.socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        data = json.dumps(body) if body is not None and not isinstance(body, str | bytes) else body
        async with session.request(method, f"http://x{path}", data=data, **options) as answer:
            return answer.status, await answer.json()


def request_body(**changed: Any) -> dict[str, Any]:
    return {**ProtectRequest(vm=vm_config(protect=False)).model_dump(mode="json"), **changed}


async def protect(daemon: HostDaemon, name: str = "web", **changed: Any) -> ScriptedCopy:
    body = ProtectRequest(vm=vm_config(name, protect=False, **changed)).model_dump(mode="json")
    status, answer = await asked(daemon, "POST", "/v1/vms", body)
    assert status == 200, answer
    return scripted(daemon, name)


# ---------------------------------------------------------------- what it does


async def test_a_vm_is_started_shown_and_stopped(daemon: HostDaemon) -> None:
    copy = await protect(daemon)
    async with DaemonClient(daemon.config.socket) as client:
        (vm,) = await client.vms()
        assert (vm.name, vm.role, vm.state, vm.running, vm.host) == ("web", "primary", "solo", True, "h1")
        copy.becomes("protected", epoch=7)
        assert (await client.vm("web")).epoch == 7
        await client.checkpoint("web")
        assert copy.scripted.asked == [("checkpoint", "by-hand")]
        await client.stop("web")
        stopped = await client.vm("web")
        assert (stopped.state, stopped.running, stopped.exit_status) == ("stopped", False, 0)


async def test_a_capture_is_begun_seen_and_ended(daemon: HostDaemon) -> None:
    copy = await protect(daemon)
    async with DaemonClient(daemon.config.socket) as client:
        begun = await client.start_capture("web", CaptureRequest(mib=2, seconds=3))
        assert copy.scripted.asked == [("capture", "2 MiB, 3 s")]
        assert await client.capture("web") == begun
        with pytest.raises(WrongState, match="is being captured"):
            await client.start_capture("web", CaptureRequest())
        ended = await client.stop_capture("web")
        assert (begun.running, ended.running, ended.ended) == (True, False, "it was stopped")


async def test_a_capture_is_the_primarys(daemon: HostDaemon) -> None:
    copy = await protect(daemon)
    copy.record.partner = "h2"
    copy.becomes("protected", role="secondary")
    async with DaemonClient(daemon.config.socket) as client:
        with pytest.raises(WrongState, match="runs on h2: run `colo capture web` on that host"):
            await client.start_capture("web", CaptureRequest())
        await copy.kill()
        with pytest.raises(WrongState, match="no copy of web runs on this host"):
            await client.start_capture("web", CaptureRequest())


async def test_the_socket_is_the_owners(daemon: HostDaemon) -> None:
    assert stat.S_IMODE(daemon.config.socket.stat().st_mode) == 0o600


async def test_a_second_daemon_is_refused(daemon: HostDaemon, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="another daemon serves"):
        async with running(host_config(tmp_path)):
            pass
    assert daemon.config.socket.exists()


async def test_two_vms_have_two_taps_and_different_addresses(daemon: HostDaemon) -> None:
    one, two = await protect(daemon), await protect(daemon, "db", mac="52:54:00:00:00:03")
    assert one.taps != two.taps
    assert all(tap.startswith("colo") and len(tap) <= 15 for tap in (*one.taps, *two.taps))
    status, answer = await asked(
        daemon, "POST", "/v1/vms", ProtectRequest(vm=vm_config("x", protect=False)).model_dump(mode="json")
    )
    assert (status, answer["status"]) == (409, WrongState.exit_status)
    assert "web has the MAC address 52:54:00:00:00:02 of x already" in answer["error"]


async def test_each_network_card_has_a_tap_and_a_network_that_this_host_knows(daemon: HostDaemon) -> None:
    nics = (NicConfig(mac="52:54:00:00:00:07"), NicConfig())
    copy = await protect(daemon, nics=nics)
    assert len(set(copy.taps)) == 2
    for other, says in (
        ((NicConfig(), NicConfig(mac="52:54:00:00:00:07")), "web has the MAC address 52:54:00:00:00:07 of x already"),
        (
            (NicConfig(network="san"),),
            "[networks] in host.toml of h1 has no san: choose another host or change vm.toml",
        ),
    ):
        body = ProtectRequest(vm=vm_config("x", protect=False, nics=other)).model_dump(mode="json")
        status, answer = await asked(daemon, "POST", "/v1/vms", body)
        assert (status, answer["status"]) == (409, WrongState.exit_status)
        assert answer["error"].startswith(says)


@pytest.mark.parametrize(
    ("method", "path", "body", "http", "kind", "says"),
    [
        ("GET", "/v1/vms/none", None, 404, UnknownVm, "h1 knows no VM none"),
        ("POST", "/v1/vms/web/checkpoint", {}, 409, WrongState, "not the primary of a protected VM"),
        ("POST", "/v1/vms/web/switchover", None, 409, WrongState, "web is solo, not protected"),
        ("POST", "/v1/vms/web/test-failover", None, 409, WrongState, "web is solo, not protected"),
        ("POST", "/v1/vms/web/checkpoint", {"reason": "NO"}, 400, EnvironmentFault, "reason is 'NO': "),
        ("POST", "/v1/vms/web/checkpoint", {"reasons": "x"}, 400, EnvironmentFault, "the key reasons is unknown"),
        ("POST", "/v1/vms/web/checkpoint", "{", 400, EnvironmentFault, "the body will not do"),
        ("POST", "/v1/vms/web/checkpoint", None, 400, EnvironmentFault, "the body will not do"),
        ("POST", "/v1/vms/web/capture", {"mib": 4097}, 400, EnvironmentFault, "mib is 4097"),
        ("POST", "/v1/vms/web/capture", {"seconds": 0}, 400, EnvironmentFault, "seconds is 0"),
        ("GET", "/v1/vms/web/capture", None, 409, WrongState, "no capture has been taken here"),
        ("DELETE", "/v1/vms/none/capture", None, 404, UnknownVm, "h1 knows no VM none"),
        ("POST", "/v1/vms/web/unprotect", {"x": 1}, 400, EnvironmentFault, "takes no body: leave it out"),
        ("POST", "/v1/vms/web/peer-lost", {"reason": "x" * 201}, 400, EnvironmentFault, "reason is 'xxx"),
        ("POST", "/v1/vms", {"vm": {}}, 400, EnvironmentFault, "the key vm.name is missing"),
        ("DELETE", "/v1/offers/xyz", None, 200, None, ""),
        ("GET", "/v1/none", None, 404, EnvironmentFault, "see /v1/openapi.json"),
        ("PATCH", "/v1/vms", None, 405, EnvironmentFault, "see /v1/openapi.json"),
        ("GET", "/v1/vms/web/events?follow=maybe", None, 400, EnvironmentFault, "follow is 'maybe'"),
        ("GET", "/v1/vms/web/log?offset=-1", None, 400, EnvironmentFault, "offset is '-1'"),
        ("GET", "/v1/vms/web/log?offset=" + "9" * 99, None, 400, EnvironmentFault, "give a number of bytes"),
        ("POST", "/v1/vms", "x" * (BODY_BYTES_MAX + 1), 413, EnvironmentFault, "Too Large"),
    ],
)
async def test_what_is_refused_has_one_shape(
    daemon: HostDaemon, method: str, path: str, body: Any, http: int, kind: type[Any] | None, says: str
) -> None:
    await protect(daemon)
    status, answer = await asked(daemon, method, path, body)
    assert status == http, answer
    if kind is not None:
        assert answer.keys() == {"error", "status"}
        assert answer["status"] == kind.exit_status
        assert says in answer["error"]
        assert "\n" not in answer["error"]


async def test_a_vm_that_runs_can_not_be_changed_but_its_policy_can(daemon: HostDaemon) -> None:
    copy = await protect(daemon)
    assert not copy.record.protect
    status, answer = await asked(daemon, "POST", "/v1/vms", request_body(secondary="h2"))
    assert (status, copy.record.protect, copy.record.vm.protection.secondaries) == (200, True, ("h2",)), answer
    slower = vm_config().protection.model_copy(update={"heartbeat_ms": 200})
    for other in (vm_config(memory_mib=512), vm_config().model_copy(update={"protection": slower})):
        body = ProtectRequest(vm=other).model_dump(mode="json")
        status, answer = await asked(daemon, "POST", "/v1/vms", body)
        assert (status, "runs with another configuration" in answer["error"]) == (409, True)


async def test_a_host_is_not_overbooked_and_a_drained_one_takes_nothing(daemon: HostDaemon) -> None:
    await protect(daemon)
    big = ProtectRequest(vm=vm_config("big", memory_mib=1024, mac="52:54:00:00:00:09", protect=False))
    status, answer = await asked(daemon, "POST", "/v1/vms", big.model_dump(mode="json"))
    assert (status, "h1 offers 1024 MiB of memory, 256 are taken" in answer["error"]) == (409, True)
    status, answer = await asked(daemon, "POST", "/v1/host/drain", {})
    assert (status, answer["draining"]) == (200, True)
    assert answer["outcomes"]["web"].startswith("it stays here: web is solo, not protected")
    small = ProtectRequest(vm=vm_config("small", mac="52:54:00:00:00:09", protect=False)).model_dump(mode="json")
    status, answer = await asked(daemon, "POST", "/v1/vms", small)
    assert (status, "h1 is being drained" in answer["error"]) == (409, True)
    assert (await asked(daemon, "POST", "/v1/host/drain", {"undo": True}))[1]["draining"] is False
    assert (await asked(daemon, "POST", "/v1/vms", small))[0] == 200


async def test_the_silence_of_an_external_heartbeat_is_a_lost_peer(daemon: HostDaemon) -> None:
    copy = await protect(daemon)
    for _ in range(4):
        status, answer = await asked(daemon, "POST", "/v1/vms/web/heartbeat")
        assert (status, answer) == (200, {"within_ms": 100})
        await asyncio.sleep(0.03)
        assert copy.scripted.asked == []
    assert await copy.until(lambda: copy.scripted.asked, 5.0) or copy.scripted.asked
    assert copy.scripted.asked == [("peer-lost", "the external heartbeat is silent for 100 ms")]
    assert (await asked(daemon, "POST", "/v1/vms/web/peer-lost", {"reason": "power is off"}))[0] == 200
    assert copy.scripted.asked[1:] == [("peer-lost", "power is off")]


async def test_the_log_is_read_in_parts(daemon: HostDaemon) -> None:
    copy = await protect(daemon)
    (copy.folder / "manager.log").write_text("a" * 70_000)
    async with DaemonClient(daemon.config.socket) as client:
        first = await client.log("web", 0)
        second = await client.log("web", first.next)
        assert (len(first.text) + len(second.text), second.next) == (70_000, 70_000)
        (copy.folder / "manager.log").write_text("new")
        again = await client.log("web", second.next)
        assert (again.text, again.restarted) == ("new", True)


# ---------------------------------------------------------------- events


async def collected(client: DaemonClient, count: int, last_id: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    async with asyncio.timeout(10):
        async for one in client.events("web", follow=True, last_id=last_id):
            found.append(one)
            if len(found) == count:
                break
    return found


async def test_a_stream_goes_on_where_it_was_cut(daemon: HostDaemon) -> None:
    copy = await protect(daemon)
    start = copy.events.newest_no
    for number in range(3):
        copy.note("counted", number=number)
    async with DaemonClient(daemon.config.socket) as client:
        everything = [one async for one in client.events("web", follow=False)]
        before = everything[start - 1][0] if start else ""
        first = await collected(client, 2, before)
        copy.note("counted", number=3)
        rest = await collected(client, 2, first[-1][0])
        assert [event["number"] for _, event in first + rest] == [0, 1, 2, 3]
        assert all({"time", "t_ms", "no", "kind"} <= event.keys() for _, event in first + rest)
        waiting = asyncio.create_task(collected(client, 1, rest[-1][0]))
        await asyncio.sleep(0.1)
        copy.note("counted", number=4)
        assert [event["number"] for _, event in await waiting] == [4]


@pytest.mark.parametrize("last_id", ["00000000-1", "nonsense", "-1", "{boot}-x", "{boot}-" + "9" * 40])
async def test_an_id_of_another_life_means_everything(daemon: HostDaemon, last_id: str) -> None:
    copy = await protect(daemon)
    copy.note("first")
    async with DaemonClient(daemon.config.socket) as client:
        (found,) = await collected(client, 1, last_id.replace("{boot}", daemon.boot))
    assert found[1]["no"] == 1


async def test_the_number_of_streams_is_bounded(daemon: HostDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "CLIENTS_MAX", 2)
    copy = await protect(daemon)
    copy.note("first")
    async with DaemonClient(daemon.config.socket) as client:
        streams = [client.events("web", follow=True) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(WrongState, match="2 clients follow events here already"):
            await anext(client.events("web", follow=True))
        await streams[0].aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(15):
            while True:
                try:
                    await anext(client.events("web", follow=True))
                    break
                except WrongState:  # the server has not noticed yet
                    copy.note("news")
                    await asyncio.sleep(0.05)


async def test_streams_end_with_the_daemon(tmp_path: Path) -> None:
    async with running(host_config(tmp_path)) as daemon:
        copy = await protect(daemon)
        copy.note("first")
        client = DaemonClient(daemon.config.socket)
        stream = client.events("web", follow=True)
        await anext(stream)
        rest = asyncio.create_task(_drain(stream))
    await asyncio.wait_for(rest, 5)
    await client.__aexit__()


async def _drain(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


# ---------------------------------------------------------------- who gets in

SAMPLES = {"protect": request_body(), "checkpoint": {}, "start_capture": {}, "peer_lost": {}, "drain": {"undo": True}}


def sample(route: Route) -> tuple[str, Any]:
    path = route.path.replace("{name}", "none").replace("{offer}", OFFER)
    offer = OfferRequest(offer=OFFER, vm=vm_config(protect=False, cpus=64), primary="h2", home="h2", term=1)
    return path, {**SAMPLES, "offer": offer.model_dump(mode="json")}.get(route.name)


@pytest.mark.parametrize("who", ["nobody", "stranger", "peer", "read", "admin", "wrong token"])
async def test_who_may_use_which_route(tmp_path: Path, unused_tcp_port: int, who: str) -> None:
    tokens = tmp_path / "tokens"
    known = {scope: new_token(tokens, Scope(scope), "test") for scope in ("read", "admin")} | {"wrong token": "x" * 43}
    certificates = Certificates()
    names = {"peer": "h2", "stranger": "h9"}
    security = certificates.security("h1")
    config = host_config(tmp_path, port=unused_tcp_port, token_file=tokens)
    headers = {"Authorization": f"Bearer {known[who]}"} if who in known else {}
    async with running(config, security), aiohttp.ClientSession(headers=headers) as session:
        for route in ROUTES:
            path, body = sample(route)
            data = json.dumps(body) if body is not None else None
            where = f"https://127.0.0.1:{unused_tcp_port}{path}"
            tls = certificates.client(names.get(who))
            async with session.request(route.method, where, data=data, ssl=tls, server_hostname="h1") as answer:
                let_in = answer.status not in (401, 403)
                text = await answer.text()
            allowed = who == "admin" or (who == "read" and route.needs is Scope.READ)
            assert let_in == (allowed or (who == "peer" and route.peers_too)), (route, text)
            if not let_in:
                assert json.loads(text)["status"] == NotAllowed.exit_status
                assert answer.status == (403 if who in ("peer", "read") else 401)


async def test_without_tls_a_peer_is_known_by_its_address_and_tokens_do_not_count(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    tokens = tmp_path / "tokens"
    token = new_token(tokens, Scope.ADMIN, "test")
    config = host_config(tmp_path, port=unused_tcp_port, token_file=tokens)
    url = f"http://127.0.0.1:{unused_tcp_port}/v1/"
    bearer = {"Authorization": f"Bearer {token}"}
    async with running(config, Security(insecure=True)), aiohttp.ClientSession() as session:
        for path, headers, status in (
            ("host", {}, 200),
            ("vms", {}, 403),
            ("vms", bearer, 401),
            ("host", bearer, 401),
        ):
            async with session.get(url + path, headers=headers) as answer:
                assert answer.status == status
        stranger = aiohttp.TCPConnector(local_addr=("127.0.0.9", 0))
        async with aiohttp.ClientSession(connector=stranger) as other, other.get(url + "host") as answer:
            assert answer.status == 401


async def test_without_tls_and_without_leave_nothing_listens(tmp_path: Path, unused_tcp_port: int) -> None:
    async with running(host_config(tmp_path, port=unused_tcp_port)), aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{unused_tcp_port}/v1/host")


async def test_who_says_nothing_is_dropped_and_who_is_one_too_many_too(
    tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HEAD_S_MAX", 0.3)
    monkeypatch.setattr(listener, "CONNECTIONS_MAX", 3)
    config = host_config(tmp_path, port=unused_tcp_port)
    async with running(config, Security(insecure=True)):
        said = [b"", b"GET /v1/host HTT", b"\x16\x03\x01garbage"]
        mute = [await asyncio.open_connection("127.0.0.1", unused_tcp_port) for _ in said]
        for (_, writer), text in zip(mute, said, strict=True):
            writer.write(text)
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""  # one too many
        writer.close()
        for reader, writer in mute:
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 10)
            writer.close()
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                async with session.get(f"http://127.0.0.1:{unused_tcp_port}/v1/host") as answer:
                    assert answer.status == 200
                await asyncio.sleep(0.4)  # who has spoken stays


async def test_a_port_in_use_is_said(tmp_path: Path, unused_tcp_port: int) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", unused_tcp_port)
    async with server:
        with pytest.raises(EnvironmentFault, match=r"can't listen on .*: choose a free `listen` address"):
            async with running(host_config(tmp_path, port=unused_tcp_port), Security(insecure=True)):
                pass
    assert not (tmp_path / "h1" / "api.sock").exists()


async def test_a_host_asks_only_for_itself(tmp_path: Path, unused_tcp_port: int) -> None:
    offer = OfferRequest(offer=OFFER, vm=vm_config(), primary="h3", home="h3", term=1).model_dump_json()
    url = f"http://127.0.0.1:{unused_tcp_port}/v1/offers"
    config = host_config(tmp_path, port=unused_tcp_port)
    async with (
        running(config, Security(insecure=True)),
        aiohttp.ClientSession() as session,
        session.post(url, data=offer) as answer,
    ):
        assert answer.status == 400
        assert "h2 can't ask for h3" in (await answer.json())["error"]


@pytest.mark.parametrize("line", ["boss " + "0" * 64, "read xyz", "read " + "0" * 63, "read " + "G" * 64])
def test_a_file_with_other_things_than_tokens(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tokens"
    new_token(path, Scope.READ, "good")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(EnvironmentFault, match=f"line 2 of {path} is no token"):
        load_tokens(path)


def test_tokens_that_others_may_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    new_token(path, Scope.READ, "good")
    path.chmod(0o640)
    with pytest.raises(EnvironmentFault, match="chmod 600"):
        load_tokens(path)
    assert load_tokens(tmp_path / "none") == load_tokens(None) == ()


# ---------------------------------------------------------------- the document


def test_the_document_is_openapi_and_has_every_route() -> None:
    made = document()
    OpenAPIV31SpecValidator(made).validate()
    operations = {(method.upper(), path): one for path, ones in made["paths"].items() for method, one in ones.items()}
    assert operations.keys() == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation = operations[route.method, route.path]
        assert ("requestBody" in operation) == (route.body is not None)
        assert operation["responses"]["default"]
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert {model.__name__ for route in ROUTES for model in (route.body, route.answer) if model} <= made["components"][
        "schemas"
    ].keys()


async def test_the_document_is_served(daemon: HostDaemon) -> None:
    assert await asked(daemon, "GET", "/v1/openapi.json") == (200, document())


def test_no_body_takes_more_than_it_names() -> None:
    bodies = [one for one in vars(models).values() if isinstance(one, type) and issubclass(one, models.Body)]
    assert len(bodies) > 10
    assert all(body.model_config["extra"] == "forbid" for body in bodies)
