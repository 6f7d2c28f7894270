"""The real guest: built from Debian's packages, booted under QEMU's TCG, every service used from the host."""

import http.client
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import redis

from pycolo.guest.builder import READY_LINE, GuestImage, build_guest
from pycolo.guest.static_files import STATIC_FILES, static_file
from tested_qemu import CPUS, QEMU, machine

READY_S_MAX = 60.0
ANSWER_S_MAX = 20.0
SERVICES = {"http": ("tcp", 80), "redis": ("tcp", 6379), "echo": ("tcp", 7), "datagrams": ("udp", 7)}


@dataclass(frozen=True)
class Guest:
    """A booted guest: the local port of each service, its console so far, and how long it took to boot."""

    ports: dict[str, int]
    console: str
    ready_s: float


def free_ports() -> dict[str, int]:
    """Return one port per service that nobody uses now; all are held at once, so that they differ."""
    with ExitStack() as stack:
        ports = {}
        for name, (protocol, _) in SERVICES.items():
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            sock.bind(("127.0.0.1", 0))
            ports[name] = sock.getsockname()[1]
        return ports


def start(image: GuestImage, ports: dict[str, int], command_line: str) -> subprocess.Popen[bytes]:
    forwards = "".join(
        f",hostfwd={protocol}:127.0.0.1:{ports[name]}-:{port}" for name, (protocol, port) in SERVICES.items()
    )
    options = f"-accel tcg -smp {CPUS} -m 256 -M {machine()} -cpu qemu64,-rdrand -nodefaults -no-user-config"
    command = [QEMU, *options.split(), "-display", "none", "-serial", "stdio"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", command_line]
    command += ["-netdev", f"user,id=n{forwards}", "-device", "virtio-net-pci,netdev=n,romfile="]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def read_console(process: subprocess.Popen[bytes], until: str) -> str:
    """Return what the guest printed up to a line with `until`; fails when that takes too long or QEMU ends."""
    assert process.stdout is not None
    console = b""
    deadline = time.monotonic() + READY_S_MAX
    while until.encode() not in console:
        left_s = deadline - time.monotonic()
        readable = left_s > 0 and select.select([process.stdout], [], [], left_s)[0]
        chunk = os.read(process.stdout.fileno(), 65536) if readable else b""
        if not chunk:
            pytest.fail(f"the guest did not print {until}:\n{console.decode(errors='replace')}")
        console += chunk
    return console.decode(errors="replace")


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return build_guest()


@pytest.fixture(scope="module")
def guest(image: GuestImage) -> Iterator[Guest]:
    ports = free_ports()
    began = time.monotonic()
    process = start(image, ports, image.command_line("10.0.2.15/24"))
    try:
        console = read_console(process, READY_LINE)
        yield Guest(ports, console, time.monotonic() - began)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_boots_in_time_and_quietly(guest: Guest) -> None:
    assert guest.ready_s < READY_S_MAX
    assert "COLO-GUEST-FAILED" not in guest.console
    assert "Kernel panic" not in guest.console


@pytest.mark.parametrize("name", STATIC_FILES)
def test_nginx_serves_every_byte(guest: Guest, name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guest.ports["http"], timeout=ANSWER_S_MAX)
    try:
        for _ in range(3):  # three requests over one kept-alive connection
            connection.request("GET", f"/{name}")
            response = connection.getresponse()
            assert response.status == 200
            assert response.read() == static_file(name)
            assert response.headers["Server"].startswith("nginx")
            assert not response.will_close
    finally:
        connection.close()


def test_redis_counts_and_persists_nothing(guest: Guest) -> None:
    with redis.Redis(port=guest.ports["redis"], socket_timeout=ANSWER_S_MAX) as client:
        assert client.ping() is True
        client.delete("counter")
        assert [client.incr("counter") for _ in range(100)] == list(range(1, 101))
        assert client.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}


def test_tcp_echo_over_many_connections(guest: Guest) -> None:
    with ExitStack() as stack:
        address = ("127.0.0.1", guest.ports["echo"])
        socks = [stack.enter_context(socket.create_connection(address, timeout=ANSWER_S_MAX)) for _ in range(20)]
        sent = [static_file("small.bin")[number:] * 20 for number in range(len(socks))]
        for sock, data in zip(socks, sent, strict=True):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        for sock, data in reversed(list(zip(socks, sent, strict=True))):
            with sock.makefile("rb") as stream:
                assert stream.read() == data


def test_tcp_echo_of_a_client_that_reads_late_and_one_that_vanishes(guest: Guest) -> None:
    address = ("127.0.0.1", guest.ports["echo"])
    data = static_file("big2.bin")[: 200 * 1024]
    with socket.create_connection(address, timeout=ANSWER_S_MAX) as late:
        late.sendall(data)
        with socket.create_connection(address, timeout=ANSWER_S_MAX) as vanishing:
            vanishing.sendall(data[:1000])
        late.shutdown(socket.SHUT_WR)
        with late.makefile("rb") as stream:
            assert stream.read() == data


@pytest.mark.parametrize("size", [1, 512, 1400])
def test_udp_echo(guest: Guest, size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(ANSWER_S_MAX)
        sock.connect(("127.0.0.1", guest.ports["datagrams"]))
        for number in range(20):
            datagram = static_file("small.bin")[number : number + size]
            sock.send(datagram)
            assert sock.recv(65536) == datagram


def test_a_guest_without_an_address_says_so(image: GuestImage) -> None:
    process = start(image, free_ports(), image.append)
    try:
        assert "COLO-GUEST-FAILED no colo.ip" in read_console(process, "command line")
    finally:
        process.kill()
        process.communicate()
