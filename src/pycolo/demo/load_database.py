"""A PostgreSQL client that remembers each transaction the server acknowledged, and asks for all of them in the end.

Guarantees: one connection, never reopened; every transaction inserts a row and counts up another, and must find the
counter exactly one higher than before; one whose COMMIT was never answered is unknown, neither lost nor kept; a loss
is counted once. Memory is bounded: of old transactions only the row count and the counter are still checked.
"""

import hashlib
import secrets
import select
import time
from collections.abc import Sequence
from itertools import islice

from psycopg import pq

from pycolo.demo.load_echo import TIMEOUT_S, keeps_connection
from pycolo.demo.load_ledger import Ledger, UnansweredError, WrongBytesError

REMEMBERED_MAX = 20_000
READBACK_ROWS = 500
_PAYLOAD_BYTES_MAX = 200

Rows = list[tuple[bytes | None, ...]]

_INSERT = "INSERT INTO load_transactions (client, number, payload) VALUES ($1, $2, $3)"
_COUNT = (
    "INSERT INTO load_counters AS c (client, count) VALUES ($1, 1)"
    " ON CONFLICT (client) DO UPDATE SET count = c.count + 1 RETURNING count"
)
_READ = "SELECT number, payload FROM load_transactions WHERE client = $1 AND number = ANY ($2::bigint[])"
_TOTALS = (
    "SELECT (SELECT count FROM load_counters WHERE client = $1), count(*) FROM load_transactions WHERE client = $1"
)


class OneConnection:
    """Statements over one connection, each within TIMEOUT_S; errors come as OSError or WrongBytesError.

    This is libpq without psycopg's Connection, which has no limit on the wait for an answer.
    """

    def __init__(self, ledger: Ledger, address: tuple[str, int]) -> None:
        self._ledger = ledger
        # No second try in another way: a connection that fails is to be seen.
        options = "user=postgres dbname=postgres sslmode=disable gssencmode=disable client_encoding=UTF8"
        self._conninfo = f"host={address[0]} port={address[1]} {options}".encode()
        self._connection: pq.abc.PGconn | None = None

    def ask(self, statement: str, *values: str) -> Rows:
        """All rows; ConnectionResetError, TimeoutError, UnansweredError or WrongBytesError."""
        deadline_s = time.monotonic() + TIMEOUT_S
        if self._connection is None:
            self._connection = self._opened(deadline_s)
        try:
            return _rows(_result(self._connection, statement, values, deadline_s))
        except pq.error.PQerror as error:
            raise ConnectionResetError(str(error)) from error

    def commit(self) -> None:
        """End the transaction; UnansweredError when the server rolled it back instead."""
        self.ask("COMMIT")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.finish()
