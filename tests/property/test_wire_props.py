"""Any bytes into every decoder; what was encoded comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.core import wire
from pycolo.core.memory_cache import MemoryCache
from pycolo.core.packed import batch_of
from pycolo.core.pages import PAGE_BYTES, PageBatch
from pycolo.errors import PeerViolation

U64 = st.integers(0, (1 << 64) - 1)
NICS = st.integers(0, wire.NICS_MAX - 1)
WHOLE = st.integers(0, (1 << 63) - 1)
MS = st.floats(0, 86_400_000.0)
DECODERS: list[Callable[[bytes], object]] = [
    wire.decode_header,
    wire.decode_control,
    wire.decode_pages,
    wire.decode_frames,
]
STAGES = st.builds(wire.StageMessage, WHOLE, WHOLE, st.binary(max_size=64), WHOLE, st.binary(max_size=16), MS)
# Values that a msgpack map may hold, right and wrong ones, under the names that the messages use.
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text("aZ\x00\u00e9", max_size=8)
    | st.binary(max_size=20)
)
NAMES = st.sampled_from(("type", "epoch", "boundary", "device_state", "batch_count", "digest", "resumed_ms_ago", "why"))
TYPES = st.sampled_from(("stage", "committed", "discarded", "loaded", "hello", "bye", "confirm"))


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_violation(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(PeerViolation):
        decode(data)


@given(st.dictionaries(NAMES, VALUES), TYPES)
def test_any_map_is_a_message_or_a_violation(fields: dict[str, object], kind: str) -> None:
    with contextlib.suppress(PeerViolation):
        wire.decode_control(msgspec.msgpack.encode({**fields, "type": kind}))


@given(STAGES, st.data())
def test_a_damaged_message_is_a_message_or_a_violation(stage: wire.StageMessage, data: st.DataObject) -> None:
    body = bytearray(wire.encode_control(stage)[wire.HEADER.size :])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for damaged in (bytes(body), bytes(body[:cut]), bytes(body[:cut]) + b"\xc1"):
        with contextlib.suppress(PeerViolation):
            wire.decode_control(damaged)


@given(STAGES)
def test_every_stage_that_is_accepted_can_be_judged(stage: wire.StageMessage) -> None:
    decoded = wire.decode_control(wire.encode_control(stage)[wire.HEADER.size :])
    assert decoded == stage
    assert MemoryCache(2).problem(stage.stage()) is not None


@given(
    U64,
    st.lists(st.integers(0, 0xFFFFFFFF), max_size=3),
    st.lists(st.integers(0, 0xFFFFFFFF), max_size=20),
    st.integers(0, 255),
)
def test_page_batches_come_back(epoch: int, indices: list[int], zeros: list[int], value: int) -> None:
    contents = np.full((len(indices), PAGE_BYTES), value, np.uint8)
    batch = PageBatch(np.array(indices, np.uint32), contents, np.array(zeros, np.uint32))
    encoded = b"".join(wire.encode_pages(epoch, batch))
    length, kind = wire.decode_header(encoded[: wire.HEADER.size])
    assert (length, kind) == (len(encoded) - wire.HEADER.size, wire.Kind.PAGES)
    got_epoch, got = wire.decode_pages(encoded[wire.HEADER.size :])
    assert got_epoch == epoch
    assert got.indices.tolist() == indices
    assert got.zeros.tolist() == zeros
    assert got.contents.shape == contents.shape
    assert (got.contents == contents).all()


@given(NICS, U64, U64, st.lists(st.binary(max_size=100), max_size=40))
def test_frames_come_back(nic: int, tag: int, first_no: int, frames: list[bytes]) -> None:
    encoded = b"".join(wire.encode_frames(nic, tag, first_no, batch_of(frames)))
    assert wire.decode_header(encoded[: wire.HEADER.size]) == (
        len(encoded) - wire.HEADER.size,
        wire.Kind.FRAMES,
    )
    assert wire.decode_frames(encoded[wire.HEADER.size :]) == (nic, tag, first_no, batch_of(frames))


@given(NICS, U64, U64, st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=10), st.data())
def test_a_truncated_frame_batch_is_a_violation(
    nic: int, tag: int, first_no: int, frames: list[bytes], data: st.DataObject
) -> None:
    body = b"".join(wire.encode_frames(nic, tag, first_no, batch_of(frames)))[wire.HEADER.size :]
    with pytest.raises(PeerViolation):
        wire.decode_frames(body[: data.draw(st.integers(0, len(body) - 1))])
