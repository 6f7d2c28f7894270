"""A pair whose disks are block devices: what is beside an image elsewhere lies in the state folder here. Needs root."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from disk_pair import FUA, MIB, TRIM, DiskPair

from pair import until
from pycolo.core.failover import Role
from pycolo.edge.disk_meta import HEADER_BYTES
from pycolo.errors import EnvironmentFault

P, S = Role.PRIMARY, Role.SECONDARY
SIZE = 8 * MIB
HOSTS = ("h1", "h2")


class DevicePair(DiskPair):
    """`devices` by host; their content is what the host's image is."""

    def __init__(self, folder: Path, devices: dict[str, Path]) -> None:
        super().__init__(folder, (0,))  # 0: a device has its size
        self._devices = devices

    def path(self, host: str, number: int = 0) -> Path:
        return self._devices[host]


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """A loop device for each host."""
    devices: dict[str, Path] = {}
    try:
        for host in HOSTS:
            backing = tmp_path / f"{host}.backing"
            with backing.open("wb") as file:
                file.truncate(SIZE)
            command = ["losetup", "--find", "--show", str(backing)]
            devices[host] = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        yield devices
    finally:
        for device in devices.values():
            subprocess.run(["losetup", "--detach", str(device)], check=True)


@pytest.fixture
async def pair(tmp_path: Path, devices: dict[str, Path]) -> AsyncIterator[DevicePair]:
    pair = DevicePair(tmp_path, devices)
    try:
        yield pair
    finally:
        await pair.close()


async def test_copy_checkpoint_death_and_return_on_devices(pair: DevicePair, tmp_path: Path) -> None:
    primary, secondary = await pair.start("h1", P), await pair.start("h2", S)
    await primary.guest.write(0, random.Random(1).randbytes(4 * MIB + 512))
    copied = await pair.join(primary, secondary)
    assert (copied.whole, copied.copied_bytes) == (True, SIZE // 2 + 256 * 1024)  # what is zero has no content
    await pair.checkpoint(primary, secondary)
    await primary.guest.write(512, b"a" * 512, FUA)
    await primary.guest.zero(3 * MIB + 512, MIB)
    await primary.guest.begin(TRIM, MIB, 65536)
    await secondary.guest.write(0, b"S" * 4096)
    await pair.checkpoint(primary, secondary)
    await pair.applied(primary, secondary)
    assert primary.paths[0].read_bytes() == secondary.paths[0].read_bytes()
    await primary.guest.write(7 * MIB, b"b" * 4096)  # streamed, never committed
    secondary.kill()
    await until(lambda: primary.lost, 10.0, "the news")
    await secondary.close()
    await primary.link.leave_pair()
    await primary.guest.write(2 * MIB, b"c" * 4096)  # while alone

    again = await pair.returned(primary)
    await pair.applied(primary, again)
    for host in (primary, again):
        await host.finish()
    assert primary.paths[0].read_bytes() == again.paths[0].read_bytes()
    assert primary.paths[0].read_bytes()[2 * MIB : 2 * MIB + 4096] == b"c" * 4096
    for host_name in HOSTS:
        beside = tmp_path / host_name
        assert {path.name for path in beside.iterdir()} == {"disk0.colo", "disk0.colo-journal"}
        assert (beside / "disk0.colo-journal").stat().st_size == 0
        assert (beside / "disk0.colo").stat().st_size > HEADER_BYTES
        assert not list(Path("/dev").glob(pair.path(host_name).name + ".*"))


async def test_an_unfinished_copy_on_a_device_is_served_to_no_vm(pair: DevicePair) -> None:
    primary = await pair.start("h1", P, copy_bytes_per_s_max=MIB)
    secondary = await pair.start("h2", S)
    await primary.guest.write(0, random.Random(1).randbytes(4 * MIB))
    with pytest.raises(AssertionError, match="takes too long"):
        await pair.join(primary, secondary, 0.3)
    secondary.kill()
    await secondary.close()
    with pytest.raises(EnvironmentFault, match="is an unfinished copy"):
        await pair.start("h2", P)


async def test_a_device_that_somebody_mounts_is_refused(pair: DevicePair, tmp_path: Path) -> None:
    device, folder = pair.path("h1"), tmp_path / "mounted"
    folder.mkdir()
    for command in (["mkfs.ext4", "-q", str(device)], ["mount", str(device), str(folder)]):
        await asyncio.to_thread(subprocess.run, command, check=True)
    try:
        with pytest.raises(EnvironmentFault, match="is in use by this machine: unmount it first"):
            await pair.start("h1", P)
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(folder)], check=True)
