"""Reads capture files: pcap and pcapng, gzipped or not, as a stream of Ethernet frames.

Guarantees
* Whatever stands in the file: nothing is raised but EnvironmentFault, of which CaptureDamaged says that what is whole
  before the damage has been delivered. Memory is bounded by one block.
* A frame is never longer than FRAME_BYTES_MAX; one of which only a part was captured is marked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from pycolo.edge.capture_source import CaptureRecord, CaptureSource
from pycolo.edge.pcap import byte_order, read_pcap
from pycolo.edge.pcapng import SECTION_MAGIC, PcapngReader
from pycolo.errors import EnvironmentFault


class CaptureReader:
    """One pass over one file; iterate once."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """`name`: what sentences call the file, if not by its path. Raises EnvironmentFault when it is no capture."""
        self._source = CaptureSource(path, name or str(path))
        self._pcapng: PcapngReader | None = None
        self.frames = 0
        self.frames_cut = 0
        try:
            self._records = self._begin()
        except BaseException:
            self._source.close()
            raise

    def _begin(self) -> Iterator[CaptureRecord]:
        magic = self._source.read(4)
        if magic == SECTION_MAGIC:
            self._pcapng = PcapngReader(self._source)
            return self._pcapng.records()
        if byte_order(magic) is not None:
            return read_pcap(self._source, magic)
        what = "is not a capture" if magic else "is empty"
        raise EnvironmentFault(f"{self._source.name} {what}: name a pcap or pcapng file, which may be gzipped")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[CaptureRecord]:
        """Raises CaptureDamaged where the file is whole no more, EnvironmentFault when it had no Ethernet frames."""
        for record in self._records:
            self.frames += 1
            self.frames_cut += record.is_cut
            yield record
        if self._pcapng is not None and self._pcapng.skipped and not self.frames:
            raise self._source.wrong_link_type(self._pcapng.skipped_link_type)

    @property
    def frames_skipped(self) -> int:
        """Frames of interfaces that are not Ethernet."""
        return self._pcapng.skipped if self._pcapng else 0

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self._source.size_bytes

    @property
    def position_bytes(self) -> int:
        """How far the file has been read."""
        return self._source.position_bytes
