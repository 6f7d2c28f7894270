"""The files the guest's nginx serves: a pure function of the name, so that a client can verify every byte."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

_INDEX = b"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>pycolo guest</title></head>
<body><p>This page comes from a virtual machine that does not stop when its host does.</p></body>
</html>
"""

STATIC_FILES: Mapping[str, int] = MappingProxyType(
    {"index.html": len(_INDEX), "small.bin": 4096, "big.bin": 3 << 20, "big2.bin": 1 << 20}
)
"""Name -> size in bytes of every file that nginx serves at `/NAME`."""


def static_file(name: str) -> bytes:
    """Return the contents of the file `name`, a key of STATIC_FILES; KeyError for any other name."""
    size_bytes = STATIC_FILES[name]
    if name == "index.html":
        return _INDEX
    return hashlib.shake_128(b"pycolo guest file " + name.encode()).digest(size_bytes)
