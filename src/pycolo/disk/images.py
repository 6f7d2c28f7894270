"""Opens the images of one side: the image, the file that says what is known of it, and on a secondary its journal.

Guarantees: an image that is only partly copied is never served to a VM that speaks; a batch that a crash interrupted is
finished before anybody reads (core/disk_journal).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pycolo.core import disk_journal
from pycolo.core.block_store import BLOCK_BYTES, BlockStore
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
    """The images of one VM on this host, each with its journal."""

    def __init__(self, command: Open, workers: Workers) -> None:
        """Raises EnvironmentFault or DiskTrouble, and nothing stays open then."""
        self._command, self._workers = command, workers
        self.journals: list[JournalFile] = []
        self.sources: list[SourceDisk] = []
        self._spills: list[SpillFile] = []
        with ExitStack() as undo:
            for number, file in enumerate(command.disks):
                self._open(number, file, undo)
            undo.pop_all()

    def _open(self, number: int, file: DiskFile, undo: ExitStack) -> None:
        path = Path(file.path)
        if file.size_bytes:
            _make(path, file.size_bytes)
        image = DiskImage(path, format=file.format or None)
        undo.callback(image.close)
        beside = path
        if not path.is_file():
            beside = Path(self._command.state_dir) / file.name
            check_lasts(beside.parent)
        meta = DiskMeta(beside.with_name(beside.name + ".colo"), path, image.size_bytes)
        undo.callback(meta.close)
        journal = JournalFile(beside.with_name(beside.name + ".colo-journal"))
        undo.callback(journal.close)
        _recover(image, meta, journal, speaks=self._command.role == "primary")
        self.sources.append(SourceDisk(number, file.name, image, meta, self._workers))
        self.journals.append(journal)

    def targets(self, owner: Owner) -> list[TargetDisk]:
        """The same disks, as an SVM uses them. Raises EnvironmentFault."""
        share = max(1, len(self.sources))
        memory = self._command.buffer_bytes_max // share // BLOCK_BYTES
        spill = self._command.spill_bytes_max // share // BLOCK_BYTES
        targets = []
        for source, journal in zip(self.sources, self.journals, strict=True):
            store = BlockStore(memory, spill, self._spill_file() if spill else None)
            targets.append(TargetDisk(source, journal, store, self._workers, owner))
        return targets

    def room_blocks(self) -> int:
        """What a primary may have under way at most, even if all of it is for one disk."""
        share = max(1, len(self.sources))
        return (self._command.buffer_bytes_max + self._command.spill_bytes_max) // share // BLOCK_BYTES // 2

    def close(self, problem: Callable[[str], None]) -> None:
        """Everything durable and in good order; `problem` hears of an image where that failed."""
        for source, journal in zip(self.sources, self.journals, strict=True):
            try:
                source.close()
                journal.forget()
            except OSError as error:
                problem(f"disk {source.name}: {source.image.path} can't be closed in good order ({error.strerror})")
                source.give_up()
            journal.close()
        self._forget()

    def give_up(self) -> None:
        """Let go of everything as it is, as a crash would: the journals are replayed at the next start."""
        for source, journal in zip(self.sources, self.journals, strict=True):
            source.give_up()
            journal.close()
        self._forget()

    def _forget(self) -> None:
        for spill in self._spills:
            spill.close()
        self.sources.clear()
        self.journals.clear()
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


def _make(path: Path, size_bytes: int) -> None:
    """A new, empty, sparse image where there is none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except OSError as problem:
        raise EnvironmentFault(
            f"the disk image {path} can't be made ({problem.strerror}): choose another path"
        ) from problem
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def _recover(image: DiskImage, meta: DiskMeta, journal: JournalFile, *, speaks: bool) -> None:
    """Bring the image to a whole epoch, and note that it is in use. Raises EnvironmentFault, DiskTrouble."""
    if speaks and meta.kind is Kind.PARTIAL:
        raise EnvironmentFault(
            f"{image.path} is an unfinished copy of its partner's disk and no VM can use it: start the VM on the other "
            f"host, or delete {meta.path} if you know that the image is whole"
        )
    try:
        disk_journal.replay(journal, image)
        meta.change(Kind.SOURCE if speaks else meta.kind, meta.session)
    except OSError as problem:
        raise DiskTrouble(
            f"{image.path} can't be brought into good order ({problem.strerror}): make room, or mend the disk"
        ) from problem
