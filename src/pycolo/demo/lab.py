"""The demo's world: two hosts and a place for clients, each a network namespace; veth pairs and bridges between them.

clients (10.77.0.1) --- bridge lan --- uplinks --- bridge br0 on h1 and h2 --- taps of the agents
h1 (10.78.0.1) ------------------- peer link ------------------- h2 (10.78.0.2)
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pycolo.edge.namespaces import Namespace

CLIENT_ADDRESS = "10.77.0.1"
GUEST_ADDRESS = "10.77.0.2"
PEER_PORT = 7700
HOSTS = ("h1", "h2")


@dataclass(frozen=True)
class Lab:
    """Two hosts and their clients."""

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

    def host_toml(self, name: str, state_dir: Path, arbiter_file: Path, disk_dir: Path) -> str:
        """host.toml of one host."""
        number = HOSTS.index(name) + 1
        return (
            f'name = "{name}"\n'
            f'listen = "10.78.0.{number}:{PEER_PORT}"\n'
            f'peer = "10.78.0.{3 - number}:{PEER_PORT}"\n'
            f'state_dir = "{state_dir}"\n'
            f'arbiter_file = "{arbiter_file}"\n'
            'bridge = "br0"\n'
            'tap = "colo0"\n'
            f'disk_dir = "{disk_dir}"\n'
        )


def build_lab() -> Lab:
    """Make the namespaces and join them. Raises EnvironmentFault."""
    made: list[Namespace] = []
    try:
        made.extend(Namespace(name) for name in (*HOSTS, "clients"))
        lab = Lab(dict(zip(HOSTS, made, strict=False)), made[2])
        _join(lab)
    except BaseException:
        for namespace in made:
            namespace.close()
        raise
    return lab


def _join(lab: Lab) -> None:
    first, second = lab.hosts["h1"], lab.hosts["h2"]
    lab.clients.ip("link", "add", "lan", "type", "bridge", "forward_delay", "0", "stp_state", "0")
    lab.clients.ip("link", "set", "lan", "up")
    lab.clients.ip("address", "add", f"{CLIENT_ADDRESS}/24", "dev", "lan")
    for number, host in enumerate((first, second), 1):
        host.ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0")
        host.ip("link", "set", "br0", "up")
        _veth(host, "uplink", lab.clients, f"lan{number}")
        host.ip("link", "set", "uplink", "master", "br0")
        lab.clients.ip("link", "set", f"lan{number}", "master", "lan")
        # Both hosts get what clients send, so that nothing is lost between a death and the takeover: neither the
        # clients' bridge nor the host's own may learn that the VM is elsewhere.
        lab.clients.run("bridge", "link", "set", "dev", f"lan{number}", "learning", "off")
        host.run("bridge", "link", "set", "dev", "uplink", "learning", "off")
    _veth(first, "peer0", second, "peer0")
    first.ip("address", "add", "10.78.0.1/24", "dev", "peer0")
    second.ip("address", "add", "10.78.0.2/24", "dev", "peer0")


def _veth(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    left.ip("link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", right.path())
    left.ip("link", "set", left_name, "up")
    right.ip("link", "set", right_name, "up")
