"""The database client against a real PostgreSQL: a good one leaves no mark, each fault moves the right counter."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pycolo.demo import load_database
from pycolo.demo.load import DEFAULT_WORKERS, Runner
from pycolo.demo.load_database import DatabaseClient
from pycolo.demo.load_ledger import Ledger
from pycolo.guest import disk_image

LOCALHOST = "127.0.0.1"
PROGRAMS = Path("/usr/lib/postgresql/15/bin")
SETTINGS = Path(disk_image.__file__).parent / "database"
USER = "postgres" if os.geteuid() == 0 else None
START_S_MAX = 30.0
ALL_WELL = (0, 0, 0, 0, True)

Address = tuple[str, int]
Meddler = Callable[[psycopg.Connection, DatabaseClient], None]


@pytest.fixture(scope="module")
def database_at() -> Iterator[Address]:
    """A server with the guest's settings and tables; it refuses to be root, so it gets a folder outside root's own."""
    with socket.create_server((LOCALHOST, 0)) as probe:
        port: int = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="pycolo-test-"))
    if USER is not None:
        shutil.chown(folder, USER, USER)
    options = f"-D {folder}/cluster -U postgres -A trust --locale=C --encoding=UTF8 --no-sync"
    subprocess.run([PROGRAMS / "initdb", *options.split()], user=USER, check=True, cwd="/", capture_output=True)
    settings = ["-D", f"{folder}/cluster", "-c", f"config_file={SETTINGS}/postgresql.conf", "-c", f"port={port}"]
    server = subprocess.Popen([PROGRAMS / "postgres", *settings], user=USER, cwd="/", stderr=subprocess.DEVNULL)
    try:
        wait_for_server(port)
        with meddling((LOCALHOST, port)) as connection:
            connection.execute((SETTINGS / "tables.sql").read_bytes())
        yield (LOCALHOST, port)
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(folder)


def wait_for_server(port: int) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while True:
        try:
            meddling((LOCALHOST, port)).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline_s, "PostgreSQL does not start"
            time.sleep(0.05)
        else:
            return


def meddling(address: Address) -> psycopg.Connection:
    plain = "sslmode=disable gssencmode=disable"
    return psycopg.connect(
        f"host={address[0]} port={address[1]} user=postgres dbname=postgres {plain}", autocommit=True
    )


def counters(result: dict[str, Any]) -> tuple[int, int, int, int, bool]:
    names = ("failed", "reset", "wrong_bytes", "lost_acknowledged")
    failed, resets, wrong, lost = (result[name] for name in names)
    return failed, resets, wrong, lost, result["connections_kept"]


def delete_a_row(connection: psycopg.Connection, worker: DatabaseClient) -> None:
    deleted = connection.execute("DELETE FROM load_transactions WHERE client = %s AND number = 0", [worker.client])
    assert deleted.rowcount == 1


def count_down(connection: psycopg.Connection, worker: DatabaseClient) -> None:
    connection.execute("UPDATE load_counters SET count = count - 3 WHERE client = %s", [worker.client])


def count_up(connection: psycopg.Connection, worker: DatabaseClient) -> None:
    connection.execute("UPDATE load_counters SET count = count + 1 WHERE client = %s", [worker.client])


def forget_the_counter(connection: psycopg.Connection, worker: DatabaseClient) -> None:
    connection.execute("DELETE FROM load_counters WHERE client = %s", [worker.client])


def add_the_next_row(connection: psycopg.Connection, worker: DatabaseClient) -> None:
    connection.execute("INSERT INTO load_transactions VALUES (%s, %s, '')", [worker.client, worker.acknowledged])


def spoil_a_row(connection: psycopg.Connection, worker: DatabaseClient) -> None:
    change = "UPDATE load_transactions SET payload = 'junk' WHERE client = %s AND number = 0"
    connection.execute(change, [worker.client])


def cut(connection: psycopg.Connection, worker: DatabaseClient) -> None:
    connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


@pytest.mark.parametrize(
    ("meddle", "expected"),
    [
        (None, ALL_WELL),
        (delete_a_row, (0, 0, 0, 1, True)),
        (count_down, (0, 0, 0, 3, True)),
        (count_up, (0, 0, 1, 0, True)),
        (cut, (0, 1, 0, 0, False)),
    ],
    ids=["good", "lost row", "lost increments", "phantom increment", "cut"],
)
def test_under_load(database_at: Address, meddle: Meddler | None, expected: tuple[int, int, int, int, bool]) -> None:
    ledger = Ledger()
    worker = DatabaseClient("database-0", ledger, database_at)
    runner = Runner([worker], ledger, pace_ms=2)
    with meddling(database_at) as connection:
        runner.start()
        deadline_s = time.monotonic() + START_S_MAX
        while worker.acknowledged <= 10:
            assert time.monotonic() < deadline_s, "the database does not get on"
            time.sleep(0.05)
        if meddle is not None:
            meddle(connection, worker)
        time.sleep(0.3)
        runner.stop()
    result: dict[str, Any] = ledger.result()
    assert counters(result) == expected, result["errors"]
    assert result["connections_opened"] == 2, "one for the load, a fresh one for the last check"
    assert result["by_kind"]["readback"]["requests"] >= 2


@pytest.mark.parametrize(
    ("meddle", "wrong", "lost"),
    [
        (delete_a_row, 0, 1),
        (forget_the_counter, 0, 8),
        (count_down, 0, 3),
        (count_up, 2, 0),
        (add_the_next_row, 2, 0),
        (spoil_a_row, 2, 0),
    ],
)
def test_after_the_load_both_last_checks_see_it_and_a_loss_counts_once(
    database_at: Address, meddle: Meddler, wrong: int, lost: int
) -> None:
    ledger = Ledger()
    worker = DatabaseClient("database-0", ledger, database_at)
    assert all(worker.step() for _ in range(8))
    with meddling(database_at) as connection:
        meddle(connection, worker)
    worker.finish()
    assert counters(ledger.result()) == (0, 0, wrong, lost, True), ledger.result()["errors"]


def test_all_gone(database_at: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_database, "READBACK_ROWS", 7)
    ledger = Ledger()
    worker = DatabaseClient("database-0", ledger, database_at)
    assert all(worker.step() for _ in range(20))
    with meddling(database_at) as connection:
        connection.execute("TRUNCATE load_transactions, load_counters")
    worker.finish()
    assert ledger.result()["lost_acknowledged"] == 40, "20 rows and 20 increments, each once"


def test_a_forgotten_row_is_still_counted(database_at: Address) -> None:
    ledger = Ledger()
    worker = DatabaseClient("database-0", ledger, database_at, remembered_max=4)
    assert all(worker.step() for _ in range(12))
    with meddling(database_at) as connection:
        delete_a_row(connection, worker)
    worker.finish()
    assert counters(ledger.result()) == (0, 0, 0, 1, True), ledger.result()["errors"]


@pytest.mark.parametrize(
    ("effects", "wrong"),
    [((), 0), ((add_the_next_row, count_up), 0), ((add_the_next_row,), 1), ((count_up,), 1)],
    ids=["none of it", "all of it", "the row only", "the counter only"],
)
def test_a_transaction_without_an_answer_took_effect_wholly_or_not(
    database_at: Address, effects: tuple[Meddler, ...], wrong: int
) -> None:
    ledger = Ledger()
    worker = DatabaseClient("database-0", ledger, database_at)
    assert worker.step()
    with meddling(database_at) as connection:
        for effect in effects:
            effect(connection, worker)
        cut(connection, worker)
    assert not worker.step()
    worker.finish()
    assert counters(ledger.result()) == (0, 1, wrong, 0, False), ledger.result()["errors"]


def test_an_error_of_the_server_is_a_failure_not_a_loss(database_at: Address) -> None:
    ledger = Ledger()
    worker = DatabaseClient("database-0", ledger, database_at)
    assert worker.step()
    with meddling(database_at) as connection:
        connection.execute("ALTER TABLE load_counters RENAME TO hidden")
        assert not worker.step()
        connection.execute("ALTER TABLE hidden RENAME TO load_counters")
    worker.finish()
    assert counters(ledger.result()) == (1, 0, 0, 0, False)
    assert "does not exist" in str(ledger.result()["errors"])


def test_a_server_that_never_answers_is_a_failure_in_time(
    database_at: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_database, "TIMEOUT_S", 0.5)
    ledger = Ledger()
    worker = DatabaseClient("database-0", ledger, database_at)
    assert worker.step()
    with meddling(database_at) as connection, connection.transaction():
        connection.execute("LOCK TABLE load_counters IN ACCESS EXCLUSIVE MODE")
        assert not worker.step()
    worker.finish()
    assert counters(ledger.result()) == (1, 0, 0, 0, False), ledger.result()["errors"]
    assert "no answer within 0.5 s" in str(ledger.result()["errors"])


def test_nobody_listening_is_noticed() -> None:
    ledger = Ledger()
    with socket.create_server((LOCALHOST, 0)) as listener:
        address = listener.getsockname()
    assert not DatabaseClient("database-0", ledger, address).step()
    assert counters(ledger.result()) == (0, 1, 0, 0, False)


def test_the_program_has_the_worker_when_asked(database_at: Address) -> None:
    assert "database" not in DEFAULT_WORKERS
    argv = [sys.executable, "-m", "pycolo.demo.load", "--target", LOCALHOST, "--database-port", str(database_at[1])]
    argv += ["--workers", "database=2", "--seconds-max", "0.6"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(line) for line in process.stdout]
    assert counters(lines[-1]) == ALL_WELL, lines[-1]["errors"]
    assert lines[-1]["by_kind"]["database"]["requests"] > 10
