"""The daemon's program: one VM on one host, from two TOML files, until it is stopped or has to leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import structlog

from pycolo.api import serving
from pycolo.config import HostConfig, VmConfig, load_config
from pycolo.core.failover import Role
from pycolo.edge.preflight import check_host
from pycolo.manager.common import Manager
from pycolo.manager.primary import PrimaryManager
from pycolo.manager.secondary import SecondaryManager

NICE = -10
_MANAGERS: dict[Role, type[Manager]] = {Role.PRIMARY: PrimaryManager, Role.SECONDARY: SecondaryManager}


def run_daemon(host_file: Path, vm_file: Path, role: Role, *, no_copy_lives: bool) -> None:
    """Run until the end. Raises PycoloError with the sentence for the user."""
    host, vm = load_config(host_file, HostConfig), load_config(vm_file, VmConfig)
    check_host()
    _log_json()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # the pause of the PVM ends when this process gets a core
    asyncio.run(_serve(_MANAGERS[role](host, vm, no_copy_lives=no_copy_lives)))


async def _serve(manager: Manager) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, manager.stop)
    async with serving(manager, manager.host.state_dir):
        await manager.run()


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
