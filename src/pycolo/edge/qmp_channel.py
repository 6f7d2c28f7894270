"""What QEMU's monitor says and hears, on the wire (docs/interop/qmp-spec): lines of JSON, commands by number, events.

QEMU reads a monitor one byte at a time, up to 7 us each (monitor/monitor.c: `monitor_can_read`), and the guest stands
still meanwhile. So commands are short, and the one that came next the last time is told ahead, all but its end: when it
is wanted, two bytes are left to be read. When another one is wanted instead, the end makes it a command that no QEMU
knows, and its refusal is nobody's.

Guarantees
* An answer belongs to the command that bears its number; what was told ahead is not carried out before it is sent.
* Lines are bounded; a peer that says what can't be understood, or does not understand us, has ended the connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import msgspec

LINE_BYTES_MAX = 1 << 20  # 250 bytes for each of the guest's processors are the longest that is asked for
FOLLOWED_MAX = 64  # commands of which it is known what came next; a pair uses a dozen
_END, _CALLED_OFF = b'"}', b'-not"}'
_Number = Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)]  # QEMU's clock may fail: -1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that QEMU says unasked; `at_s` is since the epoch."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    at_s: float = 0.0


class Greeting(msgspec.Struct, frozen=True):
    """What QEMU begins with."""

    capabilities: list[str] = []


class Problem(msgspec.Struct, frozen=True):
    """Why a command was refused."""

    desc: str


class _Stamp(msgspec.Struct, frozen=True):
    seconds: _Number = 0
    microseconds: _Number = 0


class Said(msgspec.Struct, frozen=True):
    """One line: an event, an answer (`result` or `error`) or the greeting."""

    greeting: Greeting | None = msgspec.field(default=None, name="QMP")
    event: str = ""
    data: dict[str, Any] = {}
    timestamp: _Stamp = _Stamp()
    id: _Number | None = None
    result: Any = msgspec.field(default=msgspec.UNSET, name="return")
    error: Problem | None = None


_decoder = msgspec.json.Decoder(Said)
_encoder = msgspec.json.Encoder()


def command_of(name: str, arguments: Mapping[str, object] | None = None) -> bytes:
    """A command as `send` wants it: without its number, and open at its end."""
    given = b'"arguments":' + _encoder.encode(arguments) + b"," if arguments else b""
    return given + b'"execute":"' + name.encode()


class QmpChannel(asyncio.Protocol):
    """One connection. `ended` gets the reason, in words that go on from "QEMU"; answers still awaited are cancelled."""

    def __init__(self, hear: Callable[[Event], None]) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[Greeting] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()
        self._hear = hear
        self._pending: dict[int, asyncio.Future[Said]] = {}
        self._numbers = itertools.count(1)
        self._rest: list[bytes] = []  # of a line whose end has not come
        self._rest_bytes = 0
        self._followed: dict[bytes, bytes] = {}  # each command by the one that it came after
        self._last = b""
        self._ahead: tuple[int, bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def send(self, command: bytes) -> asyncio.Future[Said]:
        """Send what `command_of` has made; the answer is cancelled when the connection has ended before it."""
        assert self._transport is not None, "there is no connection yet"
        answer: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        if self.ended.done():
            answer.cancel()
            return answer
        if self._ahead is not None and self._ahead[1] == command:
            number, text = self._ahead[0], _END
        else:
            number = next(self._numbers)
            text = (b"" if self._ahead is None else _CALLED_OFF) + _numbered(number, command) + _END
        self._pending[number] = answer
        if len(self._followed) >= FOLLOWED_MAX:
            self._followed.clear()
        self._followed[self._last] = command
        self._last = command
        self._ahead = None
        following = self._followed.get(command)
        if following is not None:
            self._ahead = (next(self._numbers), following)
            text += _numbered(*self._ahead)
        self._transport.write(text)
        return answer

    def close(self) -> bool:
        """End it; False when it has never begun. `ended` is resolved soon."""
        if self._transport is None:
            return False
        self._transport.abort()
        return True

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *ends, rest = data.split(b"\n")
        self._rest_bytes += len(ends[0] if ends else rest)
        if self._rest_bytes > LINE_BYTES_MAX:
            self._end("says too much at a time")
            return
        if not ends:
            self._rest.append(rest)
            return
        lines = [b"".join([*self._rest, ends[0]]), *ends[1:]]
        self._rest, self._rest_bytes = [rest], len(rest)
        for line in lines:
            if self.ended.done():
                return
            try:
                self._take(_decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
                self._end(f"says what nobody understands ({problem})")

    def connection_lost(self, _: Exception | None) -> None:
        self._end("has ended its QMP connection")

    def _take(self, said: Said) -> None:
        if said.event:
            stamp = said.timestamp
            self._hear(Event(said.event, said.data, stamp.seconds + stamp.microseconds / 1e6))
        elif said.greeting is not None:
            if not self.greeting.done():
                self.greeting.set_result(said.greeting)
        elif said.error is None and said.result is msgspec.UNSET:
            self._end("says what nobody understands (neither an event nor an answer)")
        elif said.id is not None:
            answer = self._pending.pop(said.id, None)  # none was told ahead and called off
            if answer is not None and not answer.done():  # else whoever wanted it has been cancelled
                answer.set_result(said)
        elif said.error is not None:
            self._end(f"did not understand a command ({said.error.desc})")
        else:
            self._end("says what nobody understands (an answer without a number)")

    def _end(self, why: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(why)
        self.close()
        self.greeting.cancel()
        for answer in self._pending.values():
            answer.cancel()
        self._pending.clear()


def _numbered(number: int, command: bytes) -> bytes:
    return b'{"id":%d,%b' % (number, command)
