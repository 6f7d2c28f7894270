"""Where the second copy of a VM may live: a pure decision, with a sentence for every host that will not do.

Guarantees
* A host is chosen or refused, never both and never neither; the order depends on nothing but what is passed in.
* No host gets more cpus or memory promised than it offers, and none gets a second copy of the same VM.
* Who failed lately comes last but is not refused: with one other host that host is tried again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HostReport:
    """What a host says of itself: what it offers, what is taken, and which VMs have a copy there."""

    name: str
    cpus: int
    memory_mib: int
    cpus_used: int = 0
    memory_mib_used: int = 0
    draining: bool = False
    vms: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Silent:
    """A host that gave no report, and why not."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Wish:
    """A copy that has to be placed.

    `home` is the host that asks; `allowed` the hosts that may have it, the best first, empty for any; `old_partner` has
    most of the disks already; `failed` says of hosts why they did not work out lately.
    """

    vm: str
    cpus: int
    memory_mib: int
    home: str
    allowed: tuple[str, ...] = ()
    old_partner: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placement:
    """Hosts to be asked, in that order; of every other host the sentence that says why not."""

    order: tuple[str, ...]
    refusals: Mapping[str, str]


def place(wish: Wish, hosts: Sequence[HostReport | Silent]) -> Placement:
    """Decide. `hosts` are in the configured order."""
    refusals: dict[str, str] = {}
    fit: list[str] = []
    for host in hosts:
        problem = _problem(wish, host)
        if problem:
            refusals[host.name] = problem
        elif host.name not in fit:
            fit.append(host.name)
    rank = {name: number for number, name in enumerate(wish.allowed or fit)}
    fit.sort(key=lambda name: (name in wish.failed, name != wish.old_partner, rank[name]))
    return Placement(tuple(fit), {name: why for name, why in refusals.items() if name not in fit})


def room_problem(vm: str, cpus: int, memory_mib: int, host: HostReport) -> str:
    """Why a host can't take one more copy; empty when it can."""
    if vm in host.vms:
        return f"{host.name} has a copy of {vm} already"
    if host.draining:
        return f"{host.name} is being drained and takes no new copies"
    if host.cpus_used + cpus > host.cpus:
        return f"{host.name} offers {host.cpus} cpus, {host.cpus_used} are taken, and {vm} needs {cpus}"
    if host.memory_mib_used + memory_mib > host.memory_mib:
        return (
            f"{host.name} offers {host.memory_mib} MiB of memory, {host.memory_mib_used} are taken, "
            f"and {vm} needs {memory_mib}"
        )
    return ""


def _problem(wish: Wish, host: HostReport | Silent) -> str:
    if host.name == wish.home:
        return f"{host.name} has the first copy of {wish.vm}: the second has to be elsewhere"
    if wish.allowed and host.name not in wish.allowed:
        return f"{host.name} is not among the hosts that may hold {wish.vm}: {', '.join(wish.allowed)}"
    if isinstance(host, Silent):
        return f"{host.name} does not answer: {host.why}"
    return room_problem(wish.vm, wish.cpus, wish.memory_mib, host)
