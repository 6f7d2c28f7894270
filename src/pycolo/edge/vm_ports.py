"""The two VM copies as core/checkpoint wants them: QEMU, its RAM and its dirty pages behind ports, timed.

With `self_check` every checkpoint compares all RAM with what was copied: a page that the tracker missed, or an SVM that
differs from the memory cache before it resumes, ends in VmLost rather than in a wrong copy (rule 7).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from statistics import median

import numpy as np

from pycolo.core.device_state import advance_clock
from pycolo.core.pages import PAGE_BYTES, Contents, Indices
from pycolo.edge.dirty_pages import missed_pages
from pycolo.edge.page_compare import alike, differing_pages
from pycolo.edge.qemu import Qemu
from pycolo.errors import VmLost

READ_STEP_PAGES = 256  # 1 MiB: a few ms, even of a slow host, after which heartbeats get their turn
COMPARE_STEP_PAGES = 2048
ROOM_MULTIPLE = 4  # of the pages expected: those beyond take memory only when there are so many
NO_PAGES: Contents = np.empty((0, PAGE_BYTES), np.uint8)
WRITE_STEP_PAGES = 1024  # memory that is written for the first time costs a fault for each page
TURNS_PER_BREATH = 3  # a heartbeat that is due needs so many turns of the loop: its timer, its task, its socket
LOAD_S_FIRST_GUESS = 0.0085
LOADS_KEPT = 7


def _ms() -> float:
    return time.monotonic_ns() / 1e6


def _seen(saving: asyncio.Task[bytes]) -> None:
    """Its failure is told to whoever asks for the state; a checkpoint that fails first asks no more, and needn't."""
    if not saving.cancelled():
        saving.exception()


async def _dirty(qemu: Qemu) -> Indices:
    try:
        if qemu.dirty.kind == "compare":  # long, so that heartbeats need their turn
            return await asyncio.to_thread(qemu.dirty.take)
        return qemu.dirty.take()
    except OSError as problem:
        raise VmLost(f"the dirty pages of QEMU {qemu.config.name} can't be read: {problem.strerror}") from problem


class PrimaryVmPort:
    """The PVM; implements PrimaryVm. `pause_ms` is the length of its last pause."""

    def __init__(self, qemu: Qemu, *, self_check: bool) -> None:
        self._qemu = qemu
        self._shadow: Contents | None = np.zeros_like(qemu.ram.pages) if self_check else None
        self._reported = np.zeros(qemu.ram.page_count, bool)  # dirty, and not read since
        self._paused_at_ms = self._resumed_at_ms = _ms()
        self._paused = False
        self.pause_ms = 0.0
        self._saving: asyncio.Task[bytes] | None = None
        self._room = NO_PAGES

    async def pause(self) -> None:
        self._paused_at_ms = _ms()
        await self._qemu.stop()
        self._paused = True

    async def resume(self) -> None:
        bug = await self._end_save()
        await self._qemu.cont()
        self._paused = False
        self._resumed_at_ms = _ms()
        self.pause_ms = self._resumed_at_ms - self._paused_at_ms
        self._room = NO_PAGES
        if bug is not None:
            raise bug

    def resumed_ms_ago(self) -> float:
        """Time since the PVM ran again."""
        return _ms() - self._resumed_at_ms

    async def take_dirty_pages(self) -> Indices:
        taken = await _dirty(self._qemu)
        self._reported[taken] = True
        if self._shadow is not None:
            self._check(self._shadow)
        return taken

    async def expect_pages(self, count: int) -> None:
        # To write memory for the first time takes ten times as long as to copy a page to it.
        self._room = NO_PAGES  # the old one goes before the new one comes
        if count <= READ_STEP_PAGES:
            return
        self._room = np.empty((min(ROOM_MULTIPLE * count, self._qemu.ram.page_count), PAGE_BYTES), np.uint8)
        for start in range(0, count + count // 2, READ_STEP_PAGES):  # half as many again: the VM writes on meanwhile
            self._room[start : start + READ_STEP_PAGES, 0] = 0
            await asyncio.sleep(0)

    async def read_pages(self, indices: Indices) -> Contents:
        self._reported[indices] = False
        if len(indices) <= READ_STEP_PAGES:
            contents = self._qemu.dirty.contents(indices)
        else:
            contents = self._take_room(len(indices))
            for start in range(0, len(indices), READ_STEP_PAGES):
                step = slice(start, start + READ_STEP_PAGES)
                contents[step] = self._qemu.dirty.contents(indices[step])
                await asyncio.sleep(0)
        if self._shadow is not None:
            self._shadow[indices] = contents
        return contents

    def _take_room(self, count: int) -> Contents:
        """Memory for so many pages; its owner is who asks, as it may be under way to the secondary for long."""
        room, self._room = self._room, NO_PAGES
        return room[:count] if len(room) >= count else np.empty((count, PAGE_BYTES), np.uint8)

    def begin_save(self) -> None:
        # QEMU saves by itself, while we look for dirty pages and copy them: the longest part of the pause and the next.
        self._saving = asyncio.create_task(self._qemu.save_device_state())
        self._saving.add_done_callback(_seen)

    async def save_device_state(self) -> bytes:
        assert self._saving is not None
        return await self._saving

    async def _end_save(self) -> BaseException | None:
        """Whatever came of it: who wants to know has asked. But for a bug, which is returned: nobody may."""
        saving, self._saving = self._saving, None
        if saving is None:
            return None
        await asyncio.wait([saving])
        failure = None if saving.cancelled() else saving.exception()
        return None if isinstance(failure, VmLost) else failure

    def _check(self, shadow: Contents) -> None:
        if not self._paused:
            return
        missed = missed_pages(self._qemu.ram, shadow, np.flatnonzero(self._reported).astype(np.uint32))
        if len(missed):
            raise VmLost(f"self-check: the tracker missed {len(missed)} dirty pages, the first is page {missed[0]}")


class SecondaryVmPort:
    """The SVM; implements SecondaryVm."""

    def __init__(self, qemu: Qemu, pvm_resumed_at_s: Callable[[], float], *, self_check: bool) -> None:
        self._qemu = qemu
        self._pvm_resumed_at_s = pvm_resumed_at_s
        self._image: Contents | None = None
        self._self_check = self_check
        self._loads_s = deque([LOAD_S_FIRST_GUESS], maxlen=LOADS_KEPT)  # how long the last ones took
        self._load_began_at_s = 0.0
        self.loads_checked = 0

    async def breathe(self) -> None:
        for _ in range(TURNS_PER_BREATH):
            await asyncio.sleep(0)

    async def stop_for_load(self) -> None:
        await self._qemu.stop_for_load()

    async def take_dirty_pages(self) -> Indices:
        return await _dirty(self._qemu)

    def looks_ahead(self) -> bool:
        return self._qemu.dirty.kind != "compare"

    async def alike(self, indices: Indices, image: Contents) -> Indices:
        found = []
        for start in range(0, len(indices), COMPARE_STEP_PAGES):
            found.append(alike(self._qemu.ram.pages, image, indices[start : start + COMPARE_STEP_PAGES]))
            await self.breathe()
        return np.concatenate(found)

    async def write_pages(self, indices: Indices, image: Contents) -> None:
        self._image = image
        for start in range(0, len(indices), WRITE_STEP_PAGES):
            await self._qemu.replace_pages(indices[start : start + WRITE_STEP_PAGES], image)
            await self.breathe()

    def forget_image(self) -> None:
        """It is loaded no more."""
        self._image = None

    async def load_device_state(self, device_state: bytes) -> None:
        """Load with the guest's clock moved to where the PVM's will be when the SVM resumes (design section 3)."""
        self._load_began_at_s = time.monotonic()
        # The median: a load for which the machine had no time must not put the next one's clock ahead.
        behind_s = self._load_began_at_s - self._pvm_resumed_at_s() + median(self._loads_s)
        try:
            aligned = advance_clock(device_state, max(0, int(behind_s * 1e9)))
        except ValueError as problem:
            raise VmLost(f"the device state has no clock that can be aligned: {problem}") from problem
        await self._qemu.load_device_state(aligned)

    async def resume(self) -> bool:
        if self._self_check and self._image is not None:
            compared = await asyncio.to_thread(differing_pages, self._qemu.ram.pages, self._image)
            different = np.flatnonzero(compared)
            if len(different):
                raise VmLost(f"self-check: {len(different)} pages of the SVM differ from the memory cache after a load")
            self.loads_checked += 1
        await self._qemu.cont()
        self._loads_s.append(time.monotonic() - self._load_began_at_s)
        return not self._qemu.code_in_doubt
