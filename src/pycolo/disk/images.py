"""Opens the images of one side: each with the file that says what is known of it, and the journal that they share.

Guarantees: an image that is only partly copied is never served to a VM that speaks; a batch that a crash interrupted is
finished before anybody reads (core/disk_journal).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pycolo.core import disk_journal
from pycolo.core.block_store import BLOCK_BYTES, BlockStore
from pycolo.disk.applier import Applier, Part
from pycolo.disk.joined import JoinedImages
from pycolo.disk.protocol import DiskFile, Open
from pycolo.disk.source import SourceDisk
from pycolo.disk.target import Owner, TargetDisk
from pycolo.edge.beside import check_lasts
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.disk_meta import DiskMeta, Kind
from pycolo.edge.journal_file import JournalFile
from pycolo.edge.spill_file import SpillFile
from pycolo.edge.workers import Workers
from pycolo.errors import DiskTrouble, EnvironmentFault


class OpenImages:
    """The images of one VM on this host."""

    def __init__(self, command: Open, workers: Workers) -> None:
        """Raises EnvironmentFault or DiskTrouble, and nothing stays open then."""
        self._command, self._workers = command, workers
        self.sources: list[SourceDisk] = []
        self._spills: list[SpillFile] = []
        with ExitStack() as undo:
            for number, file in enumerate(command.disks):
                self._open(number, file, undo)
            path = self._beside(Path(command.disks[0].path), command.disks[0].name, ".colo-journal")
            self._journal = JournalFile(path)
            undo.callback(self._journal.close)
            self._recover(path, speaks=command.role == "primary")
            undo.pop_all()

    def _open(self, number: int, file: DiskFile, undo: ExitStack) -> None:
        path = Path(file.path)
        made = bool(file.size_bytes) and _make(path, file.size_bytes)
        image = DiskImage(path, image_format=file.format or None)
        undo.callback(image.close)
        if file.size_bytes not in (0, image.size_bytes):
            raise EnvironmentFault(
                f"{path} has {image.size_bytes} bytes and `size_mib` says {file.size_bytes}: correct vm.toml, "
                "or name another image"
            )
        meta = DiskMeta(self._beside(path, file.name, ".colo"), path, image.size_bytes)
        undo.callback(meta.close)
        if made:  # what is known of an image that is gone says nothing of a new one
            meta.forget()
        self.sources.append(SourceDisk(number, file.name, image, meta, self._workers))

    def _beside(self, image: Path, name: str, ending: str) -> Path:
        """Where what is known of an image stands: beside it, or in `state_dir` for a device."""
        if image.is_file():
            return image.with_name(image.name + ending)
        folder = Path(self._command.state_dir)
        check_lasts(folder)
        return folder / (name + ending)

    def _recover(self, journal: Path, *, speaks: bool) -> None:
        """Bring the images to a whole epoch, and only then note that they are in use."""
        # By their names only, so that a folder may be moved.
        group = [journal.name, *(source.image.path.name for source in self.sources)]
        for source in self.sources:
            _check(source, journal, group, speaks=speaks, older_disk=self._command.older_disk)
        equal = [source.meta.group == group for source in self.sources]
        if any(equal) and not all(equal) and journal.stat().st_size > 0:
            raise EnvironmentFault(
                f"{journal} may be unfinished, and one of its disks is another than it was: put the old image and its "
                "`.colo` file back, or delete the images of this host and the journal for a whole copy"
            )
        try:
            if all(equal):
                disk_journal.replay(self._journal, JoinedImages([source.image for source in self.sources]))
            else:
                self._journal.forget()  # of others, and finished
            for source in self.sources:
                source.meta.group = group
                source.meta.change(Kind.SOURCE if speaks else source.meta.kind, source.meta.session)
        except OSError as problem:
            paths = ", ".join(str(source.image.path) for source in self.sources)
            raise DiskTrouble(
                f"{paths} can't be brought into good order ({problem.strerror}): make room, or mend the disk"
            ) from problem

    def targets(self, owner: Owner) -> list[TargetDisk]:
        """The same disks, as an SVM uses them. Raises EnvironmentFault."""
        share = len(self.sources)
        memory = self._command.buffer_bytes_max // share // BLOCK_BYTES
        spill = self._command.spill_bytes_max // share // BLOCK_BYTES
        stores = [BlockStore(memory, spill, self._spill_file() if spill else None) for _ in self.sources]
        return [TargetDisk(source, store, owner) for source, store in zip(self.sources, stores, strict=True)]

    def applier(self, targets: Sequence[TargetDisk]) -> Applier:
        """What brings committed writes to the images; its owner says who hears of it."""
        parts = [Part(target.core, target.source.image, target.meta) for target in targets]
        return Applier(parts, self._journal, self._workers)

    def room_blocks(self) -> int:
        """What a primary may have under way at most, even if all of it is for one disk."""
        share = max(1, len(self.sources))
        return (self._command.buffer_bytes_max + self._command.spill_bytes_max) // share // BLOCK_BYTES // 2

    def close(self, problem: Callable[[str], None]) -> None:
        """Everything durable and in good order; `problem` hears of an image where that failed."""
        good = True
        for source in self.sources:
            try:
                source.close()
            except OSError as error:
                good = False
                problem(f"disk {source.name}: {source.image.path} can't be closed in good order ({error.strerror})")
                source.give_up()
        if good:
            self._journal.forget()
        self._forget()

    def give_up(self) -> None:
        """Let go of everything as it is, as a crash would: the journal is replayed at the next start."""
        for source in self.sources:
            source.give_up()
        self._forget()

    def _forget(self) -> None:
        self._journal.close()
        for spill in self._spills:
            spill.close()
        self.sources.clear()
        self._spills.clear()

    def _spill_file(self) -> SpillFile:
        folder = Path(self._command.state_dir)
        try:
            spill = SpillFile(folder)
        except OSError as problem:
            raise EnvironmentFault(
                f"no spill file can be made in {folder} ({problem.strerror}): choose another `state_dir` in host.toml, "
                "or set disk_spill_mib_max = 0 in vm.toml"
            ) from problem
        self._spills.append(spill)
        return spill


def _make(path: Path, size_bytes: int) -> bool:
    """A new, empty, sparse image where there is none; False when there is one."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    except OSError as problem:
        raise EnvironmentFault(
            f"the disk image {path} can't be made ({problem.strerror}): choose another path"
        ) from problem
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)
    return True


def _check(source: SourceDisk, journal: Path, group: list[str], *, speaks: bool, older_disk: bool) -> None:
    """Raises EnvironmentFault for an image that can't be used, or not with these others."""
    path, meta = source.image.path, source.meta
    if speaks and meta.kind is Kind.TARGET and not older_disk:
        raise EnvironmentFault(
            f"{path} was a secondary's when it was used last, so the primary's disk is newer: start the VM on the "
            "other host, or give --older-disk if that one is lost"
        )
    if speaks and meta.kind is Kind.PARTIAL:
        raise EnvironmentFault(
            f"{path} is an unfinished copy of its partner's disk and no VM can use it: start the VM on the other "
            f"host, or delete {meta.path} if you know that the image is whole"
        )
    if not meta.group or meta.group == group:
        return
    for unfinished in (journal, journal.with_name(meta.group[0]), path.with_name(meta.group[0])):
        if unfinished.is_file() and unfinished.stat().st_size > 0:
            raise EnvironmentFault(
                f"{path} was used together with {', '.join(meta.group[1:])}, and their journal {unfinished} may be "
                "unfinished: start once with these disks in this order"
            )
