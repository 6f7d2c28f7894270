"""The agent beside the PVM while it is captured: what is written is what was said, and packets go as they would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_agent_primary import BRIEF_LEASE_MS, Host, freeze
from test_recorder import written

from long_segments import LONG, noted
from pycolo.agent import protocol
from pycolo.core.packed import Packed, measure
from pycolo.edge.capture_writer import CaptureWriter
from pycolo.edge.offload import described
from pycolo.errors import EnvironmentFault, WrongState
from tcp_frames import arp, udp


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host(lease_ms=BRIEF_LEASE_MS)
    yield host
    host.close()


def start(host: Host, path: Path) -> protocol.Capture:
    return host.side.start_capture(protocol.StartCapture(str(path), 1 << 20, 60), 0.0)


def checkpoint(host: Host, epoch: int) -> None:
    host.side.pause_feed(0)
    host.side.seal(epoch, host.side.drain(), 1.0)
    host.side.resume_feed(0)
    host.side.commit(epoch, 41.0)


def lines(host: Host, path: Path) -> list[tuple[str, bytes, str]]:
    host.side.stop_capture("enough")
    return [(name, frame, comment) for name, frame, _, comment in written(path)]


def test_every_way_of_a_frame(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert start(host, path) == protocol.Capture(str(path), running=True)
    host.places[0].tap.clients.send(udp(b"ask", inbound=True))
    host.side.on_tap(0, 1.0)
    host.pvm(udp(b"one"), arp())
    host.turn()
    host.svm(udp(b"one"))
    host.turn()
    host.pvm(udp(b"late"))
    host.turn()
    checkpoint(host, 2)
    host.pvm(udp(b"alone"))
    host.turn()
    host.side.leave_pair()
    host.side.go_solo()
    host.pvm(udp(b"free"))
    host.turn()
    said = lines(host, path)
    assert [(name, frame) for name, frame, _ in said] == [
        ("clients", udp(b"ask", inbound=True)),
        ("primary", arp()),
        ("secondary", udp(b"one")),
        ("primary", udp(b"one")),
        ("primary", udp(b"late")),
        ("primary", udp(b"alone")),
        ("primary", udp(b"free")),
    ]
    assert [comment for _, _, comment in said[1:5]] == [
        "released: it carries no application state; epoch 1; held 0.0 ms",
        "epoch 1",
        "released: the secondary sent the same; epoch 1; held 0.0 ms",
        "released: a checkpoint after it is committed; epoch 1; held 40.0 ms",
    ]
    assert said[5][2].startswith("released: this host has the claim and no partner; epoch 2; held ")
    assert said[6][2] == "released: this host has the claim and no partner"
    assert host.heard() == [[frame for name, frame, _ in said if name == "primary"]]


def test_a_long_segment_is_written_without_its_note(host: Host, tmp_path: Path) -> None:
    start(host, tmp_path / "c")
    host.places[0].qemu.end.send(b"".join(described(noted(LONG))))
    host.svm(noted(LONG))
    host.turn()
    checkpoint(host, 2)
    said = lines(host, tmp_path / "c")
    assert [(name, frame) for name, frame, _ in said] == [("secondary", LONG), ("primary", LONG)]
    assert host.heard() == [[described(noted(LONG))[1]]]


def test_a_divergence_is_at_its_frame_and_still_told(host: Host, tmp_path: Path) -> None:
    host.pvm(udp(b"before"))  # the capture counts frames as the comparison does, whenever it begins
    host.svm(udp(b"before"))
    host.turn()
    start(host, tmp_path / "c")
    host.pvm(udp(b"fine"), udp(b"one"))
    host.svm(udp(b"fine"), udp(b"two"))
    host.turn()
    host.side.on_time(1.0)
    checkpoint(host, 2)
    comments = {frame: comment for name, frame, comment in lines(host, tmp_path / "c") if name == "primary"}
    assert comments == {
        udp(b"fine"): "released: the secondary sent the same; epoch 1; held 0.0 ms",
        udp(b"one"): "released: a checkpoint after it is committed; epoch 1; held 40.0 ms; "
        "payload at byte 0, primary 6f 6e 65, secondary 74 77 6f",
    }
    (wanted,) = host.notices
    assert isinstance(wanted, protocol.Wanted)
    assert len(wanted.divergences) == 1
    assert host.side.capture().divergences == 1


def test_what_waits_for_the_claim_is_written_when_it_leaves(host: Host, tmp_path: Path) -> None:
    start(host, tmp_path / "c")
    host.svm(udp(b"one"))
    host.turn()
    host.pvm(udp(b"one"))
    drained = host.side.drain()
    host.side.leave_pair()
    host.side.seal(2, drained, 1.0)
    assert (host.side.capture().frames, host.side.capture().held) == ({"secondary": 1}, 1)
    host.side.go_solo()
    assert (host.side.capture().frames, host.side.capture().held) == ({"secondary": 1, "solo": 1}, 0)
    host.side.stop_capture("enough")


def test_a_frozen_agent_writes_what_it_sent_and_no_more(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(host, tmp_path / "c")
    host.pvm(udp(b"0"), udp(b"1"))
    host.turn()
    host.side.pause_feed(0)
    host.side.seal(2, host.side.drain(), 1.0)
    host.side.resume_feed(0)
    send = host.tap.send

    def one_and_freeze(packed: Packed, deadline_s: float) -> tuple[int, int]:
        at, _ = measure(packed, 0, 1)
        sent = send(packed[:at], deadline_s)
        freeze()
        return sent

    monkeypatch.setattr(host.tap, "send", one_and_freeze)
    host.side.commit(2, 2.0)
    monkeypatch.undo()
    assert host.heard() == [[udp(b"0")]]
    assert [frame for _, frame, _ in lines(host, tmp_path / "c")] == [udp(b"0")]
    assert host.side.capture().held == 1


def test_one_at_a_time(host: Host, tmp_path: Path) -> None:
    for asking in (host.side.capture, lambda: host.side.stop_capture("x")):
        with pytest.raises(WrongState, match="no capture has been taken here"):
            asking()
    start(host, tmp_path / "c")
    with pytest.raises(WrongState, match=r"is being captured into .*/c: wait"):
        start(host, tmp_path / "d")
    ended = host.side.stop_capture("enough")
    assert ended == host.side.capture() == host.side.stop_capture("again")
    with pytest.raises(EnvironmentFault, match="is there already"):
        start(host, tmp_path / "c")
    assert start(host, tmp_path / "d").running
    host.side.stop_capture("enough")


def test_its_time_is_kept_without_packets(host: Host, tmp_path: Path) -> None:
    start(host, tmp_path / "c")
    due_ms = host.side.on_time(0.0)
    assert due_ms is not None
    assert 0 < due_ms < 1000
    host.side.on_time(60_000.0)
    assert host.side.capture().ended == "its time is over"
    assert host.side.on_time(60_001.0) is None


def test_a_disk_that_fails_disturbs_no_packet(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise EnvironmentFault("c can't be written (No space left on device): make room")

    start(host, tmp_path / "c")
    monkeypatch.setattr(CaptureWriter, "write", full)
    host.pvm(udp(b"one"))
    host.svm(udp(b"one"))
    host.turn()
    assert host.heard() == [[udp(b"one")]]
    host.side.on_time(1.0)
    assert "No space left" in host.side.capture().ended


def test_what_is_said_goes_over_the_link() -> None:
    for command in (protocol.StartCapture("/c", 1, 2), protocol.GetCapture(), protocol.StopCapture()):
        assert protocol.command_decoder.decode(protocol.encoder.encode(command)) == command
    report = protocol.Capture("/c", True, "", {"link control": 2}, 1, 2, 3)
    assert protocol.answer_decoder.decode(protocol.encoder.encode(report)) == report
