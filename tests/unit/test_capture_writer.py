"""Writing captures: other tools read them, their size is bounded, and what goes wrong leaves a whole file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from pycolo.edge import capture_writer
from pycolo.edge.capture_file import CaptureReader
from pycolo.edge.capture_source import FRAME_BYTES_MAX, CaptureRecord
from pycolo.edge.capture_writer import TEXT_BYTES_MAX, CaptureWriter
from pycolo.errors import EnvironmentFault

MIB = 1 << 20
FRAME = b"f" * 61


def read_with_scapy(path: Path) -> Any:
    """(frame, metadata) each."""
    with RawPcapNgReader(str(path)) as reader:
        return list(reader)


def read(path: Path) -> list[CaptureRecord]:
    with CaptureReader(path) as reader:
        return list(reader)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with CaptureWriter(path, ["pvm", "svm"], MIB) as writer:
        assert writer.write(b"", 0)
        assert writer.write(FRAME, 1_700_000_000_123_456_789, 1, "out", "held 3 ms")
        assert writer.write(FRAME, 1 << 63, 0, "in")
        assert (writer.frames, writer.frames_not_written, writer.shortfall) == (3, 0, None)
    assert read(path) == [
        (1, 0, b"", 0, None, 0),
        (2, 1_700_000_000_123_456_789, FRAME, 1, "out", 61),
        (3, 1 << 63, FRAME, 0, "in", 61),
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_scapy_reads_names_directions_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with CaptureWriter(path, ["pvm", "svm"], MIB) as writer:
        writer.write(FRAME, 1_000_000_001, 1, "out", "late: held 3 ms — ü")
        writer.write(FRAME, 1_000_000_002, 0, "in")
    (first, one), (second, two) = read_with_scapy(path)
    assert (first, second) == (FRAME, FRAME)
    assert (one.ifname, one.direction, two.ifname, two.direction) == (b"svm", 2, b"pvm", 1)
    assert (one.tsresol, one.linktype, one.wirelen, one.tslow) == (10**9, 1, 61, 1_000_000_001)
    assert one.comments == ["late: held 3 ms — ü".encode()]


def test_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with CaptureWriter(path, ["pvm"], 1000) as writer:
        written = [writer.write(FRAME, n) for n in range(12)] + [writer.write(b"", 0)]
        assert written == [True] * writer.frames + [False] * writer.frames_not_written
        assert writer.shortfall == (
            f"{path} has reached its limit of 1000 bytes with 9 frames: 4 more were not written, "
            "so allow more bytes or capture for a shorter time"
        )
    assert 900 < path.stat().st_size <= 1000
    assert [record.ts_ns for record in read(path)] == list(range(9))


def test_a_bound_that_leaves_no_room(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="50 bytes are not enough for a capture: allow 65536 or more"):
        CaptureWriter(tmp_path / "x", ["pvm"], 50)
    assert not (tmp_path / "x").exists()


def test_frames_and_texts_are_cut_at_their_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with CaptureWriter(path, ["n" * 5000], MIB) as writer:
        writer.write(bytes(FRAME_BYTES_MAX + 9), 0, comment="ü" + "€" * 5000)
    (record,) = read(path)
    assert (len(record.frame), record.original_bytes, record.is_cut) == (FRAME_BYTES_MAX, FRAME_BYTES_MAX + 9, True)
    ((_, metadata),) = read_with_scapy(path)
    assert metadata.comments == [("ü" + "€" * ((TEXT_BYTES_MAX - 2) // 3)).encode()]
    assert metadata.ifname == b"n" * TEXT_BYTES_MAX


def test_it_takes_no_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(EnvironmentFault, match=f"{taken} is there already: name a new file for the capture"):
            CaptureWriter(taken, ["pvm"], MIB)
    assert path.read_text() == "mine"
    with pytest.raises(EnvironmentFault, match=r"can't be written \(No such file or directory\): name a file"):
        CaptureWriter(tmp_path / "no" / "x", ["pvm"], MIB)


def test_a_full_disk_leaves_a_whole_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    writer = CaptureWriter(path, ["pvm"], MIB)
    writer.write(FRAME, 1)
    writer.flush()
    writer.write(FRAME, 2)

    def half(fd: int, offset: int, data: bytes) -> None:
        os.pwrite(fd, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(capture_writer, "write_whole", half)
        with pytest.raises(EnvironmentFault, match=r"can't be written \(No space left on device\)"):
            writer.flush()
    assert (writer.write(FRAME, 3), writer.frames, writer.frames_not_written) == (False, 1, 2)
    writer.close()
    assert [record.ts_ns for record in read(path)] == [1]
