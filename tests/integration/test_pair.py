"""A real pair, nobody dies: checkpoints under load, odd frames, pairs that don't fit, strangers on the wire."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from scapy.utils import RawPcapNgReader

from pair import (
    GUEST_MAC,
    SYNC_S_MAX,
    Pair,
    failures_in,
    log_of,
    output_of,
    socket_in,
    still_protected,
    take_checkpoints,
    until,
)
from pycolo.api import Client
from pycolo.core import wire
from pycolo.core.failover import Role
from pycolo.core.packed import batch_of
from pycolo.demo.lab import HOSTS, PEER_PORT
from pycolo.demo.processes import DaemonProcess
from pycolo.edge.tls import TlsFiles, client_context
from pycolo.errors import EnvironmentFault, WrongState
from pycolo.events import REFUSED_NEXT_S
from pycolo.guest.builder import GuestImage
from pycolo.pki.authority import issue
from tested_qemu import CPUS, machine

pytestmark = pytest.mark.asyncio(loop_scope="module")
CAPTURED_MAX = 10
CHECKPOINTS = 50
LISTEN = ("10.78.0.2", PEER_PORT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def checked(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A protected pair that compares all memory at every checkpoint."""
    pair = Pair(guest_image, tmp_path_factory.mktemp("checked"), self_check=True)
    try:
        await pair.protect()
        yield pair
    finally:
        await pair.close()


@pytest_asyncio.fixture(loop_scope="module")
async def empty(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A lab in which nothing runs yet."""
    pair = Pair(guest_image, tmp_path_factory.mktemp("pair"))
    try:
        yield pair
    finally:
        await pair.close()


async def test_every_checkpoint_under_load_is_an_exact_copy(checked: Pair) -> None:
    await checked.load_on()
    await take_checkpoints(checked, CHECKPOINTS)
    result = await checked.load_off()
    await still_protected(checked)
    assert result["requests"] > 200, "there was a load"
    taken = [event for event in checked.primary.events if event["kind"] == "checkpoint"]
    assert [event["epoch"] for event in taken] == sorted({event["epoch"] for event in taken})
    assert checked.primary.first("checkpoint-failed") is None
    packets = checked.primary.status["packets"]
    assert packets["released_equal"] > 200
    assert packets["released_solo"] < packets["released_equal"]


async def test_who_moves_frames_is_patient_and_who_watches_the_peer_is_not(checked: Pair) -> None:
    movers = {(role, name) for role in ("primary", "secondary") for name in ("qemu", "agent")}

    def patient() -> set[tuple[str, str]]:
        return {name for name, pid in checked.pids().items() if os.sched_getscheduler(pid) == os.SCHED_BATCH}

    await until(lambda: patient() == movers, 5.0, "patience between two checkpoints")


async def test_a_capture_under_load_has_what_both_copies_said_and_why_it_left(checked: Pair) -> None:
    await checked.load_on()
    async with Client(checked.primary.state_dir) as primary, Client(checked.secondary.state_dir) as secondary:
        before = (await primary.status())["packets"]
        held = before["held_frames"]
        begun = await primary.start_capture(64, 60)
        held = max(held, (await primary.status())["packets"]["held_frames"])
        with pytest.raises(WrongState, match="ask the primary"):
            await secondary.start_capture(64, 60)
        await checked.serves(1.0)
        for _ in range(CAPTURED_MAX):  # three may find nothing held, when all that was said was equal
            await take_checkpoints(checked, 3)
            if (await primary.status())["packets"]["released_by_checkpoint"] > before["released_by_checkpoint"]:
                break
        report = await primary.stop_capture()
    await checked.load_off()
    await still_protected(checked)
    assert (report.path, report.running, report.ended, report.not_written) == (begun.path, False, "it was stopped", 0)
    assert min(report.frames[kind] for kind in ("clients", "secondary", "equal")) > 50, report
    assert report.frames["checkpoint"] > 0
    reader: Any = RawPcapNgReader(report.path)
    with reader:
        found = [(meta.ifname.decode(), b"".join(meta.comments or []).decode()) for _, meta in reader]
    assert len(found) == sum(report.frames.values())
    unknown = [comment for name, comment in found if name == "primary" and "; held " not in comment]
    assert len(unknown) < 50 + 2 * held, "only frames that were held when the capture began came unseen"


async def test_a_secondary_takes_no_checkpoints(checked: Pair) -> None:
    async with Client(checked.secondary.state_dir) as client:
        with pytest.raises(WrongState, match="ask the primary"):
            await client.checkpoint()


def odd_frames(seed: int) -> list[bytes]:
    """Frames that no honest client sends, to the guest's MAC address and to all."""
    dice = random.Random(seed)
    source = bytes.fromhex("525400000099")

    def ethernet(payload: bytes, kind: int = 0x0800, to: bytes = GUEST_MAC) -> bytes:
        return to + source + struct.pack(">H", kind) + payload

    def ip(protocol: int, body: bytes, *, first: int = 0x45, length: int | None = None, fragment: int = 0) -> bytes:
        total = 20 + len(body) if length is None else length
        head = struct.pack(">BBHHHBBH4s4s", first, 0, total, dice.getrandbits(16), fragment, 64, protocol, 0,
                           bytes((10, 77, 0, 99)), bytes((10, 77, 0, 2)))  # fmt: skip
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
        return ethernet(head + body)

    def tcp(flags: int, offset: int = 5, data: bytes = b"") -> bytes:
        numbers = dice.getrandbits(32), dice.getrandbits(32)
        return struct.pack(">HHIIBBHHH", dice.randrange(1, 65536), 7, *numbers, offset << 4, flags, 64000, 0, 0) + data

    udp = struct.pack(">HHHH", 5000, 7, 8 + 16, 0) + bytes(16)
    whole = ip(17, udp)
    frames = [whole[:cut] for cut in (14, 15, 20, 33, 34, 36, 41)]
    frames += [ip(17, udp, first=first) for first in (0x40, 0x44, 0x4F, 0x65, 0x05, 0xFF)]
    frames += [ip(17, udp, length=length) for length in (0, 19, 20, 27, 45, 1400, 65535)]
    frames += [ip(17, udp, fragment=where) for where in (0x2000, 0x2001, 0x0001, 0x1FFF, 0x8000, 0xFFFF)]
    frames += [ip(17, struct.pack(">HHHH", 5000, 7, length, 0) + bytes(16)) for length in (0, 7, 8, 200, 65535)]
    frames += [ip(6, tcp(flags, offset)) for flags in (0, 1, 2, 3, 4, 16, 0x3F, 255) for offset in (0, 4, 5, 15)]
    frames += [ip(protocol, dice.randbytes(40)) for protocol in (0, 1, 2, 4, 41, 47, 50, 132, 255)]
    frames += [ethernet(dice.randbytes(60), kind) for kind in (0, 46, 0x0806, 0x8035, 0x8100, 0x86DD, 0x88CC, 0xFFFF)]
    frames += [ethernet(dice.randbytes(dice.randrange(0, 1400)), 0x0800) for _ in range(100)]
    frames += [ethernet(dice.randbytes(40), dice.getrandbits(16), b"\xff" * 6) for _ in range(20)]
    return frames


def checksum(header: bytes) -> int:
    """RFC 1071, over a header whose checksum field is zero."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


async def test_odd_frames_from_clients_do_no_harm(checked: Pair) -> None:
    await checked.load_on()
    with socket_in(checked.lab.clients, socket.AF_PACKET, socket.SOCK_RAW) as wires:
        wires.bind(("lan", 0))
        for seed in range(4):
            for frame in odd_frames(seed):
                wires.send(frame)
                await asyncio.sleep(0.001)
    await take_checkpoints(checked, 2)
    await checked.serves(1.0)
    await checked.load_off()
    await still_protected(checked)


async def test_full_comparison_finds_every_dirty_page_too(
    guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair = Pair(guest_image, tmp_path_factory.mktemp("compare"), self_check=True, dirty_pages="compare")
    try:
        await pair.protect()
        assert pair.primary.status["dirty_pages"] == pair.secondary.status["dirty_pages"] == "compare"
        await pair.load_on()
        await take_checkpoints(pair, 5)
        await pair.load_off()
        await still_protected(pair)
    finally:
        await pair.close()


async def test_a_secondary_of_another_size_is_refused_and_the_vm_runs_on(empty: Pair) -> None:
    await empty.boot_primary()
    secondary = await empty.start(Role.SECONDARY, memory_mib=192)
    await empty.primary.wait_for(lambda: empty.primary.status.get("refused"), 10.0, "the refusal")
    assert empty.primary.status["refused"] == (
        "the secondary at 10.78.0.2:7700 refuses: the primary's memory_mib is 128, the secondary's 192: "
        "make vm.toml and QEMU the same on both"
    )
    assert empty.primary.status["state"] == "solo"
    await empty.load_on(0.5)
    await empty.load_off()
    assert secondary.process.returncode is None
    assert len([event for event in empty.primary.events if event["kind"] == "refused"]) == 1

    await empty.end(secondary)
    await empty.join_secondary()  # the right one is still welcome
    await until(lambda: empty.primary.status["refused"] == "", 5.0, "the end of the refusal")
    await still_protected(empty)


async def test_a_port_in_use_is_said_in_a_sentence(empty: Pair) -> None:
    with socket_in(empty.host(Role.SECONDARY), socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(LISTEN)
        taken.listen()
        secondary = await empty.start(Role.SECONDARY)
        assert await empty.exit_status(secondary) == EnvironmentFault.exit_status
    last = log_of(secondary).splitlines()[-1]
    assert last.startswith("colo: can't listen on 10.78.0.2:7700 (")
    assert last.endswith("choose a free `listen` address in host.toml")
    assert failures_in(secondary) == []


def hello(channel: str, **changed: object) -> bytes:
    """A greeting that would fit the pair but for its version."""
    fields: dict[str, object] = {"vm": "paired", "host": "stranger", "term": 1, "machine": machine()}
    fields |= {
        "memory_mib": 128,
        "cpus": CPUS,
        "nics": [{"mac": "52:54:00:00:00:02"}],
        "accel": "tcg",
        "token": "",
        "version": 99,
        "version_min": wire.PROTOCOL_VERSION + 1,
        "channel": channel,
    } | changed
    return wire.encode_control(msgspec.convert({"type": "hello", **fields}, wire.Hello))


STRANGERS = {
    "nothing": b"",
    "garbage": random.Random(1).randbytes(5000),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "huge": wire.HEADER.pack(0xFFFFFFFF, 1) + b"x",
    "long": wire.HEADER.pack(wire.MESSAGE_BYTES_MAX, 1) + bytes(1 << 20),
    "empty": wire.HEADER.pack(0, 1),
    "pages": wire.HEADER.pack(16, 2) + bytes(16),
    "frames": b"".join(wire.encode_frames(0, 0, 0, batch_of([b"x" * 60]))),
    "early": wire.encode_control(wire.Heartbeat()),
    "version": hello("control"),
    "channel": hello("other"),
    "bulk": hello("bulk", version_min=wire.PROTOCOL_VERSION, token="0" * 32),
    "another's name": hello("control", version_min=wire.PROTOCOL_VERSION, host="h1"),
    "token": wire.encode_control(wire.ChannelHello("0" * 32)),
}


TOLD = {
    "version": f"the primary speaks protocol {wire.PROTOCOL_VERSION + 1} to 99, the secondary {wire.PROTOCOL_VERSION}:",
    "another's name": "its certificate is for stranger",
}


async def test_strangers_on_the_ports_do_no_harm(empty: Pair) -> None:
    secondary = await empty.start(Role.SECONDARY)
    await secondary.wait_for(lambda: secondary.first("listening"), 20.0, "listening")
    lines = output_of(empty.host(Role.SECONDARY), "ss", "-Hltn")
    addresses = [("10.78.0.2", int(line.split()[3].rpartition(":")[2])) for line in lines]
    assert LISTEN in addresses
    assert len(addresses) == 2, lines
    connections = []
    certificate = issue(empty.pki, "stranger", empty.pki)
    known = client_context(TlsFiles(str(empty.pki / "ca.crt"), str(certificate.cert), str(certificate.key)))
    for address in addresses:
        for said, context in itertools.product(STRANGERS.values(), (None, known)):
            connection = socket_in(empty.host(Role.PRIMARY), socket.AF_INET, socket.SOCK_STREAM)
            connections.append(await asyncio.to_thread(speak, connection, address, said, context))
    try:
        for name, sentence in TOLD.items():
            await asyncio.sleep(REFUSED_NEXT_S)  # no more of them get into the log
            connection = socket_in(empty.host(Role.PRIMARY), socket.AF_INET, socket.SOCK_STREAM)
            connections.append(await asyncio.to_thread(speak, connection, LISTEN, STRANGERS[name], known))
            await until(partial(is_told, secondary, sentence), 5.0, sentence)
        await empty.boot_primary()
        await secondary.wait_for(lambda: secondary.first("loaded"), SYNC_S_MAX, "the first sync")
        await empty.load_on(0.5)
        await take_checkpoints(empty, 1)
        await empty.load_off()
        await still_protected(empty)
        await nothing_secret_is_told(empty)
    finally:
        for connection in connections:
            connection.close()


def is_told(daemon: DaemonProcess, sentence: str) -> bool:
    """Whether that is why somebody was not let in."""
    return any(sentence in event["reason"] for event in daemon.events if event["kind"] == "refused")


def speak(
    connection: socket.socket, address: tuple[str, int], said: bytes, context: ssl.SSLContext | None
) -> socket.socket:
    """Connect, say it, and leave the connection open; being thrown out is fine."""
    connection.settimeout(2.0)
    connection.connect(address)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        if context is not None:
            connection = context.wrap_socket(connection)
        connection.sendall(said)
        if said:
            connection.recv(1)
    return connection


async def nothing_secret_is_told(pair: Pair) -> None:
    """Neither keys nor a name of a key stand in a log, an event, a status or an argument."""
    told = [log_of(daemon) for daemon in (pair.primary, pair.secondary)]
    for daemon in (pair.primary, pair.secondary):
        async with Client(daemon.state_dir) as client:
            told.append(json.dumps(await client.status()) + json.dumps(daemon.events))
    told += [Path(f"/proc/{pid}/cmdline").read_text() for pid in pair.pids().values()]
    keys = [line for name in HOSTS for line in (pair.pki / f"{name}.key").read_text().splitlines()]
    assert not [key for key in keys for text in told if key in text]
