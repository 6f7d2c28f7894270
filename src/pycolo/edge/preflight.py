"""What this machine needs before anything is started; the first thing missing is said in one sentence."""

from __future__ import annotations

import os
import shutil

from pycolo.edge.qemu_command import qemu_version
from pycolo.errors import EnvironmentFault

PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "setpriv": "util-linux", "env": "coreutils", "sysctl": "procps"}
MEMORY_SPARE_MIB = 256


def check_host() -> None:
    """What every daemon needs. Raises EnvironmentFault for the first thing that is missing."""
    if os.geteuid() != 0:
        raise EnvironmentFault("tap devices, namespaces and guest memory need root: run it as root")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise EnvironmentFault(f"the program {program} is missing: apt-get install {package}")


def check_machine(qemu: str, memory_mib_needed: int) -> None:
    """Raises EnvironmentFault for the first thing that is missing."""
    check_host()
    qemu_version(qemu)
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as problem:
        raise EnvironmentFault(
            f"/dev/net/tun can't be opened ({problem.strerror}): load the tun module (modprobe tun) "
            "or allow the device in your container"
        ) from None
    available = _memory_available_mib()
    if available < memory_mib_needed + MEMORY_SPARE_MIB:
        raise EnvironmentFault(
            f"{memory_mib_needed + MEMORY_SPARE_MIB} MiB of memory are needed and {available} are free: "
            "free some or use --memory-mib"
        )


def memory_total_mib() -> int:
    """What this machine has."""
    return _meminfo_mib("MemTotal:")


def _memory_available_mib() -> int:
    return _meminfo_mib("MemAvailable:")


def _meminfo_mib(what: str) -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(what):
                return int(line.split()[1]) >> 10
    return 0
