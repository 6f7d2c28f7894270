"""The story of a checkpoint, step by step, and what each side leaves behind when any step fails."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pycolo.core.checkpoint import CheckpointLimits, receive_checkpoint, roll_forward, take_checkpoint
from pycolo.core.epochs import EpochLedger
from pycolo.core.memory_cache import MemoryCache, Stage
from pycolo.core.pages import PAGE_BYTES, Contents, Indices, PageBatch
from pycolo.errors import CheckpointFailed, PeerLost, VmLost

PAGES = 8
LIMITS = CheckpointLimits(precopy_rounds_max=2, precopy_pages_min=2, first_sync_rounds_max=3, batch_pages_max=3)
Message = tuple[int, PageBatch] | Stage


class Script:
    """Records the steps and lets one of them fail, before or after its effect."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fail_at: str | None = None
        self.fail_after = False
        self.error: Exception = VmLost("scripted")

    def fail(self, step: str, error: Exception, *, after: bool = False) -> None:
        self.fail_at, self.error, self.fail_after = step, error, after

    def run(self, step: str, effect: Callable[[], None] = lambda: None) -> None:
        self.steps.append(step)
        failing = self.fail_at == step
        if failing:
            self.fail_at = None
        if failing and not self.fail_after:
            raise self.error
        effect()
        if failing:
            raise self.error


class Pvm:
    """PrimaryVm, PrimaryOutput and SecondaryLink in one."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.ram = np.zeros((PAGES, PAGE_BYTES), np.uint8)
        self.dirty: set[int] = set()
        self.running = True
        self.feeding = True
        self.sent: list[Message] = []
        self.discarded: str | None = None
        self.busy = False  # it writes more while its pages are read

    def write(self, page: int, value: int) -> None:
        self.ram[page] = value
        self.dirty.add(page)

    async def pause(self) -> None:
        self.script.run("pause", lambda: setattr(self, "running", False))

    async def resume(self) -> None:
        self.script.run("resume", lambda: setattr(self, "running", True))

    async def take_dirty_pages(self) -> Indices:
        taken = np.array(sorted(self.dirty), np.uint32)
        self.script.run("take_dirty_pages", self.dirty.clear)
        return taken

    async def read_pages(self, indices: Indices) -> Contents:
        self.script.run("read_pages")
        contents = self.ram[indices]
        if self.busy and self.running:
            for page in range(5):
                self.write(page, 3)
        return contents

    async def save_device_state(self) -> bytes:
        assert not self.running
        self.script.run("save_device_state")
        return b"registers"

    async def pause_feed(self) -> int:
        self.script.run("pause_feed", lambda: setattr(self, "feeding", False))
        return 42

    async def resume_feed(self) -> None:
        self.script.run("resume_feed", lambda: setattr(self, "feeding", True))

    async def seal(self, epoch: int) -> None:
        self.script.run(f"seal {epoch}")

    async def commit(self, epoch: int) -> None:
        self.script.run(f"commit {epoch}")

    async def send_pages(self, epoch: int, batch: PageBatch) -> None:
        self.script.run("send_pages", lambda: self.sent.append((epoch, batch)))

    async def send_stage(self, stage: Stage) -> None:
        self.script.run("send_stage", lambda: self.sent.append(stage))

    async def committed(self, epoch: int) -> None:
        self.script.run("committed")
        if self.discarded:
            raise CheckpointFailed(self.discarded)


class Svm:
    """PrimaryLink, SecondaryVm and SecondaryFeed in one."""

    def __init__(self, script: Script, messages: list[Message] | None = None) -> None:
        self.script = script
        self.messages = messages or []
        self.ram = np.zeros((PAGES, PAGE_BYTES), np.uint8)
        self.dirty: set[int] = set()
        self.device_state = b""
        self.running = False
        self.fed: list[tuple[int, int]] = []
        self.written: list[list[int]] = []

    async def receive(self) -> Message:
        self.script.run("receive")
        if not self.messages:
            raise PeerLost("the stream ended")
        return self.messages.pop(0)

    async def send_committed(self, epoch: int) -> None:
        self.script.run(f"send_committed {epoch}")

    async def send_discarded(self, epoch: int, why: str) -> None:
        self.script.run(f"send_discarded {epoch}: {why}")

    async def send_loaded(self, epoch: int) -> None:
        self.script.run(f"send_loaded {epoch}")

    async def breathe(self) -> None:
        self.script.run("breathe")

    async def stop_for_load(self) -> None:
        self.script.run("stop_for_load", lambda: setattr(self, "running", False))

    async def take_dirty_pages(self) -> Indices:
        taken = np.array(sorted(self.dirty), np.uint32)
        self.script.run("take_dirty_pages", self.dirty.clear)
        return taken

    async def write_pages(self, indices: Indices, image: Contents) -> None:
        assert not self.running
        self.written.append(indices.tolist())
        self.script.run("write_pages", lambda: self.ram.__setitem__(indices, image[indices]))

    async def load_device_state(self, device_state: bytes) -> None:
        def load() -> None:
            self.device_state = device_state
            self.ram[6] = 0xEE  # QEMU writes into RAM while it loads
            self.dirty.add(6)

        self.script.run("load_device_state", load)

    async def resume(self) -> None:
        self.script.run("resume", lambda: setattr(self, "running", True))

    async def stop_feed(self) -> None:
        self.script.run("stop_feed")

    async def drop_output(self) -> None:
        assert not self.running
        self.script.run("drop_output")

    async def start_feed(self, epoch: int, boundary: int) -> None:
        assert self.running
        self.script.run("start_feed", lambda: self.fed.append((epoch, boundary)))


async def take(pvm: Pvm, ledger: EpochLedger, sealed: Callable[[], None] = lambda: None) -> int:
    return (await take_checkpoint(pvm, pvm, pvm, ledger, LIMITS, sealed)).epoch


async def one_checkpoint(pvm: Pvm, ledger: EpochLedger) -> list[Message]:
    pvm.sent = []
    await take(pvm, ledger)
    return pvm.sent


def pages_of(messages: list[Message]) -> list[int]:
    batches = [message[1] for message in messages if isinstance(message, tuple)]
    return sorted({int(page) for batch in batches for page in (*batch.indices, *batch.zeros)})


# ---------------------------------------------------------------- primary


async def test_the_steps_of_a_checkpoint() -> None:
    script = Script()
    pvm, ledger = Pvm(script), EpochLedger(PAGES)
    await one_checkpoint(pvm, ledger)
    script.steps.clear()
    pvm.write(3, 7)
    transfer = await take_checkpoint(
        pvm, pvm, pvm, ledger, LIMITS, lambda: script.steps.append(f"sealed, running: {pvm.running}")
    )
    assert script.steps == [
        "take_dirty_pages",  # one page: fewer than precopy_pages_min, so no pre-copy
        "pause_feed",
        "pause",
        "seal 2",
        "sealed, running: False",
        "take_dirty_pages",
        "read_pages",
        "save_device_state",
        "resume",
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
    "take_dirty_pages",
    "read_pages",
    "send_pages",
    "pause_feed",
    "pause",
    "seal 2",
    "save_device_state",
    "resume",
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


async def test_precopy_rounds_have_a_limit() -> None:
    script = Script()
    pvm, ledger = Pvm(script), EpochLedger(PAGES)
    await one_checkpoint(pvm, ledger)
    script.steps, pvm.busy = [], True
    for page in range(5):
        pvm.write(page, 3)
    await one_checkpoint(pvm, ledger)
    assert script.steps[: script.steps.index("pause_feed")].count("take_dirty_pages") == LIMITS.precopy_rounds_max


# ---------------------------------------------------------------- secondary


async def stream() -> tuple[Pvm, EpochLedger, list[Message]]:
    pvm, ledger = Pvm(Script()), EpochLedger(PAGES)
    for page in range(PAGES):
        pvm.write(page, page + 1)
    return pvm, ledger, await one_checkpoint(pvm, ledger)


def is_at(svm: Svm, pvm: Pvm) -> bool:
    return bool((svm.ram == pvm.ram).all()) and svm.device_state == b"registers" and svm.running


async def test_the_secondary_commits_before_it_touches_its_svm() -> None:
    pvm, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    received = len(messages)
    assert await receive_checkpoint(svm, svm, svm, cache)
    assert [step for step in script.steps if step != "breathe"] == [
        *["receive"] * received,
        "send_committed 1",
        "stop_feed",
        "stop_for_load",
        "drop_output",
        "take_dirty_pages",
        "write_pages",
        "load_device_state",
        "take_dirty_pages",
        "write_pages",
        "resume",
        "start_feed",
        "send_loaded 1",
    ]
    assert is_at(svm, pvm)
    assert svm.fed == [(1, 42)]
    assert (cache.committed_epoch, cache.loaded_epoch, cache.fed_epoch) == (1, 1, 1)


async def test_only_what_differs_is_written_again() -> None:
    pvm, ledger, messages = await stream()
    svm, cache = Svm(Script(), messages), MemoryCache(PAGES)
    await receive_checkpoint(svm, svm, svm, cache)
    svm.ram[2] = 200
    svm.dirty.add(2)
    pvm.write(5, 77)
    svm.messages = await one_checkpoint(pvm, ledger)
    svm.written.clear()
    assert await receive_checkpoint(svm, svm, svm, cache)
    assert svm.written == [[2, 5], [6]]
    assert is_at(svm, pvm)


async def test_a_spoilt_checkpoint_is_discarded_and_the_svm_left_alone() -> None:
    _, _, messages = await stream()
    first = messages[0]
    assert isinstance(first, tuple)
    first[1].contents[0, 0] ^= 1
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    assert not await receive_checkpoint(svm, svm, svm, cache)
    assert script.steps[-1] == "send_discarded 1: the digest of what arrived is wrong"
    assert cache.committed is None
    assert not any(step.startswith("stop") for step in script.steps)


async def test_a_primary_lost_before_the_commit_point_leaves_nothing_staged() -> None:
    _, _, messages = await stream()
    svm, cache = Svm(Script(), messages[:-1]), MemoryCache(PAGES)
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, cache)
    assert cache.committed is None
    assert not cache.apply_next()
    await roll_forward(svm, svm, cache)
    assert not svm.running


@pytest.mark.parametrize("step", ["send_committed 1", "send_loaded 1"])
async def test_a_primary_lost_after_the_commit_point_changes_nothing(step: str) -> None:
    pvm, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    script.fail(step, PeerLost("scripted"))
    assert await receive_checkpoint(svm, svm, svm, cache)
    assert is_at(svm, pvm)


SECONDARY_STEPS = (
    "breathe",
    "stop_feed",
    "stop_for_load",
    "drop_output",
    "take_dirty_pages",
    "write_pages",
    "load_device_state",
    "resume",
    "start_feed",
)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", SECONDARY_STEPS)
async def test_a_roll_forward_is_finished_by_repeating_it(step: str, after: bool) -> None:
    pvm, ledger, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    await receive_checkpoint(svm, svm, svm, cache)
    svm.ram[2] = 200
    svm.dirty.add(2)
    pvm.write(5, 77)
    svm.messages = await one_checkpoint(pvm, ledger)
    script.fail(step, PeerLost("scripted"), after=after)
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, cache)
    assert cache.committed_epoch == 2
    await roll_forward(svm, svm, cache)
    assert is_at(svm, pvm)
    assert set(svm.fed) == {(1, 42), (2, 42)}
    assert svm.fed[-1] == (2, 42)


async def test_an_svm_that_may_have_been_fed_is_never_set_back() -> None:
    """What it has put out since may have been compared and released: setting it back would lose that."""
    _, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    script.fail("start_feed", PeerLost("the answer is lost"), after=True)
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, cache)
    svm.ram[0] = 99  # it runs, and answers clients
    script.steps.clear()
    await roll_forward(svm, svm, cache)
    assert script.steps == ["start_feed"]
    assert svm.ram[0, 0] == 99


async def test_a_finished_roll_forward_does_nothing_more() -> None:
    _, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    await receive_checkpoint(svm, svm, svm, cache)
    script.steps.clear()
    await roll_forward(svm, svm, cache)
    assert script.steps == []
