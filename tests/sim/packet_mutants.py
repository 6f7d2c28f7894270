"""Mutants of what the core does with packets, and of when the agents let them go; see mutants.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pycolo.agent.primary import PrimarySide
from pycolo.core import flow as flow_judge
from pycolo.core import flow_end
from pycolo.core.datagrams import DatagramFlow
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.lease import Lease
from pycolo.core.secondary import SecondaryDataplane
from pycolo.core.translation import Translator
from pycolo.core.translation_chain import TranslatorChain
from pycolo.core.twin_stream import RELEASE, TwinStream, Verdict
from pycolo.core.wire import Translations

from . import agents
from .checkers import client_history
from .mutant import Mutant


def _acknowledged_early(patch: pytest.MonkeyPatch) -> None:
    for module in (flow_judge, flow_end):
        patch.setattr(module, "acknowledged", lambda flow, ack: True)


def _payload_not_compared(patch: pytest.MonkeyPatch) -> None:
    def judge(self: TwinStream, seq: int, payload: bytes) -> Verdict:
        return RELEASE

    patch.setattr(TwinStream, "judge", judge)


def _datagrams_not_compared(patch: pytest.MonkeyPatch) -> None:
    def release(self: DatagramFlow, out: list[bytes]) -> bool:
        out += [held[2] for held in self.hold]
        self.hold.clear()
        return False

    patch.setattr(DatagramFlow, "release", release)


def _twins_of_other_epochs(patch: pytest.MonkeyPatch) -> None:
    real = PrimaryDataplane.svm_frames

    def svm_frames(
        self: PrimaryDataplane, epoch: int, first_no: int, frames: Sequence[bytes], now_ms: float
    ) -> list[bytes]:
        return real(self, self.epoch, first_no, frames, now_ms)

    patch.setattr(PrimaryDataplane, "svm_frames", svm_frames)


def _commit_frees_all(patch: pytest.MonkeyPatch) -> None:
    """Also what was sealed by the next checkpoint, or by none yet."""
    real = PrimaryDataplane.commit

    def commit(self: PrimaryDataplane, epoch: int, now_ms: float | None = None) -> list[bytes]:
        freed = real(self, epoch, now_ms)
        more = self._take_held()
        for flow in self._waiting:
            flow.hold.clear()
        self._waiting.clear()
        self._uncount(more)
        return freed + more

    patch.setattr(PrimaryDataplane, "commit", commit)


def _compared_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    real = PrimaryDataplane.seal

    def seal(self: PrimaryDataplane, epoch_next: int) -> int:
        held = real(self, epoch_next)
        self._awaiting_commit = False
        return held

    patch.setattr(PrimaryDataplane, "seal", seal)


def _client_numbers_untranslated(patch: pytest.MonkeyPatch) -> None:
    def client_frames(self: SecondaryDataplane, frames: Sequence[bytes]) -> list[bytes]:
        return list(frames)

    patch.setattr(SecondaryDataplane, "client_frames", client_frames)


def _output_untranslated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Translator, "outbound", lambda self, frames: list(frames))


def _translation_not_told(patch: pytest.MonkeyPatch) -> None:
    """A survivor's new secondary does not learn how clients' frames are translated."""

    def whole(self: TranslatorChain, now_ms: float) -> list[Translations]:
        return [Translations(0, [], [], afresh=True)]

    patch.setattr(TranslatorChain, "whole", whole)
    patch.setattr(TranslatorChain, "changes", lambda self: [])


def _offsets_kept_after_a_load(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Translator, "clear", lambda self: None)


def _lease_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrimarySide, "_leave_until_s", lambda self: 0.0 if self.channel is None else float("inf"))


def _lease_too_long(patch: pytest.MonkeyPatch) -> None:
    """Ten times as long as the secondary has been told."""

    def granted(self: Lease, number: int) -> None:
        asked, self._asked_ms = self._asked_ms, None
        assert asked is not None
        self.until_ms = asked + 10 * self.lease_ms

    patch.setattr(Lease, "granted", granted)


def _lease_sleeps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(agents, "boottime_s", lambda scheduler: scheduler.current.now_ms(scheduler.now_us) / 1000)


PACKET_MUTANTS = (
    Mutant("an acknowledgement leaves early", client_history.NAME, _acknowledged_early, 74),
    Mutant("payload of streams not compared", client_history.NAME, _payload_not_compared, 8),
    Mutant("datagrams not compared", client_history.NAME, _datagrams_not_compared, 15),
    Mutant("output of another epoch compared", client_history.NAME, _twins_of_other_epochs, 27),
    Mutant("a commit frees what came after its cut", client_history.NAME, _commit_frees_all, 23),
    Mutant("compared before the commit", client_history.NAME, _compared_before_the_commit, 30),
    Mutant("clients' numbers not translated", client_history.NAME, _client_numbers_untranslated, 156),
    Mutant("the survivor's numbers not translated", client_history.NAME, _output_untranslated, 25),
    Mutant("a new secondary not told of the translation", client_history.NAME, _translation_not_told, 25),
    Mutant("offsets kept after a load", client_history.NAME, _offsets_kept_after_a_load, 0),
    Mutant("a lease never ends", client_history.NAME, _lease_for_ever, 81),
    Mutant("a lease by a clock that stands still while its host sleeps", client_history.NAME, _lease_sleeps, 105),
    Mutant("a lease ten times as long as promised", client_history.NAME, _lease_too_long, 81, only=True),
)
