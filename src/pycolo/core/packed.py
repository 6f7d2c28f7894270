"""Many frames in one buffer: `be32 length | frame`, one behind the other, so that a batch is one object.

Guarantee: `unpack` takes any bytes and returns whole frames; what is cut or too long at the end is left out.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import msgspec

PREFIX_BYTES = 4
FRAME_BYTES_MAX = 65535 + 18 + 2  # the longest datagram, Ethernet's header with a tag, a note (`edge/offload`)
_PREFIX = struct.Struct(">I")

Packed = bytes | memoryview
"""A buffer of frames; a memoryview keeps its memory for as long as somebody has it."""


class Batch(msgspec.Struct, frozen=True):
    """A buffer of frames, and how many they are."""

    packed: Packed
    count: int


def batch_of(frames: Sequence[bytes]) -> Batch:
    """These frames."""
    return Batch(pack(frames), len(frames))


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all their frames."""
    return Batch(b"".join(batch.packed for batch in batches), sum(batch.count for batch in batches))


def measure_in_python(packed: Packed | bytearray, at: int, frames_max: int) -> tuple[int, int]:
    """(The place behind the whole frames from place `at` on, how many they are): at most `frames_max`."""
    count = 0
    while count < frames_max and at + PREFIX_BYTES <= len(packed):
        (length,) = _PREFIX.unpack_from(packed, at)
        if length > FRAME_BYTES_MAX or at + PREFIX_BYTES + length > len(packed):
            break
        at += PREFIX_BYTES + length
        count += 1
    return at, count


measure: Callable[[Packed | bytearray, int, int], tuple[int, int]] = measure_in_python
try:
    from pycolo.core import _hot
except ImportError:
    pass
else:
    measure = _hot.measure


def pack(frames: Iterable[bytes]) -> bytes:
    """One buffer of these frames."""
    return b"".join([part for frame in frames for part in (_PREFIX.pack(len(frame)), frame)])


def frame_at(packed: Packed, at: int) -> tuple[bytes, int]:
    """The frame at this place, which is whole, and the next one's place."""
    start = at + PREFIX_BYTES
    end = start + int.from_bytes(packed[at:start])
    return bytes(packed[start:end]), end


def unpack(packed: Packed) -> list[bytes]:
    """The frames of a buffer."""
    packed, frames, at, length_at = bytes(packed), [], PREFIX_BYTES, _PREFIX.unpack_from
    size = len(packed)
    while at <= size:
        (length,) = length_at(packed, at - PREFIX_BYTES)
        end = at + length
        if length > FRAME_BYTES_MAX or end > size:
            break
        frames.append(packed[at:end])
        at = end + PREFIX_BYTES
    return frames


class PackedBatches(ABC):
    """A data plane that takes packed batches by taking lists of frames."""

    @abstractmethod
    def client_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """See `PrimaryDataplane`."""

    @abstractmethod
    def pvm_frames(self, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """See `PrimaryDataplane`."""

    @abstractmethod
    def svm_frames(self, epoch: int, first_no: int, frames: Sequence[bytes], now_ms: float) -> list[bytes]:
        """See `PrimaryDataplane`."""

    def client_packed(self, packed: Packed, now_ms: float) -> Packed:
        """As `client_frames`."""
        return pack(self.client_frames(unpack(packed), now_ms))

    def pvm_packed(self, packed: Packed, now_ms: float) -> Packed:
        """As `pvm_frames`."""
        return pack(self.pvm_frames(unpack(packed), now_ms))

    def svm_packed(self, epoch: int, first_no: int, packed: Packed, now_ms: float) -> Packed:
        """As `svm_frames`."""
        return pack(self.svm_frames(epoch, first_no, unpack(packed), now_ms))
