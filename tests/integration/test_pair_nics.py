"""A VM on two networks: both are served, compared and taken over; a third card that it does not use does no harm."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from hosts import Hosts
from pair import failures_in_text, socket_in, until
from pycolo.api import Client
from pycolo.demo.lab import GUEST_ADDRESS, HOSTS, add_network
from pycolo.demo.processes import LoadProcess
from pycolo.guest.builder import GuestImage

STORAGE_CLIENT, STORAGE_GUEST = "10.79.0.1", "10.79.0.2"
WORKERS = "redis=1,http=1,tcp=1,udp=1,icmp=1"
CHECKPOINTS = 3


async def load_on(hosts: Hosts, address: str) -> LoadProcess:
    load = await LoadProcess.start(hosts.lab.clients, address, hosts.folder / f"load-{address}.log", WORKERS)
    await until(lambda: load.latest.get("requests", 0) > 50, 15.0, f"the load on {address}")
    return load


async def serves(loads: list[LoadProcess]) -> None:
    """All of them get answers."""
    before = [load.latest["requests"] for load in loads]
    await until(
        lambda: all(load.latest["requests"] > had + 20 for load, had in zip(loads, before, strict=True)),
        10.0,
        "answers",
    )


async def test_a_vm_on_two_networks_is_protected_and_taken_over(
    guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hosts = Hosts(guest_image, tmp_path_factory.mktemp("n"))
    try:
        add_network(hosts.lab, "san", "br1", "uplink1", STORAGE_CLIENT)
        for host in HOSTS:
            await hosts.start(host, networks={"storage": "br1"})
        await protect(hosts)
        loads = [await load_on(hosts, address) for address in (GUEST_ADDRESS, STORAGE_GUEST)]
        await checkpoints(hosts)
        await serves(loads)
        with socket_in(hosts.lab.clients, socket.AF_PACKET, socket.SOCK_RAW) as wires:
            wires.bind(("san2", 3))
            await hosts.kill("h1")
            status = await speaks_alone(hosts, "h2")
            await serves(loads)
            await until(lambda: any(is_announcement(frame) for frame in heard(wires)), 5.0, "an announcement")
        for load in loads:
            result = await load.finish()
            wrong = [result[name] for name in ("failed", "reset", "wrong_bytes", "lost_acknowledged")]
            assert wrong == [0] * 4, result["errors"]
            assert result["connections_kept"]
        places = [("colo0", "br0"), ("colo1", "br1"), ("colo2", "br1")]
        assert [(nic["tap"], nic["bridge"]) for nic in status["nics"]] == places
        for host in HOSTS:
            assert failures_in_text((hosts.state_dir(host) / "vms" / "web" / "manager.log").read_text()) == []
    finally:
        await hosts.close()


async def protect(hosts: Hosts) -> None:
    """The VM is protected and serves; all memory is compared at each checkpoint."""
    vm = hosts.vm_toml(
        append=hosts.image.command_line(f"{GUEST_ADDRESS}/24", f"{STORAGE_GUEST}/24"),
        nics=[{}, {"network": "storage"}, {"network": "storage"}],
        protection={"self_check": True},
    )
    code, _, err = await hosts.colo("h1", "protect", vm)
    assert code == 0, err
    await hosts.boots("h1")


async def checkpoints(hosts: Hosts) -> None:
    """Some checkpoints under load, each loaded before the next is asked for; output leaves as its twins come."""
    async with manager(hosts, "h1") as here, manager(hosts, "h2") as there:
        with socket_in(hosts.lab.clients, socket.AF_PACKET, socket.SOCK_RAW) as wires:
            wires.bind(("san", 0))
            for _ in range(CHECKPOINTS):
                # To all cards on that network, also to the one that nobody takes frames from.
                wires.send(b"\xff" * 6 + bytes.fromhex("525400000099") + b"\x88\xb5" + bytes(46))
                loaded = (await there.status())["loads_checked"]
                await here.checkpoint()
                async with asyncio.timeout(20):
                    while (await there.status())["loads_checked"] <= loaded:  # noqa: ASYNC110 - a process is asked
                        await asyncio.sleep(0.05)
        assert (await here.status())["packets"]["released_equal"] > 50


def manager(hosts: Hosts, host: str) -> Client:
    """Who runs the copy there."""
    return Client(hosts.state_dir(host) / "vms" / "web")


async def speaks_alone(hosts: Hosts, host: str) -> dict[str, Any]:
    """Its manager's status, once it has taken over."""
    async with manager(hosts, host) as client, asyncio.timeout(10):
        while (status := await client.status())["state"] != "solo":  # noqa: ASYNC110 - a process is asked
            await asyncio.sleep(0.05)
    return status


def heard(wires: socket.socket) -> list[bytes]:
    frames = []
    wires.setblocking(False)
    try:
        while True:
            frames.append(wires.recv(65536))
    except BlockingIOError:
        return frames


def is_announcement(frame: bytes) -> bool:
    """A RARP frame, as QEMU sends it to make the network learn where an address is."""
    return frame[12:14] == b"\x80\x35"
