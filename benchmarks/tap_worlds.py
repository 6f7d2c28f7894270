"""What stands between a client's wire and a guest's network card, without a guest: who plays the guest is the caller.

Guarantees
* Each world has the demo's lab: clients on a bridge, that joined to the hosts' bridges, the hosts joined by another.
* Our agents are the processes that anybody gets, driven as a manager drives them, with TLS between them.
* No process outlives its measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from compare_frames import GUEST_MAC
from pycolo.agent import protocol
from pycolo.config_compare import CompareConfig
from pycolo.core import peer
from pycolo.demo.lab import HOSTS, Lab, build_lab, host_address, make_pki
from pycolo.edge.agent_link import AgentLink
from pycolo.edge.guest_tap import guest_tap
from pycolo.edge.namespaces import CLONE_NEWNET, Namespace
from pycolo.edge.offload import NO_HEADER
from pycolo.edge.peer_greeting import new_token
from pycolo.edge.tap import Tap
from pycolo.edge.tls import TlsFiles
from pycolo.manager.comparison import compare_terms
from upload_guests import TAP, await_tap, filters_of_primary, filters_of_secondary, mirror_chardevs, start_qemu

ETH_P_ALL = 3
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23  # linux/if_packet.h
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 64 << 20
HOLD_MS = 50, 1000
LEASE_MS = 180.0
EPOCH = 1
SETTLE_S = 3.0
STOP_S_MAX = 10.0


@dataclass
class World:
    """`client`: the clients' wire, frames of the guest arrive there and those of clients start there. `guests`: the
    network cards, of the PVM and if there is one of the SVM; anything that `os.read` and `os.write` take. `header`
    is in front of each frame at a guest.
    """

    client: int
    guests: list[int]
    pids: dict[str, int]
    header: bytes = NO_HEADER


Open = Callable[[Path], AbstractAsyncContextManager[World]]


@contextlib.contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """What this thread makes meanwhile, processes and sockets, is made in that network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace.fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


def _lab(stack: AsyncExitStack) -> tuple[Lab, int]:
    """The lab, and a socket on the clients' bridge that sees what no other socket there answers."""
    lab = build_lab()
    stack.callback(lab.close)
    with inside(lab.clients):
        wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        wire.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        wire.bind(("lan", ETH_P_ALL))
    lab.clients.ip("link", "set", "lan", "promisc", "on")
    wire.setblocking(False)
    return lab, wire.fileno()


# ---------------------------------------------------------------- Linux alone


@contextlib.asynccontextmanager
async def bridge(folder: Path) -> AsyncIterator[World]:
    """The guest's tap on the host's bridge: what any virtual machine has."""
    del folder
    async with AsyncExitStack() as stack:
        lab, client = _lab(stack)
        with inside(lab.hosts["h1"]):
            tap = Tap(TAP, "br0")
        stack.callback(tap.close)
        yield World(client, [tap.fd], {})


# ---------------------------------------------------------------- ours


@contextlib.asynccontextmanager
async def solo(folder: Path) -> AsyncIterator[World]:
    """One agent, whose VM runs without a partner."""
    del folder
    async with AsyncExitStack() as stack:
        lab, client = _lab(stack)
        agent, guest, _ = await _agent(stack, lab, "h1", "primary", "", None)
        yield World(client, [guest.fileno()], {"primary": agent.pid})


@contextlib.asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[World]:
    """Two agents of a protected VM, after the first checkpoint."""
    async with AsyncExitStack() as stack:
        lab, client = _lab(stack)
        pki = make_pki(folder / "pki")
        tls = [TlsFiles(f"{pki}/ca.crt", f"{pki}/{name}.crt", f"{pki}/{name}.key") for name in HOSTS]
        secret = new_token()
        primary, pvm, _ = await _agent(stack, lab, "h1", "primary", "", tls[0])
        secondary, svm, port = await _agent(stack, lab, "h2", "secondary", secret, tls[1])
        token = peer.channel_token(secret, "h1")
        await primary.command(protocol.Connect(host_address(2), port, token, "h2", tls[0]))
        boundary = await primary.pause_feed()
        await primary.seal(EPOCH)
        await primary.resume_feed()
        await primary.commit(EPOCH)
        await secondary.start_feed(EPOCH, boundary)
        pids = {"primary": primary.pid, "secondary": secondary.pid}
        yield World(client, [pvm.fileno(), svm.fileno()], pids)


async def _agent(
    stack: AsyncExitStack, lab: Lab, host: str, role: str, secret: str, tls: TlsFiles | None
) -> tuple[AgentLink, FileIO, int]:
    """An agent on its host, the guest's end of its card, and where it listens."""
    ours, theirs = guest_tap()
    for end in (ours, theirs):
        stack.enter_context(end)
    with inside(lab.hosts[host]):
        link = await AgentLink.start([(ours, theirs)])
    stack.push_async_callback(link.close)
    ports = (protocol.Port(GUEST_MAC.hex(":"), "colo0", "br0"),)
    listen = host_address(HOSTS.index(host) + 1)
    terms = compare_terms(CompareConfig())
    started = await link.command(protocol.Start(role, ports, listen, secret, *HOLD_MS, LEASE_MS, terms, tls), 5.0)
    assert isinstance(started, protocol.Started)
    return link, theirs, started.packet_port


# ---------------------------------------------------------------- QEMU's filters


@contextlib.asynccontextmanager
async def filters(folder: Path) -> AsyncIterator[World]:
    """Two QEMUs without a machine, in each a tap joined to a socket of ours, and QEMU's COLO filters at the taps."""
    async with AsyncExitStack() as stack:
        lab, client = _lab(stack)
        _, notices = [stack.enter_context(end) for end in socket.socketpair()]
        first = [*mirror_chardevs(folder, notices.fileno()), *filters_of_primary("")]
        processes, guests = [], []
        for host, more in zip(HOSTS, (first, filters_of_secondary("")), strict=True):
            ours, theirs = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            arguments = [
                "-M",
                "none",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                *_joined(ours.fileno()),
                *more,
            ]
            fds = (ours.fileno(), notices.fileno())
            processes.append(start_qemu(stack, lab.hosts[host], arguments, fds))
            await await_tap(lab.hosts[host])
            theirs.setblocking(False)
            guests.append(theirs.fileno())
        lab.hosts["h1"].ip("link", "set", TAP, "master", "br0")
        await asyncio.sleep(SETTLE_S)
        pids = dict(zip(("primary", "secondary"), (process.pid for process in processes), strict=True))
        yield World(client, guests, pids, header=b"")


def _joined(fd: int) -> list[str]:
    """A tap and a socket, each with a hub as its peer: a netdev without one takes nothing."""
    return [
        *("-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no,vhost=off,vnet_hdr=off"),
        *("-netdev", "hubport,id=port0,hubid=0,netdev=net0"),
        *("-netdev", f"dgram,id=guest,local.type=fd,local.str={fd}"),
        *("-netdev", "hubport,id=port1,hubid=0,netdev=guest"),
    ]
