"""What the primary remembers of pages that it sent, so that the next time only what has changed has to travel.

Guarantees
* A page is remembered only as the secondary will hold it once it has applied, in order, all that was sent so far. When
  it is not known whether that comes to be, everything is forgotten, and pages travel whole again.
* The memory is bounded: the pages that were remembered longest ago make room.

A guest that works rewrites the same pages again and again, and a few words of each; a third of the pages that a tracker
calls dirty have not changed at all (docs/adr/0017-pages-travel-as-what-has-changed.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pycolo.core.page_changes import Kind, sift
from pycolo.core.pages import PAGE_BYTES, Contents, Indices, PageBatch, PageDeltas

NOWHERE = -1


class SentPages:
    """Contents of up to `pages_max` of the VM's `page_count` pages."""

    def __init__(self, page_count: int, pages_max: int) -> None:
        size = min(page_count, pages_max)
        self._place: NDArray[np.int32] = np.full(page_count, NOWHERE, np.int32)
        self._page: NDArray[np.int64] = np.full(size, NOWHERE, np.int64)
        self._contents: Contents = np.zeros((size, PAGE_BYTES), np.uint8)
        self._next = 0

    def forget(self) -> None:
        """Nothing is known of what the secondary holds."""
        self._place[:] = NOWHERE
        self._page[:] = NOWHERE

    def reduced(self, batch: PageBatch) -> PageBatch:
        """The same pages with less to send, and without those that the secondary has as they are; remembers them all.

        `batch` has no deltas, and what is returned has to be sent.
        """
        self._drop(batch.zeros)
        kinds, masks, words = sift(
            batch.contents.view(np.uint64), self._contents.view(np.uint64), self._place[batch.indices]
        )
        new = kinds == Kind.NEW
        if new.all():
            self._remember(batch.indices, batch.contents)
            return batch
        whole = new | (kinds == Kind.MANY)
        deltas = PageDeltas(batch.indices[kinds == Kind.FEW], masks, words)
        self._remember(batch.indices[new], batch.contents[new])
        return PageBatch(batch.indices[whole], batch.contents[whole], batch.zeros, deltas)

    def _remember(self, indices: Indices, contents: Contents) -> None:
        """Pages that are not remembered yet; of more than there is room for, the last ones."""
        size = len(self._page)
        first = max(0, len(indices) - size)
        indices, contents = indices[first:], contents[first:]
        if not len(indices):
            return
        places = (self._next + np.arange(len(indices))) % size
        self._next = int(places[-1] + 1) % size
        gone = self._page[places]
        self._place[gone[gone != NOWHERE]] = NOWHERE
        self._page[places] = indices
        self._place[indices] = places
        self._contents[places] = contents

    def _drop(self, indices: Indices) -> None:
        places = self._place[indices]
        self._page[places[places != NOWHERE]] = NOWHERE
        self._place[indices] = NOWHERE
