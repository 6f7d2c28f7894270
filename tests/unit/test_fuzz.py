"""Each target takes its corpus, in which the inputs of mended findings stay; and the runner finds what is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.runner import SEEDS, campaign
from fuzz.targets import TARGETS, Target, load

CORPUS_BYTES_MAX = 300 << 10


def inputs(name: str) -> list[Path]:
    return sorted((SEEDS / name).iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_takes_its_corpus(name: str) -> None:
    one, files = load(TARGETS[name]), inputs(name)
    assert len(files) >= 2
    for path in files:
        one(path.read_bytes())
    for data in (b"", b"\0", b"\xff" * 64):
        one(data)


def test_the_corpora_are_those_of_the_targets_and_small() -> None:
    assert {folder.name for folder in SEEDS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in SEEDS.glob("*/*")) <= CORPUS_BYTES_MAX
    for name, target in TARGETS.items():
        assert all(path.stat().st_size <= target.bytes_max for path in inputs(name)), name


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    """An exception, a hang, and too much memory; the inputs are kept, each with its traceback."""
    pytest.importorskip("atheris")
    seeds = tmp_path / "seeds"
    (seeds / "planted").mkdir(parents=True)
    for fault in "EHM":
        (seeds / "planted" / fault).write_bytes(b"\x7f" + fault.encode() + b"!")
    found = campaign([Target("planted", "fuzz.planted", 16)], 1, 1, tmp_path / "found", seeds)["planted"]
    assert sorted(path.name.partition("-")[0] for path in found) == ["Hang", "KeyError", "MemoryError"]
    for path in found:
        assert path.read_bytes()[:1] == b"\x7f"
        assert "planted.py" in path.with_name(path.name + ".txt").read_text()


def test_a_target_that_holds_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    assert campaign([TARGETS["layers"]], 1, 1, tmp_path) == {"layers": []}
