"""Files beside an image last, or are refused."""

from __future__ import annotations

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
