"""The clients of the demo, a program: `python -m pycolo.demo.load --target ADDRESS`.

Guarantees: one JSON object per line on stdout, a `tick` every 250 ms and one `result` last, also after
SIGTERM, SIGINT or the end of stdin (start it with stdin a pipe); every request begun is in the result,
finished or failed.
"""

import argparse
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from pycolo.demo.load_database import DatabaseClient
from pycolo.demo.load_echo import GIVE_UP_S, DatagramEcho, IcmpPort, TcpEcho, UdpPort
from pycolo.demo.load_http import HttpClient
from pycolo.demo.load_ledger import Ledger, monotonic_ms
from pycolo.demo.load_redis import RedisClient
from pycolo.errors import EnvironmentFault
from pycolo.guest.static_files import static_file

TICK_S = 0.25
FINISH_S_MAX = 5.0
READBACK_S_MAX = 20.0
FILES = ("index.html", "small.bin", "big.bin", "big2.bin")
DEFAULT_WORKERS = "redis=2,http=2,tcp=1,udp=1,icmp=1"
WORKERS_MAX = 32
KINDS = ("redis", "http", "tcp", "udp", "icmp", "database")


class Worker(Protocol):
    """One client: asks, verifies, writes down."""

    name: str

    def step(self) -> bool:
        """One request, outcome in the ledger; False when this client can't go on."""

    def finish(self) -> None:
        """The last checks, after the load."""


class Runner:
    """Drives each worker in a thread of its own, closed loop with a pause of `pace_ms` after each answer."""

    def __init__(self, workers: Sequence[Worker], ledger: Ledger, pace_ms: float) -> None:
        self._ledger = ledger
        self._pace_s = pace_ms / 1000
        self._stop = threading.Event()
        self._done: set[str] = set()
        self._threads = {
            worker.name: threading.Thread(target=self._drive, args=(worker,), name=worker.name, daemon=True)
            for worker in workers
        }

    def start(self) -> None:
        for thread in self._threads.values():
            thread.start()

    def _drive(self, worker: Worker) -> None:
        while worker.step() and not self._stop.wait(self._pace_s):
            pass
        self._stop.wait()  # a client that lost its connection does its last checks with the others
        worker.finish()
        self._done.add(worker.name)

    def stop(self) -> None:
        """No new requests; those outstanding have FINISH_S_MAX, the last checks READBACK_S_MAX more."""
        stopped_ms = monotonic_ms()
        self._stop.set()
        self._join(stopped_ms + FINISH_S_MAX * 1000)
        self._ledger.expire(f"no answer within {FINISH_S_MAX:g} s after the load", stopped_ms)
        self._join(stopped_ms + (FINISH_S_MAX + READBACK_S_MAX) * 1000)
        self._ledger.expire("no answer before the end of the last checks")
        for name in self._threads.keys() - self._done:
            self._ledger.trouble(name.split("-")[0], f"{name} did not come to its end")

    def _join(self, until_ms: float) -> None:
        for thread in self._threads.values():
            thread.join(max(until_ms - monotonic_ms(), 0) / 1000)


def parse_workers(text: str) -> dict[str, int]:
    """`redis=2,http=1` -> counts by kind; argparse.ArgumentTypeError with a sentence for anything else."""
    counts: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        kind, _, number = part.partition("=")
        if kind not in KINDS or not number.isdecimal():
            raise argparse.ArgumentTypeError(f"{part!r} is not KIND=NUMBER with KIND one of {', '.join(KINDS)}")
        counts[kind] = int(number)
    if not 1 <= sum(counts.values()) <= WORKERS_MAX:
        raise argparse.ArgumentTypeError(f"between 1 and {WORKERS_MAX} workers are possible")
    return counts


def make_workers(
    counts: Mapping[str, int],
    ledger: Ledger,
    host: str,
    ports: Mapping[str, int],
    contents: Mapping[str, bytes],
    ask_s: float,
) -> list[Worker]:
    """The workers asked for; `ports` has redis, http, echo and database; every second HTTP client keeps its connection.
    UDP and ICMP clients ask for `ask_s`.

    EnvironmentFault when a socket can't be made.
    """
    redis_at, http_at, echo_at, database_at = ((host, ports[name]) for name in ("redis", "http", "echo", "database"))
    makers: dict[str, Callable[[str, int], Worker]] = {
        "redis": lambda name, _: RedisClient(name, ledger, redis_at),
        "http": lambda name, i: HttpClient(name, ledger, http_at, contents, keep_alive=i % 2 == 0),
        "tcp": lambda name, _: TcpEcho(name, ledger, echo_at),
        "udp": lambda name, _: DatagramEcho("udp", name, ledger, UdpPort(echo_at), ask_s),
        "icmp": lambda name, _: DatagramEcho("icmp", name, ledger, IcmpPort(host), ask_s),
        "database": lambda name, _: DatabaseClient(name, ledger, database_at),
    }
    try:
        return [makers[kind](f"{kind}-{i}", i) for kind, count in counts.items() for i in range(count)]
    except PermissionError as error:
        raise EnvironmentFault("ICMP clients need a raw socket: run as root or leave icmp out.") from error
    except OSError as error:
        raise EnvironmentFault(f"No client can reach {host} ({error}): check the address and the route.") from error


def run(
    runner: Runner, ledger: Ledger, stops: Callable[[float], bool], emit: Callable[[dict[str, object]], None]
) -> None:
    """Load until `stops(wait_s)` says so or `emit` raises; then the last tick and the result."""
    runner.start()
    try:
        while not stops(TICK_S):
            emit(ledger.tick())
    finally:
        runner.stop()
    emit(ledger.tick())
    emit(ledger.result())


class StopRequests:
    """True once SIGTERM or SIGINT came, stdin ended, or the time is over."""

    def __init__(self, seconds_max: float) -> None:
        self._until_ms = monotonic_ms() + seconds_max * 1000
        self._woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._noticed)

    def _noticed(self, number: int, frame: FrameType | None) -> None:
        """Nothing to do: the wake-up descriptor tells."""

    def __call__(self, wait_s: float) -> bool:
        until_ms = monotonic_ms() + wait_s * 1000
        while (left_ms := min(until_ms, self._until_ms) - monotonic_ms()) > 0:
            ready, _, _ = select.select([0, self._woken], [], [], left_ms / 1000)
            if self._woken in ready or (0 in ready and not os.read(0, 4096)):
                return True
        return monotonic_ms() >= self._until_ms


def read_contents(folder: Path | None) -> dict[str, bytes]:
    """What the HTTP server must answer: the guest's own files, or those of a folder."""
    if folder is not None:
        return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    return {name: static_file(name) for name in FILES}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pycolo.demo.load", description=__doc__)
    parser.add_argument("--target", required=True, help="IPv4 address of the guest")
    parser.add_argument("--redis-port", type=int, default=6379)
    parser.add_argument("--http-port", type=int, default=80)
    parser.add_argument("--echo-port", type=int, default=7, help="TCP and UDP")
    parser.add_argument("--database-port", type=int, default=5432)
    parser.add_argument("--workers", type=parse_workers, default=DEFAULT_WORKERS, help="default %(default)s")
    parser.add_argument("--pace-ms", type=float, default=8.0, help="pause after each answer")
    parser.add_argument(
        "--ask-s", type=float, default=GIVE_UP_S, help="how long UDP and ICMP clients repeat a question"
    )
    parser.add_argument("--seconds-max", type=float, default=600.0)
    parser.add_argument("--contents", type=Path, help="folder with the files that HTTP must answer")
    return parser.parse_args(argv)


def _emit(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """0 with the result written, good or bad; 1 when nobody listens to stdout; 2 when it can't run."""
    arguments = _arguments(argv)
    try:
        return _load(arguments)
    except EnvironmentFault as fault:
        sys.stderr.write(f"{fault}\n")
        return fault.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails
        return 1


def _load(arguments: argparse.Namespace) -> int:
    stops = StopRequests(arguments.seconds_max)
    contents = read_contents(arguments.contents) if arguments.workers.get("http") else {}
    ports = {name: getattr(arguments, f"{name}_port") for name in ("redis", "http", "echo", "database")}
    ledger = Ledger()
    workers = make_workers(arguments.workers, ledger, arguments.target, ports, contents, arguments.ask_s)
    run(Runner(workers, ledger, arguments.pace_ms), ledger, stops, _emit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
