"""One disk of the SVM: what is on the image, what is committed, what is only staged, and what the SVM wrote by itself.

    overlay     the SVM's own writes since the last checkpoint          dropped at each commit, kept at a takeover
    staged      the PVM's writes by epoch, as they stream in            dropped at a takeover
    committed   the PVM's writes of committed epochs                    on their way to the image
    applying    the part of them that is being written to the image     together, or not at all (disk_journal)
    image       the PVM's disk at some earlier checkpoint

Guarantees: the SVM reads overlay over committed over image and never sees what is staged; the image only ever gets
whole committed epochs; memory is bounded by the store and by `zero_blocks_max` (rules 3, 4, 9). A checkpoint that
failed loses nothing: what it staged belongs to the next one, as it is on the primary's disk (rule 7).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pycolo.core.block_store import BLOCK_BYTES, ZEROS, BlockStore, StoreFull, runs_of

RUN_BLOCKS_MAX = 256  # so that nothing larger than 1 MiB is moved in one piece

Buffers = list[bytes | memoryview]
ReadImage = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class OnImage:
    """A part of a read that has to come from the image."""

    offset: int
    length: int


class Layer:
    """Blocks of a disk that are different from what lies below: a slot for each."""

    def __init__(self, store: BlockStore, size_bytes: int) -> None:
        self.slots: dict[int, int] = {}
        self._store, self._size_bytes = store, size_bytes

    def put(self, first_block: int, slots: Sequence[int]) -> None:
        """Blocks from `first_block` on are in these slots from now on."""
        blocks = range(first_block, first_block + len(slots))
        if not self.slots.keys().isdisjoint(blocks):
            self._free([slot for slot in map(self.slots.get, blocks) if slot is not None])
        self.slots.update(zip(blocks, slots, strict=True))

    def absorb(self, above: Layer) -> None:
        """Take over everything of a layer that lay above."""
        both = self.slots.keys() & above.slots.keys()
        self._free([self.slots[block] for block in both])
        self.slots.update(above.slots)
        above.slots = {}

    def clear(self) -> None:
        """Forget everything."""
        self._free(list(self.slots.values()))
        self.slots = {}

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of all that is different here, ascending, whole blocks."""
        for first, count in runs_of(sorted(self.slots)):
            yield first * BLOCK_BYTES, count * BLOCK_BYTES

    def __iter__(self) -> Iterator[tuple[int, int, Buffers | None]]:
        """(offset, length, content), ascending, up to the disk's end; None for zeros. Content is good until `clear`."""
        for block, count, slots in self._runs():
            offset = block * BLOCK_BYTES
            length = min(count * BLOCK_BYTES, self._size_bytes - offset)
            yield offset, length, None if slots[0] == ZEROS else _clipped(_content(self._store, slots), length)

    def _runs(self) -> Iterator[tuple[int, int, Sequence[int]]]:
        blocks = sorted(self.slots)
        for start, count in runs_of(blocks):
            slots = [self.slots[block] for block in range(start, start + count)]
            at = 0
            while at < count:
                end = _same_kind_until(slots, at)
                yield start + at, end - at, slots[at:end]
                at = end

    def _free(self, slots: list[int]) -> None:
        real = [slot for slot in slots if slot != ZEROS]
        if real:
            self._store.free(real)


def _same_kind_until(slots: Sequence[int], at: int) -> int:
    """The end of the run of zeros, or of contents, that begins at `at`."""
    zeros, end = slots[at] == ZEROS, at + 1
    while end < len(slots) and end - at < RUN_BLOCKS_MAX and (slots[end] == ZEROS) == zeros:
        end += 1
    return end


def _content(store: BlockStore, slots: Sequence[int]) -> Buffers:
    return [part for first, count in runs_of(slots) for part in store.read(first, count)]


def _clipped(parts: Buffers, length: int) -> Buffers:
    """The first `length` bytes; what is cut off is less than a block."""
    surplus = sum(map(len, parts)) - length
    return [*parts[:-1], parts[-1][:-surplus]] if surplus else parts


class SecondaryDisk:
    """The layers of one disk over an image of `size_bytes`; `read_image(offset, length)` reads what is below.

    `store` is this disk's alone.
    """

    def __init__(self, size_bytes: int, store: BlockStore, read_image: ReadImage, zero_blocks_max: int) -> None:
        self.size_bytes, self._store, self._read_image = size_bytes, store, read_image
        self._zero_blocks_max = zero_blocks_max
        self._overlay, self._open, self._committed = self._layer(), self._layer(), self._layer()
        self._marked: deque[tuple[int, Layer]] = deque()
        self._applying: Layer | None = None

    def _layer(self) -> Layer:
        return Layer(self._store, self.size_bytes)

    # ---------------------------------------------------------------- the PVM's writes, in the order it made them

    def stage(self, offset: int, data: memoryview) -> None:
        """The PVM wrote. Raises StoreFull, and nothing has changed then."""
        self._write(self._open, self._staged_view(), offset, data)

    def stage_zeros(self, offset: int, length: int) -> None:
        """The PVM wrote zeros. Raises StoreFull; part of them may be staged then, which does no harm."""
        self._write_zeros(self._open, self._staged_view(), offset, length)

    def mark(self, epoch: int) -> None:
        """Everything staged up to here belongs to the checkpoint that starts `epoch`."""
        self._marked.append((epoch, self._open))
        self._open = self._layer()

    def commit(self, epoch: int) -> None:
        """The SVM is stopped and will be the PVM at the start of `epoch`: so is its disk. A repetition is harmless."""
        while self._marked and self._marked[0][0] <= epoch:
            self._committed.absorb(self._marked.popleft()[1])
        self._overlay.clear()

    # ---------------------------------------------------------------- the SVM's own reads and writes

    def write(self, offset: int, data: memoryview) -> None:
        """The SVM wrote. Raises StoreFull, and nothing has changed then."""
        self._write(self._overlay, self._svm_view(), offset, data)

    def write_zeros(self, offset: int, length: int) -> None:
        """The SVM wrote zeros. Raises StoreFull; part of them may be written then."""
        self._write_zeros(self._overlay, self._svm_view(), offset, length)

    def read(self, offset: int, length: int) -> list[bytes | memoryview | OnImage]:
        """What the SVM reads, in order: contents (copies), and parts that have to come from the image."""
        return self._read(self._svm_view(), offset, length)

    def committed_content(self, offset: int, length: int) -> bytes:
        """What the PVM had on its disk at the committed checkpoint."""
        return self._content(self._committed_view(), offset, length)

    # ---------------------------------------------------------------- on the way to the image

    @property
    def used_blocks(self) -> int:
        """Blocks in any layer, zeros included."""
        return self._store.used + self.zero_blocks

    @property
    def zero_blocks(self) -> int:
        """Entries for zeros in any layer; they take no slot."""
        layers = [*self._staged_view(), self._overlay]
        return sum(len(layer.slots) for layer in layers) - self._store.used

    @property
    def overlay_blocks(self) -> int:
        """Blocks that the SVM has written by itself since the last checkpoint."""
        return len(self._overlay.slots)

    @property
    def unapplied(self) -> bool:
        """Whether committed writes wait for the image."""
        return bool(self._committed.slots)

    def begin_applying(self) -> Layer:
        """The committed writes, to be written to the image all together; then `applied`."""
        assert self._applying is None
        self._applying, self._committed = self._committed, self._layer()
        return self._applying

    def applied(self) -> None:
        """What `begin_applying` returned is on the image for good."""
        assert self._applying is not None
        self._applying.clear()
        self._applying = None

    def own_writes(self) -> Iterator[tuple[int, int]]:
        """(offset, length), in whole blocks, of what the SVM wrote by itself since the last checkpoint."""
        return self._overlay.ranges()

    def take_over(self) -> None:
        """The SVM's disk is the disk now: what is not committed never was, what it wrote itself is to stay."""
        for _, layer in self._marked:
            layer.clear()
        self._marked.clear()
        self._open.clear()
        self.fold()

    def fold(self) -> None:
        """Send what has been written since the takeover on its way to the image."""
        self._committed.absorb(self._overlay)

    # ---------------------------------------------------------------- layers over layers

    def _committed_view(self) -> list[Layer]:
        return [layer for layer in (self._committed, self._applying) if layer is not None]

    def _svm_view(self) -> list[Layer]:
        return [self._overlay, *self._committed_view()]

    def _staged_view(self) -> list[Layer]:
        return [self._open, *(layer for _, layer in reversed(self._marked)), *self._committed_view()]

    def _write(self, target: Layer, view: list[Layer], offset: int, data: memoryview) -> None:
        first, head = divmod(offset, BLOCK_BYTES)
        end = offset + len(data)
        tail = -end % BLOCK_BYTES
        if head or tail:
            before = self._block(view, first)[:head] if head else b""
            after = self._block(view, end // BLOCK_BYTES)[BLOCK_BYTES - tail :] if tail else b""
            data = memoryview(b"".join((before, data, after)))
        target.put(first, self._store.put(data))

    def _write_zeros(self, target: Layer, view: list[Layer], offset: int, length: int) -> None:
        end = offset + length
        first, last = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
        if end == self.size_bytes and end % BLOCK_BYTES:  # the image's last block is whole when it ends with the image
            last += 1
        if last <= first:
            if length:
                self._write(target, view, offset, memoryview(bytes(length)))
            return
        if self.zero_blocks + last - first > self._zero_blocks_max:
            raise StoreFull
        head, tail = first * BLOCK_BYTES - offset, end - last * BLOCK_BYTES
        if head:
            self._write(target, view, offset, memoryview(bytes(head)))
        if tail > 0:
            self._write(target, view, last * BLOCK_BYTES, memoryview(bytes(tail)))
        target.put(first, [ZEROS] * (last - first))

    def _block(self, view: list[Layer], block: int) -> bytes:
        """A whole block; behind the image's end it is zero."""
        offset = block * BLOCK_BYTES
        return self._content(view, offset, min(BLOCK_BYTES, self.size_bytes - offset)).ljust(BLOCK_BYTES, b"\0")

    def _content(self, view: list[Layer], offset: int, length: int) -> bytes:
        parts = self._read(view, offset, length)
        return b"".join(
            self._read_image(part.offset, part.length) if isinstance(part, OnImage) else part for part in parts
        )

    def _read(self, view: list[Layer], offset: int, length: int) -> list[bytes | memoryview | OnImage]:
        end = offset + length
        blocks = range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        found = [layer.slots for layer in view if not layer.slots.keys().isdisjoint(blocks)]
        if not found:
            return [OnImage(offset, length)]
        places = [next((slots[block] for slots in found if block in slots), None) for block in blocks]
        parts: list[bytes | memoryview | OnImage] = []
        at = 0
        while at < len(places):
            until = _same_place_until(places, at)
            start = max(offset, (blocks[0] + at) * BLOCK_BYTES)
            size = min(end, (blocks[0] + until) * BLOCK_BYTES) - start
            parts.append(self._part(places[at:until], start, size))
            at = until
        return parts

    def _part(self, places: Sequence[int | None], start: int, size: int) -> bytes | memoryview | OnImage:
        """One run of equal kind: on the image, zeros, or in slots."""
        if places[0] is None:
            return OnImage(start, size)
        if places[0] == ZEROS:
            return bytes(size)
        whole = b"".join(_content(self._store, [place for place in places if place is not None]))
        skipped = start % BLOCK_BYTES
        return memoryview(whole)[skipped : skipped + size]


def _same_place_until(places: Sequence[int | None], at: int) -> int:
    kind = _kind(places[at])
    end = at + 1
    while end < len(places) and _kind(places[end]) == kind:
        end += 1
    return end


def _kind(place: int | None) -> int:
    return 0 if place is None else 1 if place == ZEROS else 2
