"""Whatever a member of etcd does instead of answering, a claim is a yes only when its record is stored."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from fake_etcd import CLUSTER_ID, FakeEtcd, Fault, fake_etcd, hang, only, say

from pycolo.core.arbitration import ClaimRecord
from pycolo.edge import etcd, etcd_gateway
from pycolo.edge.etcd_gateway import ANSWER_BYTES_MAX, ATTEMPT_S_MAX
from pycolo.errors import ArbiterUnanswered, EnvironmentFault

PATIENT_S = 60.0
HEADER = {"header": {"cluster_id": CLUSTER_ID}}
KEY = base64.b64encode(b"/pycolo/claims/vm").decode()
RECORD = base64.b64encode(b'{"vm": "vm", "term": 1, "holder": "alpha"}').decode()
HELD = {"key": KEY, "mod_revision": "7", "value": RECORD}


@pytest.fixture
async def store() -> AsyncIterator[FakeEtcd]:
    async with fake_etcd() as one:
        yield one


@pytest.fixture
def patient(store: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> FakeEtcd:
    """Its questions have much time, so that no stall of this machine ends one."""
    monkeypatch.setattr(etcd_gateway, "ATTEMPT_S_MAX", PATIENT_S)
    return store


async def test_one_of_two_holds_a_term(store: FakeEtcd) -> None:
    arbiter = store.arbiter()
    assert await arbiter.record("vm") is None
    for _ in range(2):
        assert (await arbiter.claim("vm", 1, "alpha")).granted
        assert not (await arbiter.claim("vm", 1, "beta")).granted
    assert (await arbiter.claim("other", 1, "beta")).granted
    assert await arbiter.record("vm") == ClaimRecord("vm", 1, "alpha")
    assert (await arbiter.claim("vm", 2, "beta", "loss")).granted
    assert not await arbiter.end("vm", 2, "alpha")
    assert await arbiter.end("vm", 2, "beta")
    assert await arbiter.record("vm") == ClaimRecord("vm", 2, "beta", "loss", ended=True)
    with pytest.raises(ArbiterUnanswered, match=r"decides nothing: .* the record was reset"):
        await arbiter.claim("vm", 7, "beta")
    for name in ("../vm", ""):
        with pytest.raises(ValueError, match="is not the name of a VM"):
            await arbiter.record(name)


async def test_many_claims_at_once_one_winner(store: FakeEtcd) -> None:
    for term in range(1, 20):
        hosts = ("alpha", "beta", "gamma")
        answers = await asyncio.gather(*(store.arbiter().claim("vm", term, host) for host in hosts))
        (winner,) = [host for host, answer in zip(hosts, answers, strict=True) if answer.granted]
        assert store.records() == [{"vm": "vm", "term": term, "holder": winner}]


MALFORMED: list[bytes | str | dict[str, Any]] = [
    b"",
    b"{}",  # a server that is not etcd's knows no cluster
    b"[]",
    b"null",
    b"\xff\xfe",
    "<html>it works</html>",
    {"header": {}},
    {"header": {"cluster_id": "-x"}},
    {**HEADER, "kvs": [{"key": KEY}]},
    {**HEADER, "kvs": {}},
    {**HEADER, "kvs": [{**HELD, "value": "%%%"}]},
    {**HEADER, "succeeded": "yes"},
    b'{"header": {"cluster_id": "' + CLUSTER_ID.encode(),
    json.dumps(HEADER).encode()[:-1] + b', "more": ' + b"[" * 50_000,  # what is passed over may not go deep
]


@pytest.mark.parametrize("content", MALFORMED)
async def test_what_is_not_an_answer_of_etcd_is_passed_over(
    store: FakeEtcd, content: bytes | str | dict[str, Any]
) -> None:
    first, second = store.members
    path = "/v3/kv/txn" if isinstance(content, dict) and "succeeded" in content else "/v3/kv/range"
    first.before = only(path, say(content))
    assert (await store.arbiter().claim("vm", 1, "alpha")).granted, "by the second member"
    second.before = first.before
    with pytest.raises(ArbiterUnanswered, match="answers with something that is not etcd's: correct `endpoints`"):
        await store.arbiter().claim("vm", 2, "alpha")
    assert store.records() == [{"vm": "vm", "term": 1, "holder": "alpha"}]


@pytest.mark.parametrize(
    ("kvs", "says"),
    [
        ([{**HELD, "key": base64.b64encode(b"/pycolo/claims/other").decode()}], "is not about the key"),
        ([HELD, HELD], "is not about the key"),
        ([{**HELD, "mod_revision": "0"}], "is not about the key"),
        ([{**HELD, "value": ""}], "is damaged"),
        ([{**HELD, "value": base64.b64encode(b"\xff").decode()}], "is damaged"),
        ([{**HELD, "value": base64.b64encode(b'{"vm": "vm", "term": "1", "holder": "a"}').decode()}], "is damaged"),
    ],
)
async def test_an_answer_about_something_else_is_none(store: FakeEtcd, kvs: list[dict[str, str]], says: str) -> None:
    for member in store.members:
        member.before = say({**HEADER, "kvs": kvs})
    with pytest.raises(ArbiterUnanswered, match=says):
        await store.arbiter().claim("vm", 2, "alpha")
    with pytest.raises(ArbiterUnanswered, match=says):
        await store.arbiter().record("vm")


@pytest.mark.parametrize("responses", [[], [{}], [{"response_put": {}}], [{"response_range": {}}] * 2])
async def test_a_claim_that_fails_without_saying_why_is_no_answer(
    store: FakeEtcd, responses: list[dict[str, Any]]
) -> None:
    for member in store.members:
        member.before = only("/v3/kv/txn", say({**HEADER, "responses": responses}))
    with pytest.raises(ArbiterUnanswered, match="lacks what stands in its place"):
        await store.arbiter().claim("vm", 1, "alpha")


async def test_a_member_that_hangs_is_not_waited_for(patient: FakeEtcd) -> None:
    patient.members[0].before = hang
    async with asyncio.timeout(PATIENT_S / 2):
        assert (await patient.arbiter().claim("vm", 1, "alpha")).granted, "by the second member"


async def test_when_all_members_hang_a_question_has_an_end(store: FakeEtcd) -> None:
    for member in store.members:
        member.before = hang
    asked = f"(http://127.0.0.1:[0-9]+ does not answer within {ATTEMPT_S_MAX} s(; )?){{2}}$"
    with pytest.raises(ArbiterUnanswered, match=asked):
        await store.arbiter().claim("vm", 1, "alpha")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(ConnectionError):
        while True:
            await response.write(b" " * 4096)
    return response


BOMB = gzip.compress(json.dumps({**HEADER, "kvs": []}).encode() + b" " * (50 << 20))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (endless, f"answers with more than {ANSWER_BYTES_MAX} bytes"),
        (say(json.dumps(HEADER) + " " * ANSWER_BYTES_MAX), f"answers with more than {ANSWER_BYTES_MAX} bytes"),
        (say(BOMB, headers={"Content-Encoding": "gzip"}), "is not etcd's"),
        (say("", status=302, headers={"Location": "http://127.0.0.1:1/"}), "answers with HTTP status 302"),
        (say("no", status=500), "answers with HTTP status 500"),
        (say({"error": "etcdserver: request timed out"}, status=503), r"HTTP status 503 \(etcdserver: request timed"),
        (say({"message": "etcdserver: no leader\n\0"}, status=503), r"HTTP status 503 \(etcdserver: no leader  \)"),
        (say({"message": "x" * 9999}, status=400), r"HTTP status 400 \(x{200}\)"),
        (say("[" * 50_000, status=500), "answers with HTTP status 500"),
    ],
)
async def test_a_member_that_gives_no_answer(patient: FakeEtcd, fault: Fault, says: str) -> None:
    store, (first, second) = patient, patient.members
    first.before = fault
    assert (await store.arbiter().claim("vm", 1, "alpha")).granted, "by the second member"
    second.before = fault
    with pytest.raises(ArbiterUnanswered, match=says) as caught:
        await store.arbiter().claim("vm", 2, "alpha")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert store.records() == [{"vm": "vm", "term": 1, "holder": "alpha"}]


async def test_nobody_listens() -> None:
    async with fake_etcd() as gone:
        arbiter = gone.arbiter()
    with pytest.raises(ArbiterUnanswered, match=r"127.0.0.1:\d+ can't be reached \(Connection refused\); http://127"):
        await arbiter.record("vm")


def freeze_after_greeting(listener: socket.socket, certificate: trustme.LeafCert) -> list[ssl.SSLSocket]:
    """In threads: take connections, begin TLS, and never do anything again; returns where the connections are kept."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    kept: list[ssl.SSLSocket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                kept.append(context.wrap_socket(listener.accept()[0], server_side=True))

    threading.Thread(target=serve, daemon=True).start()
    return kept


@pytest.mark.parametrize("greets", [True, False])
async def test_a_claim_that_is_given_up_leaves_no_connection_behind(tmp_path: Path, greets: bool) -> None:
    """A frozen member takes connections, says nothing and never ends them, not even those of TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0), backlog=500) as frozen:
        port = frozen.getsockname()[1]
        kept = freeze_after_greeting(frozen, authority.issue_cert("127.0.0.1")) if greets else []
        arbiter = FakeEtcd().arbiter(endpoints=[f"https://127.0.0.1:{port}"], ca=str(tmp_path / "ca.pem"))
        for after_ms in range(0, 60, 2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(after_ms / 1000):
                    await arbiter.claim("vm", 1, "alpha")
        await asyncio.sleep(0.2)
        ours = [line for line in Path("/proc/self/net/tcp").read_text().splitlines() if is_open(line, port)]
        frozen.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()
    assert ours == []


def is_open(line: str, port: int) -> bool:
    """Whether a line of /proc/net/tcp is an established connection to the port, or one that waits for it to end."""
    fields = line.split()
    owned = fields[9] != "0"  # the kernel keeps those of closed sockets for a while
    return fields[2].endswith(f":{port:04X}") and owned


async def test_the_member_that_answered_last_is_asked_first(store: FakeEtcd) -> None:
    first, second = store.members
    first.before = hang
    arbiter = store.arbiter()
    await arbiter.record("vm")
    assert (first.asked, second.asked) == (["/v3/kv/range"], ["/v3/kv/range"])
    assert (await arbiter.claim("vm", 1, "alpha")).granted
    assert first.asked == ["/v3/kv/range"]


@pytest.mark.parametrize("kept_back", [hang, say("", status=500)])
async def test_a_claim_that_was_stored_before_it_is_repeated_is_our_own(store: FakeEtcd, kept_back: Fault) -> None:
    """The first member stores it and its answer is lost; the second finds it in the way."""
    first, second = store.members
    first.after = only("/v3/kv/txn", kept_back)
    assert (await store.arbiter().claim("vm", 1, "alpha")).granted
    assert (first.asked, second.asked) == (["/v3/kv/range", "/v3/kv/txn"], ["/v3/kv/txn"])
    assert store.records() == [{"vm": "vm", "term": 1, "holder": "alpha"}]


async def test_somebody_else_between_reading_and_claiming(store: FakeEtcd) -> None:
    """With the same term it is a no; with one that is now the last the claim goes on."""
    other, arbiter = store.arbiter(endpoints=[store.members[1].url]), store.arbiter()

    def comes_first(term: int) -> Fault:
        async def claim(_: web.Request) -> None:
            await other.claim("vm", term, "beta")

        return only("/v3/kv/txn", claim)

    async def end_of_beta(_: web.Request) -> None:
        assert await other.end("vm", 1, "beta")

    store.members[0].before = comes_first(1)
    assert not (await arbiter.claim("vm", 1, "alpha")).granted
    store.members[0].before = only("/v3/kv/txn", end_of_beta)
    assert (await arbiter.claim("vm", 2, "alpha")).granted
    assert store.records() == [{"vm": "vm", "term": 2, "holder": "alpha"}]


async def test_a_record_that_keeps_changing_ends_the_claim(store: FakeEtcd) -> None:
    async def change(_: web.Request) -> None:
        store.revision += 1
        store.values[KEY] = (RECORD, store.revision)

    store.members[0].before = only("/v3/kv/txn", change)
    store.values[KEY] = (RECORD, store.revision)
    with pytest.raises(ArbiterUnanswered, match=f"changed {etcd.ROUNDS_MAX} times during one claim"):
        await store.arbiter(endpoints=[store.members[0].url]).claim("vm", 2, "alpha")


async def test_a_claim_that_was_given_up_may_be_granted_late_and_nobody_acts_on_it(patient: FakeEtcd) -> None:
    """It waits in two frozen members when its caller has long given up."""
    store, thawed, done = patient, asyncio.Event(), asyncio.Event()
    frozen = asyncio.Semaphore(0)

    async def freeze(_: web.Request) -> None:
        frozen.release()
        await thawed.wait()

    async def note(_: web.Request) -> None:
        done.set()

    for member in store.members:
        member.before, member.after = only("/v3/kv/txn", freeze), note
    claiming = asyncio.create_task(store.arbiter().claim("vm", 1, "alpha"))
    async with asyncio.timeout(10):
        for _ in store.members:
            await frozen.acquire()
    claiming.cancel()
    await asyncio.wait([claiming])
    assert claiming.cancelled()
    assert [member.asked[-1] for member in store.members] == ["/v3/kv/txn"] * 2
    assert store.records() == []
    done.clear()
    thawed.set()
    async with asyncio.timeout(5):
        await done.wait()
    assert store.records() == [{"vm": "vm", "term": 1, "holder": "alpha"}]
    assert (await store.arbiter().claim("vm", 2, "beta")).granted
    assert not (await store.arbiter().claim("vm", 2, "alpha")).granted


async def test_a_claim_that_arrives_again_after_the_next_one_changes_nothing(store: FakeEtcd) -> None:
    first, _ = store.members
    thawed, done = asyncio.Event(), asyncio.Event()

    async def freeze(_: web.Request) -> None:
        await thawed.wait()

    async def note(_: web.Request) -> None:
        done.set()

    first.before, first.after = only("/v3/kv/txn", freeze), only("/v3/kv/txn", note)
    assert (await store.arbiter().claim("vm", 1, "alpha")).granted, "by the second member"
    assert (await store.arbiter().claim("vm", 2, "beta")).granted
    thawed.set()
    async with asyncio.timeout(5):
        await done.wait()
    assert store.records() == [{"vm": "vm", "term": 2, "holder": "beta"}]


async def test_a_second_cluster_is_not_believed() -> None:
    """It does not know what the first one has granted."""
    async with fake_etcd("1", "2") as store:
        arbiter = store.arbiter()
        assert (await arbiter.claim("vm", 1, "alpha")).granted
        store.members[0].before = say("", status=503)
        with pytest.raises(ArbiterUnanswered, match="belongs to another etcd cluster"):
            await arbiter.record("vm")


async def test_neither_password_nor_token_is_told(store: FakeEtcd, tmp_path: Path) -> None:
    """Not even when etcd says them back to us."""
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    arbiter = store.arbiter(user="pycolo", password_file=secret)

    async def echo(request: web.Request) -> web.StreamResponse:
        said = f"{await request.text()} {request.headers.get('Authorization', '')}"
        return web.json_response({"message": said}, status=400)

    for member in store.members:
        member.before = echo
    with pytest.raises(ArbiterUnanswered, match=r"gives the user pycolo no token: it .*\*\*\*") as caught:
        await arbiter.record("vm")
    assert "hunter2" not in repr(caught.value)
    secret.write_text("hunter2" * 100)
    with pytest.raises(ArbiterUnanswered) as caught:
        await arbiter.record("vm")
    assert "hunter2" not in repr(caught.value), "nor when what it says has to be cut"
    for member in store.members:
        member.before = only("/v3/kv/range", echo)
        member.store.answer = lambda *_: {"token": "tok.1"}  # type: ignore[method-assign]
    with pytest.raises(ArbiterUnanswered, match=r"\*\*\*") as caught:
        await arbiter.record("vm")
    assert "tok.1" not in repr(caught.value)


@pytest.mark.parametrize("token", ["a\r\nHost: b", "a\0", "\u00fc"])
async def test_a_token_that_is_no_header_is_not_sent(store: FakeEtcd, tmp_path: Path, token: str) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    secret.chmod(0o600)
    for member in store.members:
        member.before = only("/v3/auth/authenticate", say({**HEADER, "token": token}))
    with pytest.raises(ArbiterUnanswered, match="gives a token that can't be sent back"):
        await store.arbiter(user="pycolo", password_file=secret).record("vm")


async def test_an_invalid_token_is_renewed_once(store: FakeEtcd, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    secret.chmod(0o600)
    tokens = iter(("old", "new", "newer"))
    valid = {"old"}

    async def guard(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/v3/auth/authenticate":
            return web.json_response({**HEADER, "token": next(tokens)})
        if request.headers["Authorization"] in valid:
            return None
        return web.json_response({"error": "etcdserver: invalid auth token", "code": 16}, status=401)

    member = store.members[0]
    member.before = guard
    arbiter = store.arbiter(endpoints=[member.url], user="pycolo", password_file=secret)
    assert await arbiter.record("vm") is None
    valid.symmetric_difference_update(("old", "new"))
    assert await arbiter.record("vm") is None
    valid.clear()
    with pytest.raises(ArbiterUnanswered, match="invalid auth token"):
        await arbiter.record("vm")
    assert next(tokens, None) is None


@pytest.mark.parametrize("name", ["ca", "cert"])
async def test_certificates_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for path in (tmp_path / "bad.pem", tmp_path / "none.pem"):
        files = {"cert": str(path), "key": str(path)} if name == "cert" else {"ca": str(path)}
        store = FakeEtcd()
        with pytest.raises(EnvironmentFault, match=r"the certificates for etcd can't be used .*: correct `arbiter`"):
            store.arbiter(endpoints=["https://127.0.0.1:1"], **files)
