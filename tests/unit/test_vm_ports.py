"""Both VM copies as a checkpoint sees them. The PVM's state is saved while other things are done, and it does not run
meanwhile; the SVM's clock is moved to where the PVM's will be.
"""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from written_memory import written_kib

from pycolo.core.pages import Contents
from pycolo.edge import vm_ports
from pycolo.edge.qemu import Qemu
from pycolo.edge.vm_ports import LOAD_S_FIRST_GUESS, PrimaryVmPort, SecondaryVmPort
from pycolo.errors import VmLost


class Vm:
    """A QEMU whose save ends when it is told to."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.saved: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.dirty: SimpleNamespace
        self.ram = SimpleNamespace(page_count=4, pages=np.zeros((4, 4096), np.uint8))

    async def stop(self) -> None:
        self.steps.append("stop")

    async def cont(self) -> None:
        self.steps.append("cont")

    async def save_device_state(self) -> bytes:
        self.steps.append("save")
        try:
            return await self.saved
        finally:
            self.steps.append("saved")


async def paused() -> tuple[Vm, PrimaryVmPort]:
    vm = Vm()
    port = PrimaryVmPort(cast(Qemu, vm), self_check=False)
    await port.pause()
    port.begin_save()
    await asyncio.sleep(0)
    assert vm.steps == ["stop", "save"]
    return vm, port


async def test_what_was_begun_is_what_comes() -> None:
    vm, port = await paused()
    vm.saved.set_result(b"registers")
    assert await port.save_device_state() == b"registers"
    await port.resume()
    assert vm.steps == ["stop", "save", "saved", "cont"]


@pytest.mark.parametrize("end", [b"registers", VmLost("it died")])
async def test_a_vm_that_nobody_waits_for_any_more_does_not_run_before_it_is_saved(end: bytes | VmLost) -> None:
    vm, port = await paused()
    resuming = asyncio.create_task(port.resume())
    await asyncio.sleep(0.01)
    assert vm.steps == ["stop", "save"]
    if isinstance(end, VmLost):
        vm.saved.set_exception(end)
    else:
        vm.saved.set_result(end)
    await resuming
    assert vm.steps == ["stop", "save", "saved", "cont"]


async def test_a_lost_vm_is_lost_to_who_asks() -> None:
    vm, port = await paused()
    vm.saved.set_exception(VmLost("it died"))
    with pytest.raises(VmLost, match="it died"):
        await port.save_device_state()
    await port.resume()


async def test_who_is_cancelled_while_it_is_saved_leaves_nothing_under_way() -> None:
    vm, port = await paused()
    asking = asyncio.create_task(port.save_device_state())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await port.resume()
    assert vm.steps == ["stop", "save", "saved", "cont"]


@pytest.mark.parametrize("gives_up", ["at once", "while the VM is about to run again"])
async def test_a_save_that_fails_when_its_checkpoint_has_failed_already_is_no_news(gives_up: str) -> None:
    vm, port = await paused()
    unheard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context["message"]))
    if gives_up != "at once":
        resuming = asyncio.create_task(port.resume())
        await asyncio.sleep(0)
        resuming.cancel()
        await asyncio.wait([resuming])
        del resuming
    vm.saved.set_exception(VmLost("it died"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert vm.steps == ["stop", "save", "saved"]
    del port
    gc.collect()
    assert unheard == []


async def test_a_bug_in_a_save_that_nobody_asks_for_any_more_is_raised() -> None:
    vm, port = await paused()
    vm.saved.set_exception(TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        await port.resume()
    assert vm.steps == ["stop", "save", "saved", "cont"], "the VM is not left standing"


@pytest.mark.parametrize(("expected", "read"), [(600, 600), (600, 900), (600, 1000), (0, 700), (9000, 1024)])
async def test_what_was_read_in_a_pause_is_nobody_elses(expected: int, read: int) -> None:
    vm, port = await paused()
    ram = np.arange(1024, dtype=np.uint32).repeat(1024).reshape(1024, 1024).view(np.uint8)
    vm.ram = SimpleNamespace(page_count=1024, pages=ram)
    vm.dirty = SimpleNamespace(contents=lambda indices: ram[indices])
    port = PrimaryVmPort(cast(Qemu, vm), self_check=False)
    seen: list[Contents] = []
    for _ in range(3):
        await port.expect_pages(expected)
        indices = np.arange(1024 - read, 1024, dtype=np.uint32)
        seen.append(await port.read_pages(indices))
        assert np.array_equal(seen[-1], ram[indices])
    assert not any(np.shares_memory(one, other) for one in seen for other in seen if one is not other)


@pytest.mark.parametrize("read", [700, 900, 2400])
async def test_memory_for_the_pages_of_a_pause_is_written_before_it(read: int) -> None:
    vm, ram = Vm(), np.ones((4096, 4096), np.uint8)
    vm.ram = SimpleNamespace(page_count=4096, pages=ram)
    vm.dirty = SimpleNamespace(contents=lambda indices: ram[indices])
    port = PrimaryVmPort(cast(Qemu, vm), self_check=False)
    await port.expect_pages(600)
    room = port._room
    assert written_kib(room) >= 900 * 4, "half as many again"
    contents = await port.read_pages(np.arange(read, dtype=np.uint32))
    assert np.shares_memory(contents, room)


async def test_memory_that_no_pause_took_is_given_back() -> None:
    vm = Vm()
    vm.ram.page_count = 4096
    port = PrimaryVmPort(cast(Qemu, vm), self_check=False)
    await port.expect_pages(600)
    assert len(port._room)
    await port.resume()
    assert not len(port._room)


async def test_a_pause_without_a_save_ends_at_once() -> None:
    vm = Vm()
    port = PrimaryVmPort(cast(Qemu, vm), self_check=False)
    await port.pause()
    await port.resume()
    assert vm.steps == ["stop", "cont"]


class Loading:
    """A QEMU whose loads take as long as they are told to, on a clock of their own."""

    code_in_doubt = False

    def __init__(self) -> None:
        self.now_s = 100.0
        self.takes_s = 0.010

    def monotonic(self) -> float:
        return self.now_s

    async def load_device_state(self, device_state: bytes) -> None:
        del device_state
        self.now_s += self.takes_s

    async def cont(self) -> None:
        """It runs at once."""


async def test_one_slow_load_does_not_put_the_next_clock_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, moved_s = Loading(), []

    def advance_clock(stream: bytes, advance_ns: int) -> bytes:
        moved_s.append(advance_ns / 1e9)
        return stream

    monkeypatch.setattr(vm_ports, "time", vm)
    monkeypatch.setattr(vm_ports, "advance_clock", advance_clock)
    port = SecondaryVmPort(cast(Qemu, vm), vm.monotonic, self_check=False)
    for takes_s in [0.010, 0.011, 2.0, 0.010, 0.012, 0.012]:
        vm.takes_s = takes_s
        await port.load_device_state(b"")
        await port.resume()
    assert moved_s[0] == pytest.approx(LOAD_S_FIRST_GUESS)
    assert moved_s[1:] == [pytest.approx(0.010, abs=0.002)] * 5
