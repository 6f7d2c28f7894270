"""What the processes and folders of the hosts take, as the kernel tells it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fault_matrix import DISK, NAMES

from .cluster import CampaignCluster

MIB = 1 << 20
Sample = dict[str, float]


async def sample(cluster: CampaignCluster) -> Sample:
    """`KIND of WHAT` -> value: MiB and numbers. Each process counts by its pid, so that a new one is no growth."""
    found: Sample = {}
    for name in NAMES:
        daemon = cluster.hosts.daemons[name].pid
        pids = {"daemon": daemon}
        with contextlib.suppress(AssertionError, ValueError, KeyError, FileNotFoundError):
            pids |= await cluster.pids(name)
        for part, pid in pids.items():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found |= {f"{kind} of {name}'s {part} {pid}": value for kind, value in _process(pid).items()}
        found[f"state MiB of {name}"] = _used_mib(cluster.hosts.state_dir(name))
        found[f"beside images MiB of {name}"] = _used_mib(cluster.hosts.disk_dir(name), but=DISK["path"])
    found["files in /dev/shm of all"] = len(os.listdir("/dev/shm"))
    found["/dev/shm MiB of all"] = _used_mib(Path("/dev/shm"))
    return found


def _process(pid: int) -> Sample:
    folder = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    if "VmRSS" not in fields:  # it ends
        return {}
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon")}
    return {
        "RSS MiB": kib["VmRSS"] / 1024,
        "own memory MiB": kib["RssAnon"] / 1024,
        "descriptors": len(os.listdir(folder / "fd")),
        "threads": int(fields["Threads"]),
    }


def _used_mib(folder: Path, but: str = "") -> float:
    used = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.name != but:
                used += path.lstat().st_blocks * 512
    return used / MIB
