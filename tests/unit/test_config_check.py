"""`colo config check`: all that is wrong at once, by file and key; what is only suspicious is no error."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from pycolo.cli import cli
from pycolo.config_check import check_file
from pycolo.edge.tls import TlsFiles
from pycolo.errors import EnvironmentFault
from pycolo.pki import authority
from tls_tools import Pki

HOST = (
    'name = "h1"\nlisten = "127.0.0.1:7700"\nstate_dir = "/run/colo"\nbridge = "br-no"\n'
    'insecure = true\narbiter = { kind = "file", path = "/run" }\n'
)
VM = 'name = "web"\nkernel = "vmlinuz"\ninitrd = "initrd"\naccel = "tcg"\n'


def written(folder: Path, content: str) -> Path:
    path = folder / "some.toml"
    path.write_text(content)
    return path


def test_every_error_is_listed(tmp_path: Path) -> None:
    path = written(tmp_path, VM.replace('"tcg"', '"xen"') + "cpus = 0\nmemory_gib = 4\n[protection]\nhold_ms_min = 0\n")
    found = check_file(path)
    assert found.kind == "vm"
    assert all(error.startswith(f"{path}: ") for error in found.errors)
    for says in ("accel is 'xen': ", "cpus is 0: ", "the key memory_gib is unknown", "protection.hold_ms_min is 0: "):
        assert any(says in error for error in found.errors), found.errors
    assert len(found.errors) == 4


@pytest.mark.parametrize(("content", "kind"), [(HOST, "host"), (VM, "vm"), ('name = "x"\nbridge = "b"', "host")])
def test_the_content_tells_the_kind(tmp_path: Path, content: str, kind: str) -> None:
    assert check_file(written(tmp_path, content)).kind == kind


def test_a_kind_that_is_given_counts(tmp_path: Path) -> None:
    found = check_file(written(tmp_path, HOST), "vm")
    assert found.kind == "vm"
    assert [error.split(": ")[0] for error in found.errors] == [
        f"{tmp_path}/some.toml is a host.toml (it has `listen`)"
    ]


def test_what_this_machine_lacks_is_a_warning(tmp_path: Path) -> None:
    found = check_file(written(tmp_path, VM + 'qemu = "qemu-none"\n'))
    assert found.errors == []
    assert [warning.split(": ")[1].split(" is ")[0] for warning in found.warnings] == ["qemu", "kernel", "initrd"]
    (tmp_path / "vmlinuz").touch()
    assert not any("kernel is" in warning for warning in check_file(written(tmp_path, VM)).warnings)
    host = check_file(written(tmp_path, HOST + 'disk_dir = "/no/such"\ntoken_file = "/no/tokens"\n'))
    assert [warning.split(": ")[1].split(" is ")[0] for warning in host.warnings] == [
        "peers",
        "bridge",
        "token_file",
        "disk_dir",
    ]


def test_the_command_says_it_all_and_fails(tmp_path: Path) -> None:
    good = written(tmp_path, VM)
    bad = tmp_path / "bad.toml"
    bad.write_text("x = ")
    result = CliRunner().invoke(cli, ["config", "check", str(good), str(bad), str(tmp_path / "none")])
    assert isinstance(result.exception, EnvironmentFault)
    assert result.exception.exit_status == 2
    assert str(result.exception) == "2 errors found: correct what is named above, and check again"
    assert result.stdout == f"{good}: a good vm.toml\n"
    assert f"error: {bad} is not TOML" in result.stderr
    assert f"error: {tmp_path}/none can't be read" in result.stderr
    assert f"warning: {good}: kernel is '{tmp_path}/vmlinuz': this file does not exist on this machine" in result.stderr


def test_each_network_should_have_its_bridge(tmp_path: Path) -> None:
    path = written(tmp_path, HOST + '[networks]\nsan = "br-none"\n')
    assert (
        f"{path}: networks.san is 'br-none': this machine has no bridge of that name now" in check_file(path).warnings
    )


def test_only_warnings_are_no_failure(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["config", "check", str(written(tmp_path, HOST))]).exit_code == 0


# ---------------------------------------------------------------- what a host.toml names


def host_errors(folder: Path, **values: str) -> list[str]:
    """Of a host.toml that is good but for these values, without the file's name."""
    base = {
        "name": '"h1"',
        "listen": '"127.0.0.1:7700"',
        "state_dir": f'"{folder}/state"',
        "bridge": '"br-no"',
        "insecure": "true",
        "arbiter": f'{{ kind = "file", path = "{folder}" }}',
    }
    content = "".join(f"{key} = {value}\n" for key, value in (base | values).items() if value)
    path = written(folder, content)
    found = check_file(path)
    assert found.kind == "host"
    assert all(one.startswith(f"{path}: ") for one in (*found.errors, *found.warnings))
    return [error.removeprefix(f"{path}: ") for error in found.errors]


def tls_errors(folder: Path, files: TlsFiles) -> list[str]:
    table = f'{{ ca = "{files.ca}", cert = "{files.cert}", key = "{files.key}" }}'
    return host_errors(folder, insecure="", tls=table)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def test_good_certificates(tmp_path: Path, pki: Pki) -> None:
    assert tls_errors(tmp_path, pki.files("h1")) == []


def test_each_certificate_that_is_missing_or_no_file(tmp_path: Path, pki: Pki) -> None:
    files = TlsFiles(f"{tmp_path}/none.crt", str(tmp_path), pki.files("h1").key)
    assert tls_errors(tmp_path, files) == [
        f"tls.ca is '{tmp_path}/none.crt': it can't be read (No such file or directory): correct the path",
        f"tls.cert is '{tmp_path}': it is a folder, and a file is needed",
    ]


def test_a_key_of_another_certificate(tmp_path: Path, pki: Pki) -> None:
    good, other = pki.files("h1"), pki.files("h2")
    (error,) = tls_errors(tmp_path, TlsFiles(good.ca, good.cert, other.key))
    assert error.startswith(f"tls: {good.cert} and {other.key} are no certificate with its key in clear (key values")


def test_a_certificate_of_another_ca(tmp_path: Path, pki: Pki) -> None:
    files = pki.of_another_ca("h1")
    (error,) = tls_errors(tmp_path, files)
    assert error.startswith(f"tls: {files.cert} is not signed by a CA in {files.ca}: name the one that signed it, or")


def test_a_ca_that_is_none(tmp_path: Path, pki: Pki) -> None:
    """A host's certificate signs nothing."""
    files = pki.files("h1")
    (error,) = tls_errors(tmp_path, TlsFiles(files.cert, files.cert, files.key))
    assert files.cert in error


def test_a_certificate_of_another_host_that_has_expired_and_a_key_for_all_to_read(tmp_path: Path, pki: Pki) -> None:
    files = pki.expired("h2")
    os.chmod(files.key, 0o644)
    mode, name, time = tls_errors(tmp_path, files)
    assert mode == f"tls: {files.key} is open to others than its owner (mode 0644): run `chmod 600 {files.key}`"
    assert name.startswith(f"tls: {files.cert} is for h2, and this host's `name` is h1: ")
    assert time.startswith(f"tls: {files.cert} is valid from ")


def test_a_certificate_that_is_not_valid_yet(tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "CLOCK_SKEW", timedelta(days=-2))
    (error,) = tls_errors(tmp_path, pki.files("h1"))
    assert " is valid from " in error


def test_what_this_user_may_not_read_is_a_warning(tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pki.files("h1")
    monkeypatch.setattr("pycolo.config_files.os.access", lambda path, mode: str(path) != files.key)
    assert tls_errors(tmp_path, files) == []
    warnings = check_file(tmp_path / "some.toml").warnings
    assert any(f"tls.key is '{files.key}': this user may not look at it: check as root" in one for one in warnings)


def etcd(folder: Path, **files: Path | str) -> tuple[list[str], list[str]]:
    """(errors, warnings)"""
    more = "".join(f', {key} = "{path}"' for key, path in files.items())
    errors = host_errors(folder, arbiter=f'{{ kind = "etcd", endpoints = ["https://10.0.0.1:2379"]{more} }}')
    return errors, check_file(folder / "some.toml").warnings


def test_one_member_of_etcd_is_a_warning(tmp_path: Path) -> None:
    errors, warnings = etcd(tmp_path)
    assert errors == []
    assert any("arbiter.endpoints names one member: while it is away nobody may go on alone" in one for one in warnings)


def test_the_files_for_etcd(tmp_path: Path, pki: Pki) -> None:
    files, password = pki.files("h1"), tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o600)
    good = {"ca": files.ca, "cert": files.cert, "key": files.key, "user": "u", "password_file": str(password)}
    assert etcd(tmp_path, **good)[0] == []
    password.chmod(0o640)
    os.chmod(files.key, 0o604)
    key, secret = etcd(tmp_path, **good)[0]
    assert key.startswith(f"arbiter.key: {files.key} is open to others than its owner (mode 0604)")
    assert secret.startswith(f"arbiter.password_file: the secret file {password} has mode 0640")
    os.chmod(files.key, 0o600)
    password.unlink()
    (missing,) = etcd(tmp_path, **good)[0]
    assert missing.startswith(f"arbiter.password_file is '{password}': it can't be read (No such file")
    (pair,) = etcd(tmp_path, cert=files.cert, key=pki.files("h2").key)[0]
    assert pair.startswith("arbiter: the certificates for etcd can't be used (key values mismatch): ")
    old = pki.expired("h3")
    (time,) = etcd(tmp_path, cert=old.cert, key=old.key)[0]
    assert time.startswith(f"arbiter.cert: {old.cert} is valid from ")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "arbiter",
            '{ kind = "file", path = "FILE" }',
            "arbiter.path is 'FILE': it is no folder, and a folder is needed",
        ),
        (
            "arbiter",
            '{ kind = "file", path = "NONE" }',
            "arbiter.path is 'NONE': it can't be read (No such file or dir",
        ),
        ("disk_dir", '"FILE"', "disk_dir is 'FILE': it is no folder, and a folder is needed"),
        ("state_dir", '"FILE"', "state_dir is 'FILE': it is no folder, and a folder is needed"),
        ("state_dir", f'"/run/{"x" * 95}"', "api.sock in it would have a path of 109 bytes, at most 107 are possible"),
        ("token_file", '"FOLDER"', "token_file is 'FOLDER': it is a folder, and a file is needed"),
        ("token_file", '"FILE"', "token_file: line 1 of FILE is no token"),
    ],
)
def test_other_things_that_are_named(tmp_path: Path, key: str, value: str, says: str) -> None:
    (tmp_path / "file").write_text("no token\n")
    (tmp_path / "file").chmod(0o600)
    names = {"FILE": f"{tmp_path}/file", "NONE": f"{tmp_path}/none", "FOLDER": str(tmp_path)}
    for short, name in names.items():
        value, says = value.replace(short, name), says.replace(short, name)
    (error,) = host_errors(tmp_path, **{key: value})
    assert says in error


def test_a_path_that_depends_on_the_daemons_folder_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert host_errors(tmp_path, arbiter='{ kind = "file", path = "." }') == []
    warnings = check_file(tmp_path / "some.toml").warnings
    assert any("arbiter.path is '.': it depends on where the daemon is started" in one for one in warnings)


# ---------------------------------------------------------------- what a vm.toml names


def test_a_kernel_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").mkdir()
    os.mkfifo(tmp_path / "initrd")
    path = written(tmp_path, VM)
    assert check_file(path).errors == [
        f"{path}: kernel is '{tmp_path}/vmlinuz': it is a folder, and a file is needed",
        f"{path}: initrd is '{tmp_path}/initrd': it is no regular file, and a file is needed",
    ]


def test_a_disk_is_no_folder(tmp_path: Path) -> None:
    path = written(tmp_path, VM + f'[[disks]]\nname = "root"\npath = "{tmp_path}"\n')
    (error,) = check_file(path).errors
    assert error.startswith(f"{path}: the path of the disk root is '{tmp_path}': it is a folder, and a raw image")
