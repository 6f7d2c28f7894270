"""Small file systems in memory, for tests of what happens when there is no room."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

FILLER = "filler"
CHUNK_BYTES = 1 << 16


async def small_file_system(folder: Path, mib: int) -> None:
    """Mount one in memory; `umount` is the caller's."""
    folder.mkdir(exist_ok=True)
    await run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder))


async def run(*command: str) -> None:
    """A tool that must succeed."""
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


def fill(folder: Path) -> Path:
    """Take all the room that is left in the file system of `folder`; who removes the file gives it back."""
    path = folder / FILLER
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # that is when it is full
        while file.write(bytes(CHUNK_BYTES)) > 0:
            pass
    return path
