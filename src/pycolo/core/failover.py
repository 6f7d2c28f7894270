"""Roles and their changes: one table, and for every decision its reason in one sentence.

Guarantees
* Nobody goes from held to free output without `CLAIM_GRANTED` (rule 5): every transition of the table into `SOLO` from
  a state in which the other side may hold a committed copy is made by that event.
* No answer of the arbiter is not a yes: it leads to `WAITING_FOR_ARBITER`, where nothing is released.
* What is not in the table is an error: `UnexpectedEvent`.

The side that drives the machine carries out the commands in order and reports their outcome as further events.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Role(enum.StrEnum):
    """The role of a host for one VM."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class State(enum.StrEnum):
    """Where one side of a pair is."""

    SOLO = "solo"
    SYNCING = "syncing"
    PROTECTED = "protected"
    TAKING_OVER = "taking-over"
    WAITING_FOR_ARBITER = "waiting-for-arbiter"
    FENCED = "fenced"
    STOPPED = "stopped"


class Event(enum.StrEnum):
    """What happens to one side."""

    PEER_JOINED = "peer-joined"
    OUTPUT_SEALED = "output-sealed"  # primary: the first checkpoint has been cut, the peer may hold a copy from now on
    COMMITTED = "committed"  # secondary: a checkpoint is committed here
    PEER_LOST = "peer-lost"
    PEER_RETURNED = "peer-returned"  # both were waiting for the arbiter, and neither has been granted anything
    CLAIM_GRANTED = "claim-granted"
    CLAIM_DENIED = "claim-denied"
    CLAIM_UNANSWERED = "claim-unanswered"
    CLAIM_RETRY_DUE = "claim-retry-due"
    VM_LOST = "vm-lost"
    VM_ENDS = "vm-ends"  # primary: the guest has powered off or panicked, or the operator ends the VM: both copies end
    UNPROTECT = "unprotect"  # primary: the operator sends the secondary away
    DISMISSED = "dismissed"  # secondary: the primary sends us away
    STOP = "stop"


class Command(enum.StrEnum):
    """What one side has to do."""

    CLAIM = "claim"
    RETRY_CLAIM_LATER = "retry-claim-later"
    GO_SOLO = "go-solo"  # primary: release what is held, then let output flow
    TAKE_OVER = "take-over"  # secondary: roll forward if committed, then speak
    DISMISS_PEER = "dismiss-peer"  # tell the secondary that it must not take over
    LEAVE_PAIR = "leave-pair"  # close the session to the peer
    KILL_VM = "kill-vm"  # fence ourselves
    NOTE_END = "note-end"  # tell the arbiter that no copy of the VM lives
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of one event: the new state, what to do, and why."""

    state: State
    commands: tuple[Command, ...]
    reason: str


class UnexpectedEvent(Exception):
    """An event that the table does not know in this state: a bug of the side that drives the machine."""


_S, _E, _C = State, Event, Command
_FENCE = (_C.LEAVE_PAIR, _C.KILL_VM, _C.EXIT)
_END = (_C.LEAVE_PAIR, _C.KILL_VM, _C.NOTE_END, _C.EXIT)
_Table = dict[tuple[State, Event], Decision]


def _stop_rows(states: tuple[State, ...]) -> _Table:
    return {
        (state, _E.STOP): Decision(_S.STOPPED, _FENCE, "the operator stops this side: its VM copy ends")
        for state in states
    }


def _vm_ends_rows(states: tuple[State, ...]) -> _Table:
    reason = "the VM has come to its end: nobody takes over, both copies end"
    return {(state, _E.VM_ENDS): Decision(_S.STOPPED, (_C.DISMISS_PEER, *_END), reason) for state in states}


def _dismissed_rows(states: tuple[State, ...]) -> _Table:
    reason = "the primary sends this side away: our VM copy ends and nobody takes over"
    return {(state, _E.DISMISSED): Decision(_S.STOPPED, _FENCE, reason) for state in states}


def _vm_lost_rows(states: tuple[State, ...], reason: str) -> _Table:
    return {(state, _E.VM_LOST): Decision(_S.STOPPED, _FENCE, reason) for state in states}


def _claim_rows(granted: Command, granted_reason: str) -> _Table:
    """The arbiter's answers are treated alike while deciding and while waiting for it."""
    rows: _Table = {}
    for state in (_S.TAKING_OVER, _S.WAITING_FOR_ARBITER):
        rows[state, _E.CLAIM_GRANTED] = Decision(_S.SOLO, (granted,), granted_reason)
        rows[state, _E.CLAIM_DENIED] = Decision(
            _S.FENCED,
            _FENCE,
            "the other side holds the claim: our VM copy is killed so that it can never speak",
        )
        rows[state, _E.CLAIM_UNANSWERED] = Decision(
            _S.WAITING_FOR_ARBITER,
            (_C.RETRY_CLAIM_LATER,),
            "the arbiter does not answer, and no answer is not a yes: output stays held",
        )
        rows[state, _E.PEER_LOST] = Decision(state, (), "the peer is known to be lost already")
    rows[_S.WAITING_FOR_ARBITER, _E.PEER_RETURNED] = Decision(
        _S.PROTECTED, (), "the peer is back before anybody got the claim: the pair goes on"
    )
    rows[_S.WAITING_FOR_ARBITER, _E.CLAIM_RETRY_DUE] = Decision(
        _S.WAITING_FOR_ARBITER, (_C.CLAIM,), "ask the arbiter again"
    )
    return rows


_DECIDING = (_S.TAKING_OVER, _S.WAITING_FOR_ARBITER)

_PRIMARY: _Table = {
    (_S.SOLO, _E.PEER_JOINED): Decision(_S.SYNCING, (), "a secondary joined: copy the state to it while the VM runs"),
    (_S.SOLO, _E.PEER_LOST): Decision(_S.SOLO, (), "there is no peer to lose: the VM runs solo already"),
    (_S.SYNCING, _E.OUTPUT_SEALED): Decision(
        _S.PROTECTED, (), "the first checkpoint is cut: output is held until the secondary has it or agrees"
    ),
    (_S.SYNCING, _E.PEER_LOST): Decision(
        _S.SOLO,
        (_C.LEAVE_PAIR, _C.GO_SOLO),  # the seal of a first checkpoint that failed may hold output
        "the secondary went before it could hold a whole copy: no claim is needed to stay solo",
    ),
    (_S.PROTECTED, _E.OUTPUT_SEALED): Decision(_S.PROTECTED, (), "a further checkpoint is cut"),
    (_S.PROTECTED, _E.PEER_LOST): Decision(
        _S.TAKING_OVER,
        (_C.LEAVE_PAIR, _C.CLAIM),
        "the secondary is lost and may hold a copy: claim before going solo",
    ),
    (_S.SOLO, _E.UNPROTECT): Decision(_S.SOLO, (), "there is no secondary to send away"),
    (_S.SYNCING, _E.UNPROTECT): Decision(
        _S.SOLO,
        (_C.DISMISS_PEER, _C.LEAVE_PAIR, _C.GO_SOLO),
        "the secondary is sent away before it could hold a whole copy: no claim is needed to stay solo",
    ),
    (_S.PROTECTED, _E.UNPROTECT): Decision(
        _S.TAKING_OVER,
        (_C.DISMISS_PEER, _C.LEAVE_PAIR, _C.CLAIM),
        "the secondary is sent away and holds a copy: claim before going solo",
    ),
    **_vm_ends_rows((_S.SOLO, _S.SYNCING, _S.PROTECTED, *_DECIDING)),
    **_claim_rows(_C.GO_SOLO, "we hold the claim: the primary goes on alone and releases what it held"),
    **_vm_lost_rows(
        (_S.SOLO, _S.SYNCING, _S.PROTECTED, *_DECIDING),
        "our VM copy is lost: leave at once so that the peer takes over",
    ),
    **_stop_rows((_S.PROTECTED, *_DECIDING)),
    **{
        (state, _E.STOP): Decision(_S.STOPPED, _END, "the operator stops the only copy of the VM")
        for state in (_S.SOLO, _S.SYNCING)
    },
}

_SECONDARY: _Table = {
    (_S.SYNCING, _E.PEER_JOINED): Decision(_S.SYNCING, (), "connected to the primary: waiting for a whole checkpoint"),
    (_S.SYNCING, _E.COMMITTED): Decision(_S.PROTECTED, (), "the first checkpoint is committed: a takeover is possible"),
    (_S.SYNCING, _E.PEER_LOST): Decision(
        _S.STOPPED,
        _FENCE,
        "the primary went before a checkpoint was committed: there is nothing to take over with",
    ),
    (_S.PROTECTED, _E.COMMITTED): Decision(_S.PROTECTED, (), "a further checkpoint is committed"),
    (_S.PROTECTED, _E.PEER_LOST): Decision(
        _S.TAKING_OVER, (_C.LEAVE_PAIR, _C.CLAIM), "the primary is lost: claim the VM before speaking for it"
    ),
    **_dismissed_rows((_S.SYNCING, _S.PROTECTED)),
    **_claim_rows(_C.TAKE_OVER, "we hold the claim: the secondary takes over"),
    **_vm_lost_rows(
        (_S.SYNCING, _S.PROTECTED, *_DECIDING, _S.SOLO),
        "our VM copy is lost: leave at once so that the peer goes solo",
    ),
    **_stop_rows((_S.SYNCING, _S.PROTECTED, *_DECIDING, _S.SOLO)),
    (_S.SOLO, _E.PEER_LOST): Decision(_S.SOLO, (), "there is no peer to lose: the VM runs solo already"),
}

_ENDED = (_S.FENCED, _S.STOPPED)


class Failover:
    """The state machine of one side of a pair."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.SOLO if role is Role.PRIMARY else State.SYNCING
        self.reason = "the VM runs on one host" if role is Role.PRIMARY else "waiting for the primary"
        self._table = _PRIMARY if role is Role.PRIMARY else _SECONDARY

    def promote(self) -> None:
        """A secondary that has taken over is a primary like any other from now on."""
        assert self.state is State.SOLO, "only who speaks alone can be a primary"
        self.role, self._table = Role.PRIMARY, _PRIMARY

    @property
    def awaits_peer(self) -> bool:
        """Whether clients wait for what the peer says, or this side may have to go on without it."""
        return self.state not in (State.SOLO, State.SYNCING)

    @property
    def ended(self) -> bool:
        """Whether this side is over: fenced or stopped; events are ignored from then on."""
        return self.state in _ENDED

    def handle(self, event: Event) -> Decision:
        """Take one event; returns the decision. Raises UnexpectedEvent for what the table does not know."""
        if self.ended:
            return Decision(self.state, (), f"{event} comes after the end: {self.reason}")
        decision = self._table.get((self.state, event))
        if decision is None:
            raise UnexpectedEvent(f"{self.role} in state {self.state} does not expect {event}")
        self.state, self.reason = decision.state, decision.reason
        return decision
