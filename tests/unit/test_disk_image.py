"""A raw image: every byte where it belongs, every wrong image refused in a sentence; writes that last."""

import errno
import os
import select
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pycolo.disk.local import LocalExport
from pycolo.edge import disk_image
from pycolo.edge.disk_image import QCOW2_MAGIC, DiskImage
from pycolo.edge.nbd_export import HOLE, ZERO
from pycolo.edge.unix_listener import UnixListener
from pycolo.edge.workers import Workers
from pycolo.errors import EnvironmentFault

SIZE = 3 * 65536 + 777
Open = Callable[..., DiskImage]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def open_image(path: Path) -> Iterator[Open]:
    opened: list[DiskImage] = []

    def make(*, read_only: bool = False) -> DiskImage:
        opened.append(DiskImage(path, read_only=read_only))
        return opened[-1]

    yield make
    for image in opened:
        image.close()


# ---- opening


def test_a_second_opener_is_refused_until_the_first_has_closed(path: Path, open_image: Open) -> None:
    first = open_image()
    for read_only in (False, True):
        with pytest.raises(EnvironmentFault, match="is in use by another process"):
            open_image(read_only=read_only)
    first.close()
    assert open_image().size_bytes == SIZE


def test_wrong_images_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in {
        "missing": "does not exist: make an empty one",
        "folder": "is a directory",
        "empty": "is empty: give it a size",
        "pipe": "is neither a file nor a block device",
        "missing/below": "does not exist",
        "empty/below": "can't be opened",
    }.items():
        with pytest.raises(EnvironmentFault, match=sentence):
            DiskImage(tmp_path / name)


def test_an_image_without_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:  # root, as which the tests may run, is never denied
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(EnvironmentFault, match=r"Permission denied.*--read-only"):
        DiskImage(path)


def test_qcow2_is_refused_unless_it_is_said_to_be_raw(path: Path) -> None:
    path.write_bytes(QCOW2_MAGIC + bytes(1000))
    with pytest.raises(EnvironmentFault, match="colo disk import"):
        DiskImage(path)
    with pytest.raises(EnvironmentFault, match="only raw images"):
        DiskImage(path, image_format="qcow2")
    image = DiskImage(path, image_format="raw")
    assert image.read(0, 4) == QCOW2_MAGIC
    image.close()


def test_a_block_device(path: Path) -> None:
    device = Path(
        subprocess.run(["losetup", "-f", "--show", path], check=True, capture_output=True, text=True).stdout[:-1]
    )
    try:
        image = DiskImage(device)
        assert image.size_bytes == SIZE // 512 * 512
        image.write(1000, b"x" * 5000)
        image.zero(2000, 100, may_trim=True)  # no whole sectors
        image.zero(4096, 4096, may_trim=False)
        image.trim(65536, 65536)
        assert image.read(999, 5002)[1:1002] == b"x" * 1000 + b"\0"
        assert image.read(4096, 4096) == bytes(4096)
        assert sum(length for length, _ in image.extents(0, image.size_bytes)) == image.size_bytes
        image.sync()
        image.close()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


# ---- reading and writing


@pytest.mark.parametrize("may_trim", [False, True])
def test_every_byte_is_where_it_belongs(path: Path, open_image: Open, may_trim: bool) -> None:
    model = bytearray(path.read_bytes())
    image = open_image()
    for offset, data in [(0, b"a"), (4095, b"bc"), (SIZE - 3, b"xyz"), (65537, bytes(range(256)) * 300)]:
        image.write(offset, memoryview(data))
        model[offset : offset + len(data)] = data
    for offset, length in [(5, 3), (4000, 9000), (SIZE - 1, 1), (70_000, 60_001)]:
        image.zero(offset, length, may_trim=may_trim)
        model[offset : offset + length] = bytes(length)
    image.sync()
    assert path.read_bytes() == model == image.read(0, SIZE)
    assert image.read_now(4000, 10_000) == bytes(model[4000:14_000])


def test_zeros_are_written_where_the_file_system_can_not(
    path: Path, open_image: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(disk_image, "ZEROS", bytes(1000))
    image = open_image()
    monkeypatch.setattr(image, "_allocate", unsupported)
    image.zero(5, 3500, may_trim=True)
    before = image.read(3505, 1000)
    image.trim(3505, 1000)
    assert image.read(5, 3500) == bytes(3500)
    assert image.read(3505, 1000) == before


def test_an_error_that_is_not_about_support_is_told(open_image: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    image = open_image()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(image, "_allocate", full)
    with pytest.raises(OSError, match="no space"):
        image.zero(0, 10, may_trim=False)
    with pytest.raises(OSError, match="no space"):
        image.trim(0, 10)


def test_short_reads_and_writes_are_completed(path: Path, open_image: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 1000), offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, memoryview(data)[:1000], offset))
    image = open_image()
    data = os.urandom(3500)
    image.write(7, data)
    assert image.read(7, 3500) == data
    with pytest.raises(OSError, match="shorter"):
        image.read(SIZE - 10, 20)


def test_what_is_not_in_memory_or_too_long_is_not_read_now(
    path: Path, open_image: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image()
    assert image.read_now(0, disk_image.READ_NOW_BYTES_MAX + 1) is None
    image.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert image.read_now(65536, 4096) in (None, path.read_bytes()[65536 : 65536 + 4096])
    for number in (errno.EAGAIN, errno.EOPNOTSUPP):

        def would_block(*_: object, number: int = number) -> int:
            raise OSError(number, "")

        monkeypatch.setattr(os, "preadv", would_block)
        assert image.read_now(0, 10) is None


def test_holes_are_found_and_made(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10 << 20)
    image = DiskImage(path)
    assert image.extents(100, 5000) == [(5000, HOLE | ZERO)]
    image.write(1 << 20, b"x" * 65536)
    assert image.extents(0, 10 << 20) == [(1 << 20, 3), (65536, 0), ((9 << 20) - 65536, 3)]
    assert image.extents((1 << 20) + 5, 10) == [(10, 0)]
    image.zero(1 << 20, 65536, may_trim=True)
    assert image.extents(0, 10 << 20) == [(10 << 20, 3)]
    assert path.stat().st_size == 10 << 20
    image.close()


def test_extents_are_bounded_and_all_data_where_the_system_can_not_tell(
    open_image: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image()
    image.zero(0, 131072, may_trim=True)
    monkeypatch.setattr(disk_image, "EXTENTS_MAX", 1)
    assert image.extents(0, SIZE) == [(131072, 3), (SIZE - 131072, 0)][:2]

    def unsupported(*_: object) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(os, "lseek", unsupported)
    assert image.extents(100, 1000) == [(1000, 0)]


# ---- the export


class Outcome:
    """A ticket that remembers."""

    def __init__(self) -> None:
        self.said: object = None

    def done(self) -> None:
        self.said = "done"

    def data(self, buffers: Sequence[bytes | memoryview]) -> None:
        self.said = b"".join(buffers)

    def failed(self, error: int) -> None:
        self.said = error


class Rig:
    """A local export over an image whose fdatasync the test holds."""

    def __init__(self, image: DiskImage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.image, self.workers = image, Workers(2)
        self.export = LocalExport(image, self.workers)
        self.may_sync = threading.Semaphore(0)
        self.syncs = 0
        self.sync_error: OSError | None = None
        monkeypatch.setattr(image, "sync", self._sync)

    def _sync(self) -> None:
        assert self.may_sync.acquire(timeout=10)
        self.syncs += 1
        if self.sync_error is not None:
            raise self.sync_error

    def until(self, *outcomes: Outcome) -> list[object]:
        """What was said, once all have."""
        for _ in range(10_000):
            if all(outcome.said is not None for outcome in outcomes):
                break
            os.eventfd_write(self.workers.fileno(), 1)
            self.workers.collect()
            threading.Event().wait(0.001)
        return [outcome.said for outcome in outcomes]


@pytest.fixture
def rig(open_image: Open, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(open_image(), monkeypatch)
    yield rig
    rig.may_sync.release(100)
    rig.workers.close()


def test_a_plain_write_does_not_wait_and_fua_does(rig: Rig) -> None:
    plain, fua = Outcome(), Outcome()
    rig.export.write(plain, 5, memoryview(b"abc"), fua=False)
    rig.export.write(fua, 8, memoryview(b"d"), fua=True)
    assert plain.said == "done"
    assert fua.said is None
    rig.may_sync.release()
    assert rig.until(fua) == ["done"]
    assert rig.image.read(5, 4) == b"abcd"


def test_flushes_share_a_sync_only_if_it_starts_after_they_came(rig: Rig) -> None:
    first, second, third = Outcome(), Outcome(), Outcome()
    rig.export.flush(first)
    rig.export.flush(second)  # the first one's sync may be over the very page that this one is about
    rig.export.flush(third)
    rig.may_sync.release()
    assert rig.until(first) == ["done"]
    assert second.said is None
    rig.may_sync.release()
    assert rig.until(second, third) == ["done", "done"]
    assert rig.syncs == 2


def test_a_failed_sync_is_never_forgotten(rig: Rig) -> None:
    first, later = Outcome(), Outcome()
    rig.sync_error = OSError(errno.EIO, "")
    rig.may_sync.release(2)
    rig.export.flush(first)
    assert rig.until(first) == [errno.EIO]
    rig.sync_error = None
    rig.export.write(later, 0, memoryview(b"x"), fua=True)
    assert rig.until(later) == [errno.EIO]


def test_reads_zeros_and_trims(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rig.image.read(100, 50)
    warm, cold, zeroed, trimmed = (Outcome() for _ in range(4))
    rig.export.read(warm, 100, 50)
    assert rig.until(warm) == [expected]
    monkeypatch.setattr(rig.image, "read_now", lambda *_: None)
    rig.export.read(cold, 100, 50)
    assert rig.until(cold) == [expected]
    rig.export.zero(zeroed, 100, 20, fua=False, may_trim=False)
    rig.export.trim(trimmed, 120, 20, fua=True)
    rig.may_sync.release()
    assert rig.until(zeroed, trimmed) == ["done", "done"]
    assert rig.image.read(100, 20) == bytes(20)
    assert rig.export.block_status(0, 10) == [(10, 0)]


def test_errors_become_numbers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "")

    for name in ("read_now", "write", "zero", "trim"):
        monkeypatch.setattr(rig.image, name, broken)
    outcomes = [Outcome() for _ in range(5)]
    rig.export.read(outcomes[0], 0, 1)
    rig.export.write(outcomes[1], 0, memoryview(b"x"), fua=True)
    rig.export.zero(outcomes[2], 0, 1, fua=False, may_trim=False)
    rig.export.trim(outcomes[3], 0, 1, fua=True)
    monkeypatch.setattr(rig.image, "read_now", lambda *_: None)
    monkeypatch.setattr(rig.image, "read", broken)
    rig.export.read(outcomes[4], 0, 1)
    assert rig.until(*outcomes) == [errno.ENOSPC] * 5


def test_a_bug_in_a_job_is_raised_where_the_loop_is() -> None:
    workers = Workers(1)
    workers.submit(lambda: 1 // 0, lambda _: None)
    assert select.select([workers], [], [], 10)[0]
    with pytest.raises(ZeroDivisionError):
        workers.collect()
    workers.close()
    workers.close()


# ---- the listener


def test_a_socket_is_private_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = UnixListener(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert listener.accept() is None
    with pytest.raises(EnvironmentFault, match="another process serves"):
        UnixListener(path)
    listener.close()
    assert not path.exists()
    listener.close()


def test_a_stale_socket_is_replaced_and_anothers_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = UnixListener(path)
    path.rename(tmp_path / "kept")
    first.close()
    (tmp_path / "kept").rename(path)
    second = UnixListener(path)
    path.unlink()
    path.write_text("somebody else's")
    second.close()
    assert path.read_text() == "somebody else's"


def test_a_socket_that_can_not_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, sentence in {
        tmp_path / "file": "is not a socket",
        tmp_path / "no" / "s": "check that its folder exists",
        tmp_path / ("x" * 120): "choose a shorter one",
    }.items():
        with pytest.raises(EnvironmentFault, match=sentence):
            UnixListener(path)
