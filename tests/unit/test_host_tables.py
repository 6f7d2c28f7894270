"""What `colo status VM` shows of the comparison."""

from __future__ import annotations

from typing import Any

from pycolo.host.models import VmStatus
from pycolo.host.tables import comparison_lines


def status(**packets: Any) -> VmStatus:
    counts = {
        "engine": "compiled",
        "flows": 3,
        "released_equal": 10,
        "released_by_checkpoint": 2,
        "released_by_policy": 1,
        "held_frames": 4,
    }
    divergences = [{"reason": f"tcp {n}"} for n in range(9)]
    manager = {"packets": counts | packets, "divergences": divergences, "pace": packets.get("pace", "")}
    common: dict[str, Any] = {
        "role": "primary",
        "state": "protected",
        "partner": "h2",
        "epoch": 3,
        "since": "",
        "reason": "",
    }
    return VmStatus(name="web", host="h1", protect=True, running=True, manager=manager, **common)


def test_a_pair_shows_how_it_compares_and_why_it_differed() -> None:
    lines = comparison_lines(status(mode="comparing", interval_ms=0.0))
    assert lines[:2] == [
        "comparison: compiled engine, 3 connections; checkpoints as soon as outputs differ",
        "released: 10 equal, 2 by checkpoints, 1 by policy; 4 held",
    ]
    assert lines[2:] == [f"differed: tcp {n}" for n in range(4, 9)]


def test_a_pace_is_shown_with_its_reason() -> None:
    lines = comparison_lines(status(mode="periodic", interval_ms=41.7, pace="12 divergences in 2.0 s"))
    assert lines[0].endswith("checkpoints every 42 ms")
    assert "pace: 12 divergences in 2.0 s" in lines


def test_without_a_partner_nothing_is_compared() -> None:
    assert comparison_lines(status(mode="", interval_ms=0.0)) == []
    assert comparison_lines(VmStatus.model_validate({**status(mode="").model_dump(), "manager": {}})) == []
