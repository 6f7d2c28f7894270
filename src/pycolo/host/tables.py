"""What the command line shows of VMs and hosts."""

from __future__ import annotations

from rich.table import Table

from pycolo.host.models import HostList, VmStatus


def status_table(found: list[VmStatus]) -> Table:
    """One line for each VM."""
    table = Table("VM", "role", "state", "partner", "epoch", "since", "reason")
    for vm in found:
        state = f"stopped here, runs on {vm.elsewhere}" if vm.elsewhere else vm.state
        epoch = str(vm.epoch) if vm.running else ""
        table.add_row(vm.name, vm.role, state, vm.partner, epoch, vm.since, vm.reason)
    return table


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
