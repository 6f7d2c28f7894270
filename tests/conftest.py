"""What all tests share: properties have no deadline, and whatever drives real programs gets them ended."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

from disk_server import SIZE, Server
from headed import Headed
from pycolo.edge.guest_tap import guest_tap
from pycolo.edge.nic import End
from pycolo.edge.qemu import QMP_DEADLINE_S, Qemu
from pycolo.edge.qemu_command import QemuConfig
from pycolo.guest.builder import GuestImage, build_guest
from tested_qemu import CPUS, QEMU, machine

# A property says nothing about time: a machine that stands still for a moment refutes none.
settings.register_profile("pycolo", settings.default, deadline=None)
settings.load_profile("pycolo")

GUEST_ADDRESS = "10.77.0.2/24"
READY = "COLO-GUEST-READY"
BOOT_S_MAX = 60.0


class StartedQemu(NamedTuple):
    """A QEMU, both ends of its network card (the agent's first), and the files it writes."""

    qemu: Qemu
    nic: Headed
    qemu_nic: FileIO
    console: Path
    log: Path

    async def says(self, text: str = READY, limit_s: float = BOOT_S_MAX) -> None:
        """Until the guest has said `text` on its console; TimeoutError with what it said instead."""
        deadline = time.monotonic() + limit_s
        while text not in (said := self.console.read_text(errors="replace")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest never said {text!r}; the end of what it said: {said[-2000:]}")
            await asyncio.sleep(0.1)


StartQemu = Callable[..., Awaitable[StartedQemu]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--as-shipped", action="store_true", help="the fault matrix with as many heartbeats as are shipped"
    )


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    return build_guest()


@pytest.fixture
def vm_config(guest_image: GuestImage) -> QemuConfig:
    return QemuConfig(
        binary=QEMU,
        accel="tcg",
        machine=machine(),
        cpus=CPUS,
        memory_mib=256,
        macs=("52:54:00:00:00:02",),
        kernel=guest_image.kernel,
        initrd=guest_image.initrd,
        append=guest_image.command_line(GUEST_ADDRESS),
        name="vm",
    )


@pytest.fixture
async def start_qemu(vm_config: QemuConfig, tmp_path: Path) -> AsyncIterator[StartQemu]:
    """`start_qemu(name, paused=..., ...)`: a QEMU that is killed when the test ends, however it ends."""
    started: list[StartedQemu] = []
    ends: list[End] = []

    async def start(
        name: str,
        *,
        paused: bool,
        config: QemuConfig = vm_config,
        use_uffd: bool = True,
        qmp_deadline_s: float = QMP_DEADLINE_S,
    ) -> StartedQemu:
        ours, theirs = guest_tap()
        ends.extend((ours, theirs))
        console, log = tmp_path / f"{name}.console", tmp_path / f"{name}.log"
        qemu = await Qemu.start(
            replace(config, name=name),
            [theirs],
            paused=paused,
            console=console,
            log=log,
            use_uffd=use_uffd,
            qmp_deadline_s=qmp_deadline_s,
        )
        started.append(StartedQemu(qemu, Headed(ours), theirs, console, log))
        return started[-1]

    yield start
    for one in started:
        await one.qemu.kill()
    for end in ends:
        end.close()


@pytest.fixture
def raw_image(tmp_path: Path) -> Path:
    """Random at both ends and a hole between."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(SIZE)
        file.seek(SIZE - 5000)
        file.write(os.urandom(5000))
    return path


@pytest.fixture
def disk_server(raw_image: Path) -> Iterator[Server]:
    """Ends well, whatever its clients did."""
    server = Server(raw_image)
    yield server
    assert server.process.poll() is None, server.stop()
    assert server.stop() == 0
    assert server.said.count("\n") == 1, server.said
    assert not server.path.exists()
