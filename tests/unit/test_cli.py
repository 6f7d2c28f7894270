"""`colo` as a user meets it: exit statuses, and one sentence on stderr for everything that can be wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
READ_ANYWHERE = (
    "--inh-caps",
    "+dac_read_search",
    "--ambient-caps",
    "+dac_read_search",
)  # the interpreter may be root's


def colo(*arguments: str | Path, prefix: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)"""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "pycolo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def host_toml(tmp_path: Path) -> Path:
    path = tmp_path / "host.toml"
    path.write_text(
        'name = "h1"\nlisten = "127.0.0.1:7700"\npeer = "127.0.0.1:7701"\nbridge = "no-such-bridge"\n'
        f'state_dir = "{tmp_path}/state"\narbiter_file = "{tmp_path}/arbiter.json"\n'
    )
    return path


@pytest.fixture
def vm_toml(tmp_path: Path) -> Path:
    path = tmp_path / "vm.toml"
    path.write_text('name = "vm"\nkernel = "/none/vmlinuz"\ninitrd = "/none/initrd"\naccel = "tcg"\n')
    return path


def refused(*arguments: str | Path, prefix: tuple[str, ...] = ()) -> str:
    """Run it; it must end with status 2 and one sentence, which is returned."""
    status, out, err = colo(*arguments, prefix=prefix)
    assert (status, out) == (2, ""), (out, err)
    assert err.startswith("colo: ")
    assert err.count("\n") == 1
    return err.removeprefix("colo: ").rstrip()


def test_help_and_version() -> None:
    status, out, err = colo("--help")
    assert (status, err) == (0, "")
    for command in ("daemon", "status", "checkpoint", "demo", "guest"):
        assert f"  {command} " in out
    assert colo("--version")[0] == 0


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("daemon",), ("daemon", "a", "b", "--role", "boss"), ("demo", "--accel", "xen")]
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    status, out, err = colo(*arguments)
    assert (status, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_a_file_that_is_not_there(role: str, tmp_path: Path, vm_toml: Path) -> None:
    sentence = refused("daemon", tmp_path / "none.toml", vm_toml, "--role", role)
    assert sentence == f"{tmp_path}/none.toml can't be read (No such file or directory): name one that can be read"


def test_a_file_that_may_not_be_read(host_toml: Path, vm_toml: Path) -> None:
    sentence = refused("daemon", host_toml.parent, vm_toml, "--role", "primary")
    assert sentence == f"{host_toml.parent} can't be read (Is a directory): name one that can be read"


def test_a_bad_key(host_toml: Path, vm_toml: Path) -> None:
    vm_toml.write_text(vm_toml.read_text() + "memory_gib = 4\n")
    sentence = refused("daemon", host_toml, vm_toml, "--role", "primary")
    assert sentence == f"{vm_toml}: the key memory_gib is unknown: remove it or correct its spelling"


def test_a_qemu_that_is_not_there(host_toml: Path, vm_toml: Path) -> None:
    vm_toml.write_text(vm_toml.read_text() + 'qemu = "qemu-system-none"\n')
    assert "can't run qemu-system-none" in refused("daemon", host_toml, vm_toml, "--role", "primary")


def test_a_daemon_without_root(host_toml: Path, vm_toml: Path) -> None:
    sentence = refused("daemon", host_toml, vm_toml, "--role", "primary", prefix=(*NOBODY, *READ_ANYWHERE))
    assert sentence.endswith("run it as root")


def test_a_demo_without_root(tmp_path: Path) -> None:
    out = tmp_path / "report"
    sentence = refused("demo", "--out", out, prefix=(*NOBODY, *READ_ANYWHERE))
    assert sentence.endswith("run it as root")
    assert not out.exists()


def test_a_demo_without_qemu(tmp_path: Path) -> None:
    sentence = refused("demo", "--out", tmp_path / "report", "--qemu", "qemu-system-none")
    assert "can't run qemu-system-none" in sentence


def test_asking_where_no_daemon_is(tmp_path: Path) -> None:
    for command in ("status", "checkpoint"):
        sentence = refused(command, tmp_path)
        assert sentence.startswith(f"no daemon answers on {tmp_path}/api.sock (")
        assert sentence.endswith("start one with `colo daemon`")


def test_a_daemon_that_can_not_start_leaves_nothing(host_toml: Path, vm_toml: Path) -> None:
    for path in ("kernel", "initrd"):
        (host_toml.parent / path).touch()
    vm_toml.write_text(vm_toml.read_text().replace("/none/vmlinuz", f"{host_toml.parent}/kernel"))
    status, out, err = colo("daemon", host_toml, vm_toml, "--role", "primary")
    last = err.splitlines()[-1]
    assert (status, out) == (2, "")
    assert last.startswith("colo: ")
    assert "no-such-bridge" in last
    assert "Traceback" not in err
    assert not (host_toml.parent / "state" / "api.sock").exists()
    assert not Path("/sys/class/net/colo0").exists()
