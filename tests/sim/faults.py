"""Which fault happens at which await: drawn from the seed, or exactly one in the exhaustive sweep."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from pycolo.core.pages import PageBatch


class Kind(enum.StrEnum):
    """What goes wrong at an await of a port."""

    VM_LOST = "vm-lost"  # the port says so; the guest itself may live
    PEER_LOST = "peer-lost"  # the port says so, or the manager ends the follower's task here
    REFUSED = "refused"  # CheckpointFailed; the VM lives
    UNANSWERED = "unanswered"  # the arbiter
    DIE = "die"
    PEER_DIES = "peer-dies"
    GUEST_DIES = "guest-dies"  # nobody is told
    CUT = "cut"
    CUT_OUT = "cut-out"
    CUT_IN = "cut-in"
    CUT_DISK = "cut-disk"  # only the channel of the disk's writes
    CUT_PACKETS = "cut-packets"  # only the agents' channel
    CLOG = "clog"  # what this side sends arrives late
    SUSPEND = "suspend"  # the host sleeps, and its timers with it
    CLOCK = "clock"  # somebody sets the host's wall clock
    LATE_CLAIM = "late-claim"  # the next claim gets no answer, and reaches the arbiter later
    FREEZE = "freeze"
    PEER_FREEZES = "peer-freezes"
    AGENT_FREEZES = "agent-freezes"  # that of the primary, and nothing else on its host
    MANAGER_FREEZES = "manager-freezes"  # that of the primary, likewise
    SLOW = "slow"
    SPOIL = "spoil"  # a byte of the next page batch changes on its way
    DROP = "drop"  # the next page batch is lost
    NO_ARBITER_HERE = "no-arbiter-here"  # for a time
    NO_ARBITER = "no-arbiter"  # for all hosts
    DISK_FAILS = "disk-fails"  # of the secondary: a file of it fails at a step to come


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault at one await, before or after the port's effect."""

    kind: Kind
    after: bool

    def __str__(self) -> str:
        return f"{self.kind} {'after' if self.after else 'before'}"


_K = Kind
_PVM = ("pvm.pause", "pvm.resume", "pvm.take_dirty_pages", "pvm.read_pages", "pvm.save_device_state")
_PVM_DISKS = ("pvm_disks.room", "pvm_disks.expect_pause", "pvm_disks.seal", "pvm_disks.expect_requests")
_OUTPUT = ("output.pause_feed", "output.resume_feed", "output.seal", "output.commit", "output.go_solo")
_TO_SECONDARY = (
    "to_secondary.send_pages",
    "to_secondary.send_stage",
    "to_secondary.caught_up",
    "to_secondary.committed",
)
_SVM = (
    "svm.breathe",
    "svm.stop_for_load",
    "svm.take_dirty_pages",
    "svm.alike",
    "svm.write_pages",
    "svm.load_device_state",
    "svm.resume",
)
_SVM_DISKS = ("svm_disks.staged", "svm_disks.expect_pause", "svm_disks.commit")
_FEED = ("feed.stop_feed", "feed.drop_output", "feed.start_feed")
_TAKEOVER = ("svm_disks.take_over", "feed.take_over")
_TO_PRIMARY = ("to_primary.receive", "to_primary.send_committed", "to_primary.send_discarded", "to_primary.send_loaded")
_REFUSING = (
    *(p for p in _PVM + _PVM_DISKS if p not in ("pvm.resume", "pvm_disks.expect_requests")),
    "output.pause_feed",
    "output.seal",
    "output.commit",
)

PORTS = (
    *_PVM,
    *_PVM_DISKS,
    *_OUTPUT,
    *_TO_SECONDARY,
    *_SVM,
    *_SVM_DISKS,
    *_FEED,
    *_TAKEOVER,
    *_TO_PRIMARY,
    "arbiter.claim",
    "arbiter.record",
    "partner.call",
    *2 * ("pvm.take_dirty_pages", "output.seal"),  # where a lost answer is all that happens; else seldom drawn
)

# The faults that leave the port's own answer alone.
AROUND = (
    *(_K.DIE, _K.PEER_DIES, _K.GUEST_DIES, _K.CUT, _K.CUT_OUT, _K.CUT_IN, _K.CUT_DISK, _K.CUT_PACKETS, _K.CLOG),
    *(_K.FREEZE, _K.PEER_FREEZES, _K.AGENT_FREEZES, _K.MANAGER_FREEZES, _K.SUSPEND, _K.CLOCK, _K.DISK_FAILS),
)

ENDING = (_K.VM_LOST, _K.DIE, _K.GUEST_DIES)  # these end the copy where they strike
# Of a pair that is parted one may be fenced.
PARTING = (
    *(_K.PEER_LOST, _K.CUT, _K.CUT_OUT, _K.CUT_IN, _K.CUT_DISK, _K.CUT_PACKETS),
    *(_K.FREEZE, _K.PEER_FREEZES, _K.MANAGER_FREEZES),
)


def _own_kinds(port: str) -> tuple[Kind, ...]:
    kinds: list[Kind] = []
    if port in _PVM + _PVM_DISKS + _OUTPUT + _SVM + _SVM_DISKS + _FEED + _TAKEOVER:
        kinds.append(_K.VM_LOST)
    if port in ("partner.call", "pvm_disks.room", *_TO_SECONDARY, *_SVM, *_SVM_DISKS, *_FEED, *_TO_PRIMARY):
        kinds.append(_K.PEER_LOST)
    if port in _REFUSING:
        kinds.append(_K.REFUSED)
    if port in ("arbiter.claim", "arbiter.record"):
        kinds.append(_K.UNANSWERED)
    return tuple(kinds)


_BEFORE_ONLY = {"to_secondary.send_pages": (*3 * (_K.SPOIL,), *3 * (_K.DROP,))}  # seldom is such an await drawn


def faults_of(port: str) -> list[Fault]:
    """Every fault that can happen at an await of `port`."""
    kinds = (*_own_kinds(port), *AROUND)
    before = (*kinds, _K.SLOW, *_BEFORE_ONLY.get(port, ()))
    return [Fault(kind, False) for kind in before] + [Fault(kind, True) for kind in kinds]


class Plan:
    """No faults; it only counts the awaits."""

    def __init__(self) -> None:
        self.ports: list[str] = []

    def next(self, port: str) -> Fault | None:
        """The fault at this await, if any."""
        self.ports.append(port)
        return self.draw(len(self.ports) - 1, port)

    def draw(self, number: int, port: str) -> Fault | None:
        """What happens at await `number`."""
        return None

    def heal(self) -> None:
        """No faults any more."""


class Exactly(Plan):
    """Exactly these faults at exactly these awaits."""

    def __init__(self, faults: dict[int, Fault]) -> None:
        super().__init__()
        self._faults = faults

    def draw(self, number: int, port: str) -> Fault | None:
        """See Plan."""
        return self._faults.get(number)


_CUTS = (_K.CUT, _K.CUT_IN, _K.CUT_OUT, _K.CUT_OUT, _K.CLOG)
_OWN = (_K.PEER_LOST, _K.UNANSWERED)  # only some ports can say so
GOING_ALONE = ("output.go_solo", *_TAKEOVER)  # awaited only by one whose partner is lost
_KINDS = {
    **dict.fromkeys(GOING_ALONE, (*_CUTS[:-1], _K.DIE, _K.DIE, _K.PEER_DIES, _K.PEER_DIES, _K.PEER_FREEZES)),
    "lonely": (*_CUTS, _K.NO_ARBITER, _K.NO_ARBITER, _K.NO_ARBITER_HERE, _K.LATE_CLAIM, _K.UNANSWERED),
    "apart": (
        *(*_CUTS, _K.CLOG, _K.FREEZE, _K.PEER_FREEZES, _K.PEER_FREEZES, _K.SUSPEND, _K.PEER_LOST, _K.PEER_LOST),
        *(_K.AGENT_FREEZES, _K.AGENT_FREEZES, _K.MANAGER_FREEZES, _K.MANAGER_FREEZES),
    ),
}
_STORIES = {
    "reunited": (  # nobody is granted anything, or hears of it, before the two find each other again
        (_K.NO_ARBITER, _K.CUT),
        (_K.NO_ARBITER, _K.CUT_DISK),
        (_K.LATE_CLAIM, _K.LATE_CLAIM, _K.CUT_PACKETS),
        (_K.LATE_CLAIM, _K.NO_ARBITER_HERE, _K.CUT_DISK),
    ),
    "asleep": (  # one who does not hear that its partner has taken over: its lease is what must hold
        (_K.AGENT_FREEZES, _K.CUT),
        (_K.MANAGER_FREEZES, _K.AGENT_FREEZES, _K.CUT),
        (_K.MANAGER_FREEZES, _K.CUT),
        (_K.CUT_OUT, _K.PEER_FREEZES),
    ),
    "host asleep": ((_K.SUSPEND,),),  # and what had arrived before it fell asleep is there when it wakes
}
STORIES = tuple(_STORIES)
LOST_ANSWERS = "lost answers"
FOCUS_RATE, ALONE_RATE, ANSWER_LOST_RATE = 0.3, 0.9, 0.1
EARLY_RATE, EARLY_AWAITS = 0.3, 40
BURST_RATE, BURST_AWAITS = 0.25, 12


class Drawn(Plan):
    """Up to `budget` faults, drawn from the seed, until the heal.

    Most of them strike at one port when there is a `focus`, or at the first awaits ("early"), or only at what joins the
    hosts with each other and the arbiter ("lonely"), or so that one host does not know of the other ("apart"); in
    `bursts` one seldom comes alone. When the focus is a port of one who goes alone, the others see to it that one does.
    Of the _STORIES the faults come one after the other. With "lost answers" a checkpoint fails by what has been done.
    """

    def __init__(self, seed: str, rate: float, budget: int, focus: str = "", *, bursts: bool = False) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._rate, self._budget, self._focus, self._bursts = rate, budget, focus, bursts
        self._burst_until = 0
        self._due: list[Kind] = []  # of a story, the next one last

    def draw(self, number: int, port: str) -> Fault | None:
        """See Plan."""
        if self._budget <= 0 or self._random.random() >= self._rate_at(number, port):
            return None
        if self._focus == LOST_ANSWERS:
            return self._lost_answer(port)
        self._budget -= 1
        if self._bursts:
            self._burst_until = number + BURST_AWAITS
        if self._focus in _STORIES:
            self._due = self._due or [*reversed(self._random.choice(_STORIES[self._focus]))]
            return Fault(self._due.pop(), after=self._random.random() < 0.5)
        if self._focus in _KINDS and port != self._focus:
            kinds = [kind for kind in _KINDS[self._focus] if kind not in _OWN or kind in _own_kinds(port)]
            return Fault(self._random.choice(kinds), after=self._random.random() < 0.5)
        if port == "arbiter.claim" or self._random.random() < 0.1:
            kind = self._random.choice((_K.NO_ARBITER_HERE, _K.NO_ARBITER, _K.LATE_CLAIM, *2 * (_K.UNANSWERED,)))
            if port == "arbiter.claim" or kind is not _K.UNANSWERED:
                return Fault(kind, after=kind is _K.UNANSWERED and self._random.random() < 0.5)
        faults = faults_of(port)
        own_kinds = {*_own_kinds(port), *_BEFORE_ONLY.get(port, ())} - {_K.VM_LOST}  # after which little happens
        if port in _PVM_DISKS + _SVM_DISKS:
            own_kinds.add(_K.DISK_FAILS)
        own = [fault for fault in faults if fault.kind in own_kinds]
        return self._random.choice(own if own and self._random.random() < 0.6 else faults)

    def _lost_answer(self, port: str) -> Fault | None:
        if port not in _REFUSING:
            return None
        self._budget -= 1
        return Fault(_K.REFUSED, after=True)

    def _rate_at(self, number: int, port: str) -> float:
        if self._focus == LOST_ANSWERS:
            return ANSWER_LOST_RATE
        if port == self._focus:
            return ALONE_RATE if port in GOING_ALONE else FOCUS_RATE
        if self._focus == "early" and number < EARLY_AWAITS:
            return EARLY_RATE
        return BURST_RATE if number < self._burst_until else self._rate

    def heal(self) -> None:
        """See Plan."""
        self._budget = 0


def spoiled(batch: PageBatch) -> PageBatch:
    """A batch whose content is another, or that has fewer pages."""
    contents = batch.contents.copy()
    if not contents.size:
        return PageBatch(batch.indices, contents, batch.zeros[:-1])
    contents[0, 7] ^= 0x10
    return PageBatch(batch.indices, contents, batch.zeros)
