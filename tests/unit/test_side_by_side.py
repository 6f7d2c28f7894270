"""The report of `make bench`: ratios round by round, absent figures, failed measurements, pauses and wrk's words."""

from __future__ import annotations

import html
import io
from pathlib import Path

import pytest
from rich.console import Console

from pycolo.edge.qmp_channel import Event
from side_by_side.figures import FIGURES, Found, Spread, failures, ratios, share_of_dirty_pages, spread
from side_by_side.monitor import Pauses
from side_by_side.page import write_page
from side_by_side.subject import DeadError
from side_by_side.table import show
from side_by_side.workloads import WORKLOADS, ab_figures, wrk_figures

AB = """Document Length:        4096 bytes

Concurrency Level:      4
Time taken for tests:   8.022 seconds
Complete requests:      487
Failed requests:        {failed}
{more}Total transferred:      2117476 bytes
Requests per second:    60.71 [#/sec] (mean)
Time per request:       65.887 [ms] (mean)

Percentage of the requests served within a certain time (ms)
  50%     60
  99%    131
 100%    140 (longest request)
"""

WRK = """Running 6s test @ http://10.77.0.2/small.bin
  1 threads and 8 connections
  Latency Distribution
     50%  980.00us
     75%    1.20ms
     90%    2.10ms
     99%    1.05s
  4321 requests in 6.00s, 18.10MB read
{more}Requests/sec:    720.17
Transfer/sec:      3.02MB
"""


def row(rate: float, **more: object) -> dict[str, object]:
    return {"rate": rate, "problem": "", "unit": "requests/s", "checkpoints": 4, "took_s": 2.0, "cpu_s": {}, **more}


def failed(problem: str) -> dict[str, object]:
    return {"rate": 0.0, "problem": problem, "unit": "requests/s", "checkpoints": 0}


FOUND: Found = {
    "nginx": {
        "unprotected": [row(100.0), row(50.0), row(80.0)],
        "ours": [row(80.0, bytes=8192.0, pages=4.0), row(45.0), row(40.0)],
        "qemu unix": [row(50.0), failed("QEMU <has> ended"), row(60.0)],
        "unprotected 7.2": [row(200.0)],
        "ours 7.2": [row(100.0)],
    },
    "failover": {"ours": [row(0.0, gap_ms=150.0)], "qemu unix": [failed("no answer")]},
}


def test_a_ratio_compares_rows_of_one_round() -> None:
    assert ratios(FOUND, "nginx", "ours") == Spread(0.8, 0.5, 0.9, 3)
    assert ratios(FOUND, "nginx", "qemu unix") == Spread(0.625, 0.5, 0.75, 2)
    assert ratios(FOUND, "nginx", "ours 7.2") == Spread(0.5, 0.5, 0.5, 1)
    assert ratios(FOUND, "failover", "ours") is None


def test_what_nobody_could_take_is_absent() -> None:
    assert spread(FOUND, "failover", "qemu unix", lambda one: one["rate"]) is None
    assert spread(FOUND, "nginx", "ours", share_of_dirty_pages) == Spread(0.5, 0.5, 0.5, 1)
    assert spread(FOUND, "nginx", "qemu unix", share_of_dirty_pages) is None
    assert failures(FOUND, "nginx", "qemu unix") == ["QEMU <has> ended"]


def test_spreads_show_a_range_only_of_several() -> None:
    assert Spread(0.8, 0.5, 0.9, 3).text(2) == "0.80 (0.50-0.90)"
    assert Spread(0.8, 0.8, 0.8, 1).text(1) == "0.8"


def test_a_pause_lasts_from_stop_to_resume() -> None:
    pauses = Pauses()
    for event, at_s in (("RESUME", 1.0), ("STOP", 2.0), ("BLOCK_JOB_READY", 2.1), ("RESUME", 2.5), ("STOP", 3.0)):
        pauses.note(Event(event, {}, at_s))
    assert pauses.over == [(2.0, 500.0)]


def test_wrk_is_read() -> None:
    figures = wrk_figures(WRK.format(more=""))
    assert figures == {"rate": 720.17, "requests": 4321, "failed": 0, "p50_ms": 0.98, "p99_ms": 1050.0}
    more = "  Socket errors: connect 1, read 2, write 0, timeout 3\n  Non-2xx or 3xx responses: 5\n"
    assert wrk_figures(WRK.format(more=more))["failed"] == 11


def test_apachebench_is_read() -> None:
    figures = ab_figures(AB.format(failed=0, more=""))
    assert figures == {"rate": 60.71, "requests": 487, "failed": 0, "p50_ms": 60.0, "p99_ms": 131.0}
    some = ab_figures(AB.format(failed=2, more="Non-2xx responses:      7\n"))
    assert (some["failed"], some["requests"], round(some["rate"], 2)) == (7, 480, 59.84)
    for nothing in (AB.format(failed=0, more="").replace("487", "0"), AB.format(failed=487, more=""), "no route"):
        with pytest.raises(DeadError):
            ab_figures(nothing)


def test_no_answer_at_all_is_a_failure() -> None:
    with pytest.raises(DeadError):
        wrk_figures(WRK.replace("4321", "0"))
    with pytest.raises(DeadError):
        wrk_figures("unable to connect")


def test_the_reports_show_every_figure_and_every_failure(tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    show(FOUND, console)
    said = console.export_text()
    write_page(FOUND, tmp_path / "report.html")
    raw = (tmp_path / "report.html").read_text()
    page = html.unescape(raw)
    for text in (said, page):
        assert "0.80 (0.50-0.90)" in text
        assert "150" in text
        assert FIGURES[0].title in text
    assert "QEMU <has> ended" in said
    assert "QEMU &lt;has&gt; ended" in raw
    assert "<has>" not in raw


def test_every_workload_counts_something_or_is_about_pauses() -> None:
    assert all(workload.unit or name in ("idle", "failover") for name, workload in WORKLOADS.items())
