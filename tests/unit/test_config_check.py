"""`colo config check`: all that is wrong at once, by file and key; what is only suspicious is no error."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pycolo.cli import cli
from pycolo.config_check import check_file
from pycolo.errors import EnvironmentFault

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
    assert any("the key listen is unknown" in error for error in found.errors)


def test_what_this_machine_lacks_is_a_warning(tmp_path: Path) -> None:
    found = check_file(written(tmp_path, VM + 'qemu = "qemu-none"\n'))
    assert found.errors == []
    assert [warning.split(": ")[1].split(" is ")[0] for warning in found.warnings] == ["kernel", "initrd", "qemu"]
    (tmp_path / "vmlinuz").touch()
    assert not any("kernel is" in warning for warning in check_file(written(tmp_path, VM)).warnings)
    host = check_file(written(tmp_path, HOST + 'disk_dir = "/no/such"\ntoken_file = "/no/tokens"\n'))
    assert [warning.split(": ")[1].split(" is ")[0] for warning in host.warnings] == [
        "peers",
        "bridge",
        "disk_dir",
        "token_file",
    ]


def test_the_command_says_it_all_and_fails(tmp_path: Path) -> None:
    good = written(tmp_path, VM)
    bad = tmp_path / "bad.toml"
    bad.write_text("x = ")
    result = CliRunner().invoke(cli, ["config", "check", str(good), str(bad), str(tmp_path / "none")])
    assert isinstance(result.exception, EnvironmentFault)
    assert result.exception.exit_status == 2
    assert str(result.exception) == "2 errors found: correct what is named above"
    assert result.stdout == f"{good}: a good vm.toml\n"
    assert f"error: {bad} is not TOML" in result.stderr
    assert f"error: {tmp_path}/none can't be read" in result.stderr
    assert f"warning: {good}: kernel is 'vmlinuz'" in result.stderr


def test_only_warnings_are_no_failure(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["config", "check", str(written(tmp_path, HOST))]).exit_code == 0
