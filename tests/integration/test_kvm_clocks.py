"""The clocks that KVM keeps for a guest: found in real device states, moved, and loaded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from firmware_guest import MEMORY_MIB, READY, build_firmware

from pycolo.core.device_state import advance_clock, read_clock, read_kvm_clocks
from pycolo.edge.qemu_command import QemuConfig

pytestmark = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm is missing or may not be opened: no KVM here"
)
AHEAD_NS = 5_000_000_000
RUN_S = 1.0


@pytest.mark.parametrize("cpus", [1, 2])
async def test_a_load_takes_the_clocks_of_kvm_as_they_were_moved(
    start_qemu: Callable[..., Awaitable[Any]], vm_config: QemuConfig, tmp_path: Path, cpus: int
) -> None:
    kernel = build_firmware(tmp_path)
    config = replace(vm_config, accel="kvm", cpus=cpus, memory_mib=MEMORY_MIB, kernel=kernel, initrd=None, append="")
    primary = await start_qemu("primary", paused=False, config=config)
    await primary.says(READY)
    secondary = (await start_qemu("secondary", paused=True, config=config)).qemu
    await primary.qemu.stop()
    state = await primary.qemu.save_device_state()
    saved = read_kvm_clocks(state)
    assert saved.kvmclock_ns is not None
    assert saved.kvmclock_ns == pytest.approx(read_clock(state).clock_ns, abs=1e9)
    assert len(saved.tscs) == cpus
    assert min(saved.tscs) > 0
    assert b"cpu/steal_time_msr" in state  # KVM writes into the guest's memory there, too

    advanced = advance_clock(state, AHEAD_NS)
    await secondary.stop_for_load()
    secondary.ram.write(np.arange(secondary.ram.page_count, dtype=np.uint32), primary.qemu.ram.pages)
    await secondary.load_device_state(advanced)
    await secondary.cont()
    await asyncio.sleep(RUN_S)
    await secondary.stop()
    later = await secondary.save_device_state()

    loaded, found = read_kvm_clocks(advanced), read_kvm_clocks(later)
    assert loaded.kvmclock_ns is not None
    assert found.kvmclock_ns is not None
    ran_ns = read_clock(later).clock_ns - read_clock(advanced).clock_ns
    rate = read_clock(state).ticks / read_clock(state).clock_ns
    print(
        f"ran {ran_ns / 1e6:.2f} ms, kvmclock {(found.kvmclock_ns - loaded.kvmclock_ns) / 1e6:.2f} ms, tsc "
        f"{[(after - before) / rate / 1e6 for after, before in zip(found.tscs, loaded.tscs, strict=True)]} ms"
    )
    assert found.kvmclock_ns - loaded.kvmclock_ns == pytest.approx(ran_ns, abs=50e6)
    if saved.tscs[0] < 2 * read_clock(state).ticks:  # else this KVM gives its guests the host's TSC, which can't be set
        for after, before in zip(found.tscs, loaded.tscs, strict=True):
            assert (after - before) / rate == pytest.approx(ran_ns, abs=50e6)
