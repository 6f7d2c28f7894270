"""What is committed on its way to the secondary's images, all disks together, one batch at a time, in a worker thread.

Guarantees: the images get whole committed epochs by way of one journal, so that no crash leaves two disks of different
epochs; nothing else writes to them meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pycolo.core import disk_journal
from pycolo.core.disk_epochs import SecondaryDisk
from pycolo.disk.joined import JoinedImages, JoinedLayers
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.disk_meta import DiskMeta, Kind
from pycolo.edge.journal_file import JournalFile
from pycolo.edge.workers import Workers


@dataclass(frozen=True, slots=True)
class Part:
    """One disk."""

    core: SecondaryDisk
    image: DiskImage
    meta: DiskMeta


class Applier:
    """`idle` is called after each job that went well, `failed` with a sentence after one that did not."""

    def __init__(self, parts: Sequence[Part], journal: JournalFile, workers: Workers) -> None:
        self._parts, self._journal, self._workers = parts, journal, workers
        self._images = JoinedImages([part.image for part in parts])
        self.busy = False
        self.broken = ""  # why nothing reaches the images any more
        self.applied_epoch = 0
        self.idle: Callable[[], None] = lambda: None
        self.failed: Callable[[str], None] = lambda _: None

    @property
    def steps(self) -> int:
        """Grows as long as a job gets on."""
        return self._images.steps + self._journal.steps

    @property
    def unapplied(self) -> bool:
        """Whether committed writes are on their way, or wait for it."""
        return self.busy or any(part.core.unapplied for part in self._parts)

    def presync(self, done: Callable[[], None]) -> None:
        """Make most of what was copied durable, before it matters."""
        self._submit(self._images.sync, done)

    def adopt(self, session: str, epoch: int, done: Callable[[], None]) -> None:
        """The images are what the PVM's disks were at the mark of `epoch`: say so, durably, then `done`."""
        for part in self._parts:
            part.meta.bits[:] = 0  # now: what is marked from here on stays marked

        def adopted() -> None:
            self._reached(epoch)
            done()

        self._run(partial(self._become_targets, session), adopted)

    def become_sources(self) -> None:
        """A VM writes to these disks from now on: say so, durably, before anything of it reaches an image."""
        self._run(self._become_sources, lambda: None)

    def apply(self, committed_epoch: int) -> bool:
        """Send what is committed to the images; False when there is nothing to do, or something is done already."""
        if self.busy:
            return False
        if not self.unapplied:
            self._reached(committed_epoch)
            return False
        batch = JoinedLayers([part.core.begin_applying() for part in self._parts])

        def applied() -> None:
            for part in self._parts:
                part.core.applied()
            self._reached(committed_epoch)

        self._run(partial(disk_journal.apply, self._journal, self._images, batch), applied)
        return True

    def _become_targets(self, session: str) -> None:
        self._images.sync()
        for part in self._parts:
            part.meta.change(Kind.TARGET, session)

    def _become_sources(self) -> None:
        self._images.sync()
        for part in self._parts:
            part.meta.change(Kind.SOURCE, part.meta.session)

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
                paths = ", ".join(str(part.image.path) for part in self._parts)
                self.broken = f"{paths} can't be written ({result.strerror}): make room, or mend the disk"
                self.failed(self.broken)
            else:
                done()

        self._workers.submit(job, ended)
