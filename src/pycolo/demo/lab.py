"""The demo's world: hosts and a place for clients, each a network namespace; veth pairs and bridges between them.

clients (10.77.0.1) --- bridge lan --- uplinks --- bridge br0 on h1 and h2 --- taps of the agents
h1 (10.78.0.1) ------------------ bridge peers ------------------ h2 (10.78.0.2)
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pycolo.edge.namespaces import Namespace
from pycolo.pki.authority import init_authority, issue

CLIENT_ADDRESS = "10.77.0.1"
GUEST_ADDRESS = "10.77.0.2"
PEER_PORT = 7700
HOSTS = ("h1", "h2")


@dataclass(frozen=True)
class Lab:
    """Hosts and their clients."""

    hosts: dict[str, Namespace]
    clients: Namespace

    def close(self) -> None:
        """Let go of all namespaces; they vanish with the last process in them."""
        for namespace in (*self.hosts.values(), self.clients):
            namespace.close()

    def hold_clients(self) -> int:
        """Keep the clients' namespace alive beyond us; returns the pid of the process that does."""
        fd = self.clients.fd  # inherited, as we may have closed ours before nsenter opens it
        command = ["nsenter", f"--net=/proc/self/fd/{fd}", "sleep", "infinity"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[fd]).pid

    def copy_toml(self, name: str, state_dir: Path, arbiter: str, disk_dir: Path, pki: Path | None) -> str:
        """What a VM copy on one host has to know of it; `pki` is a folder that `make_pki` made, None: without TLS."""
        number = HOSTS.index(name) + 1
        tls = "insecure = true\n"
        if pki is not None:
            tls = f'[tls]\nca = "{pki}/ca.crt"\ncert = "{pki}/{name}.crt"\nkey = "{pki}/{name}.key"\n'
        return (
            f'name = "{name}"\n'
            f'listen = "{host_address(number)}:{PEER_PORT}"\n'
            f'peer = "{host_address(3 - number)}:{PEER_PORT}"\n'
            f'state_dir = "{state_dir}"\n'
            f"arbiter = {arbiter}\n"
            'bridge = "br0"\n'
            'taps = ["colo0"]\n'
            f'disk_dir = "{disk_dir}"\n'
            f"{tls}"
        )


def host_address(number: int) -> str:
    """Where the hosts reach each other; the first has number 1."""
    return f"10.78.0.{number}"


def file_arbiter(folder: Path) -> str:
    """An arbiter for hosts on one machine, as TOML."""
    return f'{{ kind = "file", path = "{folder}" }}'


def make_pki(folder: Path, names: Sequence[str] = HOSTS) -> Path:
    """Certificates for the hosts in `folder`, which must have none; returns it. Raises EnvironmentFault."""
    init_authority(folder)
    for name in names:
        issue(folder, name, folder)
    return folder


def build_lab(names: Sequence[str] = HOSTS) -> Lab:
    """Make the namespaces and join them. Raises EnvironmentFault."""
    made: list[Namespace] = []
    try:
        made.extend(Namespace(name) for name in (*names, "clients"))
        lab = Lab(dict(zip(names, made, strict=False)), made[-1])
        _join(lab)
    except BaseException:
        for namespace in made:
            namespace.close()
        raise
    return lab


def _join(lab: Lab) -> None:
    add_network(lab, "lan", "br0", "uplink", CLIENT_ADDRESS)
    _bridge(lab.clients, "peers")
    for number, host in enumerate(lab.hosts.values(), 1):
        _veth(host, "peer0", lab.clients, f"peer{number}")
        lab.clients.ip("link", "set", f"peer{number}", "master", "peers")
        host.ip("address", "add", f"{host_address(number)}/24", "dev", "peer0")


def add_network(lab: Lab, name: str, bridge: str, uplink: str, client_address: str) -> None:
    """A network between clients and guests: the clients are on its bridge `name`, guests on the hosts' `bridge`."""
    _bridge(lab.clients, name)
    lab.clients.ip("address", "add", f"{client_address}/24", "dev", name)
    for number, host in enumerate(lab.hosts.values(), 1):
        _bridge(host, bridge)
        _veth(host, uplink, lab.clients, f"{name}{number}")
        host.ip("link", "set", uplink, "master", bridge)
        lab.clients.ip("link", "set", f"{name}{number}", "master", name)
        # All hosts get what clients send, so that nothing is lost between a death and the takeover: neither the
        # clients' bridge nor the host's own may learn that the VM is elsewhere.
        lab.clients.run("bridge", "link", "set", "dev", f"{name}{number}", "learning", "off")
        host.run("bridge", "link", "set", "dev", uplink, "learning", "off")


def _bridge(namespace: Namespace, name: str) -> None:
    namespace.ip("link", "add", name, "type", "bridge", "forward_delay", "0", "stp_state", "0")
    namespace.ip("link", "set", name, "up")


def _veth(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    left.ip("link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", right.path())
    left.ip("link", "set", left_name, "up")
    right.ip("link", "set", right_name, "up")
