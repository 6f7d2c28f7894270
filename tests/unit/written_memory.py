"""How much memory there really is behind an array."""

from __future__ import annotations

import re
from pathlib import Path

from pycolo.core.pages import Contents


def written_kib(contents: Contents) -> int:
    """Memory that has been written, of all mappings that the array lies in."""
    begin, found, written = contents.ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
            found = first < begin + contents.nbytes and begin < last
        elif found and line.startswith("Anonymous:"):
            written += int(line.split()[1])
    return written
