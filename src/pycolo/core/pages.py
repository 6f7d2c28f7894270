"""Guest pages on their way: batches of contents, and the debt of pages that the other side does not have yet.

Guarantees: a page that was written and whose content has not provably arrived stays in the debt (rule 7).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pycolo.core.page_changes import MASK_BYTES, PAGE_WORDS, WORD_BYTES, Words, apply, filled

PAGE_BYTES = PAGE_WORDS * WORD_BYTES
PAGES_PER_MIB = (1 << 20) // PAGE_BYTES

Indices = NDArray[np.uint32]
Contents = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PageDeltas:
    """Pages of which only some words differ from what the other side has.

    `indices` (n,) uint32, `masks` (n, 64) uint8: a bit for each of a page's 512 words, the first word the highest bit
    of the first byte, `words` (m,) uint64: the words whose bit is set, page after page.
    """

    indices: Indices
    masks: Contents
    words: Words

    @classmethod
    def none(cls) -> PageDeltas:
        """No page."""
        return cls(np.empty(0, np.uint32), np.empty((0, MASK_BYTES), np.uint8), np.empty(0, np.uint64))

    @property
    def is_whole(self) -> bool:
        """Whether there are as many words as bits."""
        return int(np.bitwise_count(self.masks).sum()) == len(self.words)

    @property
    def nbytes(self) -> int:
        """Bytes of masks and words."""
        return self.masks.nbytes + self.words.nbytes

    def apply_to(self, image: Contents) -> None:
        """Change these words in an image of RAM, (pages, 4096) uint8."""
        indices = np.require(self.indices, requirements=["C", "A"])  # in a message they begin anywhere
        words = np.require(self.words, requirements=["C", "A"])
        apply(image.view(np.uint64), indices, np.ascontiguousarray(self.masks), words)


@dataclass(frozen=True, slots=True)
class PageBatch:
    """Contents of some pages at one instant.

    `indices` (n,) uint32 and `contents` (n, 4096) uint8 are the pages with content, `zeros` (k,) uint32 those that
    are all zero and therefore travel without content, `deltas` those that the other side nearly has.
    """

    indices: Indices
    contents: Contents
    zeros: Indices
    deltas: PageDeltas = field(default_factory=PageDeltas.none)

    @classmethod
    def of(cls, indices: Indices, contents: Contents) -> PageBatch:
        """Split `contents` (n, 4096) of the pages `indices` (n,) into zero pages and others."""
        some = filled(contents.view(np.uint64))
        if some.all():
            return cls(indices, contents, np.empty(0, np.uint32))
        return cls(indices[some], contents[some], indices[~some])

    @property
    def page_count(self) -> int:
        """How many pages the batch carries, zero pages and deltas included."""
        return len(self.indices) + len(self.zeros) + len(self.deltas.indices)

    @property
    def nbytes(self) -> int:
        """What it takes on the wire, but for the numbers of its pages."""
        return self.contents.nbytes + self.deltas.nbytes

    def all_indices(self) -> list[Indices]:
        """The pages of each kind."""
        return [self.indices, self.zeros, self.deltas.indices]

    def apply_to(self, image: Contents) -> None:
        """Write the batch into an image of RAM, (pages, 4096) uint8."""
        image[self.indices] = self.contents
        stale = filled(image[self.zeros].view(np.uint64))  # a page that nobody has written yet takes no memory
        image[self.zeros[stale]] = 0
        if len(self.deltas.indices):
            self.deltas.apply_to(image)


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
