"""A PostgreSQL client that remembers each transaction the server acknowledged, and asks for all of them in the end.

Guarantees: one connection, never reopened; every transaction inserts a row and counts up another, and must find the
counter exactly one higher than before; one whose COMMIT was never answered is unknown, neither lost nor kept; a loss
is counted once. Memory is bounded: of old transactions only the row count and the counter are still checked.
"""

import hashlib
import secrets
import select
import time
from collections.abc import Callable, Sequence

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

from pycolo.demo.load_echo import TIMEOUT_S, keeps_connection
from pycolo.demo.load_ledger import SET_UP, Ledger, Request, UnansweredError, WrongBytesError

REMEMBERED_MAX = 20_000
READBACK_ROWS = 500
_PAYLOAD_BYTES_MAX = 200

_INSERT = "INSERT INTO load_transactions (client, number, payload) VALUES ($1, $2, $3)"
_COUNT_UP = (
    "INSERT INTO load_counters AS c (client, count) VALUES ($1, 1)"
    " ON CONFLICT (client) DO UPDATE SET count = c.count + 1 RETURNING count"
)
_READ = "SELECT number, payload FROM load_transactions WHERE client = $1 AND number = ANY ($2::bigint[])"
_TOTALS = (
    "SELECT count(*), coalesce((SELECT count FROM load_counters WHERE client = $1), 0)"
    " FROM load_transactions WHERE client = $1"
)

Rows = list[tuple[bytes, ...]]


class OneConnection:
    """Statements over one connection, each within TIMEOUT_S; errors come as OSError.

    libpq as it is, since psycopg's own Connection waits for an answer without a limit.
    """

    def __init__(self, ledger: Ledger, address: tuple[str, int]) -> None:
        self._ledger = ledger
        # Without these libpq would try TLS and Kerberos first, each over a connection of its own.
        plain = "sslmode=disable gssencmode=disable"
        self._conninfo = f"host={address[0]} port={address[1]} user=postgres dbname=postgres {plain}".encode()
        self._connection: PGconn | None = None
        self.heard: Callable[[], None] = lambda: None  # called at each answer: the wait starts anew

    def open(self) -> None:
        """Connect, unless that has been done; the server starts a process for it, which takes its time."""
        if self._connection is None:
            self._connection = pq.PGconn.connect_start(self._conninfo)
            _finish_opening(self._connection, time.monotonic() + TIMEOUT_S)
            self._ledger.connection_opened()

    def ask(self, statement: str, *values: str) -> Rows:
        """All rows of the answer; ConnectionResetError, TimeoutError or UnansweredError."""
        return _rows(self._answer(statement, values))

    def commit(self) -> None:
        """End the transaction; UnansweredError when the server says that it took none of it."""
        if (status := self._answer("COMMIT", ()).command_status) != b"COMMIT":
            raise UnansweredError(f"COMMIT was answered by {status!r}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.finish()

    def _answer(self, statement: str, values: Sequence[str]) -> PGresult:
        deadline_s = time.monotonic() + TIMEOUT_S
        self.open()
        assert self._connection is not None
        try:
            self._connection.send_query_params(statement.encode(), [value.encode() for value in values])
            result = _last_result(self._connection, deadline_s)
        except psycopg.OperationalError as error:
            raise ConnectionResetError(str(error).strip()) from error
        self.heard()
        if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            return result
        if self._connection.status != pq.ConnStatus.OK:
            raise ConnectionResetError(result.get_error_message())
        raise UnansweredError(f"PostgreSQL answered with an error: {result.get_error_message()}")


def _finish_opening(connection: PGconn, deadline_s: float) -> None:
    state = pq.PollingStatus.WRITING
    while state != pq.PollingStatus.OK:
        if state == pq.PollingStatus.FAILED:
            raise ConnectionResetError(connection.get_error_message())
        _wait(connection, deadline_s, writable=state == pq.PollingStatus.WRITING)
        state = pq.PollingStatus(connection.connect_poll())


def _last_result(connection: PGconn, deadline_s: float) -> PGresult:
    """The answer to one statement; libpq ends it by None, and knows only then whether the connection lives."""
    last: PGresult | None = None
    while True:
        while connection.is_busy():
            _wait(connection, deadline_s, writable=False)
            connection.consume_input()
        if (result := connection.get_result()) is None:
            break
        last = result
    if last is None:
        raise ConnectionResetError("the connection ended without an answer")
    return last


def _wait(connection: PGconn, deadline_s: float, *, writable: bool) -> None:
    fds = [connection.socket]
    left_s = max(deadline_s - time.monotonic(), 0)
    if not any(select.select([] if writable else fds, fds if writable else [], [], left_s)):
        raise TimeoutError(f"no answer within {TIMEOUT_S:g} s")


def _rows(result: PGresult) -> Rows:
    columns = range(result.nfields)
    return [tuple(result.get_value(row, column) or b"" for column in columns) for row in range(result.ntuples)]


class DatabaseClient:
    """Commits numbered transactions, reads back new and old ones."""

    def __init__(
        self, name: str, ledger: Ledger, address: tuple[str, int], remembered_max: int = REMEMBERED_MAX
    ) -> None:
        self.name = name
        self._ledger = ledger
        self._address = address
        self._remembered_max = remembered_max
        self.client = secrets.token_hex(4)
        self._connection = OneConnection(ledger, address)
        self._connection_lost = False
        self._next = 0
        self._digests: dict[int, bytes] = {}
        self._rows = 0
        self._count = 0
        self._unknown = 0
        self._lost: set[int] = set()

    @property
    def acknowledged(self) -> int:
        """How many transactions the server has acknowledged."""
        return self._next - self._unknown

    def step(self) -> bool:
        if not self._next:
            with self._ledger.request(SET_UP, self.name) as request:
                self._connection.open()
            if not self._keeps(request):
                return False
        with self._ledger.request("database", self.name) as request:
            self._connection.heard = request.heard
            self._transact()
            self._look_back()
        return self._keeps(request)

    def _keeps(self, request: Request) -> bool:
        self._connection_lost = not keeps_connection(self._ledger, request)
        return not self._connection_lost

    def finish(self) -> None:
        """Read every acknowledged transaction back, on the same connection and on a fresh one."""
        self.finish_at(self._address)

    def finish_at(self, address: tuple[str, int]) -> None:
        """As `finish`, with the fresh connection to where the database is now."""
        if not self._connection_lost:
            self._read_back(self._connection)
        self._connection.close()
        fresh = OneConnection(self._ledger, address)
        self._read_back(fresh)
        fresh.close()

    def _transact(self) -> None:
        number, self._next = self._next, self._next + 1
        payload = secrets.token_hex(1 + secrets.randbelow(_PAYLOAD_BYTES_MAX))
        self._unknown = 1
        self._connection.ask("BEGIN")
        self._connection.ask(_INSERT, self.client, str(number), payload)
        answer = self._connection.ask(_COUNT_UP, self.client)
        self._connection.commit()
        self._unknown = 0
        self._remember(number, payload)
        self._judge_count(int(answer[0][0]))

    def _remember(self, number: int, payload: str) -> None:
        self._rows += 1
        self._digests[number] = _digest(payload.encode())
        if len(self._digests) > self._remembered_max:
            del self._digests[next(iter(self._digests))]

    def _judge_count(self, count: int) -> None:
        expected, self._count = self._count + 1, count
        if count > expected:
            raise WrongBytesError(f"the counter says {count} instead of {expected}")
        if count < expected:
            self._ledger.writes_lost(expected - count, f"{self.name}: the counter says {count} instead of {expected}")

    def _look_back(self) -> None:
        newest = self._next - 1
        old = newest - secrets.randbelow(len(self._digests))
        self._judge_rows([newest, old], self._read(self._connection, [newest, old]))

    def _read(self, connection: OneConnection, numbers: Sequence[int]) -> Rows:
        return connection.ask(_READ, self.client, f"{{{','.join(map(str, numbers))}}}")

    def _judge_rows(self, numbers: Sequence[int], rows: Rows) -> None:
        found = {int(number): payload for number, payload in rows}
        for number in numbers:
            if number not in found and number not in self._lost:
                self._lost.add(number)
                self._ledger.writes_lost(1, f"{self.name}: the acknowledged transaction {number} is gone")
        if wrong := [number for number in found if _digest(found[number]) != self._digests[number]]:
            raise WrongBytesError(f"transaction {wrong[0]} holds something that was never written")

    def _read_back(self, connection: OneConnection) -> None:
        numbers = list(self._digests)
        for start in range(0, len(numbers), READBACK_ROWS):
            some = numbers[start : start + READBACK_ROWS]
            with self._ledger.request("readback", self.name) as request:
                self._judge_rows(some, self._read(connection, some))
            if not keeps_connection(self._ledger, request):
                return
        with self._ledger.request("readback", self.name) as request:
            rows, count = connection.ask(_TOTALS, self.client)[0]
            self._judge_totals(int(rows), int(count))
        keeps_connection(self._ledger, request)

    def _judge_totals(self, rows: int, count: int) -> None:
        rows_lost = self._rows - len(self._lost) - rows
        counts_lost = self._count - count
        self._rows -= max(rows_lost, 0)
        self._count -= max(counts_lost, 0)
        if (lost := max(rows_lost, 0) + max(counts_lost, 0)) > 0:
            self._ledger.writes_lost(lost, f"{self.name}: of what was acknowledged, {lost} rows or increments are gone")
        if min(rows_lost, counts_lost) < -self._unknown:
            raise WrongBytesError(f"{rows} rows and a counter of {count} after {self.acknowledged} transactions")
        if {rows_lost, counts_lost} == {0, -1}:
            raise WrongBytesError("the transaction without an answer took effect by half")


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=8).digest()
