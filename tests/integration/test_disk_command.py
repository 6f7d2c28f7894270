"""`colo disk serve` and `colo disk import`: one sentence for every failure, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disk_server import SIZE, Server, colo, run


def test_a_second_server_is_refused(disk_server: Server, tmp_path: Path) -> None:
    same_image = colo("serve", disk_server.image, "--socket", tmp_path / "other.sock")
    assert (same_image.returncode, same_image.stderr.count("\n")) == (2, 1)
    assert "is in use by another process" in same_image.stderr
    (tmp_path / "other.raw").write_bytes(b"x")
    same_socket = colo("serve", tmp_path / "other.raw", "--socket", disk_server.path)
    assert same_socket.returncode == 2
    assert "another process serves" in same_socket.stderr
    assert run("nbdinfo", "--size", disk_server.uri).strip() == str(SIZE)


def test_a_killed_servers_socket_is_replaced(raw_image: Path) -> None:
    first = Server(raw_image)
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert first.path.exists()
    second = Server(raw_image)
    assert run("nbdinfo", "--size", second.uri).strip() == str(SIZE)
    assert second.stop() == 0


def test_import_makes_a_sparse_raw_image(tmp_path: Path) -> None:
    raw, qcow2, imported = tmp_path / "a.raw", tmp_path / "a.qcow2", tmp_path / "b.raw"
    raw.write_bytes(os.urandom(1 << 20))
    os.truncate(raw, 64 << 20)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    refused = colo("serve", qcow2, "--socket", tmp_path / "s")
    assert refused.returncode == 2
    assert "colo disk import" in refused.stderr
    outcome = colo("import", qcow2, imported)
    assert outcome.returncode == 0, outcome.stderr
    assert imported.read_bytes() == raw.read_bytes()
    assert imported.stat().st_blocks * 512 < 2 << 20
    again = colo("import", qcow2, imported)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.qcow2", "a.raw", "b.raw"]


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 1000)
    missing = colo("import", tmp_path / "missing", tmp_path / "b.raw")
    failed = colo("import", broken, tmp_path / "b.raw")
    monkeypatch.setenv("PATH", "/nowhere")
    without_tool = colo("import", broken, tmp_path / "b.raw")
    for outcome, sentence in (
        (missing, "does not exist"),
        (failed, "is damaged"),
        (without_tool, "qemu-utils"),
    ):
        assert (outcome.returncode, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
        assert sentence in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.qcow2"]


def test_an_import_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    tools, folder, started = tmp_path / "tools", tmp_path / "folder", tmp_path / "started"
    tools.mkdir()
    folder.mkdir()
    (tools / "qemu-img").write_text(
        f'#!/bin/sh\nfor part; do :; done; echo > "$part"; echo $$ > {started}; exec sleep 60\n'
    )
    (tools / "qemu-img").chmod(0o755)
    (tmp_path / "source").touch()
    process = subprocess.Popen(
        (sys.executable, "-m", "pycolo", "disk", "import", tmp_path / "source", folder / "image"),
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        stderr=subprocess.DEVNULL,
    )
    while not (started.exists() and started.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 130
    assert list(folder.iterdir()) == []
    gone = Path("/proc", started.read_text().strip())
    for _ in range(100):  # whoever inherited it reaps it
        if not gone.exists():
            break
        time.sleep(0.05)
    assert not gone.exists()


def test_a_damaged_source_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    whole, cut, empty = tmp_path / "whole.qcow2", tmp_path / "cut.qcow2", tmp_path / "empty"
    run("qemu-img", "create", "-q", "-f", "qcow2", whole, "16M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 8M", whole)
    cut.write_bytes(whole.read_bytes()[: 1 << 20])
    empty.touch()
    for source, says in ((cut, "is damaged"), (empty, "is empty"), (tmp_path, "is no file")):
        outcome = colo("import", source, tmp_path / "image")
        assert outcome.returncode == 2
        assert says in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.qcow2", "empty", "whole.qcow2"]
    assert "the folder" in colo("import", whole, tmp_path / "no" / "image").stderr
    assert colo("import", whole, tmp_path / "image").returncode == 0
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o600
