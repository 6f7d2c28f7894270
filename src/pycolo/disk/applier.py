"""What is committed on its way to the secondary's image, one batch at a time, in a worker thread.

Guarantees: the image gets whole committed epochs by way of the journal; nothing else writes to it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pycolo.core import disk_journal
from pycolo.core.disk_epochs import SecondaryDisk
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.disk_meta import DiskMeta, Kind
from pycolo.edge.journal_file import JournalFile
from pycolo.edge.workers import Workers


class Applier:
    """Of one disk. `idle` is called after each job that went well, `failed` with a sentence after one that did not."""

    def __init__(
        self,
        core: SecondaryDisk,
        image: DiskImage,
        meta: DiskMeta,
        journal: JournalFile,
        workers: Workers,
        failed: Callable[[str], None],
    ) -> None:
        self._core, self._image, self._meta, self._journal = core, image, meta, journal
        self._workers, self.failed = workers, failed
        self.busy = False
        self.broken = ""  # why nothing reaches the image any more
        self.applied_epoch = 0
        self.idle: Callable[[], None] = lambda: None

    def presync(self, done: Callable[[], None]) -> None:
        """Make most of what was copied durable, before it matters."""
        self._submit(self._image.sync, done)

    def adopt(self, session: str, epoch: int) -> None:
        """The image is what the PVM's disk was at the mark of `epoch`: say so, durably."""
        self._run(partial(self._become, Kind.TARGET, session, clear=True), partial(self._reached, epoch))

    def become_source(self) -> None:
        """A VM writes to this disk from now on: say so, durably, before anything of it reaches the image."""
        self._run(partial(self._become, Kind.SOURCE, self._meta.session, clear=False), lambda: None)

    def apply(self, committed_epoch: int) -> bool:
        """Send what is committed to the image; False when there is nothing to do, or something is done already."""
        if self.busy:
            return False
        if not self._core.unapplied:
            self._reached(committed_epoch)
            return False
        batch = self._core.begin_applying()

        def applied() -> None:
            self._core.applied()
            self._reached(committed_epoch)

        self._run(partial(disk_journal.apply, self._journal, self._image, batch), applied)
        return True

    def _become(self, kind: Kind, session: str, *, clear: bool) -> None:
        self._image.sync()
        if clear:
            self._meta.bits[:] = 0
        self._meta.change(kind, session)

    def _reached(self, epoch: int) -> None:
        self.applied_epoch = max(self.applied_epoch, epoch)

    def _run(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        self.busy = True

        def ended() -> None:
            self.busy = False
            done()
            self.idle()

        self._submit(job, ended)

    def _submit(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        def ended(result: OSError | None) -> None:
            if isinstance(result, OSError):
                self.broken = f"{self._image.path} can't be written ({result.strerror}): make room, or mend the disk"
                self.failed(self.broken)
            else:
                done()

        self._workers.submit(job, ended)
