"""What a daemon and its disk process say to each other over a sequenced-packet socket pair: one message, one packet.

The daemon sends one command at a time and gets exactly one answer; notices come unasked.
"""

from __future__ import annotations

import msgspec

from pycolo.agent.protocol import (
    ChannelLost,
    Connect,
    Done,
    Failed,
    GetStats,
    LeavePair,
    Listen,
    Refused,
    Seal,
    TakeOver,
    Wanted,
)
from pycolo.edge.tls import TlsFiles


class DiskFile(msgspec.Struct, frozen=True):
    """One disk's image on this host; `format` "raw" takes the bytes as they are, whatever they look like."""

    name: str
    path: str
    size_bytes: int  # of a new image; 0: it has to be there
    format: str


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Open the images for the given role and serve them on the inherited sockets; the answer is `Opened`."""

    role: str
    disks: list[DiskFile]
    state_dir: str
    listen_host: str
    token: str
    tls: TlsFiles | None
    buffer_bytes_max: int
    spill_bytes_max: int
    queue_bytes_max: int
    stall_ms_max: int
    copy_bytes_per_s_max: int
    self_check: bool
    older_disk: bool = False  # a VM may start from a secondary's image


class AskRoom(msgspec.Struct, frozen=True, tag="ask-room"):
    """Primary: a checkpoint is about to begin, and `committed_epoch` is known as committed; the answer is `Room`."""

    committed_epoch: int


class ExpectPause(msgspec.Struct, frozen=True, tag="expect-pause"):
    """The VM is about to be stopped, which waits for its requests: answer every one at once."""


class ExpectRequests(msgspec.Struct, frozen=True, tag="expect-requests"):
    """Primary: the VM runs again."""


class Commit(msgspec.Struct, frozen=True, tag="disk-commit"):
    """Secondary: the SVM is stopped; its disks are the PVM's at the start of `epoch` from now on."""

    epoch: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """The VM is gone: bring everything to the images and leave them in good order."""


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The images are served; a secondary listens for the disk channel on `port`."""

    port: int
    sizes: list[int]


class Room(msgspec.Struct, frozen=True, tag="room"):
    """Whether the secondary can take what a pause lets through; if not, `RoomFree` says when it can."""

    free: bool


class DiskStats(msgspec.Struct, frozen=True, tag="disk-stats"):
    """Counters since the process started, and gauges."""

    copied_bytes: int = 0  # what the copy has looked at
    copy_bytes: int = 0  # what the copy under way, or the last one, has to look at
    sent_bytes: int = 0  # of it with content
    written_bytes: int = 0
    read_errors: int = 0
    write_errors: int = 0
    backlog_bytes: int = 0  # written by the PVM, not safely on the secondary's images
    backlog_bytes_max: int = 0
    buffered_bytes: int = 0  # secondary: in memory and spill file
    buffered_bytes_max: int = 0
    withheld: int = 0  # answers that wait for the secondary
    folding: bool = False  # after a takeover: what is in memory is on its way to the images
    applied_epoch: int = 0  # safely on the secondary's images, as either side knows it


class Following(msgspec.Struct, frozen=True, tag="disks-following"):
    """Primary: the secondary's images equal ours but for what is under way; a checkpoint may be taken."""

    copied_bytes: int
    whole: bool


class Marked(msgspec.Struct, frozen=True, tag="marked"):
    """Secondary: all writes that belong to the checkpoint that starts `epoch` have arrived."""

    epoch: int


class RoomFree(msgspec.Struct, frozen=True, tag="room-free"):
    """Primary: there was no room when the daemon asked, and now there is."""


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """A local image failed. With `fatal` this side can't keep its disks right any more."""

    why: str
    fatal: bool


Command = (
    Open
    | Connect
    | AskRoom
    | ExpectPause
    | Seal
    | ExpectRequests
    | Commit
    | Listen
    | TakeOver
    | LeavePair
    | Close
    | GetStats
)
Answer = Opened | Done | Failed | Room | DiskStats
Notice = Wanted | Refused | ChannelLost | Following | Marked | RoomFree | Trouble

command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
answer_decoder: msgspec.msgpack.Decoder[Answer | Notice] = msgspec.msgpack.Decoder(Answer | Notice)
