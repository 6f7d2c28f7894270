"""Makes the corpora to begin with, out of what other tests send: `python -m tests.fuzz.seeds`.

Inputs that are there stay: those of findings are called `found-...`, and no seed is made for most of them.
"""

from __future__ import annotations

import sys
from importlib import import_module

from .runner import SEEDS, TEST_PATHS
from .targets import TARGETS

_MODULES = ("seeds_frames", "seeds_peers", "seeds_files")


def main() -> None:
    """Write what is missing or has changed."""
    sys.path[:0] = map(str, TEST_PATHS)
    modules = [import_module(f"fuzz.{module}") for module in _MODULES]
    for name, target in TARGETS.items():
        folder = SEEDS / name
        folder.mkdir(parents=True, exist_ok=True)
        make = next(getattr(module, name) for module in modules if hasattr(module, name))
        for kind, data in make():
            if len(data) <= target.bytes_max:
                (folder / kind).write_bytes(data)


if __name__ == "__main__":
    main()
