"""The guest with a disk under real QEMU: its PostgreSQL serves, survives a kill by itself, and ends in order."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pycolo.demo.load_database import DatabaseClient
from pycolo.demo.load_ledger import Ledger
from pycolo.guest.builder import READY_LINE, UNMOUNTED_LINE, GuestImage
from pycolo.guest.control import power_off, sync
from pycolo.guest.disk_image import build_disk, copy_disk
from tested_qemu import CPUS, QEMU, machine

pytestmark = pytest.mark.timeout(240)

LOCALHOST = "127.0.0.1"
BOOT_S_MAX = 60.0
OFF_S_MAX = 15.0
FAILED = "COLO-GUEST-FAILED"
ALL_WELL = {"failed": 0, "reset": 0, "wrong_bytes": 0, "lost_acknowledged": 0, "connections_kept": True}


class Guest:
    """One QEMU with `disk` as its virtio disk; the ports forwarded to PostgreSQL and to the control port."""

    def __init__(self, image: GuestImage, disk: Path | None, console: Path, memory_mib: int) -> None:
        self.database, self.control = free_ports()
        self.console = console
        forwards = f"hostfwd=tcp:{LOCALHOST}:{self.database}-:5432,hostfwd=tcp:{LOCALHOST}:{self.control}-:9"
        options = f"-accel tcg -smp {CPUS} -M {machine()} -cpu qemu64,-rdrand -nodefaults -no-user-config -display none"
        command = [QEMU, *options.split(), "-m", str(memory_mib), "-serial", f"file:{console}"]
        command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        command += ["-append", image.command_line("10.0.2.15/24")]
        command += ["-netdev", f"user,id=n,{forwards}", "-device", "virtio-net-pci,netdev=n,romfile="]
        if disk is not None:
            command += ["-drive", f"file={disk},if=virtio,format=raw,cache=writeback"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def said(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_for(self, line: str) -> None:
        deadline_s = time.monotonic() + BOOT_S_MAX
        while line not in self.said():
            assert time.monotonic() < deadline_s, f"the guest did not print {line}:\n{self.said()}"
            assert FAILED not in self.said(), self.said()
            assert self.process.poll() is None, f"QEMU ended:\n{self.said()}"
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_ports() -> tuple[int, int]:
    with socket.create_server((LOCALHOST, 0)) as first, socket.create_server((LOCALHOST, 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


StartGuest = Callable[..., Guest]


@pytest.fixture
def start(guest_image: GuestImage, tmp_path: Path) -> Iterator[StartGuest]:
    """`start(disk, memory_mib)`: a guest that is ready, and killed when the test ends."""
    with ExitStack() as stack:

        def begin(disk: Path | None, memory_mib: int = 256) -> Guest:
            console = tmp_path / f"console-{time.monotonic_ns()}"
            guest = Guest(guest_image, disk, console, memory_mib)
            stack.callback(guest.kill)
            guest.wait_for(READY_LINE)
            return guest

        yield begin


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    copy = tmp_path / "disk.img"
    copy_disk(build_disk(), copy)
    return copy


def assert_clean(disk: Path) -> None:
    program = shutil.which("e2fsck", path="/usr/sbin:/sbin") or "e2fsck"
    check = subprocess.run([program, "-fn", disk], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


def assert_ends_in_order(guest: Guest) -> None:
    power_off((LOCALHOST, guest.control))
    assert guest.process.wait(OFF_S_MAX) == 0, guest.said()
    assert UNMOUNTED_LINE in guest.said()
    assert "database system is shut down" in guest.said()
    assert FAILED not in guest.said()


@pytest.mark.parametrize("memory_mib", [128, 256])
def test_commits_under_load_and_ends_in_order(start: StartGuest, disk: Path, memory_mib: int) -> None:
    guest = start(disk, memory_mib)
    argv = [sys.executable, "-m", "pycolo.demo.load", "--target", LOCALHOST, "--database-port", str(guest.database)]
    argv += ["--workers", "database=1", "--seconds-max", "4"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        result: dict[str, Any] = [json.loads(line) for line in process.stdout][-1]
    assert {name: result[name] for name in ALL_WELL} == ALL_WELL, result["errors"]
    assert result["by_kind"]["database"]["requests"] > 20
    sync((LOCALHOST, guest.control))
    assert_ends_in_order(guest)
    assert_clean(disk)


def test_a_killed_guest_recovers_by_itself_with_every_acknowledged_transaction(start: StartGuest, disk: Path) -> None:
    guest = start(disk)
    ledger = Ledger()
    clients = [DatabaseClient(f"database-{i}", ledger, (LOCALHOST, guest.database)) for i in range(2)]
    threads = [threading.Thread(target=run_until_lost, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + BOOT_S_MAX
    while not all(client.acknowledged > 10 for client in clients):
        assert time.monotonic() < deadline_s, "the database does not get on"
        time.sleep(0.1)
    time.sleep(2)
    guest.kill()
    for thread in threads:
        thread.join(30)
    assert ledger.result()["connections_lost"] == len(clients)

    survivor = start(disk)
    assert "automatic recovery in progress" in survivor.said()
    for client in clients:
        client.finish_at((LOCALHOST, survivor.database))
    result: dict[str, Any] = ledger.result()
    assert (result["lost_acknowledged"], result["wrong_bytes"]) == (0, 0), result["errors"]
    assert result["by_kind"]["readback"]["failed"] == result["by_kind"]["readback"]["reset"] == 0
    assert_ends_in_order(survivor)
    assert_clean(disk)


def run_until_lost(client: DatabaseClient) -> None:
    while client.step():
        pass


def test_a_guest_without_a_disk_ends_when_told(start: StartGuest) -> None:
    guest = start(None)
    with socket.create_connection((LOCALHOST, guest.control), timeout=10) as rude:
        rude.sendall(b"dance\n")
        assert rude.recv(10) == b"", "an unknown command gets no answer"
    power_off((LOCALHOST, guest.control))
    assert guest.process.wait(OFF_S_MAX) == 0, guest.said()
    assert UNMOUNTED_LINE not in guest.said()


def test_a_disk_without_a_file_system_is_told(start: StartGuest, tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(1 << 20))
    with pytest.raises(AssertionError, match="COLO-GUEST-FAILED disk /dev/vda"):
        start(empty)
