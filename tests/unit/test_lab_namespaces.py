"""The lab's network namespaces: joined as drawn, separate from ours, and gone with their last holder."""

import contextlib
import os
import socket
import subprocess

import pytest

from pycolo.demo.lab import CLIENT_ADDRESS, HOSTS, build_lab
from pycolo.edge.namespaces import Namespace
from pycolo.errors import EnvironmentFault


def inode(namespace: Namespace) -> int:
    return os.fstat(namespace.fd).st_ino


def inodes_in_use() -> set[int]:
    """Namespaces that some process runs in or holds open."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{entry}/ns/net").st_ino)
            for fd in os.listdir(f"/proc/{entry}/fd"):
                found.add(os.stat(f"/proc/{entry}/fd/{fd}").st_ino)
    return found


def test_hosts_reach_each_other_and_not_the_clients() -> None:
    lab = build_lab()
    try:
        first, second = (lab.hosts[name] for name in HOSTS)
        first.run("ping", "-c", "1", "-W", "2", "10.78.0.2")
        second.run("ping", "-c", "1", "-W", "2", "10.78.0.1")
        with pytest.raises(EnvironmentFault, match="failed in namespace h1"):
            first.run("ping", "-c", "1", "-W", "1", CLIENT_ADDRESS)
    finally:
        lab.close()


def test_this_process_stays_where_it_is() -> None:
    before = os.stat("/proc/self/ns/net").st_ino
    namespace = Namespace("test")
    try:
        assert os.stat("/proc/self/ns/net").st_ino == os.stat("/proc/thread-self/ns/net").st_ino == before
        assert inode(namespace) != before
        assert "lo" in [name for _, name in socket.if_nameindex()]
        done = subprocess.run([*namespace.prefix(), "ip", "-o", "link"], capture_output=True, text=True, check=True)
        assert [line.split(":")[1].strip() for line in done.stdout.splitlines()] == ["lo"]
        assert "UP" in done.stdout
    finally:
        namespace.close()


def test_closing_leaves_nothing() -> None:
    lab = build_lab()
    inodes = {inode(namespace) for namespace in (*lab.hosts.values(), lab.clients)}
    assert len(inodes) == 3
    assert inodes <= inodes_in_use()
    lab.close()
    lab.close()
    assert not inodes & inodes_in_use()


def test_a_namespace_lives_as_long_as_a_process_in_it() -> None:
    namespace = Namespace("test")
    mine = inode(namespace)
    with subprocess.Popen([*namespace.prefix(), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None
        inside.stdin.write(b"x")
        inside.stdin.flush()
        inside.stdout.read(1)  # it runs, so nsenter is done
        namespace.close()
        assert os.stat(f"/proc/{inside.pid}/ns/net").st_ino == mine
    assert mine not in inodes_in_use()


def test_a_command_that_fails_or_is_not_there_is_named() -> None:
    namespace = Namespace("h7")
    try:
        with pytest.raises(EnvironmentFault, match=r"`ip link set none up` failed in namespace h7 .*run as root"):
            namespace.ip("link", "set", "none", "up")
        with pytest.raises(EnvironmentFault, match="no-such-program"):
            namespace.run("no-such-program")
    finally:
        namespace.close()


def test_a_lab_that_can_not_be_joined_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def refuse(self: Namespace, *arguments: str) -> None:
        made.append(inode(self))
        if len(made) > 6:
            raise EnvironmentFault("no veth in this kernel")

    monkeypatch.setattr(Namespace, "ip", refuse)
    with pytest.raises(EnvironmentFault, match="no veth"):
        build_lab()
    assert not set(made) & inodes_in_use()
