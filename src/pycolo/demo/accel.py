"""TCG or KVM: KVM where it really runs the guest, which only a trial tells (a nested or partial KVM may not)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Literal

from pycolo.demo.lab import GUEST_ADDRESS
from pycolo.edge.guest_tap import guest_tap
from pycolo.edge.qemu import Qemu
from pycolo.edge.qemu_command import QemuConfig, default_machine, qemu_version
from pycolo.errors import EnvironmentFault, VmLost
from pycolo.guest.builder import READY_LINE, GuestImage
from pycolo.guest.console import console_says

KVM_BOOT_S_MAX = 10.0
TRIAL_FILE = "kvm-trial"
TRIAL_MEMORY_MIB = 256

Accel = Literal["tcg", "kvm"]


async def choose_accel(wish: str, qemu: str, image: GuestImage, scratch: Path) -> tuple[Accel, str]:
    """(accelerator, why); the outcome of a trial is kept beside the guest image."""
    if wish == "tcg":
        return "tcg", "asked for"
    if wish == "kvm":
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise EnvironmentFault("/dev/kvm can't be opened: load the kvm module or use --accel tcg")
        return "kvm", "asked for"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "there is no /dev/kvm"
    version = ".".join(map(str, qemu_version(qemu)))
    memory = image.kernel.parent / f"{TRIAL_FILE}-{version}-{os.uname().release}"
    if not memory.exists():
        memory.write_text("yes" if await _boots_under_kvm(qemu, image, scratch) else "no")
    if memory.read_text() == "yes":
        return "kvm", "it boots the guest"
    return "tcg", f"KVM does not boot the guest in {KVM_BOOT_S_MAX:.0f} s"


async def _boots_under_kvm(qemu: str, image: GuestImage, scratch: Path) -> bool:
    ours, theirs = guest_tap()
    console = scratch / "kvm-trial-console.log"
    config = QemuConfig(
        accel="kvm",
        machine=default_machine(qemu_version(qemu)),
        cpus=1,
        memory_mib=TRIAL_MEMORY_MIB,
        macs=("52:54:00:00:00:02",),
        kernel=image.kernel,
        initrd=image.initrd,
        append=image.command_line(f"{GUEST_ADDRESS}/24"),
        name="kvm-trial",
        binary=qemu,
    )
    with ours, theirs:
        try:
            trial = await Qemu.start(config, [theirs], paused=False, console=console, log=scratch / "kvm-trial.log")
        except (EnvironmentFault, VmLost):
            return False
        try:
            ends_at = time.monotonic() + KVM_BOOT_S_MAX
            while time.monotonic() < ends_at and not trial.lost.done():
                if console_says(console, READY_LINE):
                    return True
                await asyncio.sleep(0.1)
            return False
        finally:
            await trial.kill()
