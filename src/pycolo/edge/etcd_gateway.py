"""Questions to an etcd cluster by its v3 JSON gateway: whichever member answers first.

Guarantees: a dead or frozen member costs a question at most `HEDGE_S`; a question ends after `ATTEMPT_S_MAX` at the
last member asked; no answer is longer than `ANSWER_BYTES_MAX`; neither the password nor a token gets into a message.
A question may reach several members, so it has to be one that is safe to repeat.

Source: etcd's `rpc.proto` and its "gRPC gateway" page (field names; 64-bit numbers are strings; bytes are base64).
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec

from pycolo.config import EtcdArbiterConfig
from pycolo.edge.secret_file import read_secret
from pycolo.errors import ArbiterUnanswered, EnvironmentFault
from pycolo.quoting import quoted

HEDGE_S = 0.15
ATTEMPT_S_MAX = 0.6
ANSWER_BYTES_MAX = 64 << 10
# What etcd says when a token has expired, is lost to a member that has restarted, or is older than a change of users.
_RENEWABLE = ("invalid auth token", "revision of auth store is old", "user name is empty")

_UNREADABLE = (
    msgspec.MsgspecError,
    UnicodeDecodeError,
    RecursionError,
)  # by msgspec, whatever the bytes


class Header(msgspec.Struct, frozen=True):
    """Stands in every answer of etcd, and in nobody else's."""

    cluster_id: int


class Answer(msgspec.Struct, frozen=True):
    """What all answers have in common."""

    header: Header


class _Token(Answer, frozen=True):
    token: str


class _Refusal(msgspec.Struct, frozen=True):
    """An error in the words of etcd 3.4 (`error`) or newer (`message`)."""

    message: str = ""
    error: str = ""


class _MemberTrouble(Exception):
    """One member gave no answer that can be used."""


class _TokenRefused(_MemberTrouble):
    """The member does not know our token any more."""


T = TypeVar("T", bound=Answer)


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A path of the gateway, what is sent there as JSON, and the kind of answer that is expected."""

    path: str
    body: dict[str, Any]
    kind: type[T]


class EtcdGateway:
    """The members of a cluster; it keeps the token and the member that answered last, and no connection."""

    def __init__(self, config: EtcdArbiterConfig) -> None:
        """Raises EnvironmentFault when a certificate or the password file can't be used."""
        self._order = list(config.endpoints)
        self._user, self._password_file = config.user, config.password_file
        self._tls = tls_context(config)
        self._token = self._password = ""  # no member may have us say them, whenever it says them back to us
        self._cluster_id: int | None = None
        if config.password_file is not None:
            self._password = read_secret(config.password_file)  # and complain at the start

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Connections for a few questions in a row; kept longer, one could lead to a host that has gone meanwhile."""
        sockets: list[socket.socket] = []

        def new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
            sockets.append(socket.socket(*address[:3]))
            return sockets[-1]

        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls, limit=0, socket_factory=new_socket),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a small answer must not unpack into a large one
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session:
                yield session
        finally:
            # One that was given up while TLS began or ended may wait up to a minute for a member that is frozen or gone
            # (seen with Python 3.11, as a transport that nobody had closed when the loop ended).
            for one in sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    async def ask(self, session: aiohttp.ClientSession, question: Question[T]) -> T:
        """The first answer of any member. Raises ArbiterUnanswered with what each of them did instead."""
        waiting = deque(self._order)
        asked: dict[asyncio.Task[T], str] = {}
        troubles: list[str] = []
        try:
            while waiting or len(troubles) < len(asked):
                if waiting:
                    endpoint = waiting.popleft()
                    asked[asyncio.create_task(self._attempt(session, endpoint, question))] = endpoint
                answer = await self._next_answer(asked, troubles, HEDGE_S if waiting else None)
                if answer is not None:
                    return answer
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise ArbiterUnanswered(f"etcd gives no answer: {'; '.join(troubles)}")

    async def _next_answer(
        self, asked: dict[asyncio.Task[T], str], troubles: list[str], wait_s: float | None
    ) -> T | None:
        """Wait until a member answers, or fails, which is noted, or until it is time to ask one more."""
        pending = [task for task in asked if not task.done()]
        done, _ = await asyncio.wait(pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            problem = task.exception()
            if problem is None:
                self._prefer(asked[task])
                return task.result()
            if not isinstance(problem, _MemberTrouble):
                raise problem
            troubles.append(f"{asked[task]} {problem}")
        return None

    def _prefer(self, endpoint: str) -> None:
        """Begin with this one the next time, as the others may still be dead or frozen."""
        self._order.remove(endpoint)
        self._order.insert(0, endpoint)

    async def _attempt(self, session: aiohttp.ClientSession, endpoint: str, question: Question[T]) -> T:
        """Ask one member. Raises _MemberTrouble."""
        try:
            async with asyncio.timeout(ATTEMPT_S_MAX):
                return await self._ask_with_token(session, endpoint, question)
        except TimeoutError:
            raise _MemberTrouble(f"does not answer within {ATTEMPT_S_MAX} s") from None
        except aiohttp.ClientConnectorCertificateError as problem:
            why = getattr(problem.certificate_error, "verify_message", "") or "it can't be checked"
            raise _MemberTrouble(f"has a certificate that does not fit `ca` ({quoted(why)})") from None
        except (aiohttp.ClientError, OSError) as problem:
            raise _MemberTrouble(f"can't be reached ({_why(problem)})") from None

    async def _ask_with_token(self, session: aiohttp.ClientSession, endpoint: str, question: Question[T]) -> T:
        if self._user is None:
            return await self._post(session, endpoint, question, "")
        try:
            token = self._token or await self._new_token(session, endpoint)
            return await self._post(session, endpoint, question, token)
        except _TokenRefused:
            return await self._post(session, endpoint, question, await self._new_token(session, endpoint))

    async def _new_token(self, session: aiohttp.ClientSession, endpoint: str) -> str:
        """Get a token, which all members then know. The password is read each time, so that it can be changed."""
        assert self._user is not None
        assert self._password_file is not None
        try:
            password = read_secret(self._password_file)
        except EnvironmentFault as fault:
            raise _MemberTrouble(f"is not asked, as {fault}") from None
        self._password = password
        question = Question("/v3/auth/authenticate", {"name": self._user, "password": password}, _Token)
        try:
            token = (await self._post(session, endpoint, question, "")).token
        except _MemberTrouble as refusal:
            raise _MemberTrouble(f"gives the user {self._user} no token: it {refusal}") from None
        if not (token.isascii() and token.isprintable()):
            raise _MemberTrouble("gives a token that can't be sent back")
        self._token = token
        return token

    async def _post(self, session: aiohttp.ClientSession, endpoint: str, question: Question[T], token: str) -> T:
        headers = {"Authorization": token} if token else {}
        url = f"{endpoint}{question.path}"
        async with session.post(url, json=question.body, headers=headers, allow_redirects=False) as response:
            content = await _read_bounded(response)
            if response.status != 200:
                raise _refused(response.status, content, token, self._password)
        try:
            answer = msgspec.json.decode(content, type=question.kind, strict=False)
        except _UNREADABLE:
            raise _MemberTrouble("answers with something that is not etcd's: correct `endpoints`") from None
        self._check_cluster(answer.header.cluster_id)
        return answer

    def _check_cluster(self, cluster_id: int) -> None:
        """A second cluster, or one that was made anew, does not know what the first has granted."""
        if self._cluster_id is None:
            self._cluster_id = cluster_id
        if self._cluster_id != cluster_id:
            raise _MemberTrouble("belongs to another etcd cluster than the one that answered first")


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            response.close()
            raise _MemberTrouble(f"answers with more than {ANSWER_BYTES_MAX} bytes")
    return bytes(content)


def _refused(status: int, content: bytes, *secrets: str) -> _MemberTrouble:
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except _UNREADABLE:
        refusal = _Refusal()
    said = refusal.message or refusal.error
    kind = _TokenRefused if any(renewable in said for renewable in _RENEWABLE) else _MemberTrouble
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may be a part of the other
        said = said.replace(secret, "***")
    return kind(f"answers with HTTP status {status}" + (f" ({quoted(said)})" if said else ""))


def _why(problem: aiohttp.ClientError | OSError) -> str:
    """In few words; those of aiohttp name internals."""
    cause = problem.os_error if isinstance(problem, aiohttp.ClientConnectorError) else problem
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
        return os.strerror(cause.errno or 0)
    return quoted(str(cause)) or type(cause).__name__


def tls_context(config: EtcdArbiterConfig) -> ssl.SSLContext:
    """What etcd is called with. Raises EnvironmentFault when a certificate can't be used."""
    try:
        context = ssl.create_default_context(cafile=config.ca)
        if config.cert is not None:
            # Without a callable, an encrypted key would make OpenSSL ask on the terminal.
            context.load_cert_chain(config.cert, config.key, password=lambda: b"")
    except (OSError, ValueError) as problem:  # an SSLError is an OSError
        reason = (problem.reason or "").replace("_", " ").lower() if isinstance(problem, ssl.SSLError) else str(problem)
        names = ", ".join(str(path) for path in (config.ca, config.cert, config.key) if path is not None)
        raise EnvironmentFault(
            f"the certificates for etcd can't be used ({reason}): correct `arbiter` in host.toml ({names})"
        ) from None
    return context
