"""The failover table, walked whole: no way to free output without the claim, and two final states."""

from __future__ import annotations

from collections import deque

import pytest

from pycolo.core.failover import Command, Decision, Event, Failover, Role, State, UnexpectedEvent

FINAL = (State.FENCED, State.STOPPED)
SPEAKING = (Command.GO_SOLO, Command.TAKE_OVER)
# Where the other side may hold a committed copy of the VM, or be the one that speaks.
PEER_MAY_HOLD_A_COPY = {
    Role.PRIMARY: (State.PROTECTED, State.TAKING_OVER, State.WAITING_FOR_ARBITER),
    Role.SECONDARY: (State.SYNCING, State.PROTECTED, State.TAKING_OVER, State.WAITING_FOR_ARBITER),
}


def at(role: Role, state: State) -> Failover:
    machine = Failover(role)
    machine.state = state
    return machine


def step(role: Role, state: State, event: Event) -> Decision | None:
    try:
        return at(role, state).handle(event)
    except UnexpectedEvent:
        return None


def rows(role: Role) -> list[tuple[State, Event, Decision]]:
    """Every transition of the table, found by asking for all of them."""
    asked = ((state, event, step(role, state, event)) for state in State if state not in FINAL for event in Event)
    return [(state, event, decision) for state, event, decision in asked if decision is not None]


def reachable(role: Role) -> set[State]:
    found, todo = {Failover(role).state}, deque([Failover(role).state])
    while todo:
        state = todo.popleft()
        for event in Event:
            decision = step(role, state, event)
            if decision and decision.state not in found:
                found.add(decision.state)
                todo.append(decision.state)
    return found


@pytest.mark.parametrize("role", Role)
def test_every_way_to_solo_from_where_the_peer_may_hold_a_copy_passes_the_claim(role: Role) -> None:
    ways = [
        (state, event)
        for state, event, decision in rows(role)
        if decision.state is State.SOLO and state in PEER_MAY_HOLD_A_COPY[role]
    ]
    assert ways
    assert {event for _, event in ways} == {Event.CLAIM_GRANTED}


@pytest.mark.parametrize("role", Role)
def test_nobody_is_told_to_speak_but_by_the_claim_or_while_no_copy_exists(role: Role) -> None:
    for state, event, decision in rows(role):
        if any(command in SPEAKING for command in decision.commands):
            assert event is Event.CLAIM_GRANTED or state not in PEER_MAY_HOLD_A_COPY[role]
            assert decision.state is State.SOLO


def test_a_failed_first_seal_does_not_hold_output_for_ever() -> None:
    decision = at(Role.PRIMARY, State.SYNCING).handle(Event.PEER_LOST)
    assert decision.state is State.SOLO
    assert decision.commands == (Command.LEAVE_PAIR, Command.GO_SOLO)


@pytest.mark.parametrize("role", Role)
def test_the_pair_is_left_before_the_claim_is_asked_for(role: Role) -> None:
    decision = at(role, State.PROTECTED).handle(Event.PEER_LOST)
    assert decision.state is State.TAKING_OVER
    assert decision.commands == (Command.LEAVE_PAIR, Command.CLAIM)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", [State.TAKING_OVER, State.WAITING_FOR_ARBITER])
def test_the_answers_of_the_arbiter(role: Role, state: State) -> None:
    speak = Command.GO_SOLO if role is Role.PRIMARY else Command.TAKE_OVER
    granted, denied, silent = (
        at(role, state).handle(event) for event in (Event.CLAIM_GRANTED, Event.CLAIM_DENIED, Event.CLAIM_UNANSWERED)
    )
    assert (granted.state, granted.commands) == (State.SOLO, (speak,))
    assert (denied.state, denied.commands) == (
        State.FENCED,
        (Command.LEAVE_PAIR, Command.KILL_VM, Command.EXIT),
    )
    assert (silent.state, silent.commands) == (State.WAITING_FOR_ARBITER, (Command.RETRY_CLAIM_LATER,))


@pytest.mark.parametrize("role", Role)
def test_a_retry_asks_again_and_changes_nothing(role: Role) -> None:
    decision = at(role, State.WAITING_FOR_ARBITER).handle(Event.CLAIM_RETRY_DUE)
    assert (decision.state, decision.commands) == (State.WAITING_FOR_ARBITER, (Command.CLAIM,))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", FINAL)
@pytest.mark.parametrize("event", Event)
def test_the_end_is_final(role: Role, state: State, event: Event) -> None:
    machine = at(role, state)
    decision = machine.handle(event)
    assert (decision.state, decision.commands) == (state, ())
    assert machine.ended


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("event", [Event.VM_LOST, Event.STOP])
def test_the_loss_of_the_vm_and_the_operator_end_every_state(role: Role, event: Event) -> None:
    for state in reachable(role) - set(FINAL):
        decision = at(role, state).handle(event)
        assert decision.state is State.STOPPED
        last = role is Role.PRIMARY and event is Event.STOP and state in (State.SOLO, State.SYNCING)
        noted = (Command.NOTE_END,) if last else ()
        assert decision.commands == (Command.LEAVE_PAIR, Command.KILL_VM, *noted, Command.EXIT)


def test_the_end_of_the_vm_sends_the_secondary_away_first_and_is_noted_last() -> None:
    for state in reachable(Role.PRIMARY) - set(FINAL):
        commands = at(Role.PRIMARY, state).handle(Event.VM_ENDS).commands
        assert commands[0] is Command.DISMISS_PEER
        assert commands[-3:] == (Command.KILL_VM, Command.NOTE_END, Command.EXIT)
    for state in (State.SYNCING, State.PROTECTED):
        assert at(Role.SECONDARY, state).handle(Event.DISMISSED).state is State.STOPPED


def test_a_secondary_that_is_sent_away_leaves_the_claim_to_the_primary() -> None:
    assert at(Role.PRIMARY, State.PROTECTED).handle(Event.UNPROTECT).commands == (
        Command.DISMISS_PEER,
        Command.LEAVE_PAIR,
        Command.CLAIM,
    )
    assert at(Role.PRIMARY, State.SOLO).handle(Event.UNPROTECT).commands == ()


@pytest.mark.parametrize("role", Role)
def test_the_end_always_kills_the_vm_copy(role: Role) -> None:
    for _, _, decision in rows(role):
        assert (Command.KILL_VM in decision.commands) is (decision.state in FINAL)


@pytest.mark.parametrize("role", Role)
def test_the_loss_of_the_peer_is_expected_everywhere(role: Role) -> None:
    for state in reachable(role):
        assert step(role, state, Event.PEER_LOST) is not None, state


@pytest.mark.parametrize("role", Role)
def test_every_decision_has_its_reason_in_a_sentence(role: Role) -> None:
    assert all(len(decision.reason.split()) >= 3 for _, _, decision in rows(role))
    assert reachable(role) >= {State.SOLO, State.PROTECTED, State.FENCED, State.STOPPED}


@pytest.mark.parametrize(
    ("role", "state", "event"),
    [
        (Role.PRIMARY, State.SOLO, Event.OUTPUT_SEALED),
        (Role.PRIMARY, State.PROTECTED, Event.CLAIM_GRANTED),
        (Role.SECONDARY, State.TAKING_OVER, Event.COMMITTED),
        (Role.SECONDARY, State.SYNCING, Event.CLAIM_GRANTED),
    ],
)
def test_what_the_table_does_not_know_is_an_error_and_changes_nothing(role: Role, state: State, event: Event) -> None:
    machine = at(role, state)
    with pytest.raises(UnexpectedEvent):
        machine.handle(event)
    assert machine.state is state


def test_a_secondary_without_a_checkpoint_never_takes_over() -> None:
    machine = Failover(Role.SECONDARY)
    machine.handle(Event.PEER_JOINED)
    assert machine.handle(Event.PEER_LOST).state is State.STOPPED


def test_a_secondary_that_has_taken_over_is_a_primary_like_any_other() -> None:
    machine = Failover(Role.SECONDARY)
    with pytest.raises(AssertionError):
        machine.promote()
    for event in (Event.PEER_JOINED, Event.COMMITTED, Event.PEER_LOST, Event.CLAIM_GRANTED):
        machine.handle(event)
    machine.promote()
    assert (machine.role, machine.state) == (Role.PRIMARY, State.SOLO)
    for event in (Event.PEER_JOINED, Event.OUTPUT_SEALED, Event.PEER_LOST):
        machine.handle(event)
    assert machine.handle(Event.CLAIM_GRANTED).commands == (Command.GO_SOLO,)


@pytest.mark.parametrize("role", Role)
def test_who_waits_for_the_arbiter_goes_on_when_the_peer_is_back(role: Role) -> None:
    decision = at(role, State.WAITING_FOR_ARBITER).handle(Event.PEER_RETURNED)
    assert (decision.state, decision.commands) == (State.PROTECTED, ())
    with pytest.raises(UnexpectedEvent):
        at(role, State.TAKING_OVER).handle(Event.PEER_RETURNED)


@pytest.mark.parametrize(
    ("role", "covered"), [(Role.PRIMARY, Event.OUTPUT_SEALED), (Role.SECONDARY, Event.COMMITTED)], ids=["P", "S"]
)
def test_the_peer_is_awaited_from_the_first_checkpoint_on(role: Role, covered: Event) -> None:
    failover, awaited = Failover(role), []
    for event in (Event.PEER_JOINED, covered, Event.PEER_LOST, Event.CLAIM_UNANSWERED, Event.PEER_RETURNED):
        awaited.append(failover.awaits_peer)
        failover.handle(event)
    assert [*awaited, failover.awaits_peer] == [False, False, True, True, True, True]
