"""QEMU's arguments: each network card has its own socket and address, in the guest's order."""

import itertools
from pathlib import Path

from pycolo.edge.qemu_command import InheritedFds, QemuConfig, qemu_arguments


def arguments(macs: tuple[str, ...], nics: tuple[int, ...]) -> list[str]:
    config = QemuConfig(
        accel="tcg",
        machine="pc-q35-7.2",
        cpus=1,
        memory_mib=64,
        macs=macs,
        kernel=None,
        initrd=None,
        append="",
        name="vm",
    )
    fds = InheritedFds(3, 4, 5, 6, nics, ())
    assert set(nics) <= set(fds.all())
    return qemu_arguments(config, fds, Path("/console"))


def of(option: str, given: list[str], kind: str) -> list[str]:
    pairs = itertools.pairwise(given)
    return [value for name, value in pairs if name == option and value.startswith(kind)]


def test_one_card() -> None:
    given = arguments(("52:54:00:00:00:02",), (7,))
    assert of("-netdev", given, "dgram") == ["dgram,id=net0,local.type=fd,local.str=7"]
    assert of("-device", given, "virtio-net-pci") == [
        "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:02,romfile="
    ]


def test_several_cards() -> None:
    given = arguments(("52:54:00:00:00:02", "52:54:00:00:00:03"), (7, 9))
    assert of("-netdev", given, "dgram") == [
        "dgram,id=net0,local.type=fd,local.str=7",
        "dgram,id=net1,local.type=fd,local.str=9",
    ]
    assert of("-device", given, "virtio-net-pci") == [
        "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:02,romfile=",
        "virtio-net-pci,id=nic1,netdev=net1,mac=52:54:00:00:00:03,romfile=",
    ]
