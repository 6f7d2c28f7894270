"""QEMU's arguments: each network card has its own tap and address, in the guest's order."""

import itertools
from pathlib import Path
from typing import Literal

import pytest

from pycolo.edge.qemu_command import InheritedFds, QemuConfig, nic_properties_off, qemu_arguments
from pycolo.errors import EnvironmentFault


def arguments(
    macs: tuple[str, ...] = (),
    nics: tuple[int, ...] = (),
    off: tuple[str, ...] = (),
    *,
    accel: Literal["tcg", "kvm"] = "tcg",
    cpus: int = 1,
) -> list[str]:
    config = QemuConfig(
        accel=accel,
        machine="pc-q35-7.2",
        cpus=cpus,
        memory_mib=64,
        macs=macs,
        kernel=None,
        initrd=None,
        append="",
        name="vm",
        nic_off=off,
    )
    fds = InheritedFds(3, 4, 5, 6, nics, ())
    assert set(nics) <= set(fds.all())
    return qemu_arguments(config, fds, Path("/console"))


def of(option: str, given: list[str], kind: str) -> list[str]:
    pairs = itertools.pairwise(given)
    return [value for name, value in pairs if name == option and value.startswith(kind)]


def test_one_card() -> None:
    given = arguments(("52:54:00:00:00:02",), (7,))
    assert of("-netdev", given, "tap") == ["tap,id=net0,fd=7,vhost=off"]
    assert of("-device", given, "virtio-net-pci") == [
        "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:02,romfile="
    ]


def test_several_cards() -> None:
    given = arguments(("52:54:00:00:00:02", "52:54:00:00:00:03"), (7, 9))
    assert of("-netdev", given, "tap") == ["tap,id=net0,fd=7,vhost=off", "tap,id=net1,fd=9,vhost=off"]
    assert of("-device", given, "virtio-net-pci") == [
        "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:02,romfile=",
        "virtio-net-pci,id=nic1,netdev=net1,mac=52:54:00:00:00:03,romfile=",
    ]


def test_tcg_has_barriers_with_one_processor_too() -> None:
    assert of("-smp", arguments(), "") == ["1,maxcpus=2"]
    assert of("-smp", arguments(cpus=2), "") == ["2"]
    assert of("-smp", arguments(accel="kvm"), "") == ["1"]


def test_what_no_note_can_say_is_switched_off() -> None:
    (card,) = of("-device", arguments(("52:54:00:00:00:02",), (7,), ("host_ufo", "guest_uso4")), "virtio-net-pci")
    assert card.endswith(",romfile=,host_ufo=off,guest_uso4=off")


def test_only_what_that_qemu_knows_is_switched_off(tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_text(
        "#!/bin/sh\necho 'virtio-net-pci options:\n  host_uso=<bool> - on\n  host_tso4=<bool>\n  guest_ufo=<bool>'"
    )
    binary.chmod(0o700)
    assert nic_properties_off(str(binary)) == ("guest_ufo", "host_uso")
    with pytest.raises(EnvironmentFault, match="can't run"):
        nic_properties_off(str(tmp_path / "none"))


def test_the_real_qemu_says_what_it_knows() -> None:
    assert set(nic_properties_off("qemu-system-x86_64")) >= {"host_ufo", "guest_ufo"}
