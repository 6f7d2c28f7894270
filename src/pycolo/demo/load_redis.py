"""A Redis client that remembers each write the server acknowledged, and asks for all of them in the end.

Guarantees: one connection, never reopened (redis-py would do so silently); every INCR must answer exactly one
more than before; a write whose answer never came is unknown, neither lost nor kept; a loss is counted once.
"""

import secrets
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from pycolo.demo.load_echo import TIMEOUT_S, keeps_connection
from pycolo.demo.load_ledger import Ledger, UnansweredError, WrongBytesError

KEYS_MAX = 20_000
READBACK_KEYS = 100
_VALUE_BYTES_MAX = 48

Command = tuple[str, str] | tuple[str, str, bytes]
"""INCR key, GET key or SET key value."""


class _Connecting(Protocol):
    def on_connect(self) -> None: ...


class OneConnection:
    """Pipelines over one connection to Redis, without retry; errors come as OSError or WrongBytesError."""

    def __init__(self, ledger: Ledger, address: tuple[str, int]) -> None:
        self._ledger = ledger
        self._opened = False
        self._client = redis.Redis(
            host=address[0],
            port=address[1],
            protocol=2,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            max_connections=1,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._connecting,  # type-checked as taking nothing, called with the connection
        )

    def _connecting(self, connection: _Connecting | None = None) -> None:
        if self._opened:
            raise redis.ConnectionError("the connection was lost and a client would have to open it anew")
        self._opened = True
        self._ledger.connection_opened()
        if connection is not None:
            connection.on_connect()

    def ask(self, commands: Sequence[Command]) -> list[object]:
        """All answers; ConnectionResetError, TimeoutError, UnansweredError or WrongBytesError."""
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    _queue(pipeline, command)
                answers = pipeline.execute(raise_on_error=False)
        except redis.TimeoutError as error:
            raise TimeoutError(str(error)) from error
        except redis.ConnectionError as error:
            raise ConnectionResetError(str(error)) from error
        except redis.RedisError as error:
            raise WrongBytesError(f"an answer that makes no sense: {error}") from error
        refused = next((answer for answer in answers if isinstance(answer, redis.RedisError)), None)
        if refused is not None:
            raise UnansweredError(f"Redis answered with an error: {refused}")
        return list(answers)

    def close(self) -> None:
        self._client.close()


def _queue(pipeline: Pipeline, command: Command) -> None:
    match command:
        case ("INCR", key):
            pipeline.incr(key)
        case ("GET", key):
            pipeline.get(key)
        case (_, key, value):
            pipeline.set(key, value)


class RedisClient:
    """Counts up, writes keys of its own, reads back new and old ones."""

    def __init__(self, name: str, ledger: Ledger, address: tuple[str, int], keys_max: int = KEYS_MAX) -> None:
        self.name = name
        self._ledger = ledger
        self._address = address
        self._keys_max = keys_max
        self.prefix = f"load:{secrets.token_hex(4)}"
        self._connection = OneConnection(ledger, address)
        self._connection_lost = False
        self._sequence = 0
        self._counter = 0
        self._acknowledged: dict[str, bytes] = {}
        self._unknown: str | None = None
        self._lost: set[str] = set()

    def step(self) -> bool:
        with self._ledger.request("redis", self.name) as request:
            self._exchange()
        self._connection_lost = not keeps_connection(self._ledger, request)
        return not self._connection_lost

    def finish(self) -> None:
        """Read every acknowledged write back, on the same connection and on a fresh one."""
        if not self._connection_lost:
            self._read_back(self._connection)
        self._connection.close()
        fresh = OneConnection(self._ledger, self._address)
        self._read_back(fresh)
        fresh.close()

    def _exchange(self) -> None:
        key = f"{self.prefix}:{self._sequence % self._keys_max}"
        value = f"{self._sequence}:{secrets.token_hex(1 + secrets.randbelow(_VALUE_BYTES_MAX))}".encode()
        earlier = f"{self.prefix}:{secrets.randbelow(max(len(self._acknowledged), 1))}"
        self._sequence += 1
        self._unknown = key
        commands: list[Command] = [
            ("INCR", f"{self.prefix}:count"),
            ("SET", key, value),
            ("GET", key),
            ("GET", earlier),
        ]
        count, stored, read, old = self._connection.ask(commands)
        if stored is not True:
            raise WrongBytesError(f"SET answered {stored!r}")
        self._unknown = None
        self._acknowledged[key] = value
        self._lost.discard(key)
        self._judge_count(count)
        self._judge_value(key, read)
        self._judge_value(earlier, old)

    def _judge_count(self, count: object) -> None:
        expected, self._counter = self._counter + 1, count if isinstance(count, int) else self._counter + 1
        if not isinstance(count, int) or count > expected:
            raise WrongBytesError(f"INCR answered {count!r} instead of {expected}")
        if count < expected:
            self._ledger.writes_lost(expected - count, f"{self.name}: INCR answered {count} instead of {expected}")

    def _judge_value(self, key: str, value: object) -> None:
        expected = self._acknowledged.get(key)
        if expected is None or value == expected or key == self._unknown or key in self._lost:
            return
        if value is not None and not is_older(value, expected):
            raise WrongBytesError(f"GET {key} answered something that was never written")
        self._lost.add(key)
        found = "gone" if value is None else "an older value"
        self._ledger.writes_lost(1, f"{self.name}: the acknowledged write of {key} is {found}")

    def _read_back(self, connection: OneConnection) -> None:
        keys = iter(self._acknowledged)
        with self._ledger.request("readback", self.name) as request:
            self._judge_final_count(connection.ask([("GET", f"{self.prefix}:count")])[0])
        while keeps_connection(self._ledger, request) and (some := list(islice(keys, READBACK_KEYS))):
            with self._ledger.request("readback", self.name) as request:
                for key, value in zip(some, connection.ask([("GET", key) for key in some]), strict=True):
                    self._judge_value(key, value)

    def _judge_final_count(self, value: object) -> None:
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else "0"
        if not text.isdecimal():
            raise WrongBytesError(f"the counter reads {text!r}")
        count = int(text)
        if count > self._counter + (self._unknown is not None):
            raise WrongBytesError(f"the counter reads {count} after {self._counter} acknowledged increments")
        if count < self._counter:
            lost, self._counter = self._counter - count, count
            self._ledger.writes_lost(lost, f"{self.name}: {lost} acknowledged increments are gone")


def is_older(value: object, expected: bytes) -> bool:
    """Whether `value` is one that this client wrote before `expected` (both start with their number)."""
    number = value.split(b":", 1)[0] if isinstance(value, bytes) else b""
    return number.isdigit() and int(number) < int(expected.split(b":", 1)[0])
