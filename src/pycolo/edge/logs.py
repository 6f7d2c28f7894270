"""Logs: lines on stderr, for machines (JSON) or for people; and a log file that keeps within bounds."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Literal

import structlog

LOG_BYTES_MAX = 8 << 20


def log_to_stderr(style: Literal["json", "console"]) -> None:
    """From now on all of structlog goes to stderr, in that style."""
    last: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if style == "console":
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.add_log_level,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def begin_log(path: Path) -> int:
    """A descriptor that appends to a new file; what was there is kept once, as `path`.1. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, _older(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def bound_log(path: Path, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Move a log that has grown too large aside while its writer goes on appending; True if it was. Raises OSError.

    The file is emptied in place, as its writers hold it open: what they write in that instant may be lost.
    """
    if path.stat().st_size <= bytes_max:
        return False
    with path.open("rb+") as log:
        _older(path).write_bytes(log.read(bytes_max))
        _older(path).chmod(0o600)
        log.truncate(0)
    return True


def last_line(path: Path, starts_with: str) -> str:
    """The rest of the last line that starts so; empty when there is none."""
    with contextlib.suppress(OSError), path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - (64 << 10)))
        for line in reversed(log.read().decode(errors="replace").splitlines()):
            if line.startswith(starts_with):
                return line.removeprefix(starts_with)
    return ""


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")
