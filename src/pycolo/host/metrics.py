"""What Prometheus gets: one registry per scrape, filled from what the daemon knows at that instant."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from pycolo.core.failover import Role, State
from pycolo.host.copy import Copy
from pycolo.host.counters import PAUSE_MS_BOUNDS
from pycolo.host.daemon import HostDaemon

STATES = tuple(dict.fromkeys((*map(str, State), "starting", "silent", "stopped")))
PEER_STATES = ("none", "joining", "joined")
_VM = ["vm"]


def scrape(host: HostDaemon) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_HostCollector(host))
    return generate_latest(registry)


class _HostCollector(Collector):
    def __init__(self, host: HostDaemon) -> None:
        self._host = host

    def collect(self) -> Iterable[Metric]:
        """All families."""
        report = self._host.report()
        for name, value, meaning in (
            ("cpus", report.cpus, "Cpus offered to VMs"),
            ("cpus_used", report.cpus_used, "Cpus of the VM copies that run here"),
            ("memory_mib", report.memory_mib, "Memory offered to VMs"),
            ("memory_mib_used", report.memory_mib_used, "Memory of the VM copies that run here"),
            ("draining", int(report.draining), "1: this host takes no new copies"),
        ):
            yield GaugeMetricFamily(f"pycolo_host_{name}", meaning, value=value)
        families = _families()
        for copy in self._host.copies.values():
            _fill(families, copy)
        yield from families.values()


def _families() -> dict[str, Any]:
    gauge, counter, states = GaugeMetricFamily, CounterMetricFamily, StateSetMetricFamily
    return {
        "role": states("pycolo_vm_role", "Role of this host's copy", labels=_VM),
        "state": states("pycolo_vm_state", "State of this host's copy", labels=_VM),
        "peer": states("pycolo_vm_peer_state", "The second copy: none, joining or joined", labels=_VM),
        "epoch": gauge("pycolo_vm_epoch", "Epoch that runs, or was committed last", labels=_VM),
        "held": gauge("pycolo_vm_held_packets", "Packets that wait for the partner", labels=_VM),
        "held_bytes": gauge("pycolo_vm_held_bytes", "Bytes of these packets", labels=_VM),
        "flows": gauge("pycolo_vm_connections", "TCP connections that are compared", labels=_VM),
        "interval": gauge(
            "pycolo_vm_checkpoint_interval_ms",
            "Pace while outputs differ again and again, else 0",
            labels=_VM,
        ),
        "backlog": gauge("pycolo_vm_disk_backlog_bytes", "Written here, not safely on the partner", labels=_VM),
        "commit_age": gauge("pycolo_vm_last_commit_age_ms", "Time since the last checkpoint", labels=_VM),
        "checkpoints": counter("pycolo_vm_checkpoints", "Checkpoints by reason", labels=[*_VM, "reason"]),
        "failed": counter(
            "pycolo_vm_checkpoints_failed", "Checkpoints given up before they were committed", labels=_VM
        ),
        "pause": HistogramMetricFamily("pycolo_vm_pause_ms", "Pause of the guest at a checkpoint", labels=_VM),
        "divergences": counter("pycolo_vm_divergences", "Outputs that differed", labels=_VM),
        "released": counter("pycolo_vm_released_packets", "Packets that left, by what let them", labels=[*_VM, "by"]),
        "failovers": counter("pycolo_vm_failovers", "Times this copy began to speak alone", labels=[*_VM, "kind"]),
    }


def _fill(families: dict[str, Any], copy: Copy) -> None:
    label, status, counters = [copy.name], copy.status, copy.counters
    packets, disks = status.get("packets", {}), status.get("disks", {})
    families["role"].add_metric(label, {str(role): copy.running and role == copy.role for role in Role})
    families["state"].add_metric(label, {state: state == copy.state for state in STATES})
    families["peer"].add_metric(label, {state: state == _peer_state(copy) for state in PEER_STATES})
    families["epoch"].add_metric(label, _number(status, "epoch") or _number(status, "committed_epoch"))
    families["held"].add_metric(label, _number(packets, "held_frames"))
    families["held_bytes"].add_metric(label, _number(packets, "held_bytes"))
    families["flows"].add_metric(label, _number(packets, "flows"))
    families["interval"].add_metric(label, _number(packets, "interval_ms"))
    families["backlog"].add_metric(label, _number(disks, "backlog_bytes"))
    if copy.running and counters.committed_at_ms is not None:
        families["commit_age"].add_metric(label, time.monotonic_ns() / 1e6 - counters.committed_at_ms)
    for reason, count in counters.checkpoints.items():
        families["checkpoints"].add_metric([copy.name, reason], count)
    families["failed"].add_metric(label, counters.checkpoints_failed)
    families["pause"].add_metric(label, _buckets(counters.pauses), counters.pause_ms_sum)
    families["divergences"].add_metric(label, counters.packets["diverged"])
    for by in ("equal", "by_checkpoint", "by_policy", "solo"):
        families["released"].add_metric([copy.name, by], counters.packets[f"released_{by}"])
    for kind in ("takeover", "partner-lost"):
        families["failovers"].add_metric([copy.name, kind], counters.failovers[kind])


def _peer_state(copy: Copy) -> str:
    if copy.state == "protected":
        return "joined"
    return "joining" if copy.state == "syncing" else "none"


def _number(values: Mapping[str, Any], key: str) -> float:
    return float(values.get(key) or 0)


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*map(str, PAUSE_MS_BOUNDS), "+Inf"), counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
