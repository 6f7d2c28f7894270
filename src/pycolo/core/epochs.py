"""Epoch numbers of the primary: which one runs, which one is committed; a number is never used twice."""

from __future__ import annotations

from pycolo.core.pages import PageBatch, PageDebt
from pycolo.core.sent_pages import SentPages


class EpochLedger:
    """What the primary knows of its epochs and of the pages it owes to the secondary.

    `running` is the epoch that the PVM's output belongs to, `committed` the newest epoch whose start is known to be
    committed on the secondary (0: none).
    """

    def __init__(self, page_count: int, last_used: int = 0, sent_pages_max: int = 0) -> None:
        """`last_used` is the highest number that any earlier pair of this VM has used.

        `sent_pages_max` is how many pages are remembered as they were sent.
        """
        self.debt = PageDebt(page_count, all_owed=True)
        self._sent = SentPages(page_count, sent_pages_max)
        self.running = 0
        self.committed = 0
        self.last_used = last_used

    def begin(self) -> int:
        """The number of the epoch that the next checkpoint starts."""
        self.last_used += 1
        return self.last_used

    def sealed(self, epoch: int) -> None:
        """From here on the PVM's output belongs to `epoch`."""
        self.running = epoch

    def commit(self, epoch: int) -> None:
        """The secondary said that the start of `epoch` is committed."""
        self.committed = epoch
        self.debt.settle()

    def fail(self) -> None:
        """The checkpoint under way will not be known as committed: its pages are owed again (rule 7)."""
        self.debt.put_back()
        self._sent.forget()

    def reduced(self, batch: PageBatch) -> PageBatch:
        """What has to be sent for the secondary to have these pages. In the first sync nothing is remembered."""
        return self._sent.reduced(batch) if self.committed else batch
