"""host.toml and vm.toml: every fault in them is one sentence that names the file and the key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pycolo.config import (
    CopyDocument,
    DiskConfig,
    EtcdArbiterConfig,
    HostConfig,
    NetworkCard,
    VmConfig,
    disk_path,
    load_config,
    load_document,
)
from pycolo.core.disk_wire import DISKS_MAX
from pycolo.edge.tls import TlsFiles
from pycolo.errors import EnvironmentFault

HOST = {
    "name": '"h1"',
    "listen": '"10.0.0.1:7700"',
    "state_dir": '"/run/colo"',
    "arbiter": '{ kind = "file", path = "/run/colo" }',
    "bridge": '"br0"',
    "insecure": "true",
}
VM = {"name": '"web"', "kernel": '"/boot/vmlinuz"', "initrd": '"/boot/initrd"', "accel": '"tcg"'}


def write(folder: Path, values: dict[str, str], more: str = "") -> Path:
    path = folder / "some.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in values.items()) + more)
    return path


def test_what_is_left_out_has_its_documented_default(tmp_path: Path) -> None:
    vm = load_config(write(tmp_path, VM), VmConfig)
    assert (vm.cpus, vm.memory_mib, vm.qemu) == (1, 256, "qemu-system-x86_64")
    assert vm.cards == (NetworkCard("52:54:00:00:00:02"),)
    protection = vm.protection
    assert (protection.heartbeat_ms, protection.heartbeat_lost_max, protection.epoch_ms_max) == (100, 3, 10_000)
    assert (protection.hold_ms_min, protection.hold_ms_max, protection.qmp_deadline_ms) == (50, 1000, 2000)
    assert (protection.dirty_pages, protection.self_check) == ("auto", False)
    host = load_config(write(tmp_path, HOST), HostConfig)
    assert (host.cpus, host.memory_mib, host.peers, host.log) == (None, None, (), "json")
    assert host.socket == Path("/run/colo/api.sock")
    assert (protection.protect, protection.secondaries, protection.external_heartbeat_ms_max) == (True, (), 1000)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("listen", None, "the key listen is missing: add it"),
        ("listem", '"x"', "the key listem is unknown: did you mean `listen`?"),
        ("listen", '"10.0.0.1"', "listen is '10.0.0.1': "),
        ("listen", '"0.0.0.0:7700"', "listen is '0.0.0.0:7700': other hosts are told this address"),
        ("listen", '"[::]:7700"', "listen is '[::]:7700': other hosts are told this address"),
        ("listen", '"10.0.0.1:0"', "listen is '10.0.0.1:0': "),
        ("peers", '[{name = "h2", address = ":7700"}]', "address of [[peers]] number 1 is ':7700': "),
        ("peers", '[{name = "h2", address = "h:65536"}]', "address of [[peers]] number 1 is 'h:65536': "),
        ("peers", '[{name = "h2"}]', "the key address of [[peers]] number 1 is missing: add it"),
        ("peers", '[{name = "h1", address = "h:1"}]', "the host h1 is named as its own peer: list the other"),
        ("peers", '[{name = "x", address = "h:1"}, {name = "x", address = "i:1"}]', "two peers are named x: "),
        ("cpus", "0", "cpus is 0: "),
        ("memory_mib", "31", "memory_mib is 31: "),
        ("log", '"xml"', "log is 'xml': "),
        ("name", '"../x"', "name is '../x': "),
        ("bridge", '"a-name-too-long-for-linux"', "bridge is "),
        ("tap", '"colo0"', "the key tap is unknown: remove it"),
        ("arbiter", None, "the key arbiter is missing: add it"),
        ("arbiter", '"/run/colo"', "arbiter is '/run/colo': "),
        ("arbiter", '{ path = "x" }', 'the key arbiter.kind is missing: add kind = "etcd" or kind = "file"'),
        ("arbiter", '{ kind = "zk" }', 'arbiter.kind is \'zk\': it should be "etcd" or "file"'),
        ("arbiter", '{ kind = "file" }', "the key arbiter.path is missing: add it"),
        ("arbiter", '{ kind = "file", path = "x", user = "y" }', "the key arbiter.user is unknown"),
    ],
)
def test_a_host_that_will_not_do(tmp_path: Path, key: str, value: str | None, says: str) -> None:
    values = {**HOST, key: value} if value is not None else {k: v for k, v in HOST.items() if k != key}
    path = write(tmp_path, {k: v for k, v in values.items() if v is not None})
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, HostConfig)
    assert str(caught.value).startswith(f"{path}: {says}")


ETCD = {"kind": '"etcd"', "endpoints": '["https://10.0.0.1:2379", "https://[fd00::2]:2379", "https://e3.example:2379"]'}


def etcd_host(folder: Path, values: dict[str, str]) -> Path:
    table = "".join(f"{key} = {value}\n" for key, value in (ETCD | values).items())
    return write(folder, {k: v for k, v in HOST.items() if k != "arbiter"}, f"[arbiter]\n{table}")


def test_etcd_as_arbiter(tmp_path: Path) -> None:
    arbiter = load_config(etcd_host(tmp_path, {}), HostConfig).arbiter
    assert isinstance(arbiter, EtcdArbiterConfig)
    assert (len(arbiter.endpoints), arbiter.prefix, arbiter.insecure) == (3, "/pycolo", False)
    assert (arbiter.ca, arbiter.cert, arbiter.key, arbiter.user, arbiter.password_file) == (None,) * 5
    more = {name: f'"/etc/{name}"' for name in ("ca", "cert", "key", "password_file")} | {"user": '"colo"'}
    arbiter = load_config(etcd_host(tmp_path, {**more, "prefix": '"/a/b-1"'}), HostConfig).arbiter
    assert isinstance(arbiter, EtcdArbiterConfig)
    assert (arbiter.key, arbiter.user, arbiter.prefix) == (Path("/etc/key"), "colo", "/a/b-1")
    plain = {"endpoints": '["http://10.0.0.1:2379"]', "insecure": "true"}
    arbiter = load_config(etcd_host(tmp_path, plain), HostConfig).arbiter
    assert isinstance(arbiter, EtcdArbiterConfig)
    assert arbiter.insecure


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"endpoints": "[]"}, "arbiter.endpoints has 0 entries: it should have at least 1"),
        (
            {"endpoints": '["10.0.0.1:2379"]'},
            "number 1 of arbiter.endpoints is '10.0.0.1:2379': it is not https://HOST:PORT",
        ),
        ({"endpoints": '["https://e"]'}, "number 1 of arbiter.endpoints is 'https://e': "),
        (
            {"endpoints": '["https://e:2379/x"]'},
            "number 1 of arbiter.endpoints is 'https://e:2379/x': it is not https://",
        ),
        (
            {"endpoints": '["https://u:p@e:2379"]'},
            "number 1 of arbiter.endpoints is 'https://u:p@e:2379': it is not https://",
        ),
        (
            {"endpoints": '["https://a..b:1"]'},
            "number 1 of arbiter.endpoints is 'https://a..b:1': 'a..b' can't be the name of a host",
        ),
        (
            {"endpoints": '["https://e:0"]'},
            "number 1 of arbiter.endpoints is 'https://e:0': the port 0 is out of range",
        ),
        ({"endpoints": f'["https://{"e" * 64}:1"]'}, "number 1 of arbiter.endpoints is 'https://eee"),
        (
            {"endpoints": '["ftp://e:2379"]'},
            "number 1 of arbiter.endpoints is 'ftp://e:2379': it is not https://HOST:PORT",
        ),
        ({"endpoints": '["http://e:2379"]'}, "arbiter: the endpoint http://e:2379 is not encrypted: use https, or"),
        ({"endpoints": '["https://e:1", "https://e:1"]'}, "arbiter: the endpoint https://e:1 stands there twice"),
        ({"prefix": '"pycolo"'}, "arbiter.prefix is 'pycolo': "),
        ({"prefix": '"/pycolo/"'}, "arbiter.prefix is '/pycolo/': "),
        ({"cert": '"c.pem"'}, "arbiter: cert and key belong together: give both or none"),
        ({"user": '"u"'}, "arbiter: user and password_file belong together: give both or none"),
        ({"password": '"p"'}, "the key arbiter.password is unknown"),
        ({"path": '"p"'}, "the key arbiter.path is unknown"),
    ],
)
def test_an_etcd_that_will_not_do(tmp_path: Path, values: dict[str, str], says: str) -> None:
    path = etcd_host(tmp_path, values)
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
        ({}, '[protection]\nsecondaries = ["h2", "h2"]', "protection: a host stands twice in `secondaries`"),
        ({}, '[protection]\nsecondaries = ["h 2"]', "number 1 of protection.secondaries is 'h 2': "),
        ({}, "[protection]\nhold_ms_min = 9\nhold_ms_max = 8", "protection: hold_ms_min (9) must not"),
        ({}, "[protection]\nheartbeat_ms = 20\nheartbeat_lost_max = 4", "protection: heartbeat_ms x heartbeat_l"),
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
    assert protection.sent_pages_mib_max == 64
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
        (DISK.replace('"root"', '"Root"'), "name of [[disks]] number 1 is 'Root': "),
        (DISK.replace('"root"', '"1root"'), "name of [[disks]] number 1 is '1root': "),
        (DISK.replace('"root"', '"a/b"'), "name of [[disks]] number 1 is 'a/b': "),
        (DISK.replace('"root"', '"a,b"'), "name of [[disks]] number 1 is 'a,b': "),  # QEMU's options are cut at commas
        (DISK.replace('"root"', '""'), "name of [[disks]] number 1 is '': "),
        (DISK.replace('"root"', r'"root\n"'), r"name of [[disks]] number 1 is 'root\n': "),
        (DISK.replace('"root"', f'"{"a" * 21}"'), f"name of [[disks]] number 1 is '{'a' * 21}': "),
        ('[[disks]]\npath = "x"\n', "the key name of [[disks]] number 1 is missing: add it"),
        ('[[disks]]\nname = "x"\n', "the key path of [[disks]] number 1 is missing: add it"),
        (DISK + 'werror = "ignore"', "werror of [[disks]] number 1 is 'ignore': "),
        (DISK + 'format = "qcow2"', "format of [[disks]] number 1 is 'qcow2': "),
        (DISK + "size_mib = -1", "size_mib of [[disks]] number 1 is -1: "),
        (DISK + "sizes_mib = 1", "the key sizes_mib of [[disks]] number 1 is unknown"),
        (disks(3) + DISK.replace("root", "d1"), "two disks are named d1: give each its own name"),
        (disks(17), "disks has 17 entries: it should have at most 16"),
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
    bare = load_config(write(tmp_path, HOST), HostConfig).for_copy(tmp_path, ["colo0"])
    with_folder = load_config(write(tmp_path, HOST | {"disk_dir": '"/var/lib/colo"'}), HostConfig)
    host = with_folder.for_copy(tmp_path, ["colo0"])
    here, there = DiskConfig(name="a", path=Path("x/a.img")), DiskConfig(name="b", path=Path("/dev/vg/b"))
    assert disk_path(host, here) == Path("/var/lib/colo/x/a.img")
    assert disk_path(host, there) == disk_path(bare, there) == Path("/dev/vg/b")
    with pytest.raises(EnvironmentFault, match=r"the disk a of vm.toml has the relative path x/a.img: set `disk_dir`"):
        disk_path(bare, here)


@pytest.mark.parametrize(
    ("listen", "copy_listen"), [("10.0.0.1:7700", "10.0.0.1:0"), ("[fd00::1]:7700", "[fd00::1]:0")]
)
def test_a_copy_has_a_folder_a_tap_and_a_port_of_its_own(tmp_path: Path, listen: str, copy_listen: str) -> None:
    host = load_config(write(tmp_path, HOST | {"listen": f'"{listen}"'}), HostConfig)
    copy = host.for_copy(tmp_path / "vms" / "web", ["colo3", "colo5"])
    assert (copy.name, copy.bridge, copy.arbiter) == (host.name, host.bridge, host.arbiter)
    assert (copy.state_dir, copy.listen, copy.peer) == (tmp_path / "vms" / "web", copy_listen, "")
    assert copy.taps == ("colo3", "colo5")


def test_the_document_of_a_copy_comes_back_as_it_was(tmp_path: Path) -> None:
    host = load_config(write(tmp_path, HOST), HostConfig).for_copy(tmp_path, ["colo0"])
    document = CopyDocument(host=host, vm=load_config(write(tmp_path, VM, DISK), VmConfig), role="secondary")
    path = tmp_path / "copy.json"
    path.write_text(document.model_dump_json())
    assert load_document(path) == document
    path.write_text(path.read_text().replace('"secondary"', '"boss"'))
    with pytest.raises(EnvironmentFault, match="role is 'boss'"):
        load_document(path)


def test_a_copy_has_an_uplink_for_each_card(tmp_path: Path) -> None:
    host = load_config(write(tmp_path, HOST), HostConfig).for_copy(tmp_path, ["colo0"])
    vm = load_config(write(tmp_path, VM, "[[nics]]\n[[nics]]\n"), VmConfig)
    with pytest.raises(ValidationError, match="1 entries for 2 network cards"):
        CopyDocument(host=host, vm=vm, role="primary")


def test_cards_without_an_address_get_one_for_ever(tmp_path: Path) -> None:
    """These never change: a guest knows its network by them."""
    nics = '[[nics]]\n[[nics]]\nmac = "52:54:00:AA:00:01"\n[[nics]]\nnetwork = "san"\n'
    vm = load_config(write(tmp_path, VM, nics), VmConfig)
    assert vm.cards == (
        NetworkCard("52:54:7a:f7:ab:66"),
        NetworkCard("52:54:00:aa:00:01"),
        NetworkCard("52:54:88:f3:e9:77", "san"),
    )
    assert load_config(write(tmp_path, VM | {"name": '"db"'}, nics), VmConfig).cards[0] != vm.cards[0]
    assert VmConfig.model_validate_json(vm.model_dump_json()) == vm


@pytest.mark.parametrize(("mac", "card"), [("", "52:54:00:00:00:02"), ('"52:54:00:12:34:56"', "52:54:00:12:34:56")])
def test_the_short_form_is_one_card(tmp_path: Path, mac: str, card: str) -> None:
    vm = load_config(write(tmp_path, VM | ({"mac": mac} if mac else {})), VmConfig)
    assert vm.cards == (NetworkCard(card, ""),)
    assert VmConfig.model_validate_json(vm.model_dump_json()) == vm


def test_where_a_network_is_on_a_host(tmp_path: Path) -> None:
    host = load_config(write(tmp_path, HOST, '[networks]\nsan = "br1"\n'), HostConfig)
    for one in (host, host.for_copy(tmp_path, ["colo0"])):
        assert (one.bridge_of(""), one.bridge_of("san")) == ("br0", "br1")
        with pytest.raises(EnvironmentFault, match=r"lan of vm.toml is not in \[networks\] of host.toml on h1: add it"):
            one.bridge_of("lan")


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


# ---------------------------------------------------------------- who the peer is

BARE = {key: value for key, value in HOST.items() if key != "insecure"}
TLS = '[tls]\nca = "/etc/colo/ca.crt"\ncert = "/etc/colo/h1.crt"\nkey = "/etc/colo/h1.key"\n'


def test_the_peer_is_known_by_a_certificate(tmp_path: Path) -> None:
    host = load_config(write(tmp_path, BARE, TLS), HostConfig)
    assert host.tls_files == TlsFiles("/etc/colo/ca.crt", "/etc/colo/h1.crt", "/etc/colo/h1.key")
    assert load_config(write(tmp_path, HOST), HostConfig).tls_files is None


NEITHER = "it has neither a table [tls] nor `insecure = true`: make certificates with `colo pki init` and"


@pytest.mark.parametrize(
    ("values", "more", "says"),
    [
        (BARE, "", NEITHER),
        (BARE | {"insecure": "false"}, "", NEITHER),
        (HOST, TLS, "it has a table [tls] and `insecure = true`: remove one of them"),
        (BARE, TLS.replace("key =", "keys ="), "the key tls.key is missing: add it"),
        (BARE, TLS + "password = 'x'", "the key tls.password is unknown"),
    ],
)
def test_exactly_one_way_to_know_the_peer(tmp_path: Path, values: dict[str, str], more: str, says: str) -> None:
    path = write(tmp_path, values, more)
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, HostConfig)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("left_out", "more", "says"),
    [
        (("kernel",), DISK, "`initrd` and `append` belong to a `kernel`"),
        (("kernel", "initrd"), 'append = "quiet"\n' + DISK, "`initrd` and `append` belong to a `kernel`"),
        (("kernel", "initrd"), "", "there is nothing to boot: name a `kernel`, or a disk"),
    ],
)
def test_what_can_not_boot_is_refused(tmp_path: Path, left_out: tuple[str, ...], more: str, says: str) -> None:
    values = {key: value for key, value in VM.items() if key not in left_out}
    with pytest.raises(EnvironmentFault, match=says):
        load_config(write(tmp_path, values, more), VmConfig)


def test_a_disk_is_booted_without_a_kernel(tmp_path: Path) -> None:
    values = {key: value for key, value in VM.items() if key not in ("kernel", "initrd")}
    assert load_config(write(tmp_path, values, DISK), VmConfig).kernel is None


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("10.0.0.999:7700", "10.0.0.999 looks like an IPv4 address but is none: it has four numbers from 0 to 255"),
        ("10.0.0:7700", "10.0.0 looks like an IPv4 address but is none"),
        ("10.0.0.01:7700", "10.0.0.01 looks like an IPv4 address but is none"),
        (":77000", "the port 77000 is out of range: it should be from 1 to 65535"),
        ("h1:0", "the port 0 is out of range: it should be from 1 to 65535"),
        (":7700", "there is no host before the port: it should be HOST:PORT"),
        ("h1", "it should be HOST:PORT, such as 10.0.0.1:7700 or [fd00::1]:7700"),
        ("h1:x", "it should be HOST:PORT"),
        ("h1:\u0667", "it should be HOST:PORT"),
        ("fd00::1:7700", "fd00::1 is no IPv6 address in brackets, such as [fd00::1]"),
        ("[fd00::g]:7700", "[fd00::g] is no IPv6 address in brackets"),
        (
            "h 1:7700",
            "'h 1' can't be the name of a host: one has letters, digits and '-', with a '.' between its parts",
        ),
        ("h..x:7700", "'h..x' can't be the name of a host"),
        ("\u00e9:7700", "'\u00e9' can't be the name of a host"),
        (f"{'h' * 64}:7700", f"'{'h' * 64}' can't be the name of a host"),
    ],
)
@pytest.mark.parametrize("key", ["listen", "peers"])
def test_an_address_that_will_not_do(tmp_path: Path, key: str, where: str, says: str) -> None:
    value = f'"{where}"' if key == "listen" else f'[{{ name = "h2", address = "{where}" }}]'
    name = "listen" if key == "listen" else "address of [[peers]] number 1"
    path = write(tmp_path, HOST | {key: value})
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, HostConfig)
    assert str(caught.value).startswith(f"{path}: {name} is {where!r}: {says}")


@pytest.mark.parametrize("where", ["h1:1", "h1.example.:65535", "[fd00::1]:7700", "[fe80::1%eth0]:7700", "a_b-c:7700"])
def test_addresses_that_will_do(tmp_path: Path, where: str) -> None:
    assert load_config(write(tmp_path, HOST | {"listen": f'"{where}"'}), HostConfig).listen == where


@pytest.mark.parametrize(
    ("listen", "addresses", "says"),
    [
        ("10.0.0.1:7700", ("10.0.0.1:7700",), "the address 10.0.0.1:7700 of the peer p0 is `listen` of this host, h1"),
        ("[fd00::1]:1", ("[FD00:0::1]:01",), "the address [FD00:0::1]:01 of the peer p0 is `listen` of this host"),
        ("h1:1", ("h2:1", "H2.:1"), "the address H2.:1 of the peer p1 is the address of the peer p0, too: correct one"),
    ],
)
def test_two_hosts_of_one_address(tmp_path: Path, listen: str, addresses: tuple[str, ...], says: str) -> None:
    peers = ", ".join(f'{{ name = "p{number}", address = "{one}" }}' for number, one in enumerate(addresses))
    path = write(tmp_path, HOST | {"listen": f'"{listen}"', "peers": f"[{peers}]"})
    with pytest.raises(EnvironmentFault) as caught:
        load_config(path, HostConfig)
    assert str(caught.value).startswith(f"{path}: {says}")


def test_hosts_that_share_an_address_differ_in_the_port(tmp_path: Path) -> None:
    peers = '[{ name = "h2", address = "10.0.0.1:7701" }, { name = "h3", address = "10.0.0.1:7702" }]'
    assert len(load_config(write(tmp_path, HOST | {"peers": peers}), HostConfig).peers) == 2
