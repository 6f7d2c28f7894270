"""What is drawn, how it is judged and told: the parts of a campaign that need no hosts."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from campaign import __main__ as program
from campaign.history import History
from campaign.inflict import fault_of, fault_of_plan
from campaign.judge import Round, clients_noticed, counts, speakers
from campaign.nemesis import AMOUNTS, DOUBLES, FAMILIES, KINDS, UNITS, Plan, Strike, draw
from campaign.page import picture
from campaign.report import report
from campaign.soak import report as soak_report
from campaign.wall_clock import WallClock, build_library
from fault_matrix import FAULTS

SEEDS = range(2000)


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert [draw(seed) for seed in SEEDS] == [draw(seed) for seed in SEEDS]
    assert len({str(draw(seed)) for seed in SEEDS}) > 500


def test_all_that_can_be_drawn_is_drawn_and_can_be_inflicted() -> None:
    plans = [draw(seed) for seed in SEEDS]
    drawn = {strike.fault for plan in plans for strike in plan.strikes}
    assert {fault for _, names in FAMILIES for fault in names} <= drawn
    assert {fault.name for fault in FAULTS} <= drawn
    pairs = {tuple(strike.fault for strike in plan.strikes) for plan in plans if plan.kind == "double"}
    assert pairs == {(pair.first, pair.second) for pair in DOUBLES}
    assert Counter(plan.kind for plan in plans).keys() == KINDS.keys()
    for plan in plans:
        if plan.kind != "reboot":
            fault = fault_of_plan(plan)
            assert fault.name == str(plan)
            assert fault.moves in ("over", "on", "any", "not", "may") or plan.promise == "down"


def test_sizes_have_units_and_unknown_faults_are_refused() -> None:
    assert AMOUNTS.keys() == UNITS.keys()
    assert str(Strike("slow link", 5)) == "slow link (5 ms each way)"
    with pytest.raises(KeyError):
        fault_of(Strike("rain"))


def test_the_words_of_a_plan() -> None:
    strikes = (Strike("cut the link"), Strike("kill all of the primary"))
    assert str(Plan(1, "reboot", ())) == "the guest reboots"
    assert str(Plan(1, "checkpoint", strikes[:1], at_ms=7)) == "cut the link, 7 ms into a checkpoint"
    assert str(Plan(1, "double", strikes, delay_s=0.5)) == "cut the link, 0.5 s later kill all of the primary"


def tick(**changed: dict[str, int]) -> dict[str, Any]:
    clean = {"requests": 9, "failed": 0, "reset": 0, "wrong_bytes": 0, "retries": 0}
    return {"lost_acknowledged": 0, "by_kind": {kind: {**clean, **changed.get(kind, {})} for kind in ("tcp", "udp")}}


@pytest.mark.parametrize(
    ("after", "kept", "held", "down"),
    [
        ({}, [], [], []),
        ({"udp": {"failed": 2}}, ["clients: 2 x udp failed"], [], []),
        ({"tcp": {"failed": 1}}, ["clients: 1 x tcp failed"], ["clients: 1 x tcp failed"], []),
        ({"tcp": {"reset": 1}}, ["clients: 1 x tcp reset"], ["clients: 1 x tcp reset"], []),
        ({"tcp": {"wrong_bytes": 1}}, *[["clients: 1 x tcp wrong_bytes"]] * 3),
    ],
)
def test_what_clients_may_notice(after: dict[str, Any], kept: list[str], held: list[str], down: list[str]) -> None:
    before, now = counts(tick()), counts(tick(**after))
    assert clients_noticed(before, now, "kept", down=False) == kept
    assert clients_noticed(before, now, "held", down=False) == held
    assert clients_noticed(before, now, "down", down=True) == down
    assert clients_noticed(now, now, "kept", down=False) == []


def test_a_lost_write_is_never_forgiven() -> None:
    now = counts(tick() | {"lost_acknowledged": 3})
    for promise in ("kept", "held", "down", "kept or down"):
        assert clients_noticed({}, now, promise, down=True) == ["clients: 3 x acknowledged writes lost"]


def test_who_has_been_relieved_never_speaks_again() -> None:
    assert speakers([]) == speakers(["h1"]) == speakers(["h1", "h1", "h2"]) == []
    assert speakers(["h1", "h2", "h1"]) == ["two speakers: h1 -> h2 -> h1"]


def begun(number: str, at_ms: float, **more: Any) -> dict[str, Any]:
    line = {"id": number, "store": "redis", "key": "a:0", "kind": "write", "value": number, "expected": None}
    return {**line, "from_ms": at_ms, **more}


def test_a_history_forgets_what_redis_forgets_and_other_registers() -> None:
    history = History("a")
    for line in (
        begun("w", 1.0),
        {"id": "w", "until_ms": 2.0},
        begun("r", 5.0, kind="read"),
        {"id": "r", "until_ms": 6.0, "value": None},
        begun("lost", 7.0, key="b:0", kind="read"),
        {"id": "lost", "until_ms": 8.0, "value": "from another round"},
        begun("x", 9.0),
        {"id": "x", "error": "ConnectionResetError: gone"},
    ):
        history.hear(line)
    assert history.errors == ["x: ConnectionResetError: gone"]
    assert (history.answered("redis"), history.answered("redis", 3.0), history.answered("database")) == (2, 1, 0)
    (why,) = history.contradictions()
    assert why.startswith("redis a:0: r read None (5.0 to 6.0 ms)")
    assert history.contradictions(4.0) == []


def test_the_report_tells_of_each_round_and_of_failures_with_their_logs() -> None:
    rounds = [Round(1, draw(2), gap_ms=12.0, again_s=5.5, turns=["h1", "h2"], operations=100)]
    assert "1 rounds, 0 failed" in report(rounds, 60, "")
    logs = {"h1.log": "the <last> words"}
    rounds.append(Round(2, draw(3), problems=["two speakers: h1 & h2"], logs=logs))
    text = report(rounds, 90, "Ended by a signal.")
    for part in ("2 rounds, 1 failed", "Ended by a signal.", "two speakers: h1 &amp; h2", "the &lt;last&gt; words"):
        assert part in text
    assert "--seed 3" in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "no round was played" in report([], 1, "")
    assert str(rounds[1]).splitlines()[1].strip() == "two speakers: h1 & h2"


def test_the_page_of_a_soak() -> None:
    series = {"own memory MiB of h1's agent 7": [(0.0, 1.0), (5.0, 2.0)]}
    text = soak_report(series, ["own memory of <h1> grows"], 60, 3)
    assert "1 complaints" in text
    assert "own memory of &lt;h1&gt; grows" in text
    assert "h1&#x27;s agent 7" in text
    assert "nothing was seen" in picture({}, "", "s")


def test_the_program_lists_what_it_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--list", "--seed", "5", "--rounds", "2"]) == 0
    assert capsys.readouterr().out == f"seed 5: {draw(5)}\nseed 6: {draw(6)}\n"


def test_a_wall_clock_steps_in_a_process_that_runs(tmp_path: Path) -> None:
    clock = WallClock(build_library(tmp_path), tmp_path / "clock")
    program = "import time\nwhile input(): print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for ahead_s in (0.0, 3600.0, -86400.0):
            clock.step_to(ahead_s)
            process.stdin.write("go\n")
            process.stdin.flush()
            wall_s, monotonic_s = map(float, process.stdout.readline().split())
            assert math.isclose(wall_s - time.time(), ahead_s, abs_tol=20.0)
            assert math.isclose(monotonic_s, time.monotonic(), abs_tol=20.0)
        process.stdin.write("\n")
