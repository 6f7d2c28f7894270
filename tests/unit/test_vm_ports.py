"""The PVM as a checkpoint sees it: its state is saved while other things are done, and it does not run meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from pycolo.edge.qemu import Qemu
from pycolo.edge.vm_ports import PrimaryVmPort
from pycolo.errors import VmLost


class Vm:
    """A QEMU whose save ends when it is told to."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.saved: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
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


async def test_a_pause_without_a_save_ends_at_once() -> None:
    vm = Vm()
    port = PrimaryVmPort(cast(Qemu, vm), self_check=False)
    await port.pause()
    await port.resume()
    assert vm.steps == ["stop", "cont"]
