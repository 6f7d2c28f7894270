"""A host daemon for unit tests whose VM copies are scripts: everything but the manager's process is real."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import trustme

from pycolo.agent import protocol
from pycolo.api import Client
from pycolo.config import CopyConfig, FileArbiterConfig, HostConfig, PeerConfig, ProtectionConfig, VmConfig
from pycolo.errors import WrongState
from pycolo.host.copy import Copy
from pycolo.host.daemon import HostDaemon
from pycolo.host.security import Security
from pycolo.host.server import serving

OFFER = "ab" * 16


class ScriptedManager:
    """What the copy's process is asked, and how it answers."""

    def __init__(self, copy: ScriptedCopy) -> None:
        self._copy = copy
        self.asked: list[tuple[str, str]] = []
        self.captured = protocol.Capture()

    async def call_peer(self, address: str) -> None:
        self.asked.append(("peer", address))
        if address:
            self._copy.becomes("syncing")
        elif self._copy.state != "solo":
            self._copy.becomes("solo")

    async def checkpoint(self, reason: str) -> None:
        if self._copy.state != "protected":
            raise WrongState("this host is not the primary of a protected VM: ask the primary")
        self.asked.append(("checkpoint", reason))

    async def start_capture(self, mib: int, seconds: int) -> protocol.Capture:
        if self.captured.running:
            raise WrongState("the VM is being captured: stop it first")
        self.asked.append(("capture", f"{mib} MiB, {seconds} s"))
        file = self._copy.folder / f"{len(self.asked)}.pcapng"
        file.write_bytes(b"captured")
        self.captured = protocol.Capture(str(file), running=True)
        return self.captured

    async def capture(self) -> protocol.Capture:
        if not self.captured.path:
            raise WrongState("no capture has been taken here")
        return self.captured

    async def stop_capture(self) -> protocol.Capture:
        self.captured = msgspec.structs.replace(self.captured, running=False, ended="it was stopped")
        return self.captured

    async def peer_lost(self, reason: str) -> None:
        self.asked.append(("peer-lost", reason))

    async def unprotect(self) -> None:
        self.asked.append(("unprotect", ""))
        self._copy.becomes("solo")

    async def withdraw(self, term: int) -> None:
        copy = self._copy
        follows = copy.role == "secondary" and copy.state in ("syncing", "protected")
        if not follows and not (copy.state == "waiting-for-arbiter" and term > int(copy.status.get("term", 0))):
            raise WrongState(f"this copy is {copy.role} and {copy.state}: it is needed")
        copy.ends("it was stopped", 0)

    async def end(self, reason: str) -> None:
        self.asked.append(("end", reason))
        self._copy.ends(reason, 0)

    async def switchover(self) -> None:
        self.asked.append(("switchover", ""))
        self._copy.ends("the operator stops this side: its VM copy ends", 0)


class ScriptedCopy(Copy):
    """A copy without a process: a test says what it becomes."""

    scripted: ScriptedManager

    async def start(self, config: CopyConfig, *, no_copy_lives: bool = False, older_disk: bool = False) -> None:
        self.scripted = ScriptedManager(self)
        self.taps, self.asked = config.taps, None
        self.latest = {}
        self.record.ended, self.record.exit_status = "", None
        self.record.save(self.folder)
        self.counters.begin(self.record.role)
        self.process = cast(Any, object())
        if self.record.role == "secondary":
            self._hear({"kind": "listening", "t_ms": 1.0, "address": "127.0.0.1:4444"})
            self.becomes("syncing")
        else:
            self._hear({"kind": "running", "t_ms": 1.0})
            self.becomes("solo")

    def becomes(self, state: str, **status: Any) -> None:
        self._see(
            {
                "role": self.role,
                **self.status,
                "state": state,
                "reason": f"it is {state}",
                "arbiter": "answers",
                **status,
            }
        )

    def ends(self, why: str, exit_status: int = 4) -> None:
        self.record.ended, self.record.exit_status = why, exit_status
        self.process, self.status = None, {}
        self._noted()

    async def stop(self) -> None:
        if self.process is not None:
            self.ends("it was stopped", 0)

    async def kill(self) -> None:
        if self.process is not None:
            self.ends("it was killed by signal 9", -9)

    def manager(self) -> Client:
        if self.process is None:
            raise WrongState(f"no copy of {self.name} runs on this host: {self.reason}")
        return cast(Client, self.scripted)


def host_config(folder: Path, name: str = "h1", port: int = 7700, peer_port: int = 7701, **changed: Any) -> HostConfig:
    other = "h2" if name == "h1" else "h1"
    values: dict[str, Any] = {
        "name": name,
        "listen": f"127.0.0.1:{port}",
        "state_dir": folder / name,
        "arbiter": FileArbiterConfig(kind="file", path=folder),
        "insecure": True,
        "bridge": "br0",
        "cpus": 4,
        "memory_mib": 1024,
        "peers": (PeerConfig(name=other, address=f"127.0.0.1:{peer_port}"),),
    }
    return HostConfig(**{**values, **changed})


def vm_config(name: str = "web", protect: bool = True, **changed: Any) -> VmConfig:
    protection = ProtectionConfig(protect=protect, external_heartbeat_ms_max=100)
    values: dict[str, Any] = {"kernel": Path("/k"), "initrd": Path("/i"), "accel": "tcg", "protection": protection}
    return VmConfig(name=name, **{**values, **changed})


@contextlib.asynccontextmanager
async def running(config: HostConfig, security: Security | None = None) -> AsyncIterator[HostDaemon]:
    """A daemon that serves. Its copies are scripted when the test has patched `pycolo.host.daemon.Copy`."""
    config.state_dir.mkdir(parents=True, exist_ok=True)
    daemon = HostDaemon(config, security or Security())
    try:
        daemon.load()
        async with serving(daemon, security or Security()):
            yield daemon
            await daemon.close()
    finally:
        await daemon.close()


def scripted(daemon: HostDaemon, vm: str = "web") -> ScriptedCopy:
    copy = daemon.copy(vm)
    assert isinstance(copy, ScriptedCopy)
    return copy


class Certificates:
    """A CA, and the contexts of hosts and clients."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def server(self, name: str) -> ssl.SSLContext:
        """A host's, with a certificate for its name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(name).configure_cert(context)
        self._ca.configure_trust(context)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client(self, name: str | None) -> ssl.SSLContext:
        """A client's context, with a certificate for that host name."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        if name is not None:
            self._ca.issue_cert(name).configure_cert(context)
        return context

    def security(self, name: str) -> Security:
        """All of it for one host."""
        return Security(self.server(name), self.client(name))
