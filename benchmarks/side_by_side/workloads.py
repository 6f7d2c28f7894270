"""What clients do to the guest: well-known tools where there are any, each read for its rate and its latencies.

Guarantees
* Every contestant gets the same command from the same place. A tool that does not end in time, or whose answers
  contain an error, is a failure of the contestant and is shown as one.
* `rate` is better when it is higher; what it counts stands in `unit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.demo.report import quantile
from pycolo.edge.namespaces import Namespace

from .subject import DeadError, Row, Subject

CLIENTS = Path(__file__).parent / "clients.py"
TOOL_OVERTIME_S = 30.0
MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}
COMPUTE_ROUNDS_S = 30  # how many a second, about
TRANSACTION = "INSERT INTO bench(value) VALUES (random()::text);\n"
TABLE = "DROP TABLE IF EXISTS bench; CREATE TABLE bench(number serial PRIMARY KEY, value text);"


@dataclass(frozen=True)
class Workload:
    """`asks` says that a checkpoint is asked for each second, so that pauses can be compared."""

    unit: str
    run: Callable[[Subject, float], Awaitable[Row]]
    disk: bool = False
    asks: bool = False


async def tool(clients: Namespace, seconds: float, *command: str, feed: bytes = b"") -> str:
    """What a tool says in the clients' namespace. Raises DeadError."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *clients.prefix(), *command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complaint = await asyncio.wait_for(process.communicate(feed), seconds + TOOL_OVERTIME_S)
    except TimeoutError:
        raise DeadError(f"{command[0]} did not end in time: no answer comes any more") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        raise DeadError(f"{Path(command[0]).name}: {complaint.decode(errors='replace').strip()[-200:]}")
    return said.decode(errors="replace")


# ---------------------------------------------------------------- nginx


def asked(url: str, figures: Callable[[str], Row], *command: str) -> Callable[[Subject, float], Awaitable[Row]]:
    """A tool that downloads `url` for as long as `{seconds}` in its command says; `figures` reads its report."""

    async def run(subject: Subject, seconds: float) -> Row:
        words = [word.format(seconds=f"{seconds:.0f}") for word in command]
        return figures(await tool(subject.clients, seconds, *words, url))

    return run


def wrk(path: str, connections: int, *, keep: bool) -> Callable[[Subject, float], Awaitable[Row]]:
    """Downloads with wrk."""
    closing = [] if keep else ["-H", "Connection: close"]
    command = ("wrk", "-t1", f"-c{connections}", "-d{seconds}s", "--timeout", "20s", "--latency", *closing)
    return asked(f"http://{GUEST_ADDRESS}/{path}", wrk_figures, *command)


def wrk_figures(said: str) -> Row:
    """The figures in wrk's report. Raises DeadError when an answer was wrong or none came."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", said, re.MULTILINE)
    count = re.search(r"^\s+(\d+) requests in", said, re.MULTILINE)
    latencies = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+[a-z]+)", said, re.MULTILINE))
    if rate is None or count is None or not int(count.group(1)):
        raise DeadError("wrk got no answer")
    row: Row = {"rate": float(rate.group(1)), "requests": int(count.group(1)), "failed": 0}
    row |= {f"p{part}_ms": _microseconds(latency) / 1e3 for part, latency in latencies.items()}
    for pattern in (r"Non-2xx or 3xx responses: (\d+)", r"Socket errors: (.*)"):
        for found in re.findall(pattern, said):
            row["failed"] += sum(int(number) for number in re.findall(r"\d+", found))
    return row


def _microseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)([a-z]+)", text)
    assert found is not None
    return float(found.group(1)) * MICROSECONDS[found.group(2)]


def handshakes(path: str, connections: int) -> Callable[[Subject, float], Awaitable[Row]]:
    """Downloads over HTTPS with ApacheBench, a whole handshake for each.

    wrk would resume its sessions, and while it waits for a handshake it keeps a core busy that the contestants lack.
    """
    command = ("ab", "-q", "-c", str(connections), "-t", "{seconds}", "-n", "1000000", "-s", "20")
    return asked(f"https://{GUEST_ADDRESS}/{path}", ab_figures, *command)


def ab_figures(said: str) -> Row:
    """The figures in ApacheBench's report, latencies from connecting to the last byte. Raises DeadError as above.

    It counts a request that failed among the complete ones, so these are taken out again.
    """
    rate = re.search(r"^Requests per second:\s+([\d.]+)", said, re.MULTILINE)
    count = re.search(r"^Complete requests:\s+(\d+)", said, re.MULTILINE)
    wrong = re.findall(r"^(?:Failed requests|Non-2xx responses):\s+(\d+)", said, re.MULTILINE)
    complete, failed = int(count.group(1)) if count else 0, max(map(int, wrong), default=0)
    if rate is None or complete <= failed:
        raise DeadError("ab got no answer")
    latencies = dict(re.findall(r"^\s+(50|99)%\s+(\d+)", said, re.MULTILINE))
    return {
        "rate": float(rate.group(1)) * (complete - failed) / complete,
        "requests": complete - failed,
        "failed": failed,
        **{f"p{part}_ms": float(latency) for part, latency in latencies.items()},
    }


# ---------------------------------------------------------------- Redis


def redis(test: str, pipeline: int) -> Callable[[Subject, float], Awaitable[Row]]:
    """redis-benchmark: it counts requests, not seconds, so that a short run says how many there have to be."""

    async def run(subject: Subject, seconds: float) -> Row:
        short = await _redis(subject, test, pipeline, 200 * pipeline, seconds)
        return await _redis(subject, test, pipeline, max(200, int(short["rate"] * seconds)), seconds * 4)

    return run


async def _redis(subject: Subject, test: str, pipeline: int, count: int, seconds: float) -> Row:
    said = await tool(
        subject.clients,
        seconds,
        *("redis-benchmark", "-h", GUEST_ADDRESS, "-c", "8", "-t", test, "-P", str(pipeline), "-n", str(count)),
        *("-d", "64", "-r", "10000", "--csv"),
    )
    rows = [row for row in csv.DictReader(said.splitlines()) if row.get("test", "").lower() == test]
    if not rows:
        raise DeadError(f"redis-benchmark got no answer: {said[-200:].strip()!r}")
    row = rows[0]
    latencies = {f"p{part}_ms": float(row[f"p{part}_latency_ms"]) for part in (50, 99)}
    return {"rate": float(row["rps"]), "requests": count, "failed": 0, **latencies}


# ---------------------------------------------------------------- PostgreSQL


async def commits(subject: Subject, seconds: float) -> Row:
    """pgbench: two clients, each commit an insertion that has to be on the disk."""
    address = ("-h", GUEST_ADDRESS, "-U", "postgres", "postgres")
    await tool(subject.clients, seconds, "psql", "-q", *address, "-c", TABLE)
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as folder:
        script = Path(folder, "insert.sql")
        script.write_text(TRANSACTION)
        logs = Path(folder, "log")
        said = await tool(
            subject.clients,
            seconds,
            *("pgbench", "-n", "-c", "2", "-T", f"{seconds:.0f}", "-f", str(script), "-l", f"--log-prefix={logs}"),
            *address,
        )
        times = [int(line.split()[2]) / 1e3 for log in Path(folder).glob("log.*") for line in log.open()]
    found = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    if found is None or len(times) < 2:
        raise DeadError("pgbench got no answer")
    failed = re.search(r"number of failed transactions: (\d+)", said)
    latencies = {"p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99)}
    row: Row = {"rate": float(found.group(1)), "requests": len(times), **latencies}
    return row | {"failed": int(failed.group(1)) if failed else 0}


# ---------------------------------------------------------------- our own clients


async def own(subject: Subject, kind: str, number: float, seconds: float, feed: bytes = b"") -> Row:
    """A client of clients.py. Raises DeadError."""
    said = await tool(
        subject.clients, seconds, sys.executable, str(CLIENTS), GUEST_ADDRESS, kind, f"{number:g}", feed=feed
    )
    row: Row = json.loads(said)
    return row


def bulk(direction: str) -> Callable[[Subject, float], Awaitable[Row]]:
    """One connection that only sends or only takes."""

    async def run(subject: Subject, seconds: float) -> Row:
        return {"failed": 0} | await own(subject, direction, seconds, seconds)

    return run


async def compute(subject: Subject, seconds: float) -> Row:
    """A job of a fixed size, however long it takes."""
    return {"failed": 0} | await own(subject, "compute", COMPUTE_ROUNDS_S * seconds, seconds + 90)


def dirtying(mib_per_s: int) -> Callable[[Subject, float], Awaitable[Row]]:
    """Small downloads while a program of the guest writes so much memory."""
    serving = wrk("small.bin", 4, keep=True)

    async def run(subject: Subject, seconds: float) -> Row:
        await own(subject, "dirty", mib_per_s, seconds)
        await asyncio.sleep(1.0)
        row = await serving(subject, seconds)
        await own(subject, "dirty", 0, seconds)
        return row

    return run


async def idle(_: Subject, seconds: float) -> Row:
    """Nothing."""
    await asyncio.sleep(seconds)
    return {"rate": 0.0, "failed": 0}


async def failover(subject: Subject, seconds: float) -> Row:
    """All of the primary's processes die; how long one client's connection is silent."""
    if subject.kill is None:
        return {"rate": 0.0, "failed": 0}
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *subject.clients.prefix(), sys.executable, str(CLIENTS)),
        *(GUEST_ADDRESS, "gap", f"{seconds:g}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await asyncio.sleep(2.0)
        killed_s = await subject.kill()
        subject.primary.clear()
        said, complaint = await asyncio.wait_for(process.communicate(b"%r\n" % killed_s), seconds + TOOL_OVERTIME_S)
    except (TimeoutError, ConnectionError):
        raise DeadError("no answer comes any more after the primary's death") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        raise DeadError(complaint.decode(errors="replace").strip()[-200:])
    return {"rate": 0.0, "failed": 0, "gap_ms": json.loads(said)["longest_ms"]}


WORKLOADS = {
    "idle": Workload("", idle, asks=True),
    "nginx 4 KiB": Workload("requests/s", wrk("small.bin", 8, keep=True)),
    "nginx 4 KiB, new connections": Workload("requests/s", wrk("small.bin", 8, keep=False)),
    "nginx 1 MiB": Workload("requests/s", wrk("big2.bin", 4, keep=True)),
    "nginx 1 MiB, new connections": Workload("requests/s", wrk("big2.bin", 4, keep=False)),
    "HTTPS, new handshakes": Workload("requests/s", handshakes("small.bin", 4)),
    "HTTPS, 16 clients": Workload("requests/s", handshakes("small.bin", 16)),
    "redis GET": Workload("requests/s", redis("get", 1)),
    "redis SET": Workload("requests/s", redis("set", 1), asks=True),
    "redis SET, 16 ahead": Workload("requests/s", redis("set", 16), asks=True),
    "PostgreSQL commits": Workload("commits/s", commits, disk=True, asks=True),
    "bulk upload": Workload("MB/s", bulk("upload")),
    "bulk download": Workload("MB/s", bulk("download")),
    "compute": Workload("rounds/s", compute),
    **{f"dirtying {rate} MiB/s": Workload("requests/s", dirtying(rate), asks=True) for rate in (1, 10, 50, 100)},
    "failover": Workload("", failover),
}
