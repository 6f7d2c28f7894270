"""What Prometheus gets: parsed as Prometheus would, and no count ever falls."""

from pathlib import Path
from typing import Any

import pytest
from host_parts import ScriptedCopy, host_config, running, scripted, vm_config
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pycolo.host import procedures
from pycolo.host.counters import PAUSE_MS_BOUNDS, REASONS_MAX, RISING, Counters
from pycolo.host.metrics import scrape
from pycolo.host.models import ProtectRequest


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycolo.host.daemon.Copy", ScriptedCopy)


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def checkpoint(reason: str, pause_ms: float) -> dict[str, Any]:
    return {"kind": "checkpoint", "t_ms": 1.0, "reason": reason, "pause_ms": pause_ms}


async def test_a_scrape_shows_all_of_a_vm(tmp_path: Path) -> None:
    async with running(host_config(tmp_path)) as daemon:
        await procedures.protect(daemon, ProtectRequest(vm=vm_config(protect=False)))
        copy = scripted(daemon)
        packets = {"diverged": 3, "held_frames": 2, "held_bytes": 120, "released_equal": 40}
        copy.becomes("protected", epoch=9, packets=packets, disks={"backlog_bytes": 4096})
        for event in (checkpoint("epoch", 1.5), checkpoint("divergence", 30.0), checkpoint("epoch", 9999.0)):
            copy._hear(event)
        copy._hear({"kind": "solo", "t_ms": 2.0})
        copy._hear({"kind": "checkpoint-failed", "t_ms": 2.0})
        found = samples(scrape(daemon))

        def value(name: str, **labels: str) -> float:
            return found[f"pycolo_{name}", tuple(sorted(labels.items()))]

        assert (value("host_cpus"), value("host_cpus_used"), value("host_memory_mib_used")) == (4, 1, 256)
        assert value("vm_epoch", vm="web") == 9
        assert (value("vm_held_packets", vm="web"), value("vm_held_bytes", vm="web")) == (2, 120)
        assert value("vm_disk_backlog_bytes", vm="web") == 4096
        assert value("vm_divergences_total", vm="web") == 3
        assert value("vm_released_packets_total", vm="web", by="equal") == 40
        assert value("vm_checkpoints_total", vm="web", reason="epoch") == 2
        assert value("vm_checkpoints_failed_total", vm="web") == 1
        assert value("vm_failovers_total", vm="web", kind="partner-lost") == 1
        assert value("vm_pause_ms_bucket", vm="web", le="2.0") == 1
        assert value("vm_pause_ms_bucket", vm="web", le="50.0") == 2
        assert value("vm_pause_ms_bucket", vm="web", le="+Inf") == value("vm_pause_ms_count", vm="web") == 3
        assert value("vm_pause_ms_sum", vm="web") == pytest.approx(10030.5)
        assert value("vm_state", vm="web", pycolo_vm_state="protected") == 1
        assert value("vm_state", vm="web", pycolo_vm_state="solo") == 0
        assert value("vm_role", vm="web", pycolo_vm_role="primary") == 1
        assert value("vm_peer_state", vm="web", pycolo_vm_peer_state="joined") == 1
        assert value("vm_last_commit_age_ms", vm="web") > 0
        copy.ends("killed")
        stopped = samples(scrape(daemon))
        assert stopped["pycolo_vm_state", (("pycolo_vm_state", "stopped"), ("vm", "web"))] == 1
        assert stopped["pycolo_vm_checkpoints_total", (("reason", "epoch"), ("vm", "web"))] == 2


@given(st.lists(st.lists(st.tuples(st.sampled_from(RISING), st.integers(0, 100)), max_size=5), max_size=5))
def test_no_count_falls_whatever_processes_come_and_go(lives: list[list[tuple[str, int]]]) -> None:
    counters, before = Counters(), dict.fromkeys(RISING, 0)
    for life in lives:
        counters.begin("primary")
        for name, count in life:
            counters.see({"packets": {name: count}})
            now = {one: counters.packets[one] for one in RISING}
            assert all(now[one] >= before[one] for one in RISING)
            before = now


def test_a_status_that_counts_on_is_counted_once() -> None:
    counters = Counters()
    counters.begin("secondary")
    for diverged in (1, 1, 5):
        counters.see({"packets": {"diverged": diverged}})
    counters.begin("secondary")
    counters.see({"packets": {"diverged": 2}})
    assert counters.packets["diverged"] == 7


def test_a_takeover_is_counted_once_and_later_losses_apart() -> None:
    counters = Counters()
    counters.begin("secondary")
    for _ in range(3):
        counters.feed({"kind": "solo", "t_ms": 1.0})
    assert counters.failovers == {"takeover": 1, "partner-lost": 2}


def test_the_number_of_reasons_is_bounded() -> None:
    counters = Counters()
    for number in range(REASONS_MAX + 10):
        counters.feed(checkpoint(f"reason-{number}", 1.0))
    assert len(counters.checkpoints) == REASONS_MAX + 1
    assert counters.checkpoints["other"] == 10
    assert sum(counters.pauses) == REASONS_MAX + 10
    assert len(counters.pauses) == len(PAUSE_MS_BOUNDS) + 1
