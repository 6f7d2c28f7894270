"""Network namespaces without names: each lives as long as we hold its descriptor or a process runs in it.

Guarantees: nothing to clean up, not even after SIGKILL; with the last holder the namespace and its devices are gone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pycolo.errors import EnvironmentFault

CLONE_NEWNET = 0x40000000  # linux/sched.h
COMMAND_S_MAX = 10
Made = TypeVar("Made")


class Namespace:
    """A fresh network namespace with loopback up and IPv6 off (nothing but the test's own packets)."""

    def __init__(self, name: str) -> None:
        """`name` only serves messages. Raises EnvironmentFault when the kernel does not allow it."""
        self.name = name
        self.fd = in_new_namespace(_this_namespace)
        os.set_inheritable(self.fd, False)
        if has_ipv6():
            self.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        self.ip("link", "set", "lo", "up")

    def prefix(self) -> list[str]:
        """Argument list that runs a command inside, in front of the command."""
        return ["nsenter", f"--net={self.path()}"]

    def path(self) -> str:
        """A path that names it, as long as we hold it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def ip(self, *arguments: str) -> None:
        """Run `ip` inside."""
        self.run("ip", *arguments)

    def run(self, *command: str) -> None:
        """Run a short command inside. Raises EnvironmentFault when it fails."""
        try:
            done = subprocess.run(
                [*self.prefix(), *command], capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False
            )
        except FileNotFoundError as missing:
            raise EnvironmentFault(f"the program {missing.filename} is missing: run `make setup`") from None
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(f"`{' '.join(command)}` hangs in namespace {self.name}: see dmesg") from None
        if done.returncode:
            said = "; ".join(done.stderr.strip().splitlines())
            raise EnvironmentFault(
                f"`{' '.join(command)}` failed in namespace {self.name} ({said}): "
                "run as root on a kernel with network namespaces, veth and bridge, and with /proc/sys writable"
            )

    def close(self) -> None:
        """Let go of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def has_ipv6() -> bool:
    """Whether this kernel does IPv6; with `ipv6.disable=1` on its command line it has no settings of it either."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as problem:
        return problem.errno != errno.EAFNOSUPPORT
    return True


def in_new_namespace(make: Callable[[], Made]) -> Made:
    """What `make` returns, called in a fresh network namespace: by a thread of its own, so that this process never
    leaves its own. Raises EnvironmentFault when the kernel does not allow it, and what `make` raises.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_unshared, make).result()


def _unshared(make: Callable[[], Made]) -> Made:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise EnvironmentFault(
            f"a network namespace can't be made ({os.strerror(ctypes.get_errno())}): run as root with CAP_SYS_ADMIN, "
            "and see that user.max_net_namespaces is not 0"
        )
    return make()


def _this_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
