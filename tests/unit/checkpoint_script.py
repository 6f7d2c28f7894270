"""A scripted PVM and a scripted SVM: each records its steps, and one step may fail before or after its effect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pycolo.core.checkpoint import CheckpointLimits, take_checkpoint
from pycolo.core.epochs import EpochLedger
from pycolo.core.memory_cache import Stage
from pycolo.core.pages import PAGE_BYTES, Contents, Indices, PageBatch
from pycolo.errors import CheckpointFailed, PeerLost, VmLost

PAGES = 8
LIMITS = CheckpointLimits(
    precopy_rounds_min=2,
    precopy_rounds_max=4,
    precopy_pages_min=2,
    catch_up_pages_min=3,
    first_sync_rounds_max=3,
    batch_pages_max=3,
)
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


class PvmDisks:
    """PrimaryDisks."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.hurried = False  # requests are answered at once

    async def room(self, committed: int) -> None:
        self.script.run(f"disks room {committed}")

    async def expect_pause(self) -> None:
        self.script.run("disks expect_pause", lambda: setattr(self, "hurried", True))

    async def seal(self, epoch: int) -> None:
        assert self.hurried
        self.script.run(f"disks seal {epoch}")

    async def expect_requests(self) -> None:
        self.script.run("disks expect_requests", lambda: setattr(self, "hurried", False))


class Pvm:
    """PrimaryVm, PrimaryOutput and SecondaryLink in one, with disks beside it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.disks = PvmDisks(script)
        self.ram = np.zeros((PAGES, PAGE_BYTES), np.uint8)
        self.dirty: set[int] = set()
        self.running = True
        self.feeding = True
        self.sent: list[Message] = []
        self.discarded: str | None = None
        self.busy_pages = 0  # so many it writes while others are read

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

    async def expect_pages(self, count: int) -> None:
        self.script.run(f"expect_pages {count}")

    async def read_pages(self, indices: Indices) -> Contents:
        self.script.run("read_pages")
        contents = self.ram[indices]
        if self.running:
            for page in range(self.busy_pages):
                self.write(page, 3)
        return contents

    def begin_save(self) -> None:
        assert not self.running
        self.script.run("begin_save")

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

    async def caught_up(self) -> None:
        self.script.run("caught_up")

    async def committed(self, epoch: int) -> None:
        self.script.run("committed")
        if self.discarded:
            raise CheckpointFailed(self.discarded)


class Svm:
    """PrimaryLink, SecondaryVm, SecondaryFeed and SecondaryDisks in one."""

    def __init__(self, script: Script, messages: list[Message] | None = None) -> None:
        self.script = script
        self.messages = messages or []
        self.ram = np.zeros((PAGES, PAGE_BYTES), np.uint8)
        self.dirty: set[int] = set()
        self.device_state = b""
        self.running = False
        self.fed: list[tuple[int, int]] = []
        self.written: list[list[int]] = []
        self.disk_epoch = 0
        self.own_disk_writes = 0
        self.loads_in_doubt = 0
        self.is_quick = False  # in finding dirty pages
        self.write_meanwhile: Callable[[], None] = lambda: None

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

    def looks_ahead(self) -> bool:
        return self.is_quick

    async def alike(self, indices: Indices, image: Contents) -> Indices:
        self.script.run("alike")
        found: Indices = indices[(self.ram[indices] == image[indices]).all(axis=1)]
        self.write_meanwhile()
        return found

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

    async def resume(self) -> bool:
        self.script.run("resume", lambda: setattr(self, "running", True))
        self.loads_in_doubt -= 1
        return self.loads_in_doubt < 0

    async def stop_feed(self) -> None:
        self.script.run("stop_feed")

    async def drop_output(self) -> None:
        assert not self.running
        self.script.run("drop_output")

    async def start_feed(self, epoch: int, boundary: int) -> None:
        assert self.running
        self.script.run("start_feed", lambda: self.fed.append((epoch, boundary)))

    async def staged(self, epoch: int) -> None:
        self.script.run(f"staged {epoch}")

    async def expect_pause(self) -> None:
        self.script.run("expect_pause")

    async def commit(self, epoch: int) -> None:
        assert not self.running

        def commit() -> None:
            self.disk_epoch, self.own_disk_writes = epoch, 0

        self.script.run(f"commit {epoch}", commit)


async def take(pvm: Pvm, ledger: EpochLedger, sealed: Callable[[], None] = lambda: None) -> int:
    return (await take_checkpoint(pvm, pvm, pvm.disks, pvm, ledger, LIMITS, sealed)).epoch


async def one_checkpoint(pvm: Pvm, ledger: EpochLedger) -> list[Message]:
    pvm.sent = []
    await take(pvm, ledger)
    return pvm.sent


def pages_of(messages: list[Message]) -> list[int]:
    batches = [message[1] for message in messages if isinstance(message, tuple)]
    return sorted({int(page) for batch in batches for page in (*batch.indices, *batch.zeros)})
