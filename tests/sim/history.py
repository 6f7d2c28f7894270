"""What the harness saw from outside; the checkers read nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from pycolo.core.pages import Contents


@dataclass(frozen=True, slots=True)
class Emission:
    """A copy of the VM let a frame go."""

    time_us: int
    speaker: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class Reception:
    """A client got a response."""

    time_us: int
    client: int
    seq: int
    response: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """The PVM as it stood still for the checkpoint that starts `epoch`; `boundary` frames had been taken."""

    epoch: int
    boundary: int
    ram: Contents
    device_state: bytes
    disk: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """The committed state that the secondary held at some moment."""

    moment: str
    epoch: int
    boundary: int
    ram: Contents
    device_state: bytes
    disk: bytes | None  # None: its SVM has taken over and goes its own way


@dataclass(frozen=True, slots=True)
class Load:
    """The SVM just before it resumed: the guest as it is, beside the committed image."""

    epoch: int
    ram: Contents
    device_state: bytes
    disk: bytes


@dataclass(frozen=True, slots=True)
class DiskSeen:
    """The secondary's image at some moment, beside the whole states that it may be in then."""

    moment: str
    names: str
    content: bytes
    allowed: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How one copy stands at the end; `cause` is empty while it goes on."""

    name: str
    host: str
    state: str
    cause: str
    committed: bool  # whether it was, or began as, a copy that may speak


@dataclass(frozen=True, slots=True)
class Leaving:
    """A pair came to its end: the primary's disk, the ranges that a returning secondary would get, and its image."""

    primary_disk: bytes
    marked: list[tuple[int, int]]
    image: bytes


@dataclass(frozen=True, slots=True)
class Heir:
    """A copy at the moment when it has to answer for everything that was let go before."""

    name: str
    emissions: int  # that came before
    ram: Contents
    disk: bytes


@dataclass(frozen=True, slots=True)
class LastAct:
    """A host of a whole pair was killed after the heal."""

    victim: str
    survived: bool  # whether a copy goes on
    deadly_since: int  # how many faults that can end a copy have struck since


@dataclass(slots=True)
class History:
    """Everything recorded in one run."""

    faults: list[str] = field(default_factory=list)
    deadly: int = 0  # how many of them could end a copy, by themselves or by parting a pair
    last_acts: list[LastAct] = field(default_factory=list)
    sent: dict[int, int] = field(default_factory=dict)  # client -> newest sequence number it sent
    emissions: list[Emission] = field(default_factory=list)
    receptions: list[Reception] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # what no client may ever see, and one did
    cuts: dict[int, Cut] = field(default_factory=dict)
    sealed_epochs: list[int] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    disks_seen: list[DiskSeen] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    converged: list[bool] = field(default_factory=list)  # once after the heal, once after each of the last acts
    unanswered: list[int] = field(default_factory=list)  # clients that wait at the end
    endings: list[Ending] = field(default_factory=list)
    holder: str | None = None  # who holds the claim at the end
    committed_before_end: bool = False  # the newest secondary had a committed checkpoint when the primary ended
    pairs: list[tuple[str, str]] = field(default_factory=list)  # the names of the two, the newest pair last
    reunions: int = 0  # how often one that had lost itself found itself again
    rebases: int = 0  # how often one went on under a term that it had found at the arbiter
    takeovers: list[Heir] = field(default_factory=list)
    disks_failed: int = 0
    leavings: list[Leaving] = field(default_factory=list)
    survivor: str | None = None
    survivor_ram: Contents | None = None
    survivor_disk: bytes = b""
    survivor_disk_written: bytes = b""  # what it has to be, by what its guest wrote
