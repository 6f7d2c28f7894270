"""The file beside an image: when its session is believed, what survives a death, in which order it becomes durable."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pycolo.core.changed_chunks import CHUNK_BYTES_MIN, ChangedChunks, bitmap_bytes_of
from pycolo.edge import disk_meta
from pycolo.edge.disk_meta import HEADER_BYTES, DiskMeta, Kind
from pycolo.errors import EnvironmentFault

SIZE = 20 * CHUNK_BYTES_MIN
SESSION = "0123456789abcdef" * 2


class Beside:
    """An image, the file beside it, and a machine that can restart."""

    def __init__(self, folder: Path) -> None:
        self.image, self.path, self._boot_id = folder / "disk.img", folder / "disk.img.colo", folder / "boot_id"
        self.image.write_bytes(bytes(SIZE))
        self._boot_id.write_text("first\n")
        self._open: list[DiskMeta] = []

    @property
    def boot_id(self) -> Path:
        return self._boot_id

    def restart(self) -> None:
        self._boot_id.write_text("second\n")

    def open(self, size_bytes: int = SIZE) -> DiskMeta:
        meta = DiskMeta(self.path, self.image, size_bytes)
        self._open.append(meta)
        return meta

    def close(self) -> None:
        for meta in self._open:
            meta.close()
        self._open.clear()

    def left_as(self, kind: Kind, *, closed: bool = False) -> None:
        """A process had it in that state, marked chunks 3 and 17, and is gone."""
        meta = self.open()
        meta.change(kind, SESSION)
        ChangedChunks(SIZE, meta.bits).note(3 * CHUNK_BYTES_MIN, 1)
        ChangedChunks(SIZE, meta.bits).note(17 * CHUNK_BYTES_MIN, 1)
        if closed:
            meta.change(kind, SESSION, closed=True)
        self.close()


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    beside = Beside(tmp_path)
    monkeypatch.setattr(disk_meta, "BOOT_ID", beside.boot_id)
    yield beside
    beside.close()


def marked(meta: DiskMeta) -> list[int]:
    return [chunk for chunk in range(SIZE // CHUNK_BYTES_MIN) if meta.bits[chunk // 8] >> chunk % 8 & 1]


def test_a_new_file_knows_of_no_session_and_is_for_us_alone(beside: Beside) -> None:
    meta = beside.open()
    assert (meta.kind, meta.session, marked(meta)) == (Kind.SOURCE, "", [])
    assert stat.S_IMODE(beside.path.stat().st_mode) == 0o600
    assert beside.path.stat().st_size == HEADER_BYTES + bitmap_bytes_of(SIZE)


def test_a_new_file_is_there_whole_or_not_at_all(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, died)
            with pytest.raises(EnvironmentFault, match=r"can't be used \(Input/output error\)"):
                beside.open()
        assert not beside.path.exists()
    assert beside.open().session == ""


def touch(beside: Beside) -> None:
    """Somebody writes to the image; the time moves on however coarse the clock is."""
    before = beside.image.stat().st_mtime_ns
    os.utime(beside.image, ns=(before, before + 1))


def nothing(beside: Beside) -> None:
    del beside


def restart(beside: Beside) -> None:
    beside.restart()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("closed", "then", "trusted"),
    [
        (True, nothing, set(Kind)),
        (True, restart, set(Kind)),
        (True, touch, set()),
        (False, nothing, set(Kind)),
        (False, touch, set(Kind)),  # its own process wrote until it died
        (False, restart, {Kind.TARGET, Kind.PARTIAL}),  # a source's last writes may never have reached the disk
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_when_a_session_is_believed(
    beside: Beside, kind: Kind, closed: bool, then: Callable[[Beside], None], trusted: set[Kind]
) -> None:
    beside.left_as(kind, closed=closed)
    then(beside)
    meta = beside.open()
    assert meta.session == (SESSION if kind in trusted else "")
    assert meta.kind is kind  # a partial copy stays one, whatever happened
    assert marked(meta) == [3, 17]


@pytest.mark.parametrize("size_bytes", [SIZE - 1, SIZE + 1, 200 * CHUNK_BYTES_MIN])
def test_an_image_of_another_size_is_another_image(beside: Beside, size_bytes: int) -> None:
    beside.left_as(Kind.TARGET, closed=True)
    meta = beside.open(size_bytes)
    assert (meta.kind, meta.session) == (Kind.TARGET, "")
    assert len(meta.bits) == bitmap_bytes_of(size_bytes)
    meta.change(Kind.TARGET, SESSION, closed=True)
    beside.close()
    assert beside.open(size_bytes).session == SESSION


def test_marks_that_changed_after_a_close_in_good_order_cost_the_session(beside: Beside) -> None:
    for at in (HEADER_BYTES, HEADER_BYTES + bitmap_bytes_of(SIZE) - 1):
        beside.left_as(Kind.SOURCE, closed=True)
        content = bytearray(beside.path.read_bytes())
        content[at] ^= 1
        beside.path.write_bytes(content)
        meta = beside.open()
        assert (meta.kind, meta.session) == (Kind.SOURCE, "")
        beside.close()


def test_the_marks_of_a_file_that_is_open_may_change(beside: Beside) -> None:
    beside.left_as(Kind.SOURCE, closed=True)
    meta = beside.open()
    meta.change(meta.kind, meta.session)
    ChangedChunks(SIZE, meta.bits).note(0, 1)
    beside.close()
    again = beside.open()
    assert (again.session, marked(again)) == (SESSION, [0, 3, 17])


def test_who_shares_a_journal_is_written_with_the_next_change(beside: Beside) -> None:
    meta = beside.open()
    assert meta.group == []
    meta.group = ["a.img.colo-journal", "a.img", "b.img"]
    assert meta.group == ["a.img.colo-journal", "a.img", "b.img"]
    beside.close()
    assert beside.open().group == []
    meta = beside.open()
    meta.group = ["a.img.colo-journal", "a.img", "b.img"]
    meta.change(Kind.SOURCE, SESSION)
    beside.close()
    for closed in (False, True):  # no later change forgets it, nor another image in its place
        meta = beside.open(SIZE + 1)
        assert (meta.group, meta.session) == (["a.img.colo-journal", "a.img", "b.img"], "")
        meta.change(Kind.TARGET, "", closed=closed)
        beside.close()


def test_opened_again_it_is_not_closed_any_more(beside: Beside) -> None:
    beside.left_as(Kind.SOURCE, closed=True)
    meta = beside.open()
    meta.change(meta.kind, meta.session)
    beside.close()
    beside.restart()
    assert beside.open().session == ""


def spoiled(content: bytes) -> Iterator[bytes]:
    for at in (0, 7, 8, 15, 16, 19, 20, 25):
        yield content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    yield b""  # it is made whole, so this is no new one
    yield b"x"
    yield content[:HEADER_BYTES]
    yield content[:-1]
    yield content[:19]
    yield content[:40]
    yield content[:16] + b"\xff" * 4 + content[20:]


def test_every_damage_of_the_header_is_said_and_leaves_nothing_open(beside: Beside) -> None:
    beside.left_as(Kind.PARTIAL)
    content = beside.path.read_bytes()
    before = len(os.listdir("/proc/self/fd"))
    for damaged in spoiled(content):
        beside.path.write_bytes(damaged)
        with pytest.raises(EnvironmentFault, match=r"is damaged, so nobody knows whether .* is whole: delete it only"):
            beside.open()
    assert len(os.listdir("/proc/self/fd")) == before
    beside.path.write_bytes(content)
    assert beside.open().kind is Kind.PARTIAL


def test_a_file_that_can_not_be_made_is_said(beside: Beside) -> None:
    beside.path.mkdir()
    with pytest.raises(EnvironmentFault, match=r"can't be used \(Is a directory\): it has to be writable"):
        beside.open()


def test_marks_survive_the_death_of_their_process(beside: Beside) -> None:
    """Chunks are marked all the time, and nothing is written out for that."""
    beside.open().change(Kind.SOURCE, SESSION)
    beside.close()
    child = os.fork()
    if child == 0:
        try:
            chunks = ChangedChunks(SIZE, DiskMeta(beside.path, beside.image, SIZE).bits)
            chunks.note(5 * CHUNK_BYTES_MIN, 2 * CHUNK_BYTES_MIN)
            chunks.begin()
            chunks.note(SIZE - 1, 1)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    meta = beside.open()
    assert (meta.session, marked(meta)) == (SESSION, [5, 6, 19])


class Recorder:
    """Notes the order of what makes the file durable."""

    def __init__(self, meta: DiskMeta, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._map = meta._map
        monkeypatch.setattr(meta, "_map", self)
        monkeypatch.setattr(os, "pwrite", self._noting("header", os.pwrite))
        monkeypatch.setattr(os, "fdatasync", self._noting("sync", os.fdatasync))

    def flush(self) -> None:
        self.calls.append("bitmap")
        self._map.flush()

    def close(self) -> None:
        self._map.close()

    def _noting(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object) -> object:
            self.calls.append(name)
            return call(*arguments)

        return noted


def test_the_bitmap_is_durable_before_the_header_that_needs_it(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = beside.open()
    recorder = Recorder(meta, monkeypatch)
    meta.change(Kind.TARGET, SESSION)
    assert recorder.calls == ["bitmap", "header", "sync"]


def test_a_change_that_fails_is_not_on_the_disk(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    beside.left_as(Kind.TARGET)
    meta = beside.open()

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            meta.change(Kind.SOURCE, "")
    beside.close()
    again = beside.open()
    assert (again.kind, again.session) == (Kind.TARGET, SESSION)


def test_closing_lets_go_while_somebody_still_looks_at_the_bitmap(beside: Beside) -> None:
    meta = beside.open()
    view = np.asarray(meta.bits)
    before = len(os.listdir("/proc/self/fd"))
    beside.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    view[0] = 1  # no crash: the mapping goes with its last user
