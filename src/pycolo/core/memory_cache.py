"""The secondary's copy of the primary's state: what is committed, and what is only staged.

Guarantees: a checkpoint counts only when it is complete and its digest is right; until `commit` everything staged can
be discarded without a trace, from `commit` on the committed image is the one a takeover uses (rule 3).
Memory and device state carry one epoch number (rule 4).

What is staged is in the image at once, and what it replaced is kept beside: nothing is left to copy when a checkpoint
is committed and clients wait for it (docs/adr/0020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from pycolo.core.pages import PAGE_BYTES, Contents, Indices, PageBatch, PageDebt
from pycolo.errors import PeerViolation

# First sync sends all RAM once and then rounds of dirtied pages; more than this many times RAM is an attack or a bug.
STAGED_RAM_MULTIPLE_MAX = 6
DEVICE_STATE_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Stage:
    """The end of a checkpoint's stream: what belongs to it besides the pages, and how to verify it all.

    `boundary` is the number of the first client frame that the epoch's start state has not seen.
    """

    epoch: int
    boundary: int
    device_state: bytes
    batch_count: int
    digest: bytes


class StageDigest:
    """Running XXH3-128 over everything a checkpoint sends, in order; both sides keep one."""

    def __init__(self, epoch: int) -> None:
        self._hash = xxhash.xxh3_128(epoch.to_bytes(8, "big"))
        self.batch_count = 0

    def add(self, batch: PageBatch) -> None:
        """Account for one batch."""
        self.batch_count += 1
        self._hash.update(b"".join(len(part).to_bytes(4, "big") for part in batch.all_indices()))
        for indices in batch.all_indices():
            self._hash.update(np.ascontiguousarray(indices, "<u4").data)
        self._hash.update(np.ascontiguousarray(batch.contents).data)
        self._hash.update(np.ascontiguousarray(batch.deltas.masks).data)
        self._hash.update(np.ascontiguousarray(batch.deltas.words, "<u8").data)

    def finish(self, boundary: int, device_state: bytes) -> bytes:
        """Digest (16 bytes) of the whole checkpoint."""
        final = self._hash.copy()
        final.update(boundary.to_bytes(8, "big") + device_state)
        return final.digest()


class MemoryCache:
    """Image of the PVM, and what it was where the checkpoint that is being staged has changed it.

    `image` (pages, 4096) uint8 is the committed one, from the first commit on, as soon as nothing is staged and
    `restore_next` returns False.
    """

    def __init__(self, page_count: int) -> None:
        self.image: Contents = np.zeros((page_count, PAGE_BYTES), np.uint8)
        self.debt = PageDebt(page_count, all_owed=True)  # what the SVM's RAM does not hold of the image yet
        self.committed: Stage | None = None
        self.loaded_epoch = 0  # the SVM runs from the start of this epoch
        self.fed_epoch = 0  # and its feed has started there
        self._past: list[PageBatch] = []  # each page once: what it was when the last one was committed
        self._has_past = np.zeros(page_count, np.bool_)
        self._restoring: list[PageBatch] = []
        self._spent: list[PageBatch] = []
        self._has_content = np.zeros(page_count, np.bool_)  # the others are zeros, as the image's memory is at first
        self._staged_pages = 0
        self._digest: StageDigest | None = None
        self._staging_epoch = 0

    @property
    def committed_epoch(self) -> int:
        """The epoch whose start a takeover would use; 0 before the first commit."""
        return self.committed.epoch if self.committed else 0

    def stage(self, epoch: int, batch: PageBatch) -> Indices:
        """Take one batch of the checkpoint that starts `epoch`; returns its pages, ascending, owed to the SVM now.

        Before the first commit there is nothing to go back to, and nothing is kept: if that checkpoint is discarded,
        the next one brings every page again (rule 7).

        Raises PeerViolation when the epoch is not new, a page does not exist or far too much is sent.
        """
        if epoch <= self.committed_epoch or epoch < self._staging_epoch:
            raise PeerViolation(f"a page of epoch {epoch} came after epoch {self.committed_epoch} was committed")
        if epoch != self._staging_epoch:
            self.discard()
            self._staging_epoch = epoch
        self._check(batch)
        self._running_digest(epoch).add(batch)
        while self.restore_next():  # whoever has time for it has done so before
            pass
        pages: Indices = np.unique(np.concatenate(batch.all_indices()))
        if self.committed is not None:
            fresh: Indices = pages[~self._has_past[pages]]
            if len(fresh):
                self._keep(fresh)
        batch.apply_to(self.image)
        self._has_content[batch.indices] = self._has_content[batch.deltas.indices] = True
        self.debt.add(pages)
        return pages

    def _keep(self, pages: Indices) -> None:
        """What is committed of pages that are about to be changed; of zeros that they are, which takes no memory."""
        has_content = self._has_content[pages]
        kept: Indices = pages[has_content]
        self._past.append(PageBatch(kept, self.image[kept], pages[~has_content]))
        self._has_past[pages] = True

    def _check(self, batch: PageBatch) -> None:
        """Counts the batch. Raises PeerViolation."""
        page_count = len(self.image)
        for indices in batch.all_indices():
            if len(indices) and int(indices.max()) >= page_count:
                raise PeerViolation(f"the peer sent page {int(indices.max())} of a VM that has {page_count}")
        if batch.page_count == 0:
            raise PeerViolation("the peer sent an empty batch of pages")
        self._staged_pages += batch.page_count
        if self._staged_pages > STAGED_RAM_MULTIPLE_MAX * page_count:
            raise PeerViolation(f"the peer staged {self._staged_pages} pages of a VM that has {page_count}")

    def discard(self) -> None:
        """Forget everything staged; the image is the committed one after as many `restore_next` as it takes."""
        for past in self._past:
            for pages in past.all_indices():
                self.debt.add(pages)  # the SVM's RAM may be found to be like what was staged
        self._restoring += self._past
        self._past = []
        self._staged_pages = 0
        self._digest = None

    def restore_next(self) -> bool:
        """Bring a part of what was discarded back to what is committed; False when there is nothing left."""
        if not self._restoring:
            return False
        past = self._restoring.pop()
        past.apply_to(self.image)
        for pages in past.all_indices():
            self._has_past[pages] = False
        return True

    def problem(self, stage: Stage) -> str | None:
        """Why the staged checkpoint can't be committed, in a sentence; None when it is whole."""
        digest = self._running_digest(stage.epoch) if stage.epoch >= self._staging_epoch else None
        if stage.epoch <= self.committed_epoch or digest is None:
            return f"epoch {stage.epoch} is not newer than the committed epoch {self.committed_epoch}"
        if len(stage.device_state) > DEVICE_STATE_BYTES_MAX:
            return f"the device state has {len(stage.device_state)} bytes, more than {DEVICE_STATE_BYTES_MAX}"
        if self._staged_pages and self._staging_epoch != stage.epoch:
            return f"pages of epoch {self._staging_epoch} are staged, not of epoch {stage.epoch}"
        if digest.batch_count != stage.batch_count:
            return f"{digest.batch_count} of {stage.batch_count} page batches arrived"
        if digest.finish(stage.boundary, stage.device_state) != stage.digest:
            return "the digest of what arrived is wrong"
        return None

    def commit(self, stage: Stage) -> None:
        """The commit point: from here on a takeover uses this checkpoint. Call it only when `problem` is None."""
        self.committed = stage
        self._spent, self._past = self._past, []
        self._has_past[:] = False
        self._staged_pages = 0
        self._digest = None

    def forget_spent(self) -> None:
        """What the image was before the commit: to give that memory back takes time, for which no load has to wait."""
        self._spent = []

    def drop_image(self) -> None:
        """The SVM goes on alone, and nothing is ever loaded again: as much memory as the guest has is free."""
        self._past, self._restoring, self._spent = [], [], []
        self.image = self.image[:0].copy()

    def _running_digest(self, epoch: int) -> StageDigest:
        if self._digest is None:
            self._staging_epoch = epoch
            self._digest = StageDigest(epoch)
        return self._digest
