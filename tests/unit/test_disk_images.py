"""Which images may be opened, together and by whom; what a journal that was left behind means for that."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from disk_tools import HandWorkers
from pycolo.core import disk_journal
from pycolo.disk.images import OpenImages
from pycolo.disk.joined import SPAN_BYTES
from pycolo.disk.protocol import DiskFile, Open
from pycolo.edge.disk_image import DiskImage
from pycolo.edge.disk_meta import DiskMeta, Kind
from pycolo.edge.journal_file import JournalFile
from pycolo.errors import DiskTrouble, EnvironmentFault

SIZE = 1 << 20
SESSION = "ab" * 16
NEW = b"N" * 4096


class Host:
    """A folder with images and what is beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers = folder, HandWorkers()
        self._opened: list[OpenImages] = []
        self.older_disk = False

    def open(self, role: str, *names: str, size_bytes: int = SIZE) -> OpenImages:
        files = [DiskFile(name, str(self.folder / f"{name}.img"), size_bytes, "") for name in names]
        command = Open(
            role=role,
            disks=files,
            state_dir=str(self.folder),
            listen_host="127.0.0.1",
            token="token",
            tls=None,
            buffer_bytes_max=16 << 20,
            spill_bytes_max=0,
            queue_bytes_max=1 << 20,
            stall_ms_max=2000,
            copy_bytes_per_s_max=0,
            self_check=False,
            older_disk=self.older_disk,
        )
        self._opened.append(OpenImages(command, self.workers))
        return self._opened[-1]

    def left_as(self, kind: Kind, *names: str) -> None:
        """A process had these images as that, and is gone without having closed them."""
        opened = self.open("secondary", *names)
        for source in opened.sources:
            source.meta.change(kind, SESSION)
        self.die()

    def die(self) -> None:
        for opened in self._opened:
            opened.give_up()
        self._opened.clear()

    def close(self) -> list[str]:
        """In good order; returns what was told."""
        told: list[str] = []
        self._opened.pop().close(told.append)
        return told

    def image(self, name: str) -> bytes:
        return (self.folder / f"{name}.img").read_bytes()

    def journal(self, name: str) -> Path:
        return self.folder / f"{name}.img.colo-journal"

    def leave_a_batch(self, name: str) -> None:
        """The process died in the middle of a batch for two disks: all of it is in the journal, nothing on an image."""

        class Died(Exception):
            pass

        class NoImage:
            def read(self, offset: int, length: int) -> bytes:
                raise Died

            def write(self, offset: int, data: bytes | memoryview) -> None:
                raise Died

            def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
                raise Died

            def sync(self) -> None:
                raise Died

        journal = JournalFile(self.journal(name))
        with pytest.raises(Died):
            disk_journal.apply(journal, NoImage(), [(0, len(NEW), [NEW]), (SPAN_BYTES, len(NEW), [NEW])])
        journal.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    before = len(os.listdir("/proc/self/fd"))
    host = Host(tmp_path)
    yield host
    host.die()
    host.workers.close()
    assert len(os.listdir("/proc/self/fd")) == before  # also after what was refused


# ---- who may speak


def test_a_secondarys_image_is_no_primarys_without_being_told_so(host: Host) -> None:
    host.left_as(Kind.TARGET, "a")
    with pytest.raises(EnvironmentFault, match=r"a\.img was a secondary's when it was used last.* --older-disk if"):
        host.open("primary", "a")
    host.open("secondary", "a")
    host.die()
    host.older_disk = True
    meta = host.open("primary", "a").sources[0].meta
    assert (meta.kind, meta.session) == (Kind.SOURCE, SESSION)
    host.die()
    host.older_disk = False
    host.open("primary", "a")  # from then on it is one


def test_one_of_several_is_enough_to_be_refused_and_nothing_is_changed(host: Host) -> None:
    host.open("secondary", "a", "b").sources[1].meta.change(Kind.TARGET, SESSION)
    host.die()
    with pytest.raises(EnvironmentFault, match=r"b\.img was a secondary's"):
        host.open("primary", "a", "b")
    assert [source.meta.kind for source in host.open("secondary", "a", "b").sources] == [Kind.SOURCE, Kind.TARGET]


@pytest.mark.parametrize("older_disk", [False, True])
def test_an_unfinished_copy_is_nobodys_disk(host: Host, older_disk: bool) -> None:
    host.left_as(Kind.PARTIAL, "a")
    host.older_disk = older_disk
    with pytest.raises(EnvironmentFault, match=r"is an unfinished copy.*or delete .*a\.img\.colo if"):
        host.open("primary", "a")
    assert host.open("secondary", "a").sources[0].meta.kind is Kind.PARTIAL


def test_opened_by_a_secondary_an_image_stays_what_it_was(host: Host) -> None:
    for kind in Kind:
        host.left_as(kind, "a")
        meta = host.open("secondary", "a").sources[0].meta
        assert (meta.kind, meta.session) == (kind, SESSION)
        host.die()


# ---- sizes


def test_a_missing_image_is_made_and_takes_no_room(host: Host) -> None:
    assert host.open("primary", "a").sources[0].size_bytes == SIZE
    state = (host.folder / "a.img").stat()
    assert (state.st_size, state.st_blocks, state.st_mode & 0o777) == (SIZE, 0, 0o600)
    host.die()
    with pytest.raises(EnvironmentFault, match=r"b\.img does not exist"):
        host.open("primary", "b", size_bytes=0)
    assert host.open("primary", "a", size_bytes=0).sources[0].size_bytes == SIZE


@pytest.mark.parametrize("size_bytes", [SIZE - 512, 2 * SIZE])
def test_a_size_that_is_another_is_refused_with_both(host: Host, size_bytes: int) -> None:
    host.open("primary", "a").sources[0].image.write(0, b"kept")
    host.die()
    with pytest.raises(EnvironmentFault, match=f"has {SIZE} bytes and `size_mib` says {size_bytes}: correct vm.toml"):
        host.open("primary", "a", size_bytes=size_bytes)
    assert host.image("a") == b"kept".ljust(SIZE, b"\0")


# ---- one journal for all


def test_what_a_crash_interrupted_is_finished_on_all_disks(host: Host) -> None:
    host.left_as(Kind.TARGET, "a", "b")
    host.leave_a_batch("a")
    opened = host.open("secondary", "a", "b")
    assert [source.meta.kind for source in opened.sources] == [Kind.TARGET] * 2
    assert [host.image(name)[:4097] for name in "ab"] == [NEW + b"\0"] * 2
    opened.sources[0].image.write(0, b"later")
    host.die()
    host.open("secondary", "a", "b")
    assert host.image("a")[:8] == b"laterNNN"  # it is not done again


@pytest.mark.parametrize("names", ["ba", "a", "b", "ac", "abc", "ca", "cab"])
@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_an_unfinished_batch_keeps_its_disks_together_and_in_order(host: Host, role: str, names: str) -> None:
    host.left_as(Kind.SOURCE, "a", "b")
    host.leave_a_batch("a")
    with pytest.raises(
        EnvironmentFault, match=r"used together with a\.img, b\.img, and their journal .*/a\.img\.colo-"
    ):
        host.open(role, *names)
    assert host.journal("a").stat().st_size > 0
    host.open(role, "a", "b")  # nothing was lost by that
    assert [host.image(name)[:4096] for name in "ab"] == [NEW] * 2


@pytest.mark.parametrize("names", ["ba", "a", "b", "ac", "abc"])
def test_closed_in_good_order_any_disks_may_be_used_together(host: Host, names: str) -> None:
    opened = host.open("primary", "a", "b")
    opened.sources[0].meta.change(Kind.SOURCE, SESSION)
    assert host.close() == []
    assert host.journal("a").stat().st_size == 0
    again = host.open("primary", *names)
    assert {source.name: source.meta.session for source in again.sources} == {
        name: SESSION if name == "a" else "" for name in names
    }
    group = [f"{names[0]}.img.colo-journal", *(f"{name}.img" for name in names)]
    assert [source.meta.group for source in again.sources] == [group] * len(names)


def test_a_folder_may_be_moved_with_its_unfinished_batch(host: Host) -> None:
    host.left_as(Kind.SOURCE, "a", "b")
    host.leave_a_batch("a")
    moved = host.folder.parent / f"{host.folder.name}-moved"
    host.folder.rename(moved)
    host.folder = moved
    host.open("primary", "a", "b")
    assert [host.image(name)[:4096] for name in "ab"] == [NEW] * 2


def test_the_group_is_durable_before_the_images_are_used(host: Host) -> None:
    host.open("primary", "a", "b")
    host.die()
    for name in "ab":
        meta = DiskMeta(host.folder / f"{name}.img.colo", host.folder / f"{name}.img", SIZE)
        assert meta.group == ["a.img.colo-journal", "a.img", "b.img"]
        meta.close()


def broken(*_: object, **__: object) -> bool:
    raise OSError(errno.EIO, "Input/output error")


def test_a_batch_that_can_not_be_finished_is_trouble_and_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.left_as(Kind.TARGET, "a", "b")
    host.leave_a_batch("a")
    with monkeypatch.context() as patch:
        patch.setattr(DiskImage, "write", broken)
        with pytest.raises(DiskTrouble, match=r"a\.img, .*b\.img can't be brought into good order \(Input/output"):
            host.open("secondary", "a", "b")
    host.open("secondary", "a", "b")
    assert [host.image(name)[:4096] for name in "ab"] == [NEW] * 2


def test_a_journal_outlives_a_disk_that_could_not_be_closed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.left_as(Kind.TARGET, "a", "b")
    opened = host.open("secondary", "a", "b")
    host.leave_a_batch("a")
    monkeypatch.setattr(opened.sources[1].image, "sync", broken)
    assert host.close() == [f"disk b: {host.folder}/b.img can't be closed in good order (Input/output error)"]
    assert host.journal("a").stat().st_size > 0


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b""), lambda path: path.mkdir()], ids=["an empty file", "a folder"]
)
def test_what_is_beside_a_second_image_and_useless_leaves_nothing_open(
    host: Host, spoil: Callable[[Path], object]
) -> None:
    spoil(host.folder / "b.img.colo")
    with pytest.raises(EnvironmentFault, match=r"b\.img\.colo"):
        host.open("primary", "a", "b")
    host.open("primary", "a")  # not in use
