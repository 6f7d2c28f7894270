"""What a daemon and its agent say to each other over a sequenced-packet socket pair: one message, one packet.

The daemon sends one command at a time and gets exactly one answer; `Wanted`, `Paced`, `Refused` and `ChannelLost` come
unasked.
"""

from __future__ import annotations

import msgspec

from pycolo.core.compare_policy import PlainRule as PlainPolicyRule
from pycolo.core.divergence import Divergence
from pycolo.core.tolerance_rules import PlainRule as PlainTolerance
from pycolo.edge.tls import TlsFiles

MESSAGE_BYTES_MAX = 1 << 16


class Port(msgspec.Struct, frozen=True):
    """One network card: the guest's address, the name of its tap device and the bridge that this is to be put on."""

    mac: str
    tap: str
    bridge: str


class Terms(msgspec.Struct, frozen=True):
    """[compare] of vm.toml as plain data: what `Policy.encode` and `Tolerances.encode` give, and `adaptive`."""

    default: int
    rules: list[PlainPolicyRule]
    tolerances: list[PlainTolerance]
    adaptive: bool


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Open the uplinks of all network cards and begin in the given role; the answer is `Started`.

    A secondary lets in who shows a token made of `token` and, with `tls`, a certificate for the token's host.
    """

    role: str
    ports: tuple[Port, ...]
    listen_host: str
    token: str
    hold_ms_min: int
    hold_ms_max: int
    lease_ms: float
    terms: Terms
    tls: TlsFiles | None


class Connect(msgspec.Struct, frozen=True, tag="connect"):
    """Primary: connect the packet channel to the secondary's agent.

    `host` is its address; with `tls` it has to show a certificate for the name `peer_name`.
    """

    host: str
    port: int
    token: str
    peer_name: str
    tls: TlsFiles | None


class PauseFeed(msgspec.Struct, frozen=True, tag="pause-feed"):
    """Primary: stop feeding and wait until QEMU has taken all; the answer is `Fed`."""


class ResumeFeed(msgspec.Struct, frozen=True, tag="resume-feed"):
    """Primary: feed again."""


class Seal(msgspec.Struct, frozen=True, tag="seal"):
    """Primary: the PVM is paused; what it put out so far belongs to the old epoch."""

    epoch: int


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Primary: the start of `epoch` is committed on the secondary."""

    epoch: int


class GoSolo(msgspec.Struct, frozen=True, tag="go-solo"):
    """Primary: we hold the claim."""


class LeavePair(msgspec.Struct, frozen=True, tag="leave-pair"):
    """Close the packet channel; what is held stays held."""


class StopFeed(msgspec.Struct, frozen=True, tag="stop-feed"):
    """Secondary: stop feeding the SVM and wait until QEMU has taken what is on its way."""


class DropOutput(msgspec.Struct, frozen=True, tag="drop-output"):
    """Secondary: the SVM is stopped; drop what it put out and take back what it has not read."""


class StartFeed(msgspec.Struct, frozen=True, tag="start-feed"):
    """Secondary: the SVM runs from the start of `epoch`; replay from the boundary on."""

    epoch: int
    boundary: int


class TakeOver(msgspec.Struct, frozen=True, tag="take-over"):
    """Secondary: we hold the claim; speak."""


class GetStats(msgspec.Struct, frozen=True, tag="get-stats"):
    """The answer is `Stats`."""


class StartCapture(msgspec.Struct, frozen=True, tag="start-capture"):
    """Primary: record all frames into a new file, for a time; the answer is `Capture`."""

    path: str
    bytes_max: int
    seconds: int


class GetCapture(msgspec.Struct, frozen=True, tag="get-capture"):
    """Primary: what the capture has come to, or came to; the answer is `Capture`."""


class StopCapture(msgspec.Struct, frozen=True, tag="stop-capture"):
    """Primary: end the capture, if it has not ended by itself; the answer is `Capture`."""


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """Secondary: the channel is lost, and the same primary may call once more; the answer tells the new port."""


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The uplinks are open; a secondary listens for the packet channel on `packet_port`."""

    packet_port: int


class Fed(msgspec.Struct, frozen=True, tag="fed"):
    """QEMU has taken every client frame below number `boundary`."""

    boundary: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The command is carried out; `frames` counts what it released, dropped or replayed."""

    frames: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The command is not carried out, and why; `cause` is one of "environment", "peer", "untrusted", "vm", "disk",
    "state"."""

    why: str
    cause: str


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Counters since the agent started."""

    released_equal: int = 0
    released_by_checkpoint: int = 0
    released_solo: int = 0
    diverged: int = 0
    held_frames: int = 0
    held_bytes: int = 0
    lag_ms: float = 0.0
    client_frames: int = 0
    vm_frames: int = 0
    released_by_policy: int = 0
    flows: int = 0
    mode: str = ""  # of a primary that has a partner: comparing, periodic
    interval_ms: float = 0.0
    engine: str = ""  # compiled, python


class Capture(msgspec.Struct, frozen=True, tag="capture"):
    """A capture: `frames` written, by verdict and of clients and secondary; `held` frames have not left yet.

    `ended` says why, once it has; without a path there was none.
    """

    path: str = ""
    running: bool = False
    ended: str = ""
    frames: dict[str, int] = {}
    divergences: int = 0
    held: int = 0
    not_written: int = 0


class Wanted(msgspec.Struct, frozen=True, tag="wanted"):
    """A checkpoint is needed: divergence, policy, late, limit, replay; and where outputs differed, the first places."""

    reason: str
    divergences: list[Divergence] = []


class Paced(msgspec.Struct, frozen=True, tag="paced"):
    """From now on checkpoints are asked for in another mode; see core/adaptive."""

    mode: str
    interval_ms: float
    why: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Somebody called who was not let in, and why."""

    why: str


class ChannelLost(msgspec.Struct, frozen=True, tag="channel-lost"):
    """The packet channel to the peer's agent broke."""

    why: str


Command = (
    Start
    | Connect
    | PauseFeed
    | ResumeFeed
    | Seal
    | Commit
    | GoSolo
    | LeavePair
    | StopFeed
    | DropOutput
    | StartFeed
    | TakeOver
    | Listen
    | GetStats
    | StartCapture
    | GetCapture
    | StopCapture
)
Answer = Started | Fed | Done | Failed | Stats | Capture
Notice = Wanted | Paced | Refused | ChannelLost

encoder = msgspec.msgpack.Encoder()
command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
answer_decoder: msgspec.msgpack.Decoder[Answer | Notice] = msgspec.msgpack.Decoder(Answer | Notice)
