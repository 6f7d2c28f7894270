"""Calls to an API v1: to the own daemon on its unix socket, to another host's over TCP.

Guarantees: every answer has a limit in bytes and time and fits its model; a failure comes back as what it was there.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from pycolo.errors import EnvironmentFault, PeerLost, PycoloError, failure_of
from pycolo.host.models import Failure

ANSWER_BYTES_MAX = 4 << 20
CALL_S_MAX = 15.0
AnswerT = TypeVar("AnswerT", bound=BaseModel)


class Caller:
    """One server; `who` is how messages call it, `unanswered` what it is when nobody answers."""

    def __init__(
        self,
        who: str,
        connector: aiohttp.BaseConnector,
        base_url: str,
        tls: ssl.SSLContext | None = None,
        unanswered: type[PycoloError] = PeerLost,
        remedy: str = "see that its daemon runs and that the network leads there",
        certified_as: str | None = None,
    ) -> None:
        """`certified_as`: the host name that the server's certificate has to be for."""
        self._who, self._base, self._tls, self._unanswered = who, base_url, tls, unanswered
        self._remedy, self._certified_as = remedy, certified_as
        self._session = aiohttp.ClientSession(connector=connector)

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        answer: type[AnswerT],
        body: BaseModel | None = None,
        limit_s: float = CALL_S_MAX,
    ) -> AnswerT:
        """One request. Raises what the server says, or `unanswered` without an answer that can be understood."""
        try:
            async with self._request(method, path, body, limit_s) as response:
                content = await _bounded(response)
                if response.status >= 400:
                    raise _failure(content, self._who)
                return answer.model_validate_json(content)
        except ValidationError:
            raise self._unanswered(f"{self._who} does not speak this API: update pycolo there or here") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise self._no_answer(problem, limit_s) from None

    async def stream(self, path: str, last_id: str) -> AsyncIterator[tuple[str, str]]:
        """Server-sent events as (id, data), from after `last_id`. Raises as `call`; ends when the server ends it."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        limit = aiohttp.ClientTimeout(sock_connect=CALL_S_MAX)
        try:
            async with self._session.get(self._base + path, headers=headers, timeout=limit) as response:
                if response.status >= 400:
                    raise _failure(await _bounded(response), self._who)
                number = ""
                async for line in response.content:
                    text = line.decode(errors="replace").rstrip("\n")
                    if text.startswith("id: "):
                        number = text[4:]
                    elif text.startswith("data: "):
                        yield number, text[6:]
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise self._no_answer(problem, CALL_S_MAX) from None

    def _request(
        self, method: str, path: str, body: BaseModel | None, limit_s: float
    ) -> aiohttp.client._RequestContextManager:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        return self._session.request(
            method,
            self._base + path,
            data=body.model_dump_json() if body is not None else None,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=limit_s),
            ssl=self._tls if self._tls is not None else True,
            server_hostname=self._certified_as,
            allow_redirects=False,
        )

    def _no_answer(self, problem: Exception, limit_s: float) -> PycoloError:
        if isinstance(problem, TimeoutError):
            return self._unanswered(f"{self._who} does not answer in {limit_s:.0f} s: {self._remedy}")
        cause = problem.os_error if isinstance(problem, aiohttp.ClientConnectorError) else problem
        reason = getattr(cause, "strerror", None) or str(cause) or "the connection has ended"
        remedy = "run it as root" if isinstance(cause, PermissionError) else self._remedy
        return self._unanswered(f"{self._who} does not answer ({reason}): {remedy}")


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    content = b""
    async for part in response.content.iter_chunked(64 << 10):
        content += part
        if len(content) > ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"its answer has more than {ANSWER_BYTES_MAX} bytes")
    return content


def _failure(content: bytes, who: str) -> PycoloError:
    try:
        failure = Failure.model_validate_json(content)
    except ValidationError:
        return EnvironmentFault(f"{who} refuses without a reason that this version understands: update pycolo there")
    return failure_of(failure.status, failure.error)
