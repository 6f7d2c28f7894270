"""`colo` as a user meets it: exit statuses, and one sentence on stderr for everything that can be wrong."""

import json
import os
import socket
import subprocess
import sys
import tomllib
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
        'name = "h1"\nlisten = "127.0.0.1:7700"\nbridge = "no-such-bridge"\ninsecure = true\n'
        f'state_dir = "{tmp_path}/state"\narbiter = {{ kind = "file", path = "{tmp_path}" }}\n'
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
    for command in (
        *("compare", "daemon", "protect", "unprotect", "status", "stop", "checkpoint", "events", "logs", "switchover"),
        *("test-failover", "host", "config", "token", "demo", "guest", "disk", "pki"),
    ):
        assert f"  {command} " in out
    assert colo("--version")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("daemon",), ("daemon", "a", "b", "--role", "primary"), ("demo", "--accel", "xen"), ("stop",)],
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    status, out, err = colo(*arguments)
    assert (status, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    sentence = refused("daemon", tmp_path / "none.toml")
    assert sentence == f"{tmp_path}/none.toml can't be read (No such file or directory): name one that can be read"


def test_a_file_that_may_not_be_read(host_toml: Path) -> None:
    sentence = refused("daemon", host_toml.parent)
    assert sentence == f"{host_toml.parent} can't be read (Is a directory): name one that can be read"


def test_a_bad_key(host_toml: Path, vm_toml: Path) -> None:
    host_toml.write_text(host_toml.read_text() + 'tap = "colo0"\n')
    assert refused("daemon", host_toml) == f"{host_toml}: the key tap is unknown: remove it or correct its spelling"
    vm_toml.write_text(vm_toml.read_text() + "memory_gib = 4\n")
    sentence = refused("protect", vm_toml)
    assert sentence == f"{vm_toml}: the key memory_gib is unknown: did you mean `memory_mib`?"


def test_a_key_that_others_may_read(host_toml: Path) -> None:
    pki = host_toml.parent / "pki"
    for arguments in (("init", pki), ("issue", pki, "h1")):
        assert colo("pki", *arguments)[0] == 0
    (pki / "h1.key").chmod(0o644)
    tables = f'[tls]\nca = "{pki}/ca.crt"\ncert = "{pki}/h1.crt"\nkey = "{pki}/h1.key"\n'
    host_toml.write_text(host_toml.read_text().replace("insecure = true\n", "") + tables)
    sentence = refused("daemon", host_toml)
    assert sentence == f"{pki}/h1.key is open to others than its owner (mode 0644): run `chmod 600 {pki}/h1.key`"


def test_a_daemon_without_root(host_toml: Path) -> None:
    sentence = refused("daemon", host_toml, prefix=(*NOBODY, *READ_ANYWHERE))
    assert sentence.endswith("run it as root")


def test_a_demo_without_root(tmp_path: Path) -> None:
    out = tmp_path / "report"
    sentence = refused("demo", "--out", out, prefix=(*NOBODY, *READ_ANYWHERE))
    assert sentence.endswith("run it as root")
    assert not out.exists()


def test_a_demo_without_qemu(tmp_path: Path) -> None:
    sentence = refused("demo", "--out", tmp_path / "report", "--qemu", "qemu-system-none")
    assert "can't run qemu-system-none" in sentence


def test_asking_where_no_daemon_is(tmp_path: Path, vm_toml: Path) -> None:
    where = tmp_path / "api.sock"
    asked = (("status",), ("host", "list"), ("stop", "vm"), ("events", "vm"), ("logs", "vm"), ("protect", vm_toml))
    for arguments in asked:
        sentence = refused(*arguments, "--host-socket", where)
        assert sentence.startswith(f"the daemon at {where} does not answer (")
        assert sentence.endswith("start it with `colo daemon HOST_TOML`, or name another with --host-socket")


def test_the_configuration_tells_where_to_ask(host_toml: Path) -> None:
    sentence = refused("status", "--config", host_toml)
    assert sentence.startswith(f"the daemon at {host_toml.parent}/state/api.sock does not answer (")
    assert sentence.endswith(f"start it with `colo daemon {host_toml}`, or name another with --host-socket")


def test_asking_without_root(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "api.sock"))
        (tmp_path / "api.sock").chmod(0o600)
        sentence = refused("status", "--host-socket", tmp_path / "api.sock", prefix=(*NOBODY, *READ_ANYWHERE))
    assert sentence.endswith("does not answer (Permission denied): run it as root")


def test_a_socket_whose_path_is_too_long(host_toml: Path) -> None:
    long = "x" * 120
    sentence = refused("status", "--host-socket", f"/tmp/{long}")
    assert sentence.startswith(
        f"the path /tmp/{long} has more than 107 bytes, so no daemon can have its socket there: "
    )
    host_toml.write_text(host_toml.read_text().replace("/state", f"/{long}"))
    sentence = refused("status", "--config", host_toml)
    assert sentence.endswith("name the right one with --host-socket, or choose a shorter `state_dir` in host.toml")


def test_one_file_for_the_other(host_toml: Path, vm_toml: Path) -> None:
    for arguments in (("daemon", vm_toml), ("status", "--config", vm_toml)):
        sentence = refused(*arguments)
        assert sentence.startswith(f"{vm_toml} is a vm.toml (it has ")
        assert sentence.endswith("give the host.toml here, and this one to `colo protect`")
    sentence = refused("protect", host_toml)
    assert sentence.startswith(f"{host_toml} is a host.toml (it has ")
    assert sentence.endswith("give a vm.toml here, and this one to `colo daemon` or --config")


def test_a_ca_in_a_file(host_toml: Path) -> None:
    assert refused("pki", "init", host_toml) == f"{host_toml} is a file, and a folder is needed: name another"


def test_tokens_go_to_no_other_file(host_toml: Path) -> None:
    before = host_toml.read_text()
    host_toml.chmod(0o600)
    assert refused("token", "new", host_toml).startswith(f"line 1 of {host_toml} is no token: name a file that")
    assert host_toml.read_text() == before


def test_a_token_is_printed_once_and_only_its_hash_kept(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    status, out, err = colo("token", "new", path, "--scope", "admin", "--comment", "for  me")
    assert (status, err) == (0, "")
    assert out.strip() not in path.read_text()
    assert path.read_text().startswith("admin ")
    assert path.read_text().endswith(" for me\n")
    assert path.stat().st_mode & 0o777 == 0o600


def copy_process(document: dict[str, object], folder: Path) -> tuple[int, str]:
    """(exit status, stderr) of the process of one VM copy."""
    path = folder / "copy.json"
    path.write_text(json.dumps(document))
    command = [sys.executable, "-m", "pycolo.manager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_copy_that_can_not_start_leaves_nothing(host_toml: Path, vm_toml: Path) -> None:
    folder = host_toml.parent
    (folder / "initrd").touch()
    host = tomllib.loads(host_toml.read_text()) | {"taps": ["colo0"]}
    vm = tomllib.loads(vm_toml.read_text()) | {"kernel": str(folder / "initrd")}
    status, last = copy_process({"host": host, "vm": vm, "role": "primary"}, folder)
    assert (status, last[:6]) == (2, "colo: ")
    assert "no-such-bridge" in last
    assert not (folder / "state" / "api.sock").exists()
    assert not Path("/sys/class/net/colo0").exists()
    status, last = copy_process({"host": host, "vm": vm | {"qemu": "qemu-none"}, "role": "secondary"}, folder)
    assert (status, "can't run qemu-none" in last) == (2, True)
    status, last = copy_process({"host": host, "vm": vm, "role": "boss"}, folder)
    assert (status, "role is 'boss'" in last) == (2, True)
