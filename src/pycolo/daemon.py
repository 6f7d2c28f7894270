"""The daemon's program: one VM on one host, from two TOML files, until it is stopped or has to leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import structlog

from pycolo.api import serving
from pycolo.config import HostConfig, VmConfig, disk_path, load_config
from pycolo.core.failover import Role
from pycolo.edge.preflight import check_host
from pycolo.errors import DiskTrouble
from pycolo.events import EventLog
from pycolo.manager.common import Known, Manager
from pycolo.manager.primary import PrimaryManager
from pycolo.manager.secondary import SecondaryManager

NICE = -10
ROOM_RETRY_S = 2.0
ROOM_RETRY_S_MAX = 60.0
ROOM_BYTES_MIN = 64 << 20
_MANAGERS: dict[Role, type[Manager]] = {Role.PRIMARY: PrimaryManager, Role.SECONDARY: SecondaryManager}


def run_daemon(host_file: Path, vm_file: Path, role: Role, known: Known) -> None:
    """Run until the end. Raises PycoloError with the sentence for the user."""
    host, vm = load_config(host_file, HostConfig), load_config(vm_file, VmConfig)
    check_host()
    _log_json()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # the pause of the PVM ends when this process gets a core
    asyncio.run(_serve(host, vm, role, known))


async def _serve(host: HostConfig, vm: VmConfig, role: Role, known: Known) -> None:
    """Run one side to its end; a secondary that had no room for its disks begins again when there is."""
    stopped, events = asyncio.Event(), EventLog(host.name)
    waits_s = 0.0
    while not stopped.is_set():
        manager = _MANAGERS[role](host, vm, known, events)

        def stop(running: Manager = manager) -> None:
            stopped.set()
            running.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            async with serving(manager, host.state_dir):
                await manager.run()
            stopped.set()
        except DiskTrouble as trouble:
            if role is Role.PRIMARY or not (manager.started or waits_s):
                raise
            waits_s = min(max(waits_s * 2, ROOM_RETRY_S), ROOM_RETRY_S_MAX)
            events.add("waits-for-room", reason=str(trouble))
            await _wait_for_room(host, vm, stopped, waits_s)


async def _wait_for_room(host: HostConfig, vm: VmConfig, stopped: asyncio.Event, wait_s: float) -> None:
    """At least `wait_s`, and until every disk's file system has ROOM_BYTES_MIN free."""
    images = [disk_path(host, disk) for disk in vm.disks]
    folders = {image.parent for image in images if not image.is_block_device()} | {host.state_dir}
    while not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), wait_s)
        if all(map(_has_room, folders)):
            return


def _has_room(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free >= ROOM_BYTES_MIN
    except OSError:  # not mounted just now
        return False


def _log_json() -> None:
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.add_log_level,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
