"""Files beside an image last, or are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pycolo.edge import beside
from pycolo.edge.beside import check_lasts, open_beside
from pycolo.errors import EnvironmentFault


def test_memory_does_not_last() -> None:
    with pytest.raises(EnvironmentFault, match=r"/dev/shm is in memory.*choose a `state_dir` on a disk"):
        check_lasts(Path("/dev/shm"))


def test_a_disk_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(beside, "MOUNTS", mounts)
    line = f"22 1 {device >> 8 & 0xFFF}:{device & 0xFF} / / rw,relatime shared:1 - {{}} /dev/vda rw\n"
    mounts.write_text(line.format("ext4"))
    check_lasts(tmp_path)
    mounts.write_text(line.format("tmpfs"))
    with pytest.raises(EnvironmentFault, match="is in memory"):
        check_lasts(tmp_path)


@pytest.mark.parametrize("place", ["no/such/folder/file", "folder"])
def test_what_can_not_be_made_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(EnvironmentFault, match="it has to be writable, beside its image"):
        open_beside(tmp_path / place)


def test_a_new_file_has_its_content_and_a_present_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    scratch = tmp_path / "file.new"  # what another left when it died in the middle
    scratch.write_bytes(b"longer than the content")
    scratch.chmod(0o600)
    for content in (b"first", b"second"):
        os.close(open_beside(path, content))
        assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_name_comes_after_the_content_is_durable_and_is_durable_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"{os.fstat(fd).st_size} bytes")
        fsync(fd)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    os.close(open_beside(tmp_path / "file", b"content"))
    assert calls == ["7 bytes", "name", "folder"]
