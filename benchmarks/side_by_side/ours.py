"""Our column, and the one with our engine and checkpoints alone; the processes are those that anybody gets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from divergence_settings import compiled
from pycolo.demo.processes import DaemonProcess
from pycolo.guest.builder import GuestImage
from pycolo.guest.disk_image import copy_disk
from upload_guests import disk_folder, protected

from .guest import HERE
from .monitor import Pauses, monitor
from .subject import Row, Start, Subject

DISK = "data.img"
CHECKPOINTS_ALONE = '[compare]\ndefault = "checkpoint"\n'


def ours(qemu: str, vm_toml: str = "", *, tls: bool = True) -> Start:
    """A protected pair on that QEMU; `vm_toml` is what vm.toml has besides; without `tls` what QEMU's COLO has."""

    @contextlib.asynccontextmanager
    async def start(image: GuestImage, folder: Path, disk: Path | None) -> AsyncIterator[Subject]:
        async with AsyncExitStack() as stack:
            program = compiled(HERE / "monitor.c", folder / "qemu", QEMU=qemu, MONITOR=str(folder / "monitor"))
            tables = f'qemu = "{program}"\n{vm_toml}'
            if disk is not None:
                tables += f'[[disks]]\nname = "data"\npath = "{DISK}"\nsize_mib = {disk.stat().st_size >> 20}\n'
                copy_disk(disk, disk_folder(folder, "h1") / DISK)
            lab, primary, secondary = await stack.enter_async_context(protected(image, folder, tables, tls=tls))
            qemu_pid = primary.status["pids"]["qemu"]
            pauses = Pauses()
            await stack.enter_async_context(monitor(folder / f"monitor-{qemu_pid}", pauses))

            async def kill() -> float:
                primary.kill_all()
                return time.monotonic()

            first = primary.first("checkpoint")
            yield Subject(
                lab.clients,
                _pids(primary),
                pauses,
                _pids(secondary),
                checkpoints=lambda: _checkpoints(primary),
                request=lambda: primary.checkpoint("operator"),
                kill=kill,
                first_sync_s=first["total_ms"] / 1000 if first else 0.0,
            )

    return start


def _pids(copy: DaemonProcess) -> dict[str, int]:
    return {f"manager {copy.role}": copy.process.pid} | {
        f"{name} {copy.role}": pid for name, pid in copy.status["pids"].items()
    }


async def _checkpoints(primary: DaemonProcess) -> list[Row]:
    to_epoch_s = time.time() - time.monotonic()
    return [
        {"at_s": event["t_ms"] / 1000 + to_epoch_s, **{key: event[key] for key in ("reason", "bytes", "pages")}}
        for event in list(primary.events)
        if event["kind"] == "checkpoint"
    ]
