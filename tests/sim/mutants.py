"""Deliberate mutants of the core; each names the checker that has to catch it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from pycolo.core import checkpoint, failover
from pycolo.core.arbitration import ClaimAnswer, ClaimRecord
from pycolo.core.checkpoint import (
    PrimaryDisks,
    PrimaryOutput,
    SecondaryDisks,
    SecondaryFeed,
    SecondaryLink,
    SecondaryVm,
)
from pycolo.core.epochs import EpochLedger
from pycolo.core.failover import Command, Decision, Event, State
from pycolo.core.memory_cache import MemoryCache, Stage
from pycolo.core.pages import Indices, PageBatch, PageDebt
from pycolo.core.sent_pages import SentPages
from pycolo.errors import VmLost

from . import network
from .checkers import client_history, committed_state, liveness
from .disk_mutants import DISK_MUTANTS
from .mutant import Apply, Mutant
from .packet_mutants import PACKET_MUTANTS
from .ports import SvmPort


class _EarlyLink:
    """Releases the old epoch's output before the new one has been sent, let alone committed."""

    def __init__(self, link: SecondaryLink, output: PrimaryOutput) -> None:
        self._link, self._output = link, output

    async def send_pages(self, epoch: int, batch: PageBatch) -> None:
        await self._link.send_pages(epoch, batch)

    async def send_stage(self, stage: Stage) -> None:
        await self._output.commit(stage.epoch)
        await self._link.send_stage(stage)

    async def caught_up(self) -> None:
        await self._link.caught_up()

    async def committed(self, epoch: int) -> None:
        await self._link.committed(epoch)


def _release_before_commit(patch: pytest.MonkeyPatch) -> None:
    real = checkpoint.take_checkpoint

    async def mutated(
        vm: checkpoint.PrimaryVm,
        output: PrimaryOutput,
        disks: PrimaryDisks,
        link: SecondaryLink,
        ledger: EpochLedger,
        limits: checkpoint.CheckpointLimits,
        sealed: Callable[[], None],
    ) -> checkpoint.Transfer:
        return await real(vm, output, disks, _EarlyLink(link, output), ledger, limits, sealed)

    patch.setattr(checkpoint, "take_checkpoint", mutated)


def _sent_pages_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SentPages, "forget", lambda _: None)


def _pages_not_put_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageDebt, "put_back", PageDebt.settle)


def _lost_answer_forgets(patch: pytest.MonkeyPatch) -> None:
    def expect_answer(self: PageDebt) -> None:
        self._before = self._owed.copy()

    patch.setattr(PageDebt, "expect_answer", expect_answer)


def _digest_not_verified(patch: pytest.MonkeyPatch) -> None:
    def problem(self: MemoryCache, stage: Stage) -> str | None:
        return None

    patch.setattr(MemoryCache, "problem", problem)


def _skip_claim(table: str, command: Command) -> Apply:
    def apply(patch: pytest.MonkeyPatch) -> None:
        decision = Decision(State.SOLO, (Command.LEAVE_PAIR, command), "without asking")
        patch.setitem(getattr(failover, table), (State.PROTECTED, Event.PEER_LOST), decision)

    return apply


def _held_for_ever(patch: pytest.MonkeyPatch) -> None:
    decision = Decision(State.SOLO, (), "the claim is ours, and nobody says so")
    patch.setitem(failover._PRIMARY, (State.TAKING_OVER, Event.CLAIM_GRANTED), decision)


def seal_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What a first seal that failed holds stays held: it takes two faults in a row, see test_sim."""
    decision = Decision(State.SOLO, (Command.LEAVE_PAIR,), "what was sealed stays held")
    patch.setitem(failover._PRIMARY, (State.SYNCING, Event.PEER_LOST), decision)


def _no_answer_is_a_yes(patch: pytest.MonkeyPatch) -> None:
    for table in (failover._PRIMARY, failover._SECONDARY):
        for state in (State.TAKING_OVER, State.WAITING_FOR_ARBITER):
            patch.setitem(table, (state, Event.CLAIM_UNANSWERED), table[state, Event.CLAIM_GRANTED])


def _claim_for_everybody(patch: pytest.MonkeyPatch) -> None:
    def decide(record: ClaimRecord | None, vm: str, term: int, host: str, claim_id: str = "") -> ClaimAnswer:
        return ClaimAnswer(True, ClaimRecord(vm, term, host, claim_id), "why not", term=term)

    patch.setattr(network, "decide_claim", decide)


def _boundary_off(by: int) -> Apply:
    def apply(patch: pytest.MonkeyPatch) -> None:
        real = checkpoint._Stream.stage

        def stage(self: checkpoint._Stream, boundary: int, device_state: bytes) -> Stage:
            return real(self, max(0, boundary + by), device_state)

        patch.setattr(checkpoint._Stream, "stage", stage)

    return apply


def _not_restored(patch: pytest.MonkeyPatch) -> None:
    def restore_next(self: MemoryCache) -> bool:
        self._restoring.clear()
        self._has_past[:] = False
        return False

    patch.setattr(MemoryCache, "restore_next", restore_next)


def _no_past(patch: pytest.MonkeyPatch) -> None:
    """Pages are brought into the image as they arrive, although there is a committed one to spoil."""
    real = MemoryCache.stage

    def stage(self: MemoryCache, epoch: int, batch: PageBatch) -> Indices:
        pages = real(self, epoch, batch)
        self._past.clear()
        return pages

    patch.setattr(MemoryCache, "stage", stage)


def _alike_before_asked(patch: pytest.MonkeyPatch) -> None:
    """What the SVM writes between the comparison and the tracker's answer is not loaded."""

    async def mutated(vm: SecondaryVm, cache: MemoryCache, staged: Indices) -> None:
        found = await vm.alike(staged, cache.image)
        await checkpoint._collect_dirty(vm.take_dirty_pages, cache.debt)
        cache.debt.paid(found)

    patch.setattr(checkpoint, "_find_alike", mutated)


def _roll_forward_once(patch: pytest.MonkeyPatch) -> None:
    real = checkpoint.roll_forward
    tried: dict[int, int] = {}

    async def mutated(vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache) -> None:
        if tried.get(id(cache), 0) != cache.committed_epoch:
            tried[id(cache)] = cache.committed_epoch
            await real(vm, feed, disks, cache)

    patch.setattr(checkpoint, "roll_forward", mutated)


def _lost_at_a_takeover(patch: pytest.MonkeyPatch) -> None:
    """What a takeover finds rolled forward already it takes for lost, once any fault has struck."""
    real = checkpoint.roll_forward

    async def mutated(vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache) -> None:
        assert isinstance(vm, SvmPort)
        if vm.faults and cache.committed is not None and cache.fed_epoch == cache.committed_epoch:
            raise VmLost("for no reason")
        await real(vm, feed, disks, cache)

    patch.setattr(checkpoint, "roll_forward", mutated)


def _set_back_when_fed(patch: pytest.MonkeyPatch) -> None:
    real = checkpoint.roll_forward

    async def mutated(vm: SecondaryVm, feed: SecondaryFeed, disks: SecondaryDisks, cache: MemoryCache) -> None:
        cache.loaded_epoch = cache.fed_epoch = 0
        await real(vm, feed, disks, cache)

    patch.setattr(checkpoint, "roll_forward", mutated)


def _load_not_rewritten(patch: pytest.MonkeyPatch) -> None:
    async def mutated(vm: SecondaryVm, cache: MemoryCache) -> Indices:
        return np.empty(0, np.uint32)

    patch.setattr(checkpoint, "_dirtied_by_load", mutated)


def _epoch_reused(patch: pytest.MonkeyPatch) -> None:
    real = EpochLedger.fail

    def fail(self: EpochLedger) -> None:
        real(self)
        self.last_used -= 1

    patch.setattr(EpochLedger, "fail", fail)


def _own_writes_ignored(patch: pytest.MonkeyPatch) -> None:
    """The roll-forward writes what the primary changed, and not what the SVM has written by itself."""
    real = checkpoint._collect_dirty

    async def mutated(ask: Callable[[], Awaitable[Indices]], debt: PageDebt) -> None:
        before = debt._owed.copy()
        await real(ask, debt)
        if getattr(ask, "__qualname__", "").startswith("SvmPort"):
            debt._owed = before

    patch.setattr(checkpoint, "_collect_dirty", mutated)


MUTANTS = (
    Mutant("release before the commit", client_history.NAME, _release_before_commit, 23),
    Mutant("pages not put back", committed_state.NAME, _pages_not_put_back, 11),
    Mutant("lost answer of a tracker forgets pages", committed_state.NAME, _lost_answer_forgets, 2),
    Mutant("digest not verified", committed_state.NAME, _digest_not_verified, 189),
    Mutant("primary goes solo unasked", client_history.NAME, _skip_claim("_PRIMARY", Command.GO_SOLO), 0),
    Mutant("secondary takes over unasked", client_history.NAME, _skip_claim("_SECONDARY", Command.TAKE_OVER), 0),
    Mutant("no answer is a yes", client_history.NAME, _no_answer_is_a_yes, 18),
    Mutant("the claim is granted to everybody", client_history.NAME, _claim_for_everybody, 0),
    Mutant("what is held stays held", liveness.NAME, _held_for_ever, 5),
    Mutant("sent pages remembered after a failure", committed_state.NAME, _sent_pages_kept, 4),
    Mutant("boundary one too far", committed_state.NAME, _boundary_off(1), 0),
    Mutant("boundary one too early", committed_state.NAME, _boundary_off(-1), 0),
    Mutant("what was discarded is not undone", committed_state.NAME, _not_restored, 96),
    Mutant("what staged pages were is not kept", committed_state.NAME, _no_past, 7),
    Mutant("alike before the tracker was asked", committed_state.NAME, _alike_before_asked, 3),
    Mutant("roll-forward not repeated", client_history.NAME, _roll_forward_once, 16),
    Mutant("a takeover after any fault takes the VM for lost", liveness.NAME, _lost_at_a_takeover, 0, only=True),
    Mutant("set back after the feed started", client_history.NAME, _set_back_when_fed, 0),
    Mutant("load-dirtied pages not rewritten", committed_state.NAME, _load_not_rewritten, 0, only=True),
    Mutant("epoch number reused", committed_state.NAME, _epoch_reused, 2),
    Mutant("SVM's own writes ignored", committed_state.NAME, _own_writes_ignored, 0),
    *DISK_MUTANTS,
    *PACKET_MUTANTS,
)
