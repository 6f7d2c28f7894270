"""The load clients against servers of our own on loopback: good ones leave no mark, each fault moves the right counter.

Redis is the real redis-server.
"""

import contextlib
import http.server
import json
import select
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from pycolo.demo import load
from pycolo.demo.load import Runner, Worker, main, parse_workers
from pycolo.demo.load_echo import (
    DatagramEcho,
    IcmpPort,
    NumberedPayloads,
    TcpEcho,
    UdpPort,
    icmp_echo,
    icmp_reply_payload,
    internet_checksum,
)
from pycolo.demo.load_http import HttpClient
from pycolo.demo.load_ledger import SAMPLES_PER_TICK_MAX, Ledger, WrongBytesError, thin
from pycolo.demo.load_redis import RedisClient
from pycolo.guest.static_files import static_file

CONTENTS = {name: static_file(name) for name in ("index.html", "small.bin", "big.bin", "big2.bin")}
LOCALHOST = "127.0.0.1"


class ResetNow(Exception):
    """A fault's order to its server: reset this connection."""


class CloseNow(Exception):
    """A fault's order to its server: close this connection in order."""


Fault = Callable[[int, bytes], bytes]


def none(_count: int, data: bytes) -> bytes:
    return data


def at(count: int, fault: Callable[[bytes], bytes]) -> Fault:
    """A fault for the answer of that number only."""
    return lambda n, data: fault(data) if n == count else data


def one_wrong_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def reset(data: bytes) -> bytes:
    raise ResetNow


def close(data: bytes) -> bytes:
    raise CloseNow


def hang(data: bytes) -> bytes:
    return b""


class TcpServer(socketserver.ThreadingTCPServer):
    """Echoes; `fault(n, data)` says what goes out for the n-th chunk."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, fault: Fault = none) -> None:
        self.fault = fault
        self.count = 0
        super().__init__((LOCALHOST, 0), TcpHandler)


class TcpHandler(socketserver.BaseRequestHandler):
    server: TcpServer
    request: socket.socket

    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.server.count += 1
                self.request.sendall(self.server.fault(self.server.count, data))
        except ResetNow:
            abort(self.request)
        except (CloseNow, ConnectionError):
            pass


def abort(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class UdpServer(socketserver.UDPServer):
    """Echoes datagrams; a fault that answers nothing drops them."""

    def __init__(self, fault: Fault = none, port: int = 0) -> None:
        self.fault = fault
        self.count = 0
        super().__init__((LOCALHOST, port), UdpHandler)


class UdpHandler(socketserver.BaseRequestHandler):
    server: UdpServer

    def handle(self) -> None:
        data, sock = self.request
        self.server.count += 1
        if answer := self.server.fault(self.server.count, data):
            sock.sendto(answer, self.client_address)


class WebServer(http.server.ThreadingHTTPServer):
    """Serves CONTENTS; the fault is applied to the body after its length was announced."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fault: Fault = none, head: bytes = b"", extra: dict[str, str] | None = None) -> None:
        self.fault = fault
        self.head = head
        self.extra = extra or {}
        self.count = 0
        super().__init__((LOCALHOST, 0), WebHandler)


class WebHandler(http.server.BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass

    def do_GET(self) -> None:
        self.server.count += 1
        body = CONTENTS[self.path[1:]]
        try:
            self.wfile.write(self.server.head)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in self.server.extra.items():
                self.send_header(name, value)
            self.end_headers()
            answer = self.server.fault(self.server.count, body)
            self.wfile.write(answer)
            self.close_connection |= len(answer) < len(body)
            self.wfile.flush()
        except (ResetNow, CloseNow) as order:
            with contextlib.suppress(ConnectionError):
                self.wfile.flush()
            if isinstance(order, ResetNow):
                abort(self.connection)
            self.close_connection = True
        except ConnectionError:
            self.close_connection = True


AnyServer = TcpServer | UdpServer | WebServer


@contextlib.contextmanager
def serving(server: AnyServer) -> Iterator[tuple[str, int]]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield (LOCALHOST, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def run_load(
    ledger: Ledger, *workers: Worker, seconds: float = 0.4, during: Callable[[], None] | None = None, pace_ms: float = 2
) -> dict[str, Any]:
    runner = Runner(workers, ledger, pace_ms)
    runner.start()
    time.sleep(seconds / 2)
    if during is not None:
        during()
    time.sleep(seconds / 2)
    runner.stop()
    return ledger.result()


def counters(result: dict[str, Any]) -> tuple[int, int, int, int, bool]:
    names = ("failed", "reset", "wrong_bytes", "lost_acknowledged")
    failed, resets, wrong, lost = (result[name] for name in names)
    return failed, resets, wrong, lost, result["connections_kept"]


ALL_WELL = (0, 0, 0, 0, True)


# TCP echo


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (none, ALL_WELL),
        (at(5, one_wrong_byte), (0, 0, 1, 0, True)),
        (at(5, reset), (0, 1, 0, 0, False)),
        (at(5, close), (0, 1, 0, 0, False)),
    ],
    ids=["good", "one wrong byte", "reset", "closed"],
)
def test_tcp_echo(fault: Fault, expected: tuple[int, int, int, int, bool]) -> None:
    ledger = Ledger()
    with serving(TcpServer(fault)) as address:
        result = run_load(ledger, TcpEcho("tcp-0", ledger, address))
    assert counters(result) == expected, result["errors"]
    assert result["requests"] >= 5
    assert result["connections_opened"] == 1
    assert len(result["errors"]) == (expected != ALL_WELL) + (not expected[4])


def test_a_server_that_never_answers_is_a_failure_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "FINISH_S_MAX", 0.3)
    monkeypatch.setattr(load, "READBACK_S_MAX", 0.1)
    monkeypatch.setattr("pycolo.demo.load_echo.TIMEOUT_S", 1.5)
    ledger = Ledger()
    with serving(TcpServer(at(3, hang))) as address:
        worker = TcpEcho("tcp-0", ledger, address)
        begun_s = time.monotonic()
        result = run_load(ledger, worker)
        assert time.monotonic() - begun_s < 2
    for thread in threading.enumerate():
        if thread.name == "tcp-0":
            thread.join(5)
    assert result["failed"] >= 1
    assert 600 < result["longest_gap_ms"] < 2000
    assert "no answer within" in result["errors"][0]


def test_a_slow_answer_is_the_longest_gap_and_survives_as_a_sample() -> None:
    def slow(data: bytes) -> bytes:
        time.sleep(0.15)
        return data

    ledger = Ledger()
    with serving(TcpServer(at(4, slow))) as address:
        result = run_load(ledger, TcpEcho("tcp-0", ledger, address), seconds=0.5)
    assert counters(result) == ALL_WELL
    assert 150 <= result["longest_gap_ms"] < 400
    assert result["by_kind"]["tcp"]["longest_gap_ms"] == result["longest_gap_ms"]
    samples: Any = ledger.tick()["samples"]
    assert max(latency for _, latency, _ in samples) >= 150


def test_a_connection_that_dies_while_idle_is_noticed_at_the_end() -> None:
    ledger = Ledger()
    with socket.create_server((LOCALHOST, 0)) as listener:
        worker = TcpEcho("tcp-0", ledger, listener.getsockname())
        thread = threading.Thread(target=worker.step)
        thread.start()
        server, _ = listener.accept()
        with server:
            server.settimeout(5)
            server.sendall(server.recv(65536))
            thread.join(5)
        worker.finish()
    assert counters(ledger.result()) == (0, 0, 0, 0, False)


def test_nobody_listening_is_noticed() -> None:
    ledger = Ledger()
    with socket.create_server((LOCALHOST, 0)) as listener:
        address = listener.getsockname()
    result = run_load(ledger, TcpEcho("tcp-0", ledger, address), seconds=0.1)
    assert counters(result) == (0, 1, 0, 0, False)


# datagrams


def test_udp_echo_retries_what_is_dropped() -> None:
    ledger = Ledger()
    with serving(UdpServer(lambda n, data: b"" if n in (4, 5) else data)) as address:
        result = run_load(ledger, DatagramEcho("udp", "udp-0", ledger, UdpPort(address)), seconds=0.8)
    assert counters(result) == ALL_WELL, result["errors"]
    assert result["by_kind"]["udp"]["retries"] == 2
    assert result["longest_gap_ms"] >= 400


@pytest.mark.parametrize(
    "wrong",
    [one_wrong_byte, lambda data: data[:-1], lambda data: bytes(8) + data[8:], lambda data: data[:3]],
    ids=["one byte", "shorter", "another number", "no number"],
)
def test_udp_echo_notices_a_wrong_answer(wrong: Callable[[bytes], bytes]) -> None:
    ledger = Ledger()
    with serving(UdpServer(at(5, wrong))) as address:
        result = run_load(ledger, DatagramEcho("udp", "udp-0", ledger, UdpPort(address)))
    assert counters(result) == (0, 0, 1, 0, True)


def test_udp_silence_fails_after_the_last_try() -> None:
    ledger = Ledger()
    with serving(UdpServer(hang_always)) as address:
        result = run_load(ledger, DatagramEcho("udp", "udp-0", ledger, UdpPort(address), 0.5), seconds=0.2)
    assert counters(result) == (1, 0, 0, 0, True)
    assert 500 <= result["longest_gap_ms"] < 900


def hang_always(_count: int, data: bytes) -> bytes:
    return b""


def test_a_late_answer_is_verified_but_answers_nothing_else() -> None:
    held: list[bytes] = []

    def late(count: int, data: bytes) -> bytes:
        held.append(data)
        return {2: b"", 3: held[1]}.get(count, data) if count >= 2 else data

    ledger = Ledger()
    with serving(UdpServer(late)) as address:
        worker = DatagramEcho("udp", "udp-0", ledger, UdpPort(address))
        result = run_load(ledger, worker, seconds=0.6)
    assert counters(result) == ALL_WELL, result["errors"]
    assert result["by_kind"]["udp"]["retries"] == 1


def test_icmp_echo_to_loopback() -> None:
    ledger = Ledger()
    result = run_load(ledger, *(DatagramEcho("icmp", f"icmp-{i}", ledger, IcmpPort(LOCALHOST)) for i in range(2)))
    assert counters(result) == ALL_WELL, result["errors"]
    assert result["requests"] > 20


def test_icmp_replies_are_read_strictly() -> None:
    header = bytes([0x45]) + bytes(19)
    payloads = NumberedPayloads()
    reply = icmp_echo(0, 77, 1, payloads.of(1))
    assert icmp_reply_payload(header + reply, 77) == payloads.of(1)
    assert icmp_reply_payload(header + reply, 78) is None
    assert icmp_reply_payload(header + icmp_echo(8, 77, 1, b"x"), 77) is None
    assert icmp_reply_payload(b"", 77) is None
    assert icmp_reply_payload(header + reply[:5], 77) is None
    with pytest.raises(WrongBytesError, match="checksum"):
        icmp_reply_payload(header + reply[:-1] + bytes([reply[-1] ^ 1]), 77)
    with pytest.raises(WrongBytesError, match="different"):
        payloads.number_of(one_wrong_byte(payloads.of(1)))


def test_the_checksum_is_the_one_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert internet_checksum(b"\x01") == 0xFEFF


# HTTP


@pytest.mark.parametrize("keep_alive", [True, False])
def test_http_downloads_of_all_sizes(keep_alive: bool) -> None:
    ledger = Ledger()
    with serving(WebServer()) as address:
        worker = HttpClient("http-0", ledger, address, CONTENTS, keep_alive=keep_alive)
        for _ in range(60):
            assert worker.step()
        worker.finish()
    result: dict[str, Any] = ledger.result()
    assert counters(result) == ALL_WELL, result["errors"]
    assert result["by_kind"]["http"]["requests"] == 56
    assert result["by_kind"]["download"]["requests"] == 4
    assert result["connections_opened"] == (1 if keep_alive else 60)
    assert result["by_kind"]["download"]["longest_gap_ms"] <= result["by_kind"]["download"]["max_ms"]


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize(
    ("fault", "counter"),
    [
        (one_wrong_byte, "wrong_bytes"),
        (lambda body: body[: len(body) // 2], "failed"),
        (close, "failed"),
        (reset, "reset"),
    ],
    ids=["wrong byte", "cut in the middle", "closed before the body", "reset"],
)
def test_http_faults(keep_alive: bool, count: int, fault: Callable[[bytes], bytes], counter: str) -> None:
    ledger = Ledger()
    with serving(WebServer(at(count, fault))) as address:
        worker = HttpClient("http-0", ledger, address, CONTENTS, keep_alive=keep_alive)
        steps = 0
        while steps < count + 5 and worker.step():
            steps += 1
        worker.finish()
    result = ledger.result()
    assert {name: result[name] for name in ("failed", "reset", "wrong_bytes") if result[name]} == {counter: 1}
    ends = keep_alive and counter != "wrong_bytes"
    assert result["connections_kept"] is not ends
    assert steps == (count - 1 if ends else count + 5)


@pytest.mark.parametrize(
    ("head", "extra", "counter"),
    [(b"\x00garbage\r\n", {}, "wrong_bytes"), (b"", {"Connection": "close"}, "failed")],
    ids=["garbled head", "polite close"],
)
def test_http_heads(head: bytes, extra: dict[str, str], counter: str) -> None:
    ledger = Ledger()
    with serving(WebServer(head=head, extra=extra)) as address:
        worker = HttpClient("http-0", ledger, address, CONTENTS, keep_alive=True)
        worker.step()
        worker.finish()
    assert ledger.result()[counter] == 1


# Redis


@pytest.fixture(scope="module")
def redis_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with socket.create_server((LOCALHOST, 0)) as probe:
        port: int = probe.getsockname()[1]
    arguments = {"--port": str(port), "--bind": LOCALHOST, "--save": "", "--dir": str(tmp_path_factory.mktemp("redis"))}
    argv = ["redis-server", *(word for pair in arguments.items() for word in pair)]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield (LOCALHOST, port)
    finally:
        server.terminate()
        server.wait(10)


def wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((LOCALHOST, port), 1).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline_s, "redis-server does not listen"
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def meddler(address: tuple[str, int]) -> Iterator["redis.Redis"]:
    with redis.Redis(*address, protocol=2) as client:
        yield client


def delete_a_key(client: "redis.Redis", prefix: str) -> None:
    assert client.delete(f"{prefix}:0") == 1


def count_down(client: "redis.Redis", prefix: str) -> None:
    client.decrby(f"{prefix}:count", 3)


def count_up(client: "redis.Redis", prefix: str) -> None:
    client.incr(f"{prefix}:count")


def write_junk(client: "redis.Redis", prefix: str) -> None:
    client.set(f"{prefix}:0", "junk")


def cut_all_connections(client: "redis.Redis", prefix: str) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


def make_it_a_list(client: "redis.Redis", prefix: str) -> None:
    """At one stroke: between two, the load's INCR would make a number of it again."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(f"{prefix}:count")
        pipeline.lpush(f"{prefix}:count", "x")
        pipeline.execute()


@pytest.mark.parametrize(
    ("meddle", "expected"),
    [
        (None, ALL_WELL),
        (delete_a_key, (0, 0, 0, 1, True)),
        (count_down, (0, 0, 0, 3, True)),
        (count_up, (0, 0, 1, 0, True)),
        (cut_all_connections, (0, 1, 0, 0, False)),
    ],
    ids=["good", "lost write", "lost increments", "phantom increment", "cut"],
)
def test_redis(
    redis_at: tuple[str, int],
    meddle: Callable[["redis.Redis", str], None] | None,
    expected: tuple[int, int, int, int, bool],
) -> None:
    ledger = Ledger()
    worker = RedisClient("redis-0", ledger, redis_at)
    with meddler(redis_at) as client:
        client.ping()
        result = run_load(
            ledger, worker, during=(lambda: meddle(client, worker.prefix)) if meddle is not None else None
        )
    assert counters(result) == expected, result["errors"]
    assert result["connections_opened"] == 2, "one for the load, a fresh one for the last check"
    assert result["by_kind"]["readback"]["requests"] >= 2


def test_redis_value_that_nobody_wrote_is_wrong_bytes(redis_at: tuple[str, int]) -> None:
    ledger = Ledger()
    worker = RedisClient("redis-0", ledger, redis_at)
    with meddler(redis_at) as client:
        result = run_load(ledger, worker, during=lambda: write_junk(client, worker.prefix))
    assert result["wrong_bytes"] >= 2, "at least in both last checks"
    assert result["lost_acknowledged"] == 0


def test_redis_older_value_is_a_lost_write(redis_at: tuple[str, int]) -> None:
    ledger = Ledger()
    worker = RedisClient("redis-0", ledger, redis_at, keys_max=4)
    for _ in range(12):
        assert worker.step()
    with meddler(redis_at) as client:
        client.set(f"{worker.prefix}:2", "6:abcd")
    worker.finish()
    assert counters(ledger.result()) == (0, 0, 0, 1, True)


def test_redis_all_writes_gone_after_the_load(redis_at: tuple[str, int]) -> None:
    ledger = Ledger()
    worker = RedisClient("redis-0", ledger, redis_at)
    for _ in range(700):
        assert worker.step()
    with meddler(redis_at) as client:
        client.flushall()
    worker.finish()
    assert ledger.result()["lost_acknowledged"] == 1400, "700 keys and 700 increments, each once"


def test_redis_error_is_a_failure_not_a_loss(redis_at: tuple[str, int]) -> None:
    ledger = Ledger()
    worker = RedisClient("redis-0", ledger, redis_at)
    with meddler(redis_at) as client:
        result = run_load(ledger, worker, during=lambda: make_it_a_list(client, worker.prefix))
    assert result["failed"] >= 1
    assert "WRONGTYPE" in result["errors"][0]


def test_a_write_whose_answer_never_came_is_not_lost(redis_at: tuple[str, int]) -> None:
    for took_effect in (False, True):
        ledger = Ledger()
        worker = RedisClient("redis-0", ledger, redis_at)
        assert worker.step()
        with meddler(redis_at) as client:
            if took_effect:
                client.incr(f"{worker.prefix}:count")
            client.client_kill_filter(_type="normal", skipme=True)
        assert not worker.step()
        worker.finish()
        assert counters(ledger.result()) == (0, 1, 0, 0, False), ledger.result()["errors"]


# the ledger


def test_the_ledger_counts_each_request_once_and_forgets_none() -> None:
    now = [0.0]
    ledger = Ledger(lambda: now[0])
    with ledger.request("tcp", "tcp-0"):
        now[0] = 30.0
    hanging = ledger.request("tcp", "tcp-1")
    with ledger.request("http", "http-0") as download:
        now[0] = 70.0
        download.heard()
        now[0] = 90.0
    now[0] = 130.0
    tick: dict[str, Any] = ledger.tick()
    assert tick["waiting_ms"] == 100.0
    assert tick["samples"] == [(0.0, 30.0, "tcp"), (30.0, 60.0, "http")]
    ledger.expire("too late")
    with hanging:
        pass  # its answer comes after all, too late to count
    result: dict[str, Any] = ledger.result()
    assert (result["requests"], result["failed"]) == (3, 1)
    assert result["by_kind"]["http"]["longest_gap_ms"] == 40.0
    assert result["longest_gap_ms"] == 100.0


def test_a_bug_of_ours_is_not_swallowed_as_a_failure() -> None:
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.request("tcp", "tcp-0"):
        _ = 1 // 0
    ledger.expire("never ended")
    assert ledger.result()["failed"] == 1


def test_thinning_keeps_the_slowest_of_all_and_of_each_kind() -> None:
    samples = [(float(i), 1.0, "redis") for i in range(5000)]
    samples[2500] = (2500.0, 99.0, "redis")
    samples[100] = (100.0, 0.2, "icmp")
    kept = thin(samples, SAMPLES_PER_TICK_MAX)
    assert len(kept) == SAMPLES_PER_TICK_MAX
    assert kept == sorted(kept)
    assert {samples[2500], samples[100]} <= set(kept)
    assert max(after[0] - before[0] for before, after in pairwise(kept)) < 100


def test_quantiles_and_errors_are_bounded() -> None:
    now = [0.0]
    ledger = Ledger(lambda: now[0])
    for latency_ms in range(1, 101):
        with ledger.request("tcp", "tcp-0"):
            now[0] += latency_ms
    for i in range(50):
        ledger.trouble("tcp", f"trouble {i}")
    result: dict[str, Any] = ledger.result()
    assert result["by_kind"]["tcp"]["p50_ms"] == pytest.approx(50, rel=0.02)
    assert result["by_kind"]["tcp"]["p99_ms"] == pytest.approx(99, rel=0.02)
    assert result["by_kind"]["tcp"]["max_ms"] == 100
    assert len(result["errors"]) == 20


# the program


def test_workers_are_parsed_strictly() -> None:
    assert parse_workers("redis=2,icmp=1") == {"redis": 2, "icmp": 1}
    for text in ("", "ftp=1", "tcp=-1", "tcp=x", "tcp", "tcp=99"):
        with pytest.raises(SystemExit) as fault:
            main(["--target", LOCALHOST, "--workers", text])
        assert fault.value.code == 2


class AllServers:
    """One of each, and the command line that loads them."""

    def __init__(self, stack: contextlib.ExitStack, redis_port: int) -> None:
        _, http_port = stack.enter_context(serving(WebServer()))
        _, echo_port = stack.enter_context(serving(TcpServer()))
        stack.enter_context(serving(UdpServer(port=echo_port)))
        ports = {"redis": redis_port, "http": http_port, "echo": echo_port}
        options = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
        self.argv = [sys.executable, "-m", "pycolo.demo.load", "--target", LOCALHOST, *options]


def start(argv: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT", "stdin", "time"])
def test_the_program_ticks_and_ends_with_a_result(stop: str, redis_at: tuple[str, int], tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = AllServers(stack, redis_at[1])
        argv = [*servers.argv, "--seconds-max", "1" if stop == "time" else "60"]
        with start(argv) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            lines = [json.loads(process.stdout.readline()) for _ in range(2)]
            if stop == "stdin":
                process.stdin.close()
            elif stop != "time":
                process.send_signal(getattr(signal, stop))
            lines += [json.loads(line) for line in process.stdout]
            assert process.wait(10) == 0
    result = lines.pop()
    assert result["type"] == "result"
    assert {line["type"] for line in lines} == {"tick"}
    assert counters(result) == ALL_WELL, result["errors"]
    assert result["errors"] == []
    assert result["by_kind"].keys() >= {"redis", "http", "tcp", "udp", "icmp", "readback"}
    assert all(kind["requests"] > 0 and kind["p50_ms"] > 0 for kind in result["by_kind"].values())
    assert result["requests"] >= lines[-1]["requests"] >= lines[0]["requests"]
    assert lines[0]["t_ms"] <= time.monotonic() * 1000
    assert {kind for line in lines for _, _, kind in line["samples"]} >= {"redis", "http", "tcp", "udp", "icmp"}


def test_the_program_ends_when_nobody_listens(redis_at: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        servers = AllServers(stack, redis_at[1])
        process = start([*servers.argv, "--workers", "tcp=1"])
        assert process.stdin is not None
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 10)[0]
        process.stdout.close()
        assert process.wait(10) == 1
        process.stdin.close()
