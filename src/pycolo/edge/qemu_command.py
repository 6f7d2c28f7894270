"""Which QEMU there is and how it is started: the argument list and nothing else.

Guaranteed: two QEMUs given equal configurations have equal guest-visible hardware, and nothing in the list
refers to a file of ours that could stay behind: RAM, device state and mailbox are inherited memfds, network
cards inherited taps, and QMP is an inherited socket.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pycolo.edge.offload import NOT_USED
from pycolo.errors import EnvironmentFault

QEMU_VERSION_MIN = (7, 2, 0)
VERSION_ANSWER_S_MAX = 10
MAILBOX_NODE = "ck"
NIC_MODEL = "virtio-net-pci"
OTHER_BINARY = "install Debian's qemu-system-x86 or name another binary"

Version = tuple[int, int, int]


@dataclass(frozen=True)
class QemuDisk:
    """One disk, served by NBD; `werror` is what a failed write does: QEMU's `report`, `stop` or `enospc`."""

    name: str
    werror: str


@dataclass(frozen=True)
class QemuConfig:
    """One VM as its two QEMUs must both have it; `name` may differ, it is only shown."""

    accel: Literal["tcg", "kvm"]
    machine: str
    """Resolved machine type, `pc-q35-7.2`: device state names it, so an alias such as `q35` will not do."""
    cpus: int
    memory_mib: int
    macs: tuple[str, ...]
    """Of the network cards, in the guest's order."""
    kernel: Path | None
    """None: the firmware boots the first disk; then there is neither `initrd` nor `append`."""
    initrd: Path | None
    append: str
    name: str
    binary: str = "qemu-system-x86_64"
    disks: tuple[QemuDisk, ...] = ()
    keeps_code: bool = False
    """See `qemu_code`."""
    nic_off: tuple[str, ...] = ()
    """See `nic_properties_off`."""


@dataclass(frozen=True)
class InheritedFds:
    """Descriptor numbers that QEMU gets from us."""

    ram: int
    device_state: int
    mailbox: int
    qmp: int
    nics: tuple[int, ...]
    disks: tuple[int, ...]
    code: int | None = None

    def all(self) -> list[int]:
        """Every number."""
        code = [] if self.code is None else [self.code]
        return [self.ram, self.device_state, self.mailbox, self.qmp, *self.nics, *self.disks, *code]


def qemu_version(binary: str) -> Version:
    """Major, minor and micro. EnvironmentFault when `binary` is missing, mute, or older than
    `QEMU_VERSION_MIN`.
    """
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", _answer(binary, "--version"))
    if match is None:
        raise EnvironmentFault(f"{binary} doesn't say a QEMU version: {OTHER_BINARY}")
    major, minor, micro = (int(part) for part in match.groups())
    if (major, minor, micro) < QEMU_VERSION_MIN:
        raise EnvironmentFault(f"{binary} is QEMU {major}.{minor}.{micro}, which is too old; install 7.2 or newer")
    return major, minor, micro


def nic_properties_off(binary: str) -> tuple[str, ...]:
    """What a network card of that QEMU offers a guest and we could not pass on (`offload`): to be switched off. Raises
    EnvironmentFault when `binary` can't be run.
    """
    known = re.findall(r"^ *(\w+)=", _answer(binary, "-device", f"{NIC_MODEL},help"), re.MULTILINE)
    return tuple(name for name in NOT_USED if name in known)


def _answer(binary: str, *question: str) -> str:
    try:
        return subprocess.run(
            [binary, *question], capture_output=True, text=True, timeout=VERSION_ANSWER_S_MAX, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise EnvironmentFault(
            f"can't run {binary} ({getattr(problem, 'strerror', None) or problem}): {OTHER_BINARY}"
        ) from problem


def default_machine(version: Version) -> str:
    """The newest versioned q35 machine type of that QEMU. EnvironmentFault when it is older than
    `QEMU_VERSION_MIN`.
    """
    if version < QEMU_VERSION_MIN:
        raise EnvironmentFault(f"QEMU {version[0]}.{version[1]} is too old; install 7.2 or newer")
    return f"pc-q35-{version[0]}.{version[1]}"


def qemu_arguments(config: QemuConfig, fds: InheritedFds, console: Path) -> list[str]:
    """QEMU's arguments, without the binary; the VM does not run before `cont`. The guest's serial port goes
    to `console`.
    """
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-name", escaped(config.name), "-S"),
        # A guest that ends is no QEMU that dies: we learn of it, and decide for both copies.
        *("-action", "reboot=reset,shutdown=pause,panic=pause", "-device", "pvpanic-pci"),
        *_hardware(config, fds.ram),
        *_boot(config),
        *("-chardev", f"file,id=console,path={escaped(str(console))}", "-serial", "chardev:console"),
        *(
            part
            for place in enumerate(zip(config.macs, fds.nics, strict=True))
            for part in _nic(*place, config.nic_off)
        ),
        *(part for place in enumerate(zip(config.disks, fds.disks, strict=True)) for part in _disk(*place)),
        *("-blockdev", _mailbox(fds.mailbox)),
        *("-chardev", f"socket,id=qmp,fd={fds.qmp}", "-qmp", "chardev:qmp"),
        *([] if fds.code is None else _code(fds.code)),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    ]


def _code(fd: int) -> list[str]:
    return ["-chardev", f"socket,id=code,fd={fd}", "-object", "qtest,id=code,chardev=code,log=none"]


def fd_path(fd: int) -> str:
    """The path by which QEMU opens a descriptor that it inherited, anew and with its own access mode."""
    return f"/proc/self/fd/{fd}"


def escaped(value: str) -> str:
    """A value as QEMU's comma separated options want it."""
    return value.replace(",", ",,")


def _hardware(config: QemuConfig, ram_fd: int) -> list[str]:
    # Random numbers of the hardware would make the two guests differ; some nested KVMs refuse that MSR.
    cpu = "host,-rdrand,-rdseed,-arch-capabilities" if config.accel == "kvm" else "qemu64,-rdrand"
    ram = f"memory-backend-file,id=ram,mem-path={fd_path(ram_fd)},size={config.memory_mib}M,share=on"
    return [
        *("-accel", config.accel, "-cpu", cpu, "-smp", _processors(config), "-m", f"{config.memory_mib}M"),
        *("-machine", f"{escaped(config.machine)},memory-backend=ram,suppress-vmdesc=on", "-object", ram),
        # The guest's clock stands still with the VM and travels with its device state.
        *("-rtc", "base=utc,clock=vm"),
    ]


def _processors(config: QemuConfig) -> str:
    # Where no second one may ever come, TCG does without atomic instructions and so without the guest's barriers. But
    # QEMU's own thread works on the virtio queues beside it: some day a queue stands still for ever (qemu-notes.md).
    return "1,maxcpus=2" if (config.accel, config.cpus) == ("tcg", 1) else str(config.cpus)


def _boot(config: QemuConfig) -> list[str]:
    kernel = [] if config.kernel is None else ["-kernel", str(config.kernel)]
    initrd = [] if config.initrd is None else ["-initrd", str(config.initrd)]
    return [*kernel, *initrd, *(["-append", config.append] if config.append else [])]


def _nic(number: int, mac_and_fd: tuple[str, int], off: tuple[str, ...]) -> list[str]:
    mac, fd = mac_and_fd
    offers = "".join(f",{name}=off" for name in off)
    return [
        *("-netdev", f"tap,id=net{number},fd={fd},vhost=off"),
        # Without an option ROM: ROM contents are no part of the device state.
        *("-device", f"{NIC_MODEL},id=nic{number},netdev=net{number},mac={escaped(mac)},romfile={offers}"),
    ]


def _disk(number: int, disk_and_fd: tuple[QemuDisk, int]) -> list[str]:
    disk, fd = disk_and_fd
    rerror = "stop" if disk.werror == "stop" else "report"
    order = ",bootindex=1" if number == 0 else ""
    return [
        # Without reconnection: `stop` would wait for it with QMP frozen.
        *("-blockdev", f"driver=nbd,node-name=disk{number},server.type=fd,server.str={fd},discard=unmap"),
        "-device",
        f"virtio-blk-pci,id=blk{number},drive=disk{number},serial={disk.name},werror={disk.werror},rerror={rerror}{order}",
    ]


def _mailbox(fd: int) -> str:
    return f"driver=qcow2,node-name={MAILBOX_NODE},file.driver=file,file.filename={fd_path(fd)},file.locking=off"
