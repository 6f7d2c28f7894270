"""How two captures are read side by side, and when the comparison hears that they are over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from capture_blocks import pcap
from pycolo.capture.compare import compare_files, in_step
from pycolo.capture.engine import Divergence


@dataclass
class Heard:
    """Stands in for the engine: what it was given."""

    calls: list[tuple[str, bytes, float]] = field(default_factory=list)
    finished: bool = False
    divergences: Sequence[Divergence] = ()
    flows: int = 0
    flows_by_protocol: dict[str, int] = field(default_factory=dict)
    released: int = 0

    def primary(self, frames: Sequence[bytes], now_ms: float) -> None:
        self.calls += [("p", frame, now_ms) for frame in frames]

    def secondary(self, frames: Sequence[bytes], now_ms: float) -> None:
        self.calls += [("s", frame, now_ms) for frame in frames]

    def finish(self) -> None:
        self.finished = True


def order(primary: Sequence[int], secondary: Sequence[int]) -> str:
    steps = in_step([(at, b"") for at in primary], [(at, b"") for at in secondary])
    return " ".join(f"{side[0]}{at}" for side, at, _ in steps)


@pytest.mark.parametrize(
    ("primary", "secondary", "expected"),
    [
        ([], [], ""),
        ([0, 1], [], "p0 p1"),
        ([], [0, 1], "s0 s1"),
        ([0, 5, 9], [0, 4, 6], "p0 s0 s4 p5 s6 p9"),
        ([0, 0, 0], [0, 0, 0], "p0 s0 p0 s0 p0 s0"),
        ([0, 3, 3], [1, 3, 3, 3], "p0 s1 p3 s3 p3 s3 s3"),
        ([0, 9, 2], [5, 6], "p0 s5 s6 p9 p2"),
    ],
)
def test_earlier_first_and_equal_ones_in_turns(primary: list[int], secondary: list[int], expected: str) -> None:
    assert order(primary, secondary) == expected


def compared(folder: Path, primary: bytes, secondary: bytes) -> tuple[Heard, list[float], list[str]]:
    """What the engine heard, how far it was said to be, and the damage."""
    (folder / "a").write_bytes(primary)
    (folder / "b").write_bytes(secondary)
    heard, ticks = Heard(), list[float]()
    outcome = compare_files(folder / "a", folder / "b", heard, ticks.append)
    return heard, ticks, outcome.damage


def capture(*times_ms: int, start_s: int = 0) -> bytes:
    return pcap([(start_s + at // 1000, at % 1000 * 1000, b"%04d" % at, 4) for at in times_ms])


def test_times_count_from_each_first_frame_and_never_go_back(tmp_path: Path) -> None:
    heard, ticks, damage = compared(tmp_path, capture(100, 110, 105), capture(200, 203, start_s=9))
    assert heard.calls == [
        ("p", b"0100", 0.0),
        ("s", b"0200", 0.0),
        ("s", b"0203", 3.0),
        ("p", b"0110", 10.0),
        ("p", b"0105", 10.0),
    ]
    assert (heard.finished, damage) == (True, [])
    assert all(0 <= tick <= 1 for tick in ticks)
    assert ticks


def test_after_damage_only_what_may_be_a_twin_is_read(tmp_path: Path) -> None:
    whole = capture(0, 10, 900, 1011, 5000)
    cut = capture(0, 10, 900)[:-1]
    heard, _, damage = compared(tmp_path, cut, whole)
    assert [(side, int(frame)) for side, frame, _ in heard.calls] == [
        *(("p", 0), ("s", 0), ("p", 10), ("s", 10), ("s", 900))
    ]
    assert not heard.finished
    assert len(damage) == 1
    heard, _, damage = compared(tmp_path, whole, cut)
    assert [int(frame) for side, frame, _ in heard.calls if side == "p"] == [0, 10, 900]
    assert not heard.finished


def test_both_damaged(tmp_path: Path) -> None:
    cut = capture(0, 10, 900)[:-1]
    heard, _, damage = compared(tmp_path, cut, cut)
    assert len(heard.calls) == 4
    assert len(damage) == 2
