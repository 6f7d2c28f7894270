"""A capture of a protected VM: what is written, in which words, and how it ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from pycolo.agent import protocol
from pycolo.agent.arrivals import UNPLACED_MAX, Arrival, Arrivals
from pycolo.agent.recorder import FLUSH_MS, Recorder
from pycolo.core.compare_policy import Policy, Rule, Verdict
from pycolo.core.divergence import Divergence
from pycolo.core.layers import UDP
from tcp_frames import arp, udp

ONE, TWO = udp(b"one"), udp(b"two")
FOUND = Divergence("udp", "10.0.0.2:80", "10.0.0.1:4000", (), "payload", 1, b"ne", b"ff", 1, 1)
Frame = tuple[str, bytes, int, str]  # interface, frame, ns, comment


def recorder(path: Path, *, cards: int = 1, bytes_max: int = 1 << 20, policy: Policy | None = None) -> Recorder:
    """It began at 1000 ms, which was 5 s after the beginning of 1970, and may take 10 s."""
    request = protocol.StartCapture(str(path), bytes_max, 10)
    return Recorder(request, cards, policy or Policy(), 1000.0, 5_000_000_000)


def written(path: Path) -> list[Frame]:
    reader: Any = RawPcapNgReader(str(path))
    with reader:
        return [
            (
                metadata.ifname.decode(),
                frame,
                (metadata.tshigh << 32) + metadata.tslow,
                b"".join(metadata.comments or []).decode(),
            )
            for frame, metadata in reader
        ]


def test_each_side_has_its_interface_and_frames_the_time_at_which_they_came(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one = recorder(path)
    one.clients(0, [ONE], 1001.0)
    one.put_out(0, [TWO], 1, 12, 1002.0)
    one.secondary(0, 12, [TWO], 1003.0)
    one.left(0, [TWO], 1003.5)
    one.end("enough")
    assert written(path) == [
        ("clients", ONE, 5_001_000_000, ""),
        ("secondary", TWO, 5_003_000_000, "epoch 12"),
        ("primary", TWO, 5_002_000_000, "released: the secondary sent the same; epoch 12; held 1.5 ms"),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert one.report() == protocol.Capture(str(path), False, "enough", {"clients": 1, "secondary": 1, "equal": 1})


def test_the_verdicts(tmp_path: Path) -> None:
    policy = Policy([Rule(UDP, Verdict.RELEASE)])
    path = tmp_path / "c"
    one = recorder(path, policy=policy)
    one.put_out(0, [ONE, TWO, ONE], 1, 3, 1000.0)
    one.left(0, [ONE], 1040.0, committed=4)
    one.left(0, [arp()], 1041.0)
    one.left(0, [TWO], 1041.0)
    one.left(0, [ONE], 1041.0, solo=True)
    one.left(0, [TWO], 1042.0, committed=4)  # nobody saw it come
    one.end("enough")
    assert [comment for _, _, _, comment in written(path)] == [
        "released: a checkpoint after it is committed; epoch 3; held 40.0 ms",
        "released: it carries no application state",
        "released: `compare` of vm.toml says so; epoch 3; held 41.0 ms",
        "released: this host has the claim and no partner; epoch 3; held 41.0 ms",
        "released: a checkpoint after it is committed",
    ]
    assert one.report().frames == {"checkpoint": 2, "link control": 1, "policy": 1, "solo": 1}


def test_a_commit_also_frees_what_is_equal_in_the_epoch_that_it_starts(tmp_path: Path) -> None:
    one = recorder(tmp_path / "c")
    one.put_out(0, [ONE], 1, 3, 1000.0)
    one.put_out(0, [TWO], 2, 4, 1001.0)
    one.left(0, [ONE, TWO], 1002.0, committed=4)
    assert one.report().frames == {"checkpoint": 1, "equal": 1}
    one.end("")


def test_a_divergence_stands_at_its_frame_or_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one = recorder(path)
    one.put_out(0, [ONE, TWO], 1, 3, 1000.0)
    one.differ(0, [FOUND, replace(FOUND, pvm_frame=None)])
    one.left(0, [TWO, ONE], 1002.0, committed=4)
    one.end("enough")
    second, first = (comment for _, _, _, comment in written(path))
    assert second.endswith("before this frame: " + FOUND.sentence())
    assert first.endswith("payload at byte 1, primary 6e 65, secondary 66 66")
    assert one.report().divergences == 2


def test_several_cards(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one = recorder(path, cards=2)
    one.clients(1, [ONE], 1000.0)
    one.put_out(0, [TWO], 1, 1, 1000.0)
    one.left(1, [TWO], 1001.0)  # another card's
    one.end("enough")
    assert [(name, comment) for name, _, _, comment in written(path)] == [
        ("clients 1", ""),
        ("primary 1", "released: the secondary sent the same"),
    ]
    assert one.report().held == 1


def test_it_ends_by_size_and_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one = recorder(path, bytes_max=1 << 20)
    big = udp(bytes(1000))
    for _ in range(1100):
        one.clients(0, [big], 1000.0)
        one.left(0, [big], 1000.0)
    report = one.report()
    assert (report.running, report.ended, report.not_written) == (False, "the file has reached its limit of 1 MiB", 1)
    assert path.stat().st_size <= 1 << 20
    assert len(written(path)) == sum(report.frames.values()) > 900


def test_it_ends_by_time_and_is_in_the_file_before_that(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one = recorder(path)
    one.clients(0, [ONE], 1000.0)
    assert one.on_time(1000.0) == 1000.0 + FLUSH_MS
    assert path.stat().st_size == 0
    assert one.on_time(1000.0 + FLUSH_MS) == 1000.0 + 2 * FLUSH_MS
    assert len(written(path)) == 1
    one.on_time(11_000.0)
    assert one.ended == "its time is over"
    one.clients(0, [ONE], 11_000.0)
    one.put_out(0, [ONE], 1, 1, 11_000.0)
    one.left(0, [ONE], 11_000.0)
    one.differ(0, [FOUND])
    one.end("again")
    assert one.report() == protocol.Capture(str(path), False, "its time is over", {"clients": 1})


@pytest.mark.parametrize(
    "write",
    [
        lambda one: one.on_time(1000.0 + FLUSH_MS),
        lambda one: one.clients(0, [udp(bytes(1000))] * 100, 1000.0),
        lambda one: one.end("enough"),
    ],
)
def test_a_full_disk_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Recorder], Any]) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    one = recorder(tmp_path / "c")
    one.clients(0, [ONE], 1000.0)
    monkeypatch.setattr(os, "pwrite", full)
    write(one)
    assert "No space left on device" in one.ended
    assert one.report().not_written > 0


def test_arrivals_of_equal_bytes_leave_in_their_order() -> None:
    arrivals = Arrivals(10)
    arrivals.add([ONE, TWO, ONE], 5, 1.0, 2)
    assert [arrivals.take(ONE)[0] for _ in range(3)] == [Arrival(5, 1.0, 2), Arrival(7, 1.0, 2), None]
    assert len(arrivals) == 1


def test_arrivals_are_bounded_and_the_oldest_forgotten() -> None:
    arrivals = Arrivals(3)
    for no in range(1, 11):
        arrivals.add([b"%d" % no], no, 1.0, 1)
    assert len(arrivals) == 3
    assert [no for no in range(1, 11) if arrivals.take(b"%d" % no)[0]] == [8, 9, 10]
    arrivals.differ([FOUND] * 100)
    assert len(arrivals.take_unplaced()) == UNPLACED_MAX
    assert arrivals.take_unplaced() == []
