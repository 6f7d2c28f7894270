"""The process of one target: `python -m fuzz.child NAME MODULE FUNCTION FOLDER SEEDS SECONDS BYTES_MAX`."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from pathlib import Path

import atheris  # type: ignore[import-untyped]
import structlog

from .guard import Guard, State, limit_memory

ONE_CALL_S_MAX = 60  # of wall time; for what never comes back to the interpreter


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    module, function, folder, seeds, seconds, bytes_max = sys.argv[1:]
    with atheris.instrument_imports(include=["pycolo"]):
        one = getattr(import_module(module), function)
    home = Path(folder)
    found, corpus = home / "findings", home / "corpus"
    for each in (found, corpus):
        each.mkdir(parents=True, exist_ok=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    guard = Guard(one, found, State(home / "state"), enough=lambda: os._exit(0))
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={bytes_max}",
        f"-timeout={ONE_CALL_S_MAX}",
        f"-artifact_prefix={found}/",
        "-rss_limit_mb=0",  # `limit_memory` names the place in the program
        "-detect_leaks=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], str(corpus), seeds, *options], guard)
    limit_memory()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
