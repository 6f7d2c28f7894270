"""What the manager asks its disk process for, and what it does when that process fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from pycolo.config import CopyConfig, DiskConfig, FileArbiterConfig, ProtectionConfig, VmConfig
from pycolo.core import wire
from pycolo.core.failover import Role
from pycolo.disk import protocol
from pycolo.edge.disk_link import NoDisks
from pycolo.edge.qemu_command import QemuDisk
from pycolo.errors import EnvironmentFault, VmLost
from pycolo.manager.disks import VmDisks

MIB = 1 << 20
ROOT = DiskConfig(name="root", path=Path("root.img"), size_mib=4)
DATA = DiskConfig(name="data", path=Path("data.img"), size_mib=3, format="raw", werror="enospc")


def host(folder: Path, disk_dir: Path | None) -> CopyConfig:
    return CopyConfig(
        name="h1",
        listen="127.0.0.1:7700",
        peer="127.0.0.2:7700",
        state_dir=folder,
        arbiter=FileArbiterConfig(kind="file", path=folder),
        bridge="br0",
        insecure=True,
        taps=("colo0",),
        disk_dir=disk_dir,
    )


def refused(why: str) -> None:
    raise AssertionError(why)


def vm_disks(folder: Path, role: Role, *disks: DiskConfig, has_dir: bool = True, older_disk: bool = False) -> VmDisks:
    protection = ProtectionConfig(disk_spill_mib_max=0, disk_copy_mib_per_s_max=7, disk_stall_ms_max=500)
    vm = VmConfig(name="vm", kernel=folder, initrd=folder, accel="tcg", disks=disks, protection=protection)
    return VmDisks(host(folder, folder if has_dir else None), vm, role, "token", older_disk=older_disk)


def ignore(trouble: protocol.Trouble) -> None:
    del trouble


async def test_a_vm_without_disks_has_no_process_and_its_checkpoints_go_through(tmp_path: Path) -> None:
    disks = vm_disks(tmp_path, Role.PRIMARY)
    await disks.start(ignore, refused)
    assert isinstance(disks.ports, NoDisks)
    await disks.ports.seal(1)
    await disks.ports.staged(1)
    assert (disks.link, disks.qemu_ends, disks.shapes, disks.for_qemu) == (None, [], (), ())
    assert await disks.details() == {}
    await disks.end()


def test_the_command_has_bytes_and_absolute_paths(tmp_path: Path) -> None:
    command = vm_disks(tmp_path, Role.SECONDARY, ROOT, DATA)._open_command()
    assert command == protocol.Open(
        role="secondary",
        disks=[
            protocol.DiskFile("root", str(tmp_path / "root.img"), 4 * MIB, ""),
            protocol.DiskFile("data", str(tmp_path / "data.img"), 3 * MIB, "raw"),
        ],
        state_dir=str(tmp_path),
        listen_host="127.0.0.1",
        token="token",
        tls=None,
        buffer_bytes_max=256 * MIB,
        spill_bytes_max=0,
        queue_bytes_max=16 * MIB,
        stall_ms_max=500,
        copy_bytes_per_s_max=7 * MIB,
        self_check=False,
    )


def test_the_command_says_whether_an_older_disk_will_do(tmp_path: Path) -> None:
    assert vm_disks(tmp_path, Role.PRIMARY, ROOT, older_disk=True)._open_command().older_disk
    assert not vm_disks(tmp_path, Role.PRIMARY, ROOT)._open_command().older_disk


async def test_a_relative_path_without_a_folder_is_said_before_anything_is_started(tmp_path: Path) -> None:
    disks = vm_disks(tmp_path, Role.PRIMARY, ROOT, has_dir=False)
    with pytest.raises(EnvironmentFault, match=r"set `disk_dir` in host\.toml"):
        await disks.start(ignore, refused)
    assert (disks.link, disks.qemu_ends) == (None, [])


async def test_the_images_are_opened_in_order_and_qemu_gets_an_end_for_each(tmp_path: Path) -> None:
    disks = vm_disks(tmp_path, Role.SECONDARY, ROOT, DATA)
    await disks.start(ignore, refused)
    try:
        assert disks.shapes == (wire.DiskShape("root", 4 * MIB), wire.DiskShape("data", 3 * MIB))
        assert disks.for_qemu == (QemuDisk("root", "stop"), QemuDisk("data", "enospc"))
        assert len(disks.qemu_ends) == 2
        port, token = disks.channel
        assert token == "token"
        socket.create_connection(("127.0.0.1", port), 5).close()
        assert (await disks.details())["disks"]["buffered_bytes"] == 0
        for end in disks.qemu_ends:
            end.settimeout(5)
            assert end.recv(8) == b"NBDMAGIC"
        ends = list(disks.qemu_ends)
        disks.qemu_has_them()
        assert {end.fileno() for end in ends} == {-1}
        assert disks.qemu_ends == []
    finally:
        await disks.end()
    assert (tmp_path / "root.img").stat().st_size == 4 * MIB
    assert disks.link is not None
    assert disks.link.process.returncode is not None


async def test_an_image_that_can_not_be_opened_leaves_no_process_behind_once_ended(tmp_path: Path) -> None:
    (tmp_path / "data.img").mkdir()
    disks = vm_disks(tmp_path, Role.PRIMARY, ROOT, DATA)
    try:
        with pytest.raises(EnvironmentFault, match=r"data.img is a directory"):
            await disks.start(ignore, refused)
    finally:
        await disks.end()
    assert disks.link is not None
    assert disks.link.process.returncode is not None
    assert disks.qemu_ends == []
    assert disks.shapes == ()


async def test_the_death_of_the_process_is_seen_and_the_end_is_quiet(tmp_path: Path) -> None:
    disks = vm_disks(tmp_path, Role.PRIMARY, ROOT)
    await disks.start(ignore, refused)
    assert disks.link is not None
    os.kill(disks.link.pid, signal.SIGKILL)
    assert await asyncio.wait_for(asyncio.shield(disks.link.gone), 5) == "the disk process has ended"
    with pytest.raises(VmLost, match="the disk process has ended"):
        await disks.ports.seal(1)
    assert (await disks.details())["disks"]["written_bytes"] == 0
    await disks.end()


async def test_what_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[protocol.Trouble] = []
    disks = vm_disks(tmp_path, Role.PRIMARY, ROOT)
    await disks.start(told.append, refused)
    try:
        assert disks.link is not None
        trouble = protocol.Trouble("the disk is full", fatal=True)
        assert disks.link.notice(trouble)
        assert told == [trouble]
    finally:
        await disks.end()
