"""The layers of a disk against plain byte arrays: in whatever order things happen, every read and the image agree."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pycolo.core.block_store import BLOCK_BYTES, BlockStore, StoreFull
from pycolo.core.disk_epochs import Buffers, OnImage, SecondaryDisk
from sim.storage import MemorySpill

SIZES = (1, 511, 4096, 4097, 5000, 3 * 4096 + 512, 20_001, 6 * 4096)
ZERO_BLOCKS_MAX = 4
PLACES = st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 7, 512, 4095, 4096, 4097, 8192, 9000, 30_000]))


class DiskMachine(RuleBasedStateMachine):
    """`pvm` and `svm` are the disks as the two guests see them."""

    @initialize(
        size=st.sampled_from(SIZES),
        memory=st.sampled_from([0, 3, 40]),
        spilled=st.sampled_from([0, 4, 60]),
        seed=st.integers(1, 250),
    )
    def begin(self, size: int, memory: int, spilled: int, seed: int) -> None:
        """Both images are alike."""
        self._size, self._spill = size, MemorySpill()
        self._image = bytearray((seed + i // 7) % 251 for i in range(size))
        self._store = BlockStore(memory, spilled, self._spill)
        self._disk = SecondaryDisk(size, self._store, self._read_image, ZERO_BLOCKS_MAX)
        self._pvm, self._svm = bytearray(self._image), bytearray(self._image)
        self._committed = bytes(self._image)
        self._whole = bytes(self._image)  # what the image is when nothing is being applied
        self._marks: list[tuple[int, bytes]] = []
        self._epoch = 0
        self._last_commit = 0
        self._taken_over = False
        self._records: list[tuple[int, int, Buffers | None]] | None = None
        self._applying = b""

    def _read_image(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert offset + length <= self._size
        return bytes(self._image[offset : offset + length])

    def _range(self, place: tuple[float, int]) -> tuple[int, int]:
        offset = int(place[0] * (self._size - 1))
        if place[1] % 2 == 0:  # many requests are aligned
            offset -= offset % 512
        return offset, max(1, min(place[1], self._size - offset))

    def _tried(self, target: bytearray, offset: int, data: bytes, work: Callable[[], None], *, whole: bool) -> None:
        """A write, or its refusal: then nothing has changed, or (zeros) part of it may be written."""
        used = self._store.used
        try:
            work()
        except (StoreFull, OSError):
            self._spill.fails = False
            if whole:
                assert self._store.used == used
                return
            view = self._content("_staged_view" if target is self._pvm else "_svm_view")
            end = offset + len(data)
            assert view[:offset] == target[:offset]
            assert view[end:] == target[end:]
            assert all(new in (old, 0) for new, old in zip(view[offset:end], target[offset:end], strict=True))
            target[:] = view
        else:
            self._spill.fails = False
            target[offset : offset + len(data)] = data

    # ---- the PVM

    @precondition(lambda self: not self._taken_over)
    @rule(place=PLACES, value=st.integers(1, 255), fails=st.booleans())
    def stage(self, place: tuple[float, int], value: int, fails: bool) -> None:
        """The PVM writes."""
        offset, length = self._range(place)
        data = bytes([value]) * length
        self._spill.fails = fails
        self._tried(self._pvm, offset, data, lambda: self._disk.stage(offset, memoryview(data)), whole=True)

    @precondition(lambda self: not self._taken_over)
    @rule(place=PLACES, fails=st.booleans())
    def stage_zeros(self, place: tuple[float, int], fails: bool) -> None:
        """The PVM writes zeros."""
        offset, length = self._range(place)
        self._spill.fails = fails
        self._tried(self._pvm, offset, bytes(length), lambda: self._disk.stage_zeros(offset, length), whole=False)

    @precondition(lambda self: not self._taken_over)
    @rule()
    def mark(self) -> None:
        """A checkpoint begins; some are never committed."""
        self._epoch += 1
        self._disk.mark(self._epoch)
        self._marks.append((self._epoch, bytes(self._pvm)))

    @precondition(lambda self: self._marks and not self._taken_over)
    @rule(which=st.integers(0, 2))
    def commit(self, which: int) -> None:
        """One of the marks is committed, with all before it."""
        number = min(which, len(self._marks) - 1)
        epoch, self._committed = self._marks[-1 - number]
        self._marks = self._marks[len(self._marks) - number :]
        self._svm[:] = self._committed
        self._disk.commit(epoch)
        self._last_commit = epoch

    @precondition(lambda self: self._last_commit and not self._taken_over)
    @rule()
    def commit_again(self) -> None:
        """The roll-forward is repeated: what the SVM wrote meanwhile goes."""
        self._svm[:] = self._committed
        self._disk.commit(self._last_commit)

    # ---- the SVM

    @rule(place=PLACES, value=st.integers(1, 255), fails=st.booleans())
    def write(self, place: tuple[float, int], value: int, fails: bool) -> None:
        """The SVM writes."""
        offset, length = self._range(place)
        data = bytes([value]) * length
        self._spill.fails = fails
        self._tried(self._svm, offset, data, lambda: self._disk.write(offset, memoryview(data)), whole=True)

    @rule(place=PLACES, fails=st.booleans())
    def write_zeros(self, place: tuple[float, int], fails: bool) -> None:
        """The SVM writes zeros."""
        offset, length = self._range(place)
        self._spill.fails = fails
        self._tried(self._svm, offset, bytes(length), lambda: self._disk.write_zeros(offset, length), whole=False)

    @rule(place=PLACES)
    def read(self, place: tuple[float, int]) -> None:
        """The SVM reads; the parts from the image are read by the caller."""
        offset, length = self._range(place)
        parts = self._disk.read(offset, length)
        at, content = offset, b""
        for part in parts:
            if isinstance(part, OnImage):
                assert part.offset == at
                content += self._read_image(part.offset, part.length)
            else:
                content += bytes(part)
            at = offset + len(content)
        assert content == self._svm[offset : offset + length]

    # ---- the image

    @precondition(lambda self: self._records is None and self._disk.unapplied)
    @rule()
    def begin_applying(self) -> None:
        """Committed writes start for the image."""
        self._records = list(self._disk.begin_applying())
        self._applying = self._committed

    @precondition(lambda self: self._records)
    @rule()
    def apply_one(self) -> None:
        """One record reaches the image."""
        assert self._records is not None
        offset, length, content = self._records.pop(0)
        data = bytes(length) if content is None else b"".join(content)
        assert len(data) == length
        assert offset + length <= self._size, "a record beyond the end of the image"
        self._image[offset : offset + length] = data

    @precondition(lambda self: self._records is not None)
    @rule()
    def applied(self) -> None:
        """The rest of them too, and the image is whole."""
        while self._records:
            self.apply_one()
        self._records = None
        self._disk.applied()
        self._whole = self._applying
        assert self._image == self._whole

    # ---- the takeover

    @precondition(lambda self: not self._taken_over)
    @rule()
    def take_over(self) -> None:
        """What is staged never was."""
        self._disk.take_over()
        self._taken_over = True
        self._marks.clear()
        self._committed = bytes(self._svm)

    @precondition(lambda self: self._taken_over)
    @rule()
    def fold(self) -> None:
        """What has been written since goes on its way."""
        self._disk.fold()
        self._committed = bytes(self._svm)

    # ---- always

    def _content(self, view: str) -> bytes:
        return self._disk._content(getattr(self._disk, view)(), 0, self._size)

    @invariant()
    def everybody_reads_what_they_should(self) -> None:
        """The SVM its own, a takeover the committed, a later checkpoint all that is staged."""
        if not hasattr(self, "_disk"):
            return
        assert self._content("_svm_view") == self._svm
        assert self._disk.committed_content(0, self._size) == self._committed
        if not self._taken_over:
            assert self._content("_staged_view") == self._pvm
        if self._records is None:
            assert self._image == self._whole

    @invariant()
    def bounds_hold(self) -> None:
        """Rule 9."""
        if not hasattr(self, "_disk"):
            return
        assert self._store.used <= self._store.blocks_max
        assert 0 <= self._disk.zero_blocks <= ZERO_BLOCKS_MAX
        assert self._disk.used_blocks == self._store.used + self._disk.zero_blocks
        spilled = max(0, self._store.blocks_max - self._store._memory_blocks_max)
        assert len(self._spill.content) <= spilled * BLOCK_BYTES

    def teardown(self) -> None:
        """Once all is applied or dropped no room is used."""
        if not hasattr(self, "_disk"):
            return
        if self._records is not None:
            self.applied()
        if self._taken_over:
            self.fold()
        else:
            self.mark()
            self.commit(0)
        if self._disk.unapplied:
            self.begin_applying()
            self.applied()
        assert (self._disk.used_blocks, self._store.used, len(self._spill.content)) == (0, 0, 0)
        assert self._image == (self._svm if self._taken_over else self._pvm)


DiskMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestDisk = DiskMachine.TestCase
