"""The secondary's copy of the primary's state: what is committed, and what is only staged.

Guarantees: a checkpoint counts only when it is complete and its digest is right; until `commit` everything staged can
be discarded without a trace, from `commit` on the committed image is the one a takeover uses (rule 3).
Memory and device state carry one epoch number (rule 4).
"""

from __future__ import annotations

from collections import deque
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
    """Committed image of the PVM, with the checkpoint that is being staged beside it.

    `image` (pages, 4096) uint8 is the committed one whenever `apply_next` returns False, from the first commit on.
    """

    def __init__(self, page_count: int) -> None:
        self.image: Contents = np.zeros((page_count, PAGE_BYTES), np.uint8)
        self.debt = PageDebt(page_count, all_owed=True)  # what the SVM's RAM does not hold of the image yet
        self.committed: Stage | None = None
        self.loaded_epoch = 0  # the SVM runs from the start of this epoch
        self.fed_epoch = 0  # and its feed has started there
        self._staged: list[PageBatch] = []
        self._unapplied: deque[PageBatch] = deque()
        self._staged_pages = 0
        self._digest: StageDigest | None = None
        self._staging_epoch = 0

    @property
    def committed_epoch(self) -> int:
        """The epoch whose start a takeover would use; 0 before the first commit."""
        return self.committed.epoch if self.committed else 0

    def stage(self, epoch: int, batch: PageBatch) -> None:
        """Take one batch of the checkpoint that starts `epoch`.

        Raises PeerViolation when the epoch is not new, a page does not exist or far too much is sent.
        """
        if epoch <= self.committed_epoch or epoch < self._staging_epoch:
            raise PeerViolation(f"a page of epoch {epoch} came after epoch {self.committed_epoch} was committed")
        if epoch != self._staging_epoch:
            self.discard()
            self._staging_epoch = epoch
        page_count = len(self.image)
        for indices in batch.all_indices():
            if len(indices) and int(indices.max()) >= page_count:
                raise PeerViolation(f"the peer sent page {int(indices.max())} of a VM that has {page_count}")
        self._staged_pages += batch.page_count
        if len(self._staged) >= STAGED_RAM_MULTIPLE_MAX * page_count or batch.page_count == 0:
            raise PeerViolation("the peer sent an empty batch of pages, or more batches than there can be")
        if self._staged_pages > STAGED_RAM_MULTIPLE_MAX * page_count:
            raise PeerViolation(f"the peer staged {self._staged_pages} pages of a VM that has {page_count}")
        self._staged.append(batch)
        self._running_digest(epoch).add(batch)

    def apply_ahead(self) -> Indices:
        """Bring what is staged into the image at once; returns those pages, which the SVM's RAM does not hold yet.

        Before the first commit only: nothing can be lost then, and all RAM does not have to be kept twice. If this
        checkpoint is discarded, the next one brings every page again (rule 7).
        """
        assert self.committed is None
        indices = np.concatenate([part for batch in self._staged for part in batch.all_indices()])
        for batch in self._staged:
            batch.apply_to(self.image)
        self._staged.clear()
        self.debt.add(indices)
        return np.unique(indices)

    def discard(self) -> None:
        """Forget everything staged; the committed state is untouched."""
        self._staged.clear()
        self._staged_pages = 0
        self._digest = None

    def problem(self, stage: Stage) -> str | None:
        """Why the staged checkpoint can't be committed, in a sentence; None when it is whole."""
        digest = self._running_digest(stage.epoch) if stage.epoch >= self._staging_epoch else None
        if stage.epoch <= self.committed_epoch or digest is None:
            return f"epoch {stage.epoch} is not newer than the committed epoch {self.committed_epoch}"
        if len(stage.device_state) > DEVICE_STATE_BYTES_MAX:
            return f"the device state has {len(stage.device_state)} bytes, more than {DEVICE_STATE_BYTES_MAX}"
        if self._staged and self._staging_epoch != stage.epoch:
            return f"pages of epoch {self._staging_epoch} are staged, not of epoch {stage.epoch}"
        if digest.batch_count != stage.batch_count:
            return f"{digest.batch_count} of {stage.batch_count} page batches arrived"
        if digest.finish(stage.boundary, stage.device_state) != stage.digest:
            return "the digest of what arrived is wrong"
        return None

    def commit(self, stage: Stage) -> None:
        """The commit point: from here on a takeover uses this checkpoint. Call it only when `problem` is None.

        It only marks: pages reach the image by `apply_next`, so that the answer to the primary does not wait for that.
        """
        self._unapplied += self._staged
        self.committed = stage
        self.discard()

    def apply_next(self) -> bool:
        """Bring one committed batch into the image; False when the image is the committed one."""
        if not self._unapplied:
            return False
        batch = self._unapplied.popleft()
        batch.apply_to(self.image)
        for indices in batch.all_indices():
            self.debt.add(indices)
        return True

    def drop_image(self) -> None:
        """The SVM goes on alone, and nothing is ever loaded again: as much memory as the guest has is free."""
        self.discard()
        self._unapplied.clear()
        self.image = self.image[:0].copy()

    def _running_digest(self, epoch: int) -> StageDigest:
        if self._digest is None:
            self._staging_epoch = epoch
            self._digest = StageDigest(epoch)
        return self._digest
