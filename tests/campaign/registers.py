"""Clients with a verifiable history, a program: `python -m campaign.registers TARGET` in the clients' namespace.

Each client reads, writes and changes registers that it shares with others: in Redis, and in PostgreSQL on the disk.
Guarantees: one JSON object per line on stdout, the first when all is ready, then one when an operation begins and one
when it has its outcome, in time; an operation whose connection broke has none, and the client goes on over a new one;
ends with stdin, from which it takes the name of the registers, one per line (`r7` makes `r7:0`, `r7:1`, ...).
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pycolo.demo import load_database, load_redis
from pycolo.demo.load_ledger import Ledger, WrongBytesError, monotonic_ms

REDIS_CLIENTS, DATABASE_CLIENTS = 3, 2
REGISTERS = 2  # of each kind: few, so that clients meet
PACE_S = 0.03
AGAIN_S = 0.2
REDIS_PORT, DATABASE_PORT = 6379, 5432

TABLE = "CREATE TABLE IF NOT EXISTS campaign_registers (key text PRIMARY KEY, value text NOT NULL)"
READ = "SELECT value FROM campaign_registers WHERE key = $1"
WRITE = "INSERT INTO campaign_registers VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
CHANGE = "UPDATE campaign_registers SET value = $3 WHERE key = $1 AND value = $2 RETURNING 1"

Fields = dict[str, Any]


class Redis:
    """Registers in memory; there is no change in what the client of the load knows."""

    kinds = ("read", "write")
    store = "redis"

    def __init__(self, host: str) -> None:
        self._connection = load_redis.OneConnection(Ledger(), (host, REDIS_PORT))

    def ask(self, kind: str, key: str, value: str, expected: str | None) -> Fields:
        """What the outcome says. Raises OSError when there is none."""
        if kind == "write":
            self._connection.ask([("SET", key, value.encode())])
            return {}
        (found,) = self._connection.ask([("GET", key)])
        return {"value": found.decode() if isinstance(found, bytes) else None}

    def close(self) -> None:
        self._connection.close()


class Database:
    """Registers in a table."""

    kinds = ("read", "write", "change")
    store = "database"

    def __init__(self, host: str) -> None:
        self._connection = load_database.OneConnection(Ledger(), (host, DATABASE_PORT))
        self._ready = False

    def ask(self, kind: str, key: str, value: str, expected: str | None) -> Fields:
        """As Redis.ask."""
        if kind == "write":
            self._connection.ask(WRITE, key, value)
            return {}
        if kind == "change" and expected is not None:
            return {"done": bool(self._connection.ask(CHANGE, key, expected, value))}
        rows = self._connection.ask(READ, key)
        return {"value": rows[0][0].decode() if rows else None}

    def make_table(self) -> None:
        """Raises OSError."""
        self._connection.ask(TABLE)

    def close(self) -> None:
        self._connection.close()


class Client:
    """One thread, one operation at a time."""

    def __init__(self, who: str, connect: Callable[[], Redis | Database], say: Callable[[Fields], None]) -> None:
        self._who, self._connect, self._say = who, connect, say
        self._luck = random.Random(who)
        self.name = ""
        self._last: dict[str, str | None] = {}

    def run(self) -> None:
        """For ever."""
        for life in itertools.count():
            connection = self._connect()
            try:
                while True:
                    self._operate(connection, life)
                    time.sleep(PACE_S)
            except (OSError, WrongBytesError):
                connection.close()
                time.sleep(AGAIN_S)

    def _operate(self, connection: Redis | Database, life: int) -> None:
        if not self.name:
            return
        kind = self._luck.choice(connection.kinds)
        key = f"{self.name}:{self._luck.randrange(REGISTERS)}"
        number = f"{self._who}.{life}.{monotonic_ms():.3f}"
        expected = self._last.get(key) if kind == "change" else None
        kind = "read" if kind == "change" and expected is None else kind
        asked = {"id": number, "store": connection.store, "key": key, "kind": kind, "expected": expected}
        self._say({**asked, "value": number, "from_ms": monotonic_ms()})
        try:
            told = connection.ask(kind, key, number, expected)
        except (OSError, WrongBytesError) as problem:
            self._say({"id": number, "error": f"{type(problem).__name__}: {problem}"})
            raise
        self._say({"id": number, "until_ms": monotonic_ms(), **told})
        self._last[key] = told.get("value", number)


def main(target: str) -> int:
    """Ends with stdin."""
    lock = threading.Lock()

    def say(line: Fields) -> None:
        with lock:
            sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
            sys.stdout.flush()

    first = Database(target)
    first.make_table()
    first.close()
    say({"id": "", "ready": True})
    clients = [Client(f"redis-{i}", lambda: Redis(target), say) for i in range(REDIS_CLIENTS)]
    clients += [Client(f"database-{i}", lambda: Database(target), say) for i in range(DATABASE_CLIENTS)]
    for client in clients:
        threading.Thread(target=client.run, daemon=True).start()
    for line in sys.stdin:
        for client in clients:
            client.name = line.strip()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
