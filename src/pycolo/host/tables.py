"""What the command line shows of VMs and hosts."""

from __future__ import annotations

from rich.table import Table

from pycolo.host.models import HostList, VmStatus

DIVERGENCES_SHOWN = 5


def status_table(found: list[VmStatus]) -> Table:
    """One line for each VM."""
    table = Table("VM", "role", "state", "partner", "epoch", "since", "reason")
    for vm in found:
        state = f"stopped here, runs on {vm.elsewhere}" if vm.elsewhere else vm.state
        epoch = str(vm.epoch) if vm.running else ""
        table.add_row(vm.name, vm.role, state, vm.partner, epoch, vm.since, vm.reason)
    return table


def comparison_lines(vm: VmStatus) -> list[str]:
    """How the outputs of the two copies are compared, and why they differed last."""
    packets = vm.manager.get("packets", {})
    if not packets.get("mode"):
        return []
    waits = f"every {packets['interval_ms']:.0f} ms" if packets["mode"] == "periodic" else "as soon as outputs differ"
    lines = [
        f"comparison: {packets['engine']} engine, {packets['flows']} connections; checkpoints {waits}",
        f"released: {packets['released_equal']} equal, {packets['released_by_checkpoint']} by checkpoints, "
        f"{packets['released_by_policy']} by policy; {packets['held_frames']} held",
    ]
    if vm.manager.get("pace"):
        lines.append(f"pace: {vm.manager['pace']}")
    differed = vm.manager.get("divergences", [])[-DIVERGENCES_SHOWN:]
    return lines + [f"differed: {each['reason']}" for each in differed]


def host_table(found: HostList) -> Table:
    """One line for each host."""
    table = Table("host", "address", "state", "cpus", "memory MiB", "VMs")
    for entry in found.hosts:
        name = f"{entry.name} (this)" if entry.this else entry.name
        report = entry.report
        if report is None:
            table.add_row(name, entry.address, f"silent: {entry.why}", "", "", "")
            continue
        state = "draining" if report.draining else "ready"
        cpus = f"{report.cpus_used} of {report.cpus}"
        memory = f"{report.memory_mib_used} of {report.memory_mib}"
        vms = ", ".join(f"{vm.name} ({vm.role}, {vm.state})" for vm in report.vms if vm.running)
        table.add_row(name, entry.address, state, cpus, memory, vms)
    return table
