"""Comments of frames in captures of ours: one line, short enough for the writer, readable by other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from scapy.utils import RawPcapNgReader

from pycolo.capture.verdict_comment import Verdict, verdict_comment
from pycolo.core.divergence import Divergence
from pycolo.edge.capture_writer import TEXT_BYTES_MAX, CaptureWriter

FOUND = Divergence("tcp", "10.0.0.2:80", "10.0.0.1:4000", (), "payload", 500, bytes(range(32)), b"\xff" * 32, 1, 1)


def test_comments() -> None:
    assert verdict_comment("equal", 7, 3.21) == "released: the secondary sent the same; epoch 7; held 3.2 ms"
    assert verdict_comment("solo", None, None) == "released: this host has the claim and no partner"
    assert verdict_comment("checkpoint", 7, 50, FOUND) == (
        "released: a checkpoint after it is committed; epoch 7; held 50.0 ms; "
        "payload at byte 500, primary 00 01 02 03 04 05 06 07, secondary ff ff ff ff ff ff ff ff"
    )


def test_every_verdict_is_one_short_line_that_others_read(tmp_path: Path) -> None:
    comments = [verdict_comment(verdict, 1 << 62, 1e9, FOUND) for verdict in get_args(Verdict)]
    assert all("\n" not in comment and len(comment) < TEXT_BYTES_MAX for comment in comments)
    with CaptureWriter(tmp_path / "x", ["pvm"], 1 << 20) as writer:
        for comment in comments:
            writer.write(b"frame", 0, comment=comment)
    reader: Any = RawPcapNgReader(str(tmp_path / "x"))
    with reader:
        assert [metadata.comments for _, metadata in reader] == [[comment.encode()] for comment in comments]
