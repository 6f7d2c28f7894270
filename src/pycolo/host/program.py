"""`colo daemon`: one per host, from host.toml until SIGTERM; systemd hears how it goes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import structlog

from pycolo.config import HostConfig, load_config
from pycolo.edge.logs import log_to_stderr
from pycolo.edge.preflight import check_host
from pycolo.edge.sd_notify import Supervisor
from pycolo.errors import EnvironmentFault
from pycolo.host.daemon import HostDaemon
from pycolo.host.security import Security
from pycolo.host.server import serving
from pycolo.pki.authority import check_own_certificate

STATUS_S = 5.0
RENEW_S = 600.0


def run_daemon(host_file: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises PycoloError with the sentence for the user."""
    config = load_config(host_file, HostConfig)
    if config.tls_files is not None:
        check_own_certificate(config.tls_files, config.name)
    security = Security.of(config)
    check_host()
    log_to_stderr(config.log)
    asyncio.run(serve(config, security, Supervisor()))


async def serve(config: HostConfig, security: Security, supervisor: Supervisor) -> None:
    """The daemon's life. Raises PycoloError."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    daemon = HostDaemon(config, security)
    log = structlog.get_logger().bind(host=config.name)
    try:
        daemon.load()
        async with serving(daemon, security):
            log.info("serving", socket=str(config.socket), listen=config.listen, peers=daemon.peers.names)
            supervisor.ready()
            reporting = asyncio.create_task(_report(daemon, supervisor))
            renewing = asyncio.create_task(_renew(security))
            await stopped.wait()
            supervisor.stopping()
            log.info("stopping", copies=[copy.name for copy in daemon.running()])
            for task in (reporting, renewing):
                task.cancel()
            await asyncio.gather(reporting, renewing, return_exceptions=True)
            await daemon.close()
    finally:
        await daemon.close()


async def _renew(security: Security) -> None:
    """A certificate that was replaced counts within RENEW_S."""
    while True:
        await asyncio.sleep(RENEW_S)
        try:
            security.renew()
        except EnvironmentFault as problem:
            structlog.get_logger().warning("certificate-not-renewed", reason=str(problem))


async def _report(daemon: HostDaemon, supervisor: Supervisor) -> None:
    """For as long as the loop turns, the supervisor hears of it."""
    while True:
        supervisor.alive()
        states = [f"{copy.name} {copy.role} {copy.state}" for copy in daemon.running()]
        supervisor.status(", ".join(states[:20]) or "no VM runs here")
        await asyncio.sleep(min(supervisor.watchdog_s or STATUS_S, STATUS_S))
