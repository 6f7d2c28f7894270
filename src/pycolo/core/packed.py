"""Many frames in one buffer: `be32 length | frame`, one behind the other, so that a batch is one object.

Guarantee: `unpack` takes any bytes and returns whole frames; what is cut or too long at the end is left out.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

PREFIX_BYTES = 4
FRAME_BYTES_MAX = 65535 + 18
Packed = bytes | memoryview
"""A packed batch; a memoryview of one keeps its memory for as long as somebody has it."""

_PREFIX = struct.Struct(">I")


def pack(frames: Iterable[bytes]) -> bytes:
    """One buffer of these frames."""
    return b"".join(part for frame in frames for part in (_PREFIX.pack(len(frame)), frame))


def whole_bytes(packed: bytes | bytearray | memoryview) -> int:
    """How many bytes at the beginning are whole frames."""
    at = 0
    while at + PREFIX_BYTES <= len(packed):
        (length,) = _PREFIX.unpack_from(packed, at)
        if length > FRAME_BYTES_MAX or at + PREFIX_BYTES + length > len(packed):
            break
        at += PREFIX_BYTES + length
    return at


def frame_at(packed: Packed, at: int) -> tuple[bytes, int]:
    """The frame at this place, which is whole, and the next one's place."""
    start = at + PREFIX_BYTES
    end = start + int.from_bytes(packed[at:start])
    return bytes(packed[start:end]), end


def unpack(packed: Packed) -> list[bytes]:
    """The frames of a buffer."""
    packed, frames, at = bytes(packed), [], 0
    while at + PREFIX_BYTES <= len(packed):
        (length,) = _PREFIX.unpack_from(packed, at)
        at += PREFIX_BYTES
        if length > FRAME_BYTES_MAX or at + length > len(packed):
            break
        frames.append(packed[at : at + length])
        at += length
    return frames


class PackedBatches(ABC):
    """A data plane that takes packed batches by taking lists of frames."""

    @abstractmethod
    def client_frames(self, frames: Sequence[bytes], now_ms: float) -> None:
        """See `PrimaryDataplane`."""

    @abstractmethod
    def pvm_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """See `PrimaryDataplane`."""

    @abstractmethod
    def svm_frames(self, epoch: int, first_no: int, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """See `PrimaryDataplane`."""

    def client_packed(self, packed: Packed, now_ms: float) -> None:
        """As `client_frames`."""
        self.client_frames(unpack(packed), now_ms)

    def pvm_packed(self, packed: Packed, now_ms: float) -> Packed:
        """As `pvm_frames`."""
        return pack(self.pvm_frames(unpack(packed), now_ms))

    def svm_packed(self, epoch: int, first_no: int, packed: Packed, now_ms: float) -> Packed:
        """As `svm_frames`."""
        return pack(self.svm_frames(epoch, first_no, unpack(packed), now_ms))
