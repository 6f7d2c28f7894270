"""The self-check of disks: digests of every MiB of all disks, taken on both hosts at the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import xxhash

CHECK_BYTES = 1 << 20
DIGEST_BYTES = 8

Read = Callable[[int, int], bytes]


def checks_of(reads: Sequence[Read], sizes: Sequence[int]) -> bytes:
    """XXH3-64 of each MiB of each disk, in order. Raises OSError."""
    return b"".join(
        xxhash.xxh3_64_digest(read(offset, min(CHECK_BYTES, size - offset)))
        for read, size in zip(reads, sizes, strict=True)
        for offset in range(0, size, CHECK_BYTES)
    )


def first_difference(ours: bytes, theirs: bytes) -> int | None:
    """The number of the first MiB that differs, None when none does."""
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs)) // DIGEST_BYTES
    for at in range(0, len(ours), DIGEST_BYTES):
        if ours[at : at + DIGEST_BYTES] != theirs[at : at + DIGEST_BYTES]:
            return at // DIGEST_BYTES
    return None
