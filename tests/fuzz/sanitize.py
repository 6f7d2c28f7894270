"""The compiled modules under AddressSanitizer and UBSan: `python -m tests.fuzz.sanitize --seconds 60`.

Builds them into `build/sanitized` and gives them what the targets of the compiled code have in their corpora, what
`make fuzz` has learned, and changes of both. Needs gcc with its sanitizers. Exit status 1 when something was found; the
report is on the terminal, the input in `build/sanitized/input`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from .__main__ import FOLDER
from .runner import SEEDS, TEST_PATHS, TESTS
from .targets import TARGETS, load

BUILT = Path("build/sanitized").resolve()
COMPILED = (
    "packed",
    "pages",
    "dataplane",
    "dataplane_raw",
    "secondary",
    "secondary_raw",
    "windows",
    "descriptors",
    "channel",
)
_FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
_OPTIONS = "detect_leaks=0:allocator_may_return_null=1"
_CHANGES_MAX = 6


def main() -> int:
    """Build, then run each target in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sanitize", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target, after its corpus")
    parser.add_argument("--target", action="append", choices=COMPILED, help="only this one; may be repeated")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what was learned (default: %(default)s)")
    parser.add_argument("--replay", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        _replay(options.replay, options.seconds, options.folder)
        return 0
    _build()
    failed = 0
    for name in options.target or COMPILED:
        arguments = ["--replay", name, "--seconds", str(options.seconds), "--folder", str(options.folder)]
        command = [sys.executable, "-m", "tests.fuzz.sanitize", *arguments]
        failed += subprocess.call(command, env=_environment()) != 0
    return 1 if failed else 0


def _build() -> None:
    """From a copy, so that no object file made here gets into a build without sanitizers."""
    flags = {"CFLAGS": _FLAGS, "LDFLAGS": "-fsanitize=address,undefined"}
    with TemporaryDirectory(prefix="sanitized-") as made:
        copy, root = Path(made), TESTS.parent
        shutil.copytree(root / "src", copy / "src", ignore=shutil.ignore_patterns("*.so", "_*.c", "*.egg-info"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(root / name, copy)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(BUILT), made]
        subprocess.run(command, env={**os.environ, **flags}, check=True)


def _environment() -> dict[str, str]:
    """Every object of Python's is an allocation of its own, so that reading behind one is seen."""
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return {
        **os.environ,
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": _OPTIONS,
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": ":".join(map(str, (BUILT, *TEST_PATHS))),
    }


def _replay(name: str, seconds: float, folder: Path) -> None:
    from pycolo.core import _hot, _page_changes

    for made in (_hot.__file__, _page_changes.__file__):
        assert made is not None, "it is not compiled"
        assert Path(made).is_relative_to(BUILT), made
    one, random = load(TARGETS[name]), Random(7)
    folders = (SEEDS / name, folder / name / "corpus")
    inputs = [path.read_bytes() for each in folders for path in sorted(each.glob("*"))]
    for data in inputs:
        _give(one, data)
    count, ends_s = len(inputs), time.monotonic() + seconds
    while time.monotonic() < ends_s:
        _give(one, _changed(random, random.choice(inputs), random.choice(inputs)))
        count += 1
    print(f"{name:<16} {len(inputs):>6} inputs {count:>8} executions, nothing found", flush=True)


def _give(one: object, data: bytes) -> None:
    (BUILT / "input").write_bytes(data)
    assert callable(one)
    one(data)


def _changed(random: Random, data: bytes, other: bytes) -> bytes:
    """`data` with some bytes changed, left out, or taken from another input."""
    made = bytearray(data or b"\0")
    for _ in range(random.randrange(1, _CHANGES_MAX)):
        place, what = random.randrange(len(made)), random.randrange(4)
        length = random.randrange(1, 32)
        if what == 0:
            made[place] = random.randrange(256)
        elif what == 1:
            made[place] ^= 1 << random.randrange(8)
        elif what == 2 and len(made) > length:
            del made[place : place + length]
        elif other:
            start = random.randrange(len(other))
            made[place:place] = other[start : start + length]
        made = made or bytearray(1)
    return bytes(made)


if __name__ == "__main__":
    sys.exit(main())
