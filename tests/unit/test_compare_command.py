"""`colo compare` as a user meets it: over the corpus, through pipes, with damage; the report and the JSON object."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from capture_blocks import Blocks, pcap, write_pcap
from corpus import captures, flipped, payload_span, resegmented
from pycolo.cli import main
from tcp_frames import udp

Run = Callable[..., tuple[int, str, str]]
WELL_FORMED = [name for name in captures() if not name.startswith("malformed")]
LITTLE = Blocks("<")


@pytest.fixture
def colo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `colo compare`: exit status, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["colo", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Sequence[bytes]], Path]:
    return lambda name, frames: write_pcap(tmp_path / f"{name}.pcap", frames)


Write = Callable[[str, Sequence[bytes]], Path]


def document(run: tuple[int, str, str]) -> tuple[int, dict[str, Any]]:
    status, out, err = run
    assert err == ""
    assert out.count("\n") == 1
    return status, json.loads(out)


def sentence(run: tuple[int, str, str]) -> str:
    """Of bad input: nothing else is said."""
    status, out, err = run
    assert (status, out) == (2, "")
    assert err.startswith("colo: ")
    assert err.count("\n") == 1
    return err.removeprefix("colo: ").rstrip()


# ---------------------------------------------------------------- over the corpus


@pytest.mark.parametrize("name", captures())
def test_a_capture_is_equal_to_itself(colo: Run, write: Write, name: str) -> None:
    frames = captures()[name]
    path = write("x", frames)
    status, found = document(colo(path, path, "--json"))
    assert (status, found["divergences"]) == (0, [])
    assert found["frames"] == 2 * len(frames)
    assert found["flows"] == sum(found["flows_by_protocol"].values())


def test_other_segments_are_equal(colo: Run, write: Write) -> None:
    for name in ("tcp-client-opened", "tcp-qinq", "tcp-seq-wrap", "tcp-several"):
        frames = captures()[name]
        other = write("b", resegmented(frames, [97, 1460]))
        status, found = document(colo(write("a", frames), other, "--json"))
        assert (status, found["divergences"]) == (0, []), name


def test_a_flipped_byte_is_one_divergence(colo: Run, write: Write) -> None:
    for name, number, byte in (
        ("tcp-qinq", 7, 321),
        ("udp-ipv6", 3, 90),
        ("ipv4-fragments", 2, 100),
        ("jumbo", 4, 8000),
    ):
        frames = captures()[name]
        span = payload_span(frames[number - 1])
        assert span is not None
        changed = write("b", flipped(frames, number, byte))
        status, found = document(colo(write("a", frames), changed, "--json"))
        (entry,) = found["divergences"]
        ours, theirs = bytes.fromhex(entry["primary"]), bytes.fromhex(entry["secondary"])
        assert (status, ours[0] ^ theirs[0], ours[1:]) == (1, 0xFF, theirs[1:])
        assert ours[0] == frames[number - 1][span.start + byte]
        assert entry["protocol"] == entry["flow"].split()[0] == ("tcp" if name in ("tcp-qinq", "jumbo") else "udp")
        if "fragments" not in name:
            assert (entry["primary_frame"], entry["secondary_frame"]) == (number, number)


def test_the_entry_of_a_divergence(colo: Run, write: Write) -> None:
    frames = captures()["tcp-qinq"]
    other = resegmented(flipped(frames, 7, 321), [400])
    status, found = document(colo(write("a", frames), write("b", other), "--json"))
    assert status == 1
    (entry,) = found["divergences"]
    assert entry["flow"] == "tcp [fd00::2]:80 > [fd00::1]:40000 VLAN 100.5"
    assert (entry["source"], entry["target"], entry["vlans"]) == ("[fd00::2]:80", "[fd00::1]:40000", [100, 5])
    assert (entry["what"], entry["offset"]) == ("payload", 1321)
    assert (entry["primary_frame"], entry["secondary_frame"]) == (7, 6 + 1321 // 400)


def test_one_side_has_nothing(colo: Run, write: Write) -> None:
    for name in ("udp", "tcp-client-opened"):
        whole, none = write("a", captures()[name]), write("b", [])
        for pair, side in (((whole, none), "primary"), ((none, whole), "secondary")):
            status, out, _ = colo(*pair)
            assert status == 1
            assert f"{none}: no frames" in out
            assert f"the {side} sent what the {'secondary' if side == 'primary' else 'primary'} did not" in out


# ---------------------------------------------------------------- the report


def test_the_report(colo: Run, write: Write) -> None:
    frames = captures()["tcp-vlan"]
    ours, theirs = write("a", frames), write("b", flipped(frames, 6, 500))
    status, out, err = colo(ours, theirs)
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[:5] == [
        f"primary      {ours}: 12 frames",
        f"secondary    {theirs}: 12 frames",
        "flows        1: 1 tcp",
        "released     7 of the primary's 12 frames: the secondary sent the same",
        "divergences  1",
    ]
    flow = "1. tcp 10.0.0.2:80 > 10.0.0.1:40000 VLAN 5: the payload differs, from byte 500 of the stream on"
    assert lines[6:11] == [
        flow,
        "   primary frame 6, secondary frame 6",
        "     primary        500  75 69 63 6b 20 62 72 6f 77 6e 20 66 6f 78 20 6a  |uick brown fox j|",
        "     secondary      500  8a 69 63 6b 20 62 72 6f 77 6e 20 66 6f 78 20 6a  |.ick brown fox j|",
        "                         ^^                                                ^",
    ]
    headers = [line for line in lines[13:] if line]
    assert [line[5:].split()[:2] for line in headers if line[3] == "*"] == [["TCP", "checksum"]]
    assert "     TCP sequence          1000001            1000001" in headers


def test_equal(colo: Run, write: Write) -> None:
    path = write("a", captures()["udp"])
    status, out, _ = colo(path, path)
    assert status == 0
    assert out.splitlines()[-1] == "divergences  none"


def test_the_report_ends_with_what_it_left_out(colo: Run, write: Write) -> None:
    frames = [udp(b"same", port=port) for port in range(1000, 1030)]
    others = [udp(b"diff", port=port) for port in range(1000, 1030)]
    paths = write("a", frames), write("b", others)
    _, out, _ = colo(*paths)
    assert out.count("secondary frame") == 20
    assert out.splitlines()[-1] == "10 more divergences: `--json` has them all"
    _, found = document(colo(*paths, "--json"))
    assert [entry["secondary_frame"] for entry in found["divergences"]] == list(range(1, 31))


# ---------------------------------------------------------------- what the files are


def test_pipes(colo: Run, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    frames = captures()["udp"]
    path, other = write("a", frames), write("b", flipped(frames, 2, 5))
    for arguments in (("-", path), (path, "-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(other.read_bytes()))))
        status, out, _ = colo(*arguments)
        assert status == 1
        assert "standard input: 6 frames" in out
        assert "primary frame 2, secondary frame 2" in out
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
    writer.start()
    assert colo(path, fifo)[0] == 0
    writer.join()


def test_standard_input_can_be_one_of_them(colo: Run) -> None:
    told = "standard input can be one of the two captures only: name a file for the other"
    assert sentence(colo("-", "-")) == told


def test_a_pipe_without_end(colo: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycolo.edge.capture_spool.SPOOL_BYTES_MAX", 3 << 20)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(4 << 20))))
    told = sentence(colo("-", write("a", [])))
    assert told == "more than 0 GiB come from standard input: save it to a file and name that"


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_bad_input(colo: Run, write: Write, tmp_path: Path, json_too: list[str]) -> None:
    good, bad = write("a", captures()["udp"]), tmp_path / "bad"
    assert "can't be read (No such file or directory)" in sentence(colo(good, bad, *json_too))
    bad.write_bytes(b"what is this?")
    assert "is not a capture" in sentence(colo(bad, good, *json_too))
    bad.write_bytes(pcap([], link_type=113))
    assert "Linux cooked (SLL)" in sentence(colo(good, bad, *json_too))
    bad.write_bytes(LITTLE.section() + LITTLE.interface(101) + LITTLE.packet(b"ip"))
    assert "raw IP" in sentence(colo(bad, good, *json_too))


def test_frames_that_are_cut_or_of_other_link_types_are_counted(colo: Run, write: Write, tmp_path: Path) -> None:
    frames = captures()["udp"]
    path = tmp_path / "b.pcapng"
    content = LITTLE.section() + LITTLE.interface(101) + LITTLE.interface()
    for number, frame in enumerate(frames):
        content += LITTLE.packet(b"other", number, 0)
        content += LITTLE.packet(frame[:70], number, 1, original=len(frame))
    path.write_bytes(content)
    status, out, _ = colo(path, path)
    assert status == 0
    assert f"{path}: 6 frames, 6 more of other link types passed over, 6 of them cut by the snap length: capture" in out
    status, found = document(colo(write("a", frames), path, "--json"))
    assert status == 1
    assert found["secondary"] == {
        "file": str(path),
        "frames": 6,
        "frames_skipped": 6,
        "frames_cut": 6,
        "damage": None,
    }
    assert {entry["secondary_frame"] for entry in found["divergences"]} <= {2, 4, 6, 8, 10, 12, None}


def test_damage_ends_the_comparison(colo: Run, write: Write, tmp_path: Path) -> None:
    frames = captures()["tcp-several"]
    whole = write("a", frames)
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:-690])
    for pair in ((whole, cut), (cut, whole)):
        status, out, err = colo(*pair)
        assert status == 2
        assert "divergences  none" in out
        assert f"{cut}: " in out
        assert " frames, then damaged" in out
        assert err.startswith(f"colo: {cut} is damaged at byte ")
        assert err.count("\n") == 1
    other = write("b", flipped(frames, 24, 0))
    status, out, err = colo("--json", other, cut)
    found = json.loads(out)
    assert (status, len(found["divergences"])) == (2, 1)
    assert found["secondary"]["damage"] == err.removeprefix("colo: ").rstrip()


def test_a_name_that_is_no_text(colo: Run, write: Write, tmp_path: Path) -> None:
    path = write("a", captures()["udp"])
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.pcap"))
    assert "/\ufffd.pcap can't be read" in sentence(colo(path, odd))
    odd.write_bytes(path.read_bytes())
    assert colo(path, odd)[0] == 0
    status, found = document(colo(path, odd, "--json"))
    assert (status, found["secondary"]["file"][-6:]) == (0, "\ufffd.pcap")


def test_as_a_program(write: Write) -> None:
    frames = captures()["udp"]
    paths = write("a", frames), write("b", flipped(frames, 1, 0))
    command = [sys.executable, "-m", "pycolo", "compare", *map(str, paths), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert len(json.loads(done.stdout)["divergences"]) == 1
