"""The images of a VM as one: a batch of committed writes reaches all of them together, by way of one journal.

Guarantee: an address holds the disk's number and the offset on it, so that no record can end on another disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pycolo.core.disk_epochs import Layer
from pycolo.core.disk_journal import Record
from pycolo.core.disk_wire import DISK_BYTES_MAX
from pycolo.edge.disk_image import DiskImage

SPAN_BYTES = 2 * DISK_BYTES_MAX


class JoinedImages:
    """Implements Storage of core/disk_journal; `steps` counts writes, for who wants to know whether it gets on."""

    def __init__(self, images: Sequence[DiskImage]) -> None:
        self._images = images
        self.steps = 0

    def read(self, offset: int, length: int) -> bytes:
        """From one image."""
        disk, at = divmod(offset, SPAN_BYTES)
        return self._images[disk].read(at, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """To one image."""
        self.steps += 1
        disk, at = divmod(offset, SPAN_BYTES)
        self._images[disk].write(at, data)

    def zero(self, offset: int, length: int, *, may_trim: bool) -> None:
        """On one image."""
        self.steps += 1
        disk, at = divmod(offset, SPAN_BYTES)
        self._images[disk].zero(at, length, may_trim=may_trim)

    def sync(self) -> None:
        """All of them."""
        for image in self._images:
            self.steps += 1
            image.sync()


class JoinedLayers:
    """What is committed for all disks, as records for the journal; may be gone through again."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers

    def __iter__(self) -> Iterator[Record]:
        for disk, layer in enumerate(self._layers):
            for offset, length, content in layer:
                yield disk * SPAN_BYTES + offset, length, content
