"""Guest pages on their way: batches of contents, and the debt of pages that the other side does not have yet.

Guarantees: a page that was written and whose content has not provably arrived stays in the debt (rule 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096

Indices = NDArray[np.uint32]
Contents = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PageBatch:
    """Contents of some pages at one instant.

    `indices` (n,) uint32 and `contents` (n, 4096) uint8 are the pages with content, `zeros` (k,) uint32 those that
    are all zero and therefore travel without content.
    """

    indices: Indices
    contents: Contents
    zeros: Indices

    @classmethod
    def of(cls, indices: Indices, contents: Contents) -> PageBatch:
        """Split `contents` (n, 4096) of the pages `indices` (n,) into zero pages and others."""
        filled = contents.view(np.uint64).any(axis=1)
        if filled.all():
            return cls(indices, contents, np.empty(0, np.uint32))
        return cls(indices[filled], contents[filled], indices[~filled])

    @property
    def page_count(self) -> int:
        """How many pages the batch carries, zero pages included."""
        return len(self.indices) + len(self.zeros)

    def apply_to(self, image: Contents) -> None:
        """Write the batch into an image of RAM, (pages, 4096) uint8."""
        image[self.indices] = self.contents
        image[self.zeros] = 0


class PageDebt:
    """Which pages one side owes to the other: written since the other side provably had them.

    While the answer to "which pages were written?" is outstanding, every page is owed: an answer that never comes
    may have re-armed the tracking all the same (rule 6, rule 7).
    """

    def __init__(self, page_count: int, *, all_owed: bool) -> None:
        self._owed = np.full(page_count, all_owed, np.bool_)
        self._sent = np.zeros(page_count, np.bool_)

    def expect_answer(self) -> None:
        """Before the tracker is asked: whatever happens now, no page may be forgotten."""
        self._before = self._owed.copy()
        self._owed[:] = True

    def answered(self, written: Indices) -> None:
        """The tracker's answer: exactly these pages were written."""
        self._owed = self._before
        self._owed[written] = True

    def owed(self) -> Indices:
        """The pages owed now, ascending."""
        return np.flatnonzero(self._owed).astype(np.uint32)

    @property
    def owed_count(self) -> int:
        """How many pages are owed now."""
        return int(np.count_nonzero(self._owed))

    def add(self, written: Indices) -> None:
        """These pages are owed as well."""
        self._owed[written] = True

    def paid(self, arrived: Indices) -> None:
        """These pages have arrived as they are now."""
        self._owed[arrived] = False

    def take(self) -> Indices:
        """The pages owed now; they count as sent until `settle` or `put_back`."""
        taken = self.owed()
        self._sent |= self._owed
        self._owed[:] = False
        return taken

    def settle(self) -> None:
        """What was sent has provably arrived."""
        self._sent[:] = False

    def put_back(self) -> None:
        """What was sent may not have arrived: it is owed again (rule 7)."""
        self._owed |= self._sent
        self._sent[:] = False
