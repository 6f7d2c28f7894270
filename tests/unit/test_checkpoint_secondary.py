"""The secondary's story of a checkpoint, step by step, and what it leaves behind when any step fails."""

from __future__ import annotations

import pytest
from checkpoint_script import PAGES, Message, Pvm, Script, Svm, one_checkpoint

from pycolo.core.checkpoint import receive_checkpoint, roll_forward
from pycolo.core.epochs import EpochLedger
from pycolo.core.memory_cache import MemoryCache
from pycolo.errors import PeerLost, VmLost


async def stream() -> tuple[Pvm, EpochLedger, list[Message]]:
    pvm, ledger = Pvm(Script()), EpochLedger(PAGES)
    for page in range(PAGES):
        pvm.write(page, page + 1)
    return pvm, ledger, await one_checkpoint(pvm, ledger)


def is_at(svm: Svm, pvm: Pvm) -> bool:
    return bool((svm.ram == pvm.ram).all()) and svm.device_state == b"registers" and svm.running


async def following() -> tuple[Pvm, EpochLedger, Svm, MemoryCache]:
    """After the first checkpoint."""
    pvm, ledger, messages = await stream()
    svm, cache = Svm(Script(), messages), MemoryCache(PAGES)
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    svm.script.steps.clear()
    svm.written.clear()
    return pvm, ledger, svm, cache


async def test_pages_of_the_first_checkpoint_are_written_as_they_arrive() -> None:
    pvm, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    batches = [sorted(message[1].indices.tolist()) for message in messages[:-1] if isinstance(message, tuple)]
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    steps = [step for step in script.steps if step != "breathe"]
    assert steps[: steps.index("staged 1")] == [
        "take_dirty_pages",
        *["receive", "write_pages"] * len(batches),
        "receive",
    ]
    assert svm.written == [*batches, [], [6]], "nothing is left to load but what the load wrote itself"
    assert is_at(svm, pvm)


async def test_what_qemu_writes_while_the_first_checkpoint_arrives_is_written_over() -> None:
    pvm, _, messages = await stream()

    class Resetting(Svm):
        async def receive(self) -> Message:
            if len(self.messages) == 1:
                self.ram[1] = 0xAA
                self.dirty.add(1)
            return await super().receive()

    svm, cache = Resetting(Script(), messages), MemoryCache(PAGES)
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    assert is_at(svm, pvm)


async def test_a_first_checkpoint_after_a_discarded_one_leaves_nothing_of_it() -> None:
    pvm, ledger, messages = await stream()
    first = messages[0]
    assert isinstance(first, tuple)
    first[1].contents[0, 0] ^= 1
    svm, cache = Svm(Script(), messages), MemoryCache(PAGES)
    assert not await receive_checkpoint(svm, svm, svm, svm, cache)
    other = EpochLedger(PAGES, last_used=ledger.last_used)  # as after a failed one: every page is owed
    svm.messages = await one_checkpoint(pvm, other)
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    assert is_at(svm, pvm)


async def test_the_secondary_commits_before_it_touches_its_svm() -> None:
    pvm, ledger, svm, cache = await following()
    pvm.write(5, 77)
    svm.messages = await one_checkpoint(pvm, ledger)
    received = len(svm.messages)
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    assert [step for step in svm.script.steps if step != "breathe"] == [
        *["receive"] * received,
        "staged 2",
        "send_committed 2",
        "stop_feed",
        "expect_pause",
        "stop_for_load",
        "drop_output",
        "commit 2",
        "take_dirty_pages",
        "write_pages",
        "load_device_state",
        "take_dirty_pages",
        "write_pages",
        "resume",
        "start_feed",
        "send_loaded 2",
    ]
    assert is_at(svm, pvm)
    assert svm.fed == [(1, 42), (2, 42)]
    assert (cache.committed_epoch, cache.loaded_epoch, cache.fed_epoch) == (2, 2, 2)


async def test_only_what_differs_is_written_again() -> None:
    pvm, ledger, messages = await stream()
    svm, cache = Svm(Script(), messages), MemoryCache(PAGES)
    await receive_checkpoint(svm, svm, svm, svm, cache)
    svm.ram[2] = 200
    svm.dirty.add(2)
    pvm.write(5, 77)
    svm.messages = await one_checkpoint(pvm, ledger)
    svm.written.clear()
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    assert svm.written == [[2, 5], [6]]
    assert is_at(svm, pvm)


async def test_what_a_quick_svm_holds_already_is_not_loaded() -> None:
    pvm, ledger, svm, cache = await following()
    svm.is_quick = True
    for page in (1, 2, 3):  # a batch
        for vm in (pvm, svm):
            vm.ram[page] = 70 + page
            vm.dirty.add(page)
    svm.ram[2] = 99
    pvm.write(5, 77)

    def writes() -> None:
        svm.ram[3] = 100
        svm.dirty.add(3)

    svm.write_meanwhile = writes
    svm.messages = await one_checkpoint(pvm, ledger)
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    assert "alike" in svm.script.steps
    assert svm.written == [[2, 3, 5], [6]], "page 1 was there, page 3 only until the SVM wrote it"
    assert is_at(svm, pvm)


async def test_a_discarded_checkpoint_leaves_no_page_of_it_behind() -> None:
    pvm, ledger, svm, cache = await following()
    before = cache.image.copy()
    svm.is_quick = True
    pvm.write(1, 71)
    svm.ram[1] = 71
    svm.dirty.add(1)
    svm.messages = await one_checkpoint(pvm, ledger)
    del svm.messages[-1:]
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    cache.loaded_epoch = cache.fed_epoch = 0  # as if the load had not come to its end
    await roll_forward(svm, svm, svm, cache)
    assert (cache.image == before).all()
    assert (svm.ram == before).all()


async def test_a_spoilt_checkpoint_is_discarded_and_the_svm_left_alone() -> None:
    _, _, messages = await stream()
    first = messages[0]
    assert isinstance(first, tuple)
    first[1].contents[0, 0] ^= 1
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    assert not await receive_checkpoint(svm, svm, svm, svm, cache)
    assert script.steps[-1] == "send_discarded 1: the digest of what arrived is wrong"
    assert cache.committed is None
    assert not any(step.startswith(("stop", "staged", "commit")) for step in script.steps)


async def test_a_primary_lost_before_the_commit_point_leaves_nothing_staged() -> None:
    _, _, messages = await stream()
    svm, cache = Svm(Script(), messages[:-1]), MemoryCache(PAGES)
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    assert cache.committed is None
    assert not cache.restore_next()
    await roll_forward(svm, svm, svm, cache)
    assert not svm.running


async def test_a_primary_lost_before_its_disk_writes_arrived_leaves_nothing_staged() -> None:
    """The memory of the new epoch is whole, but a takeover would run it on the disk of the old one (rule 4)."""
    _, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    script.fail("staged 1", PeerLost("the disk channel ended"))
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    assert script.steps[-1] == "staged 1"
    assert cache.committed is None
    assert not cache.restore_next()
    await roll_forward(svm, svm, svm, cache)
    assert (svm.running, svm.disk_epoch, svm.device_state) == (False, 0, b"")


async def test_a_lost_disk_is_before_the_commit_point_too() -> None:
    _, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    script.fail("staged 1", VmLost("the disk's server is gone"), after=True)
    with pytest.raises(VmLost):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    assert cache.committed is None


async def test_a_repeated_roll_forward_drops_again_what_the_svm_wrote_in_between() -> None:
    """The answer to `resume` was lost: the SVM ran for a moment, and its disk is no more the committed one."""
    pvm, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    script.fail("resume", PeerLost("the answer is lost"), after=True)
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    assert svm.running
    svm.own_disk_writes = 2
    script.steps.clear()
    await roll_forward(svm, svm, svm, cache)
    assert script.steps.index("stop_for_load") < script.steps.index("commit 1") < script.steps.index("resume")
    assert (svm.disk_epoch, svm.own_disk_writes) == (1, 0)
    assert is_at(svm, pvm)


@pytest.mark.parametrize("step", ["send_committed 1", "send_loaded 1"])
async def test_a_primary_lost_after_the_commit_point_changes_nothing(step: str) -> None:
    pvm, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    script.fail(step, PeerLost("scripted"))
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    assert is_at(svm, pvm)


SECONDARY_STEPS = (
    "stop_feed",
    "expect_pause",
    "stop_for_load",
    "drop_output",
    "commit 2",
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
    await receive_checkpoint(svm, svm, svm, svm, cache)
    svm.ram[2] = 200
    svm.dirty.add(2)
    svm.own_disk_writes = 3
    pvm.write(5, 77)
    svm.messages = await one_checkpoint(pvm, ledger)
    script.fail(step, PeerLost("scripted"), after=after)
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    assert cache.committed_epoch == 2
    await roll_forward(svm, svm, svm, cache)
    assert is_at(svm, pvm)
    assert (svm.disk_epoch, svm.own_disk_writes) == (2, 0)
    assert set(svm.fed) == {(1, 42), (2, 42)}
    assert svm.fed[-1] == (2, 42)


async def test_an_svm_that_may_have_been_fed_is_never_set_back() -> None:
    """What it has put out since may have been compared and released: setting it back would lose that."""
    _, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    script.fail("start_feed", PeerLost("the answer is lost"), after=True)
    with pytest.raises(PeerLost):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    svm.ram[0] = 99  # it runs, and answers clients
    script.steps.clear()
    await roll_forward(svm, svm, svm, cache)
    assert script.steps == ["start_feed"]
    assert svm.ram[0, 0] == 99


async def test_a_finished_roll_forward_does_nothing_more() -> None:
    _, _, messages = await stream()
    script = Script()
    svm, cache = Svm(script, messages), MemoryCache(PAGES)
    await receive_checkpoint(svm, svm, svm, svm, cache)
    script.steps.clear()
    await roll_forward(svm, svm, svm, cache)
    assert script.steps == []


async def test_an_svm_that_may_not_be_what_was_loaded_is_loaded_once_more() -> None:
    pvm, ledger, svm, cache = await following()
    pvm.write(5, 77)
    svm.messages = await one_checkpoint(pvm, ledger)
    svm.loads_in_doubt = 1
    assert await receive_checkpoint(svm, svm, svm, svm, cache)
    steps = [step for step in svm.script.steps if step in ("stop_for_load", "commit 2", "resume", "start_feed")]
    assert steps == ["stop_for_load", "commit 2", "resume"] * 2 + ["start_feed"]
    assert svm.written == [[5], [6], [5, 6], [6]]
    assert is_at(svm, pvm)


async def test_an_svm_that_is_never_what_was_loaded_is_lost() -> None:
    _, _, messages = await stream()
    svm, cache = Svm(Script(), messages), MemoryCache(PAGES)
    svm.loads_in_doubt = 10
    with pytest.raises(VmLost, match="3 times in a row"):
        await receive_checkpoint(svm, svm, svm, svm, cache)
    assert svm.fed == []
