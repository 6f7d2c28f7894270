"""What the machine needs: the first thing missing is one sentence with its remedy."""

import os
import shutil
from pathlib import Path

import pytest

from pycolo.edge import preflight
from pycolo.edge.preflight import PROGRAMS, check_machine
from pycolo.errors import EnvironmentFault

QEMU = "qemu-system-x86_64"


def test_a_machine_that_has_it_all() -> None:
    check_machine(QEMU, 1)


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(EnvironmentFault, match="need root: run it as root"):
        check_machine(QEMU, 1)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_program_names_its_package(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else which(name))
    with pytest.raises(EnvironmentFault, match=f"{program} is missing: apt-get install {PROGRAMS[program]}$"):
        check_machine(QEMU, 1)


def test_a_missing_qemu() -> None:
    with pytest.raises(EnvironmentFault, match=r"can't run qemu-system-none.*install"):
        check_machine("qemu-system-none", 1)


def test_a_tun_device_that_can_not_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        if path == "/dev/net/tun":
            raise FileNotFoundError(2, "No such file or directory")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EnvironmentFault, match=r"/dev/net/tun can't be opened \(No such file.*modprobe tun"):
        check_machine(QEMU, 1)


def test_too_little_memory() -> None:
    with pytest.raises(
        EnvironmentFault, match=r"1000000256 MiB of memory are needed and \d+ are free: free some or use"
    ):
        check_machine(QEMU, 1_000_000_000)


def test_the_kernels_figure_is_read() -> None:
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert 0 < preflight._memory_available_mib() <= total_kib >> 10
