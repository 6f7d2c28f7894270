"""A target with faults that the runner has to find: the test of the runner itself."""

from __future__ import annotations

HOGGED_BYTES = 8 << 30


def planted(data: bytes) -> None:
    """An exception that no parser documents, a hang, more memory than there may be; hidden behind two bytes each."""
    if data[:2] == b"\x7fE":
        raise KeyError("planted")
    if data[:2] == b"\x7fH":
        while True:
            pass
    if data[:2] == b"\x7fM":
        bytearray(HOGGED_BYTES)
