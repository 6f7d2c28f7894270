"""host.toml and vm.toml: every fault in them is one sentence that names the file and the key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycolo.config import DiskConfig, HostConfig, VmConfig, disk_path, load_config
from pycolo.core.disk_wire import DISKS_MAX
from pycolo.errors import EnvironmentFault

HOST = {
    "name": '"h1"',
    "listen": '"10.0.0.1:7700"',
    "peer": '"[fd00::2]:7700"',
    "state_dir": '"/run/colo"',
    "arbiter_file": '"/run/colo.json"',
    "bridge": '"br0"',
}
VM = {"name": '"web"', "kernel": '"/boot/vmlinuz"', "initrd": '"/boot/initrd"', "accel": '"tcg"'}


def write(folder: Path, values: dict[str, str], more: str = "") -> Path:
    path = folder / "some.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in values.items()) + more)
    return path


def test_what_is_left_out_has_its_documented_default(tmp_path: Path) -> None:
    vm = load_config(write(tmp_path, VM), VmConfig)
    assert (vm.cpus, vm.memory_mib, vm.mac, vm.qemu) == (1, 256, "52:54:00:00:00:02", "qemu-system-x86_64")
    protection = vm.protection
    assert (protection.heartbeat_ms, protection.heartbeat_lost_max, protection.epoch_ms_max) == (100, 3, 10_000)
    assert (protection.hold_ms_min, protection.hold_ms_max, protection.qmp_deadline_ms) == (50, 1000, 2000)
    assert (protection.dirty_pages, protection.self_check) == ("auto", False)
    host = load_config(write(tmp_path, HOST), HostConfig)
    assert (host.tap, host.state_dir) == ("colo0", Path("/run/colo"))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("listen", None, "the key listen is missing: add it"),
        ("listem", '"x"', "the key listem is unknown: remove it or correct its spelling"),
        ("listen", '"10.0.0.1"', "listen is '10.0.0.1': "),
        ("listen", '"10.0.0.1:0"', "listen is '10.0.0.1:0': "),
        ("peer", '":7700"', "peer is ':7700': "),
        ("peer", '"h:65536"', "peer is 'h:65536': "),
        ("name", '"../x"', "name is '../x': "),
        ("bridge", '"a-name-too-long-for-linux"', "bridge is "),
        ("tap", '"a b"', "tap is 'a b': "),
    ],
)
def test_a_host_that_will_not_do(tmp_path: Path, key: str, value: str | None, says: str) -> None:
    values = {**HOST, key: value} if value is not None else {k: v for k, v in HOST.items() if k != key}
    path = write(tmp_path, {k: v for k, v in values.items() if v is not None})
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, HostConfig)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("values", "more", "says"),
    [
        ({"memory_mib": "31"}, "", "memory_mib is 31: "),
        ({"cpus": "0"}, "", "cpus is 0: "),
        ({"mac": '"53:54:00:00:00:02"'}, "", "mac is '53:54:00:00:00:02': "),  # a group address
        ({"accel": '"xen"'}, "", "accel is 'xen': "),
        ({}, "[protection]\nheartbeat_lost_max = 1", "protection.heartbeat_lost_max is 1: "),
        ({}, "[protection]\nself_chek = true", "the key protection.self_chek is unknown"),
        ({}, '[protection]\ndirty_pages = "uffd"', "protection.dirty_pages is 'uffd': "),
        ({}, "[protection]\nhold_ms_min = 9\nhold_ms_max = 8", "protection: hold_ms_min (9) must not"),
    ],
)
def test_a_vm_that_will_not_do(tmp_path: Path, values: dict[str, str], more: str, says: str) -> None:
    path = write(tmp_path, VM | values, more)
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, VmConfig)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


DISK = '[[disks]]\nname = "root"\npath = "root.img"\n'


def test_what_is_left_out_of_a_disk_has_its_documented_default(tmp_path: Path) -> None:
    vm = load_config(
        write(tmp_path, VM, DISK + DISK.replace("root", "data") + 'size_mib = 5\nwerror = "enospc"'), VmConfig
    )
    root, data = vm.disks
    assert (root.name, root.path, root.size_mib, root.format, root.werror) == (
        "root",
        Path("root.img"),
        0,
        "auto",
        "stop",
    )
    assert (data.name, data.size_mib, data.werror) == ("data", 5, "enospc")
    assert load_config(write(tmp_path, VM), VmConfig).disks == ()
    protection = vm.protection
    assert (protection.disk_buffer_mib_max, protection.disk_spill_mib_max) == (256, 1024)
    assert (protection.disk_queue_mib_max, protection.disk_stall_ms_max, protection.disk_copy_mib_per_s_max) == (
        16,
        2000,
        0,
    )


def disks(count: int) -> str:
    return "".join(DISK.replace("root", f"d{number}") for number in range(count))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (DISK.replace('"root"', '"Root"'), "disks.0.name is 'Root': "),
        (DISK.replace('"root"', '"1root"'), "disks.0.name is '1root': "),
        (DISK.replace('"root"', '"a/b"'), "disks.0.name is 'a/b': "),
        (DISK.replace('"root"', '"a,b"'), "disks.0.name is 'a,b': "),  # QEMU's options are cut at commas
        (DISK.replace('"root"', '""'), "disks.0.name is '': "),
        (DISK.replace('"root"', r'"root\n"'), r"disks.0.name is 'root\n': "),
        (DISK.replace('"root"', f'"{"a" * 21}"'), f"disks.0.name is '{'a' * 21}': "),
        ('[[disks]]\npath = "x"\n', "the key disks.0.name is missing: add it"),
        ('[[disks]]\nname = "x"\n', "the key disks.0.path is missing: add it"),
        (DISK + 'werror = "ignore"', "disks.0.werror is 'ignore': "),
        (DISK + 'format = "qcow2"', "disks.0.format is 'qcow2': "),
        (DISK + "size_mib = -1", "disks.0.size_mib is -1: "),
        (DISK + "sizes_mib = 1", "the key disks.0.sizes_mib is unknown"),
        (disks(3) + DISK.replace("root", "d1"), "two disks are named d1: give each its own name"),
        (disks(17), "disks: "),
        ("[protection]\ndisk_buffer_mib_max = 15", "protection.disk_buffer_mib_max is 15: "),
        ("[protection]\ndisk_spill_mib_max = -1", "protection.disk_spill_mib_max is -1: "),
        ("[protection]\ndisk_queue_mib_max = 0", "protection.disk_queue_mib_max is 0: "),
        ("[protection]\ndisk_stall_ms_max = 99", "protection.disk_stall_ms_max is 99: "),
        ("[protection]\ndisk_stall_ms_max = 3001", "protection.disk_stall_ms_max is 3001: "),
        ("[protection]\ndisk_copy_mib_per_s_max = -1", "protection.disk_copy_mib_per_s_max is -1: "),
    ],
)
def test_disks_that_will_not_do(tmp_path: Path, more: str, says: str) -> None:
    path = write(tmp_path, VM, more)
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, VmConfig)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


def test_two_disks_of_one_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="two disks are named d1: give each its own name"):
        load_config(write(tmp_path, VM, disks(3) + DISK.replace("root", "d1")), VmConfig)


@pytest.mark.parametrize("werror", ["enospc", "stop", "report"])
def test_what_a_guest_may_get_when_its_disk_fails(tmp_path: Path, werror: str) -> None:
    assert load_config(write(tmp_path, VM, f'{DISK}werror = "{werror}"'), VmConfig).disks[0].werror == werror


def test_as_many_disks_as_the_channel_has_numbers_for(tmp_path: Path) -> None:
    assert len(load_config(write(tmp_path, VM, disks(16)), VmConfig).disks) == DISKS_MAX


def test_where_an_image_lies(tmp_path: Path) -> None:
    bare = load_config(write(tmp_path, HOST), HostConfig)
    host = load_config(write(tmp_path, HOST | {"disk_dir": '"/var/lib/colo"'}), HostConfig)
    here, there = DiskConfig(name="a", path=Path("x/a.img")), DiskConfig(name="b", path=Path("/dev/vg/b"))
    assert disk_path(host, here) == Path("/var/lib/colo/x/a.img")
    assert disk_path(host, there) == disk_path(bare, there) == Path("/dev/vg/b")
    with pytest.raises(EnvironmentFault, match=r"the disk a of vm.toml has the relative path x/a.img: set `disk_dir`"):
        disk_path(bare, here)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"can't be read \(No such file"):
        load_config(tmp_path / "none", VmConfig)
    with pytest.raises(EnvironmentFault, match=r"can't be read \(Is a directory"):
        load_config(tmp_path, VmConfig)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(EnvironmentFault, match="is not TOML"):
        load_config(tmp_path / "binary", VmConfig)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_content_does_worse_than_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault):
        load_config(path, HostConfig)
    with pytest.raises(EnvironmentFault):
        load_config(path, VmConfig)


@pytest.mark.parametrize("more", [disks(17), disks(3) + DISK.replace("root", "d1")])
def test_what_is_wrong_with_a_whole_list_or_file_does_not_quote_all_of_it(tmp_path: Path, more: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        load_config(write(tmp_path, VM, more), VmConfig)
    assert ".img" not in str(caught.value)
    assert "{" not in str(caught.value)


def test_the_longest_stall_is_allowed(tmp_path: Path) -> None:
    vm = load_config(write(tmp_path, VM, "[protection]\ndisk_stall_ms_max = 3000"), VmConfig)
    assert vm.protection.disk_stall_ms_max == 3000
