"""What a guest has printed on its serial console, which its host keeps in a file."""

from __future__ import annotations

from pathlib import Path


def console_says(path: Path, line: str) -> bool:
    """Whether the guest's console has printed `line`."""
    try:
        return line.encode() in path.read_bytes()
    except FileNotFoundError:
        return False
