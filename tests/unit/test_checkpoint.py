"""The primary's story of a checkpoint, step by step, and what it leaves behind when any step fails."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_script import LIMITS, PAGES, Pvm, Script, one_checkpoint, pages_of, take

from pycolo.core.checkpoint import take_checkpoint
from pycolo.core.epochs import EpochLedger
from pycolo.core.memory_cache import Stage
from pycolo.core.pages import PAGE_BYTES, Indices
from pycolo.errors import CheckpointFailed, VmLost


async def test_the_steps_of_a_checkpoint() -> None:
    script = Script()
    pvm, ledger = Pvm(script), EpochLedger(PAGES)
    await one_checkpoint(pvm, ledger)
    script.steps.clear()
    pvm.write(3, 7)
    transfer = await take_checkpoint(
        pvm, pvm, pvm.disks, pvm, ledger, LIMITS, lambda: script.steps.append(f"sealed, running: {pvm.running}")
    )
    assert script.steps == [
        "disks room 1",
        "take_dirty_pages",  # one page: fewer than precopy_pages_min, so no pre-copy
        "expect_pages 1",
        "pause_feed",
        "disks expect_pause",
        "pause",
        "begin_save",
        "seal 2",
        "disks seal 2",
        "sealed, running: False",
        "take_dirty_pages",
        "read_pages",
        "save_device_state",
        "resume",
        "disks expect_requests",
        "resume_feed",
        "send_pages",
        "send_stage",
        "committed",
        "commit 2",
    ]
    assert (transfer.epoch, transfer.pages, transfer.bytes) == (2, 1, PAGE_BYTES + len(b"registers"))
    assert (ledger.running, ledger.committed, ledger.debt.owed_count) == (2, 2, 0)


async def test_the_first_sync_sends_all_ram_in_batches() -> None:
    pvm = Pvm(Script())
    pvm.write(1, 5)
    sent = await one_checkpoint(pvm, EpochLedger(PAGES))
    assert pages_of(sent) == list(range(PAGES))
    assert all(len(message[1].indices) <= LIMITS.batch_pages_max for message in sent if isinstance(message, tuple))
    stage = sent[-1]
    assert isinstance(stage, Stage)
    assert (stage.epoch, stage.boundary, stage.device_state) == (1, 42, b"registers")


PRIMARY_STEPS = (
    "disks room 1",
    "take_dirty_pages",
    "read_pages",
    "send_pages",
    "pause_feed",
    "disks expect_pause",
    "pause",
    "begin_save",
    "seal 2",
    "disks seal 2",
    "save_device_state",
    "resume",
    "disks expect_requests",
    "resume_feed",
    "send_stage",
    "committed",
)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", PRIMARY_STEPS)
async def test_a_failed_checkpoint_releases_nothing_and_owes_its_pages(step: str, after: bool) -> None:
    script = Script()
    pvm, ledger = Pvm(script), EpochLedger(PAGES)
    await one_checkpoint(pvm, ledger)
    for page in range(4):
        pvm.write(page, 9)
    script.fail(step, CheckpointFailed("scripted"), after=after)
    with pytest.raises(CheckpointFailed):
        await take(pvm, ledger)
    assert "commit 2" not in script.steps
    assert ledger.committed == 1
    assert pvm.running or (step == "resume" and not after)
    assert pvm.feeding or (step == "resume_feed" and not after)
    assert not pvm.disks.hurried or (step in ("resume", "disks expect_requests"))
    sent = await one_checkpoint(pvm, ledger)
    assert set(pages_of(sent)) >= {0, 1, 2, 3}
    assert ledger.committed == 3


async def test_a_discarded_checkpoint_is_a_failed_one() -> None:
    pvm, ledger = Pvm(Script()), EpochLedger(PAGES)
    pvm.discarded = "the digest of what arrived is wrong"
    with pytest.raises(CheckpointFailed, match="digest"):
        await take(pvm, ledger)
    assert (ledger.committed, ledger.debt.owed_count) == (0, PAGES)


async def test_the_commit_stands_when_the_release_fails() -> None:
    script = Script()
    pvm, ledger = Pvm(script), EpochLedger(PAGES)
    script.fail("commit 1", VmLost("the agent is gone"))
    with pytest.raises(VmLost):
        await take(pvm, ledger)
    assert (ledger.committed, ledger.debt.owed_count) == (1, 0)


@pytest.mark.parametrize(
    ("busy_pages", "rounds"),
    [
        (5, LIMITS.precopy_rounds_min),  # of 8: a third one would not leave many fewer
        (1, 1),  # few are left
    ],
)
async def test_precopy_goes_on_while_it_helps_and_the_pause_expects_the_rest(busy_pages: int, rounds: int) -> None:
    script = Script()
    pvm, ledger = Pvm(script), EpochLedger(PAGES)
    await one_checkpoint(pvm, ledger)
    script.steps, pvm.busy_pages = [], busy_pages
    for page in range(PAGES):
        pvm.write(page, 3)
    await one_checkpoint(pvm, ledger)
    ahead = script.steps[: script.steps.index("pause_feed")]
    assert ahead.count("caught_up") == rounds
    assert ahead[-1] == f"expect_pages {busy_pages}"
    assert script.steps[-1] == "commit 2"
    assert pages_of(pvm.sent) == list(range(PAGES))


async def test_precopy_rounds_have_a_limit() -> None:
    """Each leaves half as many as the one before."""
    taken: list[int] = []

    class Halving(Pvm):
        async def take_dirty_pages(self) -> Indices:
            found = await super().take_dirty_pages()
            taken.append(len(found))
            for page in range(len(found) // 2):
                self.write(page, len(taken))
            return found

    script = Script()
    pvm, ledger = Halving(script), EpochLedger(64)
    pvm.ram = np.zeros((64, PAGE_BYTES), np.uint8)
    await one_checkpoint(pvm, ledger)
    taken.clear()
    for page in range(64):
        pvm.write(page, 3)
    await one_checkpoint(pvm, ledger)
    assert taken == [64, 32, 16, 8, 4], "four rounds, and the pause"
    assert "expect_pages 4" in script.steps, "not the 8 that have been sent"


async def test_the_first_sync_has_all_its_rounds() -> None:
    script = Script()
    pvm = Pvm(script)
    pvm.busy_pages = 5
    await one_checkpoint(pvm, EpochLedger(PAGES))
    ahead = script.steps[: script.steps.index("pause_feed")]
    assert ahead.count("caught_up") == LIMITS.first_sync_rounds_max
