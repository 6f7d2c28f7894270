"""What goes over the API v1: every body is one of these, nothing more may stand in it, and everything has a bound."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pycolo.config import VmConfig
from pycolo.config_values import HostPort, Name

OfferId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Reason = Annotated[str, Field(min_length=1, max_length=200)]


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="forbid")


class Failure(Body):
    """Every answer that is not a good one: a sentence with its remedy, and the exit status of its kind."""

    error: str
    status: int


class Done(Body):
    """It is done."""

    done: Literal[True] = True


class ProtectRequest(Body):
    """Start the VM here as primary if it does not run, and protect it; with `secondary`, on that host only."""

    vm: VmConfig
    secondary: Name | Literal[""] = ""
    no_copy_lives: bool = False
    older_disk: bool = False


class CheckpointRequest(Body):
    """Why it is wanted."""

    reason: Annotated[str, Field(pattern="^[a-z-]{1,20}$")] = "by-hand"


class CaptureRequest(Body):
    """Record the frames of the VM's two copies, up to this size and time."""

    mib: Annotated[int, Field(ge=1, le=4096)] = 64
    seconds: Annotated[int, Field(ge=1, le=3600)] = 60


class CaptureReport(Body):
    """A capture of the VM's frames, on the host that holds the file.

    `frames` are those written: the clients', the secondary's, and the primary's by verdict; `held` those of the primary
    that have not left yet. `ended` says why it has ended.
    """

    path: str
    running: bool
    ended: str
    frames: dict[str, int]
    divergences: int
    held: int
    not_written: int


class PeerLostRequest(Body):
    """An external heartbeat or cluster manager says that the partner is dead."""

    reason: Reason = "an external heartbeat says so"


class HeartbeatAnswer(Body):
    """The next heartbeat has to come within this time."""

    within_ms: int


class OfferRequest(Body):
    """Hold a secondary copy of this VM for the host `primary`; `home` may always hold one."""

    offer: OfferId
    vm: VmConfig
    primary: Name
    home: Name
    term: Annotated[int, Field(ge=0, le=(1 << 63) - 1)]


class OfferAnswer(Body):
    """Where the secondary waits for its primary."""

    offer: OfferId
    address: HostPort


class DrainRequest(Body):
    """Take no new copies and move those that are here; `undo` ends that."""

    undo: bool = False


class DrainAnswer(Body):
    """What became of each copy."""

    draining: bool
    outcomes: dict[str, str]


class VmBrief(Body):
    """A VM as its partner's host has to know it."""

    name: Name
    role: Literal["primary", "secondary"]
    state: str
    running: bool
    partner: str
    may_claim: bool  # the arbiter answers it
    spoke_alone_ms_ago: float | None = None


class HostReportBody(Body):
    """What a host offers, what of it is taken, and which VMs have or had a copy there."""

    name: Name
    version: str
    cpus: int
    memory_mib: int
    cpus_used: int
    memory_mib_used: int
    draining: bool
    vms: list[VmBrief]


class HostEntry(Body):
    """A host of the cluster as this one sees it; `report` is missing while it does not answer, and `why` says why."""

    name: Name
    address: str
    this: bool
    report: HostReportBody | None = None
    why: str = ""


class HostList(Body):
    """All hosts that this one knows."""

    hosts: list[HostEntry]


class VmStatus(Body):
    """One VM on this host; `manager` is all that its manager says.

    `elsewhere` names the host where a VM runs that is stopped here. `exit_status` is how the copy here ended.
    """

    name: Name
    host: Name
    role: Literal["primary", "secondary"]
    state: str
    partner: str
    epoch: int
    since: str
    reason: str
    protect: bool
    running: bool
    elsewhere: str = ""
    exit_status: int | None = None
    manager: dict[str, Any] = {}


class VmList(Body):
    """The VMs that have or had a copy here."""

    vms: list[VmStatus]


class LogPart(Body):
    """A part of a copy's log; `next` is where to go on, and `restarted` says that the log began anew."""

    text: str
    next: int
    restarted: bool


class FailoverCost(Body):
    """What the death of the primary did cost."""

    survivor: Name
    takeover_ms: float
    protected_again_ms: float
