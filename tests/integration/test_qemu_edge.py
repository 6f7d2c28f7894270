"""Real QEMUs: one VM copied into another, the tracker while a guest runs, and every way a QEMU can be lost."""

import asyncio
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from headed import Headed
from pair import until
from pycolo.core.device_state import advance_clock, read_clock
from pycolo.edge.dirty_pages import missed_pages
from pycolo.edge.guest_ram import PAGE_BYTES, Pages
from pycolo.edge.offload import NO_HEADER
from pycolo.edge.qemu import Qemu
from pycolo.edge.qemu_code import HOLE
from pycolo.edge.qemu_command import (
    InheritedFds,
    QemuConfig,
    default_machine,
    qemu_arguments,
    qemu_version,
)
from pycolo.errors import EnvironmentFault, VmLost

ETHERTYPE_RARP = b"\x80\x35"
ARP_REQUEST = bytes.fromhex(
    "ffffffffffff 525400000009 0806 0001 0800 0604 0001 525400000009 0a4d0009 000000000000 0a4d0002"
) + bytes(18)


class StartedQemu(Protocol):
    """What the fixture `start_qemu` gives (conftest.py)."""

    qemu: Qemu
    nic: Headed
    """Where the agent would be."""
    qemu_nic: FileIO
    console: Path
    log: Path

    async def says(self) -> None: ...


StartQemu = Callable[..., Awaitable[StartedQemu]]


def gone(pid: int) -> bool:
    """No such process, or only its exit status is left for whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def capture(qemu: Qemu, copy: Pages) -> bytes:
    """Stop the VM, bring `copy` up to its RAM, save its device state, let it run on."""
    await qemu.stop()
    taken = qemu.dirty.take()
    copy[taken] = qemu.ram.read(taken)
    state = await qemu.save_device_state()
    assert np.array_equal(copy, qemu.ram.pages)
    await qemu.cont()
    return state


async def apply(qemu: Qemu, copy: Pages, previous: Pages, state: bytes) -> None:
    """Make the VM what `copy` and `state` say; on return it is stopped."""
    await qemu.stop_for_load()
    own = qemu.dirty.take()
    sent = np.flatnonzero((copy != previous).any(axis=1)).astype(np.uint32)
    stale = np.union1d(own, sent)
    await qemu.replace_pages(stale, copy)
    assert len(qemu.dirty.take()) == 0, "what is written for a load is not the VM's doing"
    await qemu.load_device_state(state)
    dirtied = qemu.dirty.take()
    await qemu.replace_pages(dirtied, copy)


def unread(vm: StartedQemu) -> list[bytes]:
    """Frames that QEMU had not taken; they are gone then."""
    frames = []
    with suppress(BlockingIOError):
        while True:
            frames.append(os.read(vm.qemu_nic.fileno(), 65536))
    return frames


async def booted(start_qemu: StartQemu, *, use_uffd: bool = True) -> StartedQemu:
    vm = await start_qemu("primary", paused=False, use_uffd=use_uffd)
    await vm.says()
    return vm


@pytest.mark.parametrize(
    ("use_uffd", "keeps_code"),
    [(True, False), (False, False), (True, True)],
    ids=["uffd", "compare", "uffd, code kept"],
)
async def test_a_vm_is_copied_into_another_again_and_again(
    start_qemu: StartQemu, vm_config: QemuConfig, use_uffd: bool, keeps_code: bool
) -> None:
    primary = (await booted(start_qemu, use_uffd=use_uffd)).qemu
    config = replace(vm_config, keeps_code=keeps_code)
    secondary = (await start_qemu("secondary", paused=True, config=config, use_uffd=use_uffd)).qemu
    assert primary.dirty.kind == secondary.dirty.kind == ("uffd" if use_uffd else "compare")
    copy = np.zeros_like(primary.ram.pages)

    for _ in range(6):
        previous = copy.copy()
        state = await capture(primary, copy)
        await apply(secondary, copy, previous, state)

        assert np.array_equal(secondary.ram.pages, copy)
        assert read_clock(await secondary.save_device_state()) == read_clock(state)
        await secondary.cont()
        assert await secondary.status() == "running"
        await asyncio.sleep(0.3)

    assert await secondary.status() == await primary.status() == "running"
    await secondary.stop()
    assert read_clock(await secondary.save_device_state()).clock_ns > read_clock(state).clock_ns


# 32-bit multiboot: says one letter after the other on the serial port, each after a while.
LOAD_ADDRESS = 0x200000
HEADER = struct.pack(
    "<8I",
    *(0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) % 2**32),
    *(LOAD_ADDRESS, LOAD_ADDRESS, 0, 0, LOAD_ADDRESS + 32),
)
SAYS = bytes.fromhex("66baf803 b041 ee b900000800 49 75fd ebf3")
LETTER_AT = SAYS.index(b"\x41")


async def letters(vm: StartedQemu) -> str:
    """What the guest says from now on, but for what may be left in its serial port."""
    before = len(vm.console.read_bytes()) + 3
    await until(lambda: len(vm.console.read_bytes()[before:]) >= 20, 20.0, "what the guest says")
    return vm.console.read_bytes()[before:].decode()


async def saying_letters(start_qemu: StartQemu, vm_config: QemuConfig, tmp_path: Path) -> StartedQemu:
    kernel = tmp_path / "letters"
    kernel.write_bytes(HEADER + SAYS)
    config = replace(vm_config, kernel=kernel, initrd=None, append="", keeps_code=True)
    vm = await start_qemu("letters", paused=False, config=config)
    async with asyncio.timeout(20):
        while b"AAAA" not in vm.console.read_bytes():  # noqa: ASYNC110 - a file is looked at
            await asyncio.sleep(0.05)
    return vm


async def test_qemu_drops_what_it_has_translated_of_a_page(
    start_qemu: StartQemu, vm_config: QemuConfig, tmp_path: Path
) -> None:
    vm = await saying_letters(start_qemu, vm_config, tmp_path)
    index = np.array([LOAD_ADDRESS // PAGE_BYTES], np.uint32)
    await vm.qemu.stop()
    before, image = vm.qemu.ram.read(index), vm.qemu.ram.pages.copy()
    image[index, 32 + LETTER_AT] = ord("B")
    vm.qemu.ram.write(index, image[index])
    await vm.qemu.cont()
    assert set(await letters(vm)) == {"A"}, "QEMU does not see what is written past it"
    await vm.qemu.stop()
    vm.qemu.ram.write(index, before)
    vm.qemu._code_kept = True
    await vm.qemu.replace_pages(index, image)
    await vm.qemu.cont()
    assert set(await letters(vm)) == {"B"}


async def test_a_load_brings_other_code(start_qemu: StartQemu, vm_config: QemuConfig, tmp_path: Path) -> None:
    """From QEMU 10.2 on the load itself drops nothing."""
    vm = await saying_letters(start_qemu, vm_config, tmp_path)
    copy = np.zeros_like(vm.qemu.ram.pages)
    for letter in "BCD":
        state = await capture(vm.qemu, copy)
        await asyncio.sleep(0.2)
        previous = copy.copy()
        copy[LOAD_ADDRESS // PAGE_BYTES, 32 + LETTER_AT] = ord(letter)
        await apply(vm.qemu, copy, previous, state)
        await vm.qemu.cont()
        assert not vm.qemu.code_in_doubt
        assert set(await letters(vm)) == {letter}


async def test_other_firmware_is_loaded_twice(start_qemu: StartQemu, vm_config: QemuConfig, tmp_path: Path) -> None:
    """What is translated of it can't be dropped singly."""
    vm = await saying_letters(start_qemu, vm_config, tmp_path)
    copy = np.zeros_like(vm.qemu.ram.pages)
    for doubtful in (True, False):
        state = await capture(vm.qemu, copy)
        previous = copy.copy()
        copy[HOLE.start + 70, 0] += 1
        await apply(vm.qemu, copy, previous, state)
        await vm.qemu.cont()
        assert vm.qemu.code_in_doubt == doubtful, "the second time all code was dropped"
        assert set(await letters(vm)) == {"A"}


async def test_no_page_is_missed_while_the_guest_boots(start_qemu: StartQemu) -> None:
    vm = await start_qemu("vm", paused=True)
    copy = vm.qemu.ram.pages.copy()
    taken_pages = 0
    vm.qemu.dirty.take()

    for _ in range(15):
        await vm.qemu.cont()
        await asyncio.sleep(0.1)
        early = vm.qemu.dirty.take()  # as a pre-copy round does, the VM running
        copy[early] = vm.qemu.ram.read(early)
        await asyncio.sleep(0.1)
        await vm.qemu.stop()
        late = vm.qemu.dirty.take()
        assert len(missed_pages(vm.qemu.ram, copy, late)) == 0
        copy[late] = vm.qemu.ram.read(late)
        taken_pages += len(early) + len(late)

    assert taken_pages > 1000
    assert np.array_equal(copy, vm.qemu.ram.pages)


async def test_the_streams_own_tick_rate_is_the_rate_at_which_ticks_pass(start_qemu: StartQemu) -> None:
    primary = (await booted(start_qemu)).qemu
    secondary = (await start_qemu("secondary", paused=True)).qemu
    copy = np.zeros_like(primary.ram.pages)
    state = await capture(primary, copy)
    loaded = advance_clock(state, 25_000_000)

    await apply(secondary, copy, np.zeros_like(copy), loaded)
    await secondary.cont()
    await asyncio.sleep(1.0)
    await secondary.stop()

    before, after = read_clock(loaded), read_clock(await secondary.save_device_state())
    slope = (after.ticks - before.ticks) / (after.clock_ns - before.clock_ns)
    for clock in (read_clock(state), before, after):
        assert clock.ticks / clock.clock_ns == pytest.approx(slope, rel=1e-3)


async def test_a_vm_is_patient_while_it_runs_and_prompt_before_it_is_stopped(
    start_qemu: StartQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = (await booted(start_qemu)).qemu
    vcpus = await qemu._qmp.execute("query-cpus-fast")
    assert isinstance(vcpus, list)
    threads = [qemu.pid, *(vcpu["thread-id"] for vcpu in vcpus)]
    assert len(set(threads)) == len(threads) > 1

    def policies() -> set[int]:
        return {os.sched_getscheduler(thread) for thread in threads}

    found: list[tuple[str, set[int]]] = []
    execute, run_job = qemu._qmp.execute, qemu._qmp.run_job

    async def noted(command: str, *arguments: Any) -> object:
        found.append((command, policies()))
        return await execute(command, *arguments)

    async def noted_job(command: str, *arguments: Any) -> str | None:
        found.append((command, policies()))
        return await run_job(command, *arguments)

    await qemu.yield_vcpus()
    monkeypatch.setattr(qemu._qmp, "execute", noted)
    monkeypatch.setattr(qemu._qmp, "run_job", noted_job)
    for stop in (qemu.stop, qemu.stop_for_load):
        assert policies() == {os.SCHED_BATCH}
        found.clear()
        await stop()
        await qemu.cont()
        assert {"stop", "snapshot-load"} & {command for command, _ in found}
        assert all(before == {os.SCHED_OTHER} for _, before in found)
    assert policies() == {os.SCHED_BATCH}


async def test_what_qemu_is_told_ahead_it_does_not_carry_out(start_qemu: StartQemu) -> None:
    qemu = (await booted(start_qemu)).qemu
    for _ in range(2):  # from the second time on all but the end of the next command is there
        await qemu.stop()
        await asyncio.sleep(0.2)
        assert await qemu.status() == "paused"
        await qemu.stop()
        await qemu.cont()
        await asyncio.sleep(0.2)
        assert await qemu.status() == "running"
        await qemu.cont()


async def test_a_vm_stopped_for_a_load_runs_again(start_qemu: StartQemu) -> None:
    qemu = (await start_qemu("vm", paused=False)).qemu

    await qemu.stop_for_load()
    assert await qemu.status() == "prelaunch"
    await qemu.load_device_state(await qemu.save_device_state())
    await qemu.cont()

    assert await qemu.status() == "running"


async def test_a_frame_that_a_stopped_qemu_took_does_not_spoil_a_load(start_qemu: StartQemu) -> None:
    vm = await booted(start_qemu)
    qemu = vm.qemu
    copy = np.zeros_like(qemu.ram.pages)
    state = await capture(qemu, copy)
    await qemu.stop()
    sent, left = 0, 0
    async with asyncio.timeout(10):
        while sent == left:
            vm.nic.send(ARP_REQUEST)
            await asyncio.sleep(0.05)
            sent, left = sent + 1, left + len(unread(vm))

    await qemu.stop_for_load()
    qemu.ram.pages[:] = copy
    qemu.dirty.take()
    await qemu.load_device_state(state)

    assert len(qemu.dirty.take()) == 0
    assert np.array_equal(qemu.ram.pages, copy)


async def test_a_paused_vm_has_not_begun(start_qemu: StartQemu) -> None:
    vm = await start_qemu("vm", paused=True)

    assert await vm.qemu.status() == "prelaunch"
    assert vm.qemu.why_not_uffd == ""


async def test_announcing_sends_the_mac_address_out_of_the_nic(start_qemu: StartQemu) -> None:
    vm = await booted(start_qemu)

    await vm.qemu.announce()

    async with asyncio.timeout(10):
        frame = b""
        while frame[12:14] != ETHERTYPE_RARP:
            frame = (await asyncio.get_running_loop().sock_recv(vm.nic.end, 65536))[len(NO_HEADER) :]
    assert frame[6:12] == bytes.fromhex("525400000002")


async def test_a_state_that_is_none_is_rejected_and_qemu_lives(start_qemu: StartQemu) -> None:
    vm = await start_qemu("vm", paused=True)
    state = await vm.qemu.save_device_state()

    with pytest.raises(VmLost, match="rejected the device state"):
        await vm.qemu.load_device_state(state[: len(state) // 2])
    with pytest.raises(VmLost, match="more than"):
        await vm.qemu.load_device_state(bytes(17 << 20))

    assert not vm.qemu.lost.done()
    await vm.qemu.load_device_state(state)


async def test_the_state_of_another_machine_type_is_rejected(start_qemu: StartQemu) -> None:
    vm = await start_qemu("vm", paused=True)
    state = await vm.qemu.save_device_state()

    with pytest.raises(VmLost, match="rejected the device state"):
        await vm.qemu.load_device_state(state.replace(vm.qemu.config.machine.encode(), b"pc-q35-1.0"))


async def test_a_refused_command_names_itself_and_qemu_lives(
    start_qemu: StartQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await start_qemu("vm", paused=False)
    monkeypatch.setattr("pycolo.edge.qemu.fd_path", lambda fd: f"/nowhere/{fd}")

    with pytest.raises(VmLost, match="refused xen-save-devices-state"):
        await vm.qemu.save_device_state()

    assert not vm.qemu.lost.done()
    assert await vm.qemu.status() == "running"


@pytest.mark.parametrize("command", ["stop", "stop_for_load", "save_device_state", "status"])
async def test_a_hanging_qemu_is_lost_within_the_deadline(start_qemu: StartQemu, command: str) -> None:
    vm = await start_qemu("vm", paused=False, qmp_deadline_s=0.5)
    os.kill(vm.qemu.pid, signal.SIGSTOP)
    begun = time.monotonic()

    async with asyncio.timeout(10):
        with pytest.raises(VmLost, match=r"did not answer [a-z-]+ within 0.5 s"):
            await getattr(vm.qemu, command)()

    assert time.monotonic() - begun > 0.4
    assert "did not answer" in vm.qemu.lost.result()
    with pytest.raises(VmLost, match="did not answer"):
        await vm.qemu.status()
    await vm.qemu.kill()
    assert gone(vm.qemu.pid)


async def test_a_dead_qemu_is_lost_at_once(start_qemu: StartQemu) -> None:
    vm = await start_qemu("vm", paused=False)
    with vm.log.open("a") as log:
        log.write("the last thing it said\n\n")
    os.kill(vm.qemu.pid, signal.SIGKILL)

    async with asyncio.timeout(10):
        reason = await vm.qemu.lost

    assert reason == "QEMU vm was killed by SIGKILL; its last words: the last thing it said"
    with pytest.raises(VmLost, match="SIGKILL"):
        await vm.qemu.stop()
    with pytest.raises(OSError, match="No such process"):
        vm.qemu.dirty.take()


async def test_a_command_under_way_when_qemu_dies_says_why(start_qemu: StartQemu) -> None:
    vm = await start_qemu("vm", paused=False)
    os.kill(vm.qemu.pid, signal.SIGSTOP)
    waiting = asyncio.create_task(vm.qemu.stop())
    await asyncio.sleep(0.1)
    os.kill(vm.qemu.pid, signal.SIGKILL)

    with pytest.raises(VmLost, match="was killed by SIGKILL"):
        await asyncio.wait_for(waiting, 10)


async def test_killing_gives_everything_back(start_qemu: StartQemu) -> None:
    vm = await start_qemu("first", paused=False)
    await vm.qemu.kill()
    before = sorted(os.listdir("/proc/self/fd"))

    vm = await start_qemu("second", paused=False)
    vm.qemu.dirty.take()
    await vm.qemu.kill()
    await vm.qemu.kill()

    assert "killed by its owner" in await vm.qemu.lost
    assert gone(vm.qemu.pid)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2  # the card's two ends are the caller's


async def test_a_machine_type_that_is_not_there(start_qemu: StartQemu, vm_config: QemuConfig) -> None:
    with pytest.raises(EnvironmentFault, match=r"unsupported machine type"):
        await start_qemu("vm", paused=True, config=replace(vm_config, machine="pc-q35-99.9"))


async def test_a_binary_that_is_not_there(start_qemu: StartQemu, vm_config: QemuConfig) -> None:
    with pytest.raises(EnvironmentFault, match="no qemu-system-none"):
        await start_qemu("vm", paused=True, config=replace(vm_config, binary="qemu-system-none"))
    with pytest.raises(EnvironmentFault, match="can't run qemu-system-none"):
        qemu_version("qemu-system-none")


@pytest.mark.parametrize(
    ("says", "match"), [("QEMU emulator version 6.2.0", "too old"), ("hello", "doesn't say"), ("", "doesn't say")]
)
def test_a_binary_that_will_not_do(tmp_path: Path, says: str, match: str) -> None:
    binary = tmp_path / "qemu"
    binary.write_text(f"#!/bin/sh\necho '{says}'\n")
    binary.chmod(0o755)

    with pytest.raises(EnvironmentFault, match=match):
        qemu_version(str(binary))


def test_machine_types() -> None:
    assert default_machine((7, 2, 22)) == "pc-q35-7.2"
    assert default_machine((11, 1, 3)) == "pc-q35-11.1"
    with pytest.raises(EnvironmentFault, match="too old"):
        default_machine((7, 1, 0))


def test_paths_and_names_with_commas_stay_whole(vm_config: QemuConfig) -> None:
    config = replace(vm_config, name="a,b")

    arguments = qemu_arguments(config, InheritedFds(3, 4, 5, 6, (7,), ()), Path("/tmp/x,y"))

    assert arguments[arguments.index("-name") + 1] == "a,,b"
    assert "file,id=console,path=/tmp/x,,y" in arguments


OWNER = """
import asyncio, pickle, sys
from pathlib import Path
from pycolo.edge.guest_tap import guest_tap
from pycolo.edge.qemu import Qemu

async def main():
    config, folder = pickle.loads(bytes.fromhex(sys.argv[1])), Path(sys.argv[2])
    ours, theirs = guest_tap()
    qemu = await Qemu.start(config, [theirs], paused=False, console=folder / "console", log=folder / "log")
    print(qemu.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_qemu_dies_with_its_owner(vm_config: QemuConfig, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", OWNER, pickle.dumps(vm_config).hex(), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not gone(pid)
        owner.kill()
    deadline = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert gone(pid)
