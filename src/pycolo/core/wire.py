"""Messages between hosts, and between a daemon and its agent: their bytes, and nothing else.

Guarantees: every decoder takes any bytes and either returns a message that keeps the limits below or raises
PeerViolation; nothing of a message is trusted beyond that.

On a stream a message is `be32 length | u8 kind | body`. Kind CONTROL is a msgpack map (msgspec), kind PAGES a batch of
pages (`be64 epoch, be32 n, be32 k, be32 d, be32 m, n le32 indices, k le32 zero indices, d le32 indices of deltas,
n * 4096 bytes, d * 64 bytes of masks, m le64 words`, see `pages.PageDeltas`), kind FRAMES Ethernet frames
(`u8 nic, be64 tag, be64 first_no, be16 count`, and a packed batch of so many, see `packed`), all of one network card
and one epoch (tag) and numbered from first_no.
"""

from __future__ import annotations

import enum
import itertools
import struct
from typing import Annotated

import msgspec
import numpy as np

from pycolo.core.lease import LEASE_MS_MAX
from pycolo.core.memory_cache import DEVICE_STATE_BYTES_MAX, Stage
from pycolo.core.packed import Batch, measure
from pycolo.core.page_changes import MASK_BYTES, WORD_BYTES
from pycolo.core.pages import PAGE_BYTES, PageBatch, PageDeltas
from pycolo.errors import PeerViolation

PROTOCOL_VERSION = 10  # the newest that we speak
PROTOCOL_VERSION_MIN = 10  # the oldest
GREETING_BYTES_MAX = 16 << 10  # a stranger may say no more than this before we know who it is
BATCH_PAGES_MAX = 1024
FRAMES_MAX = 128  # of the longest ones a message has half of MESSAGE_BYTES_MAX
NICS_MAX = 8
MESSAGE_BYTES_MAX = max(DEVICE_STATE_BYTES_MAX + 4096, BATCH_PAGES_MAX * (PAGE_BYTES + 4) + 64)

HEADER = struct.Struct(">IB")
_PAGES = struct.Struct(">QIIII")
_FRAMES = struct.Struct(">BQQH")


# Numbers are bounded where they come in, so that no arithmetic on them can fail later.
_Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Nic = Annotated[int, msgspec.Meta(ge=0, lt=NICS_MAX)]
_Ms = Annotated[float, msgspec.Meta(ge=0.0, le=86_400_000.0)]
_Digest = Annotated[bytes, msgspec.Meta(max_length=16)]
_Name = Annotated[str, msgspec.Meta(max_length=255)]  # it stands in log lines of the other host


class Kind(enum.IntEnum):
    """What the body of a message is."""

    CONTROL = 1
    PAGES = 2
    FRAMES = 3


_KINDS = {kind.value: kind for kind in Kind}


class DiskShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One disk as both hosts must have it."""

    name: _Name
    size_bytes: _Whole


class NicShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network card as both hosts must have it; `network` is empty for the hosts' first bridge."""

    mac: _Name
    network: _Name = ""


class Versions(msgspec.Struct, frozen=True):
    """What every first message of any version says, whatever else it says: the protocols that its host speaks.

    `version` is the newest (in a Welcome: the one that was chosen), `version_min` the oldest; None: only `version`.
    """

    version: _Whole
    version_min: _Whole | None = None


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """First message on every connection: who calls, for which VM, with what, and which channel this is to be."""

    version: _Whole
    version_min: _Whole
    channel: _Name  # "control" or "bulk"
    vm: _Name
    host: _Name
    term: _Whole
    machine: _Name
    memory_mib: _Whole
    cpus: _Whole
    nics: Annotated[tuple[NicShape, ...], msgspec.Meta(max_length=NICS_MAX)]
    accel: _Name
    disks: tuple[DiskShape, ...] = ()
    resume: bool = False  # we were a pair, and have lost each other
    token: _Name = ""  # bulk: the token that the Welcome of the control channel gave


class Welcome(msgspec.Struct, frozen=True, tag="welcome", forbid_unknown_fields=True):
    """The secondary accepts: the bulk channel shows `token`, the packet and disk channels to their ports their own.

    `version` is what both speak from here on. `disk_port` is 0 where the VM has no disks.
    """

    version: _Whole
    host: _Name
    packet_port: _Whole
    packet_token: _Name
    disk_port: _Whole
    disk_token: _Name
    token: _Name


class Refused(msgspec.Struct, frozen=True, tag="refused", forbid_unknown_fields=True):
    """The secondary does not accept, and why. It stays as it is in every version, so that the reason is read."""

    why: str


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat", forbid_unknown_fields=True):
    """I live."""


class Committed(msgspec.Struct, frozen=True, tag="committed", forbid_unknown_fields=True):
    """The checkpoint that starts `epoch` is committed here."""

    epoch: _Whole


class Discarded(msgspec.Struct, frozen=True, tag="discarded", forbid_unknown_fields=True):
    """The checkpoint that starts `epoch` was thrown away."""

    epoch: _Whole
    why: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded", forbid_unknown_fields=True):
    """The SVM runs from the start of `epoch`; `apply_ms` since the commit."""

    epoch: _Whole
    apply_ms: _Ms


class CheckpointWanted(msgspec.Struct, frozen=True, tag="checkpoint-wanted", forbid_unknown_fields=True):
    """The secondary can't keep the SVM alike without a checkpoint."""

    reason: str


class CatchUp(msgspec.Struct, frozen=True, tag="catch-up", forbid_unknown_fields=True):
    """Bulk channel: say so when all pages up to here have been taken."""

    number: _Whole


class CaughtUp(msgspec.Struct, frozen=True, tag="caught-up", forbid_unknown_fields=True):
    """The answer to `CatchUp`."""

    number: _Whole


class Rebase(msgspec.Struct, frozen=True, tag="rebase", forbid_unknown_fields=True):
    """The newest term at the arbiter is one that nobody has acted upon: claim the next one when you lose me."""

    term: _Whole


class Rebased(msgspec.Struct, frozen=True, tag="rebased", forbid_unknown_fields=True):
    """The secondary does as `Rebase` says from here on."""

    term: _Whole


class Bye(msgspec.Struct, frozen=True, tag="bye", forbid_unknown_fields=True):
    """This side leaves the pair, and why."""

    why: str


class Dismiss(msgspec.Struct, frozen=True, tag="dismiss", forbid_unknown_fields=True):
    """The primary sends the secondary away: it must not take over; its Bye is the promise that it does not."""

    why: str


class StageMessage(msgspec.Struct, frozen=True, tag="stage", forbid_unknown_fields=True):
    """The end of a checkpoint's pages; `resumed_ms_ago` is the PVM's time since it ran again, for the clock."""

    epoch: _Whole
    boundary: _Whole
    device_state: bytes
    batch_count: _Whole
    digest: _Digest
    resumed_ms_ago: _Ms

    def stage(self) -> Stage:
        """The part that the memory cache verifies and commits."""
        return Stage(self.epoch, self.boundary, self.device_state, self.batch_count, self.digest)


class ChannelHello(msgspec.Struct, frozen=True, tag="channel-hello", forbid_unknown_fields=True):
    """First message of the packet channel: the token that the Welcome of the control channel gave."""

    token: str


class Boundary(msgspec.Struct, frozen=True, tag="boundary", forbid_unknown_fields=True):
    """Packet channel: a checkpoint is cut before client frame number `input_no`; keep the frames from there on."""

    input_no: _Whole


_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_FlowKey = Annotated[bytes, msgspec.Meta(max_length=64)]


class Offsets(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What core/connection knows of one connection; the names are those of `Connection` there."""

    key: _FlowKey
    seq_add: _Number
    value_add: _Number
    advance: _Number | None
    first_shown: _Number
    echo: _Number | None
    learning: bool
    isn: _Number | None
    syn_value: _Number | None
    client_first: _Number | None
    guest_fin: bool
    client_fin: bool
    reset: bool


class Translations(msgspec.Struct, frozen=True, tag="translations", forbid_unknown_fields=True):
    """Packet channel: how the primary translates for one network card from here on.

    `layer` counts from the clients' side; `age_ms` is the time since its takeover, when the layer is told for the first
    time, and no more than matters.
    """

    layer: _Whole
    known: list[Offsets]
    forgotten: list[_FlowKey]
    afresh: bool = False  # what was known of all layers is void
    nic: _Nic = 0
    age_ms: _Ms = 0.0


class Confirm(msgspec.Struct, frozen=True, tag="confirm", forbid_unknown_fields=True):
    """Packet channel: the twins of these SVM frames, all of one network card, have been released."""

    nic: _Nic
    numbers: list[_Whole]


class AskLease(msgspec.Struct, frozen=True, tag="ask-lease", forbid_unknown_fields=True):
    """Packet channel: we want to release output for so long from when we asked this."""

    number: _Whole
    lease_ms: Annotated[float, msgspec.Meta(ge=0.0, le=LEASE_MS_MAX)]


class GrantLease(msgspec.Struct, frozen=True, tag="grant-lease", forbid_unknown_fields=True):
    """Packet channel: the answer. The secondary does not speak before that is over."""

    number: _Whole


class EndLeases(msgspec.Struct, frozen=True, tag="end-leases", forbid_unknown_fields=True):
    """Packet channel: the secondary leaves the pair, and grants nothing any more."""


Control = (
    Hello
    | Welcome
    | Refused
    | Heartbeat
    | Committed
    | Discarded
    | Loaded
    | CheckpointWanted
    | CatchUp
    | CaughtUp
    | Bye
    | Dismiss
    | Rebase
    | Rebased
    | StageMessage
    | ChannelHello
    | Boundary
    | Translations
    | Confirm
    | AskLease
    | GrantLease
    | EndLeases
)
Message = Control | tuple[int, PageBatch]

_control_encoder = msgspec.msgpack.Encoder()
_control_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)
_versions_decoder: msgspec.msgpack.Decoder[Versions] = msgspec.msgpack.Decoder(Versions)


def encode_control(message: Control) -> bytes:
    """A whole message, header included."""
    body = _control_encoder.encode(message)
    return HEADER.pack(len(body), Kind.CONTROL) + body


def encode_pages(epoch: int, batch: PageBatch) -> list[bytes | memoryview]:
    """A whole message as a list of buffers, so that page contents are not copied once more."""
    indices = b"".join(np.ascontiguousarray(part, "<u4").tobytes() for part in batch.all_indices())
    counts = [len(part) for part in batch.all_indices()]
    head = _PAGES.pack(epoch, *counts, len(batch.deltas.words)) + indices
    buffers: list[bytes | memoryview] = [np.ascontiguousarray(batch.contents).reshape(-1).data]
    if counts[2]:
        masks, words = batch.deltas.masks, batch.deltas.words
        buffers += [np.ascontiguousarray(masks).reshape(-1).data, np.ascontiguousarray(words, "<u8").tobytes()]
    length = len(head) + batch.nbytes
    return [HEADER.pack(length, Kind.PAGES) + head, *buffers]


def encode_frames(nic: int, tag: int, first_no: int, batch: Batch) -> list[bytes | memoryview]:
    """A whole message of at most FRAMES_MAX frames of one network card; `tag` is the epoch they belong to.

    As a list of buffers, like `encode_pages`.
    """
    length = _FRAMES.size + len(batch.packed)
    return [HEADER.pack(length, Kind.FRAMES) + _FRAMES.pack(nic, tag, first_no, batch.count), batch.packed]


def decode_header(header: bytes | memoryview, bytes_max: int = MESSAGE_BYTES_MAX) -> tuple[int, Kind]:
    """(body length, kind) of a message whose body has at most `bytes_max` bytes. Raises PeerViolation."""
    if len(header) != HEADER.size:
        raise PeerViolation(f"a message header has {HEADER.size} bytes, not {len(header)}")
    length, kind = HEADER.unpack(header)
    if length > bytes_max:
        raise PeerViolation(f"the peer announced a message of {length} bytes; the limit is {bytes_max}")
    if kind not in _KINDS:
        raise PeerViolation(f"the peer sent a message of the unknown kind {kind}")
    return length, _KINDS[kind]


def decode_control(body: bytes | memoryview) -> Control:
    """Raises PeerViolation for anything that is not exactly one known message."""
    try:
        return _control_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerViolation(f"the peer sent a message that can't be read: {error}") from None


def decode_versions(body: bytes | memoryview) -> Versions:
    """What a first message says of its version, whatever else a future version makes of it. Raises PeerViolation."""
    try:
        return _versions_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerViolation(f"the peer sent a greeting that can't be read: {error}") from None


def decode_pages(body: bytes | memoryview) -> tuple[int, PageBatch]:
    """(epoch, batch); the arrays are views of `body`. Raises PeerViolation."""
    if len(body) < _PAGES.size:
        raise PeerViolation(f"the peer sent a page batch of only {len(body)} bytes")
    epoch, count, zero_count, delta_count, word_count = _PAGES.unpack_from(body)
    if count + zero_count + delta_count > BATCH_PAGES_MAX:
        raise PeerViolation(f"the peer sent {count} pages, {delta_count} deltas, {zero_count} zero pages in one batch")
    sizes = [4 * count, 4 * zero_count, 4 * delta_count, PAGE_BYTES * count, MASK_BYTES * delta_count]
    ends = [_PAGES.size, *(_PAGES.size + end for end in itertools.accumulate([*sizes, WORD_BYTES * word_count]))]
    if len(body) != ends[-1]:
        raise PeerViolation(
            f"a batch of {count} pages, {zero_count} zero pages and {delta_count} deltas with {word_count} words "
            f"can't have {len(body)} bytes"
        )
    indices, zeros, changed = (
        np.frombuffer(body, "<u4", number, at).astype(np.uint32, copy=False)
        for number, at in zip((count, zero_count, delta_count), ends, strict=False)
    )
    contents = np.frombuffer(body, np.uint8, count * PAGE_BYTES, ends[3]).reshape(count, PAGE_BYTES)
    masks = np.frombuffer(body, np.uint8, delta_count * MASK_BYTES, ends[4]).reshape(delta_count, MASK_BYTES)
    words = np.frombuffer(body, "<u8", word_count, ends[5]).astype(np.uint64, copy=False)
    deltas = PageDeltas(changed, masks, words)
    if not deltas.is_whole:
        raise PeerViolation(f"the peer sent {word_count} words of deltas that mark others")
    return epoch, PageBatch(indices, contents, zeros, deltas)


def decode_frames(body: bytes) -> tuple[int, int, int, Batch]:
    """(nic, tag, first_no, frames, which are a view of `body`). Raises PeerViolation."""
    if len(body) < _FRAMES.size:
        raise PeerViolation(f"the peer sent a frame batch of only {len(body)} bytes")
    nic, tag, first_no, count = _FRAMES.unpack_from(body)
    if nic >= NICS_MAX:
        raise PeerViolation(f"the peer sent frames of network card {nic}; a VM has at most {NICS_MAX}")
    if count > FRAMES_MAX:
        raise PeerViolation(f"the peer sent {count} frames in one batch; the limit is {FRAMES_MAX}")
    packed = memoryview(body)[_FRAMES.size :]
    end, whole = measure(packed, 0, FRAMES_MAX)
    if whole != count or end != len(packed):
        raise PeerViolation(
            f"a batch of {count} frames in {len(packed)} bytes has {whole} whole frames in its first {end} bytes"
        )
    return nic, tag, first_no, Batch(packed, count)
