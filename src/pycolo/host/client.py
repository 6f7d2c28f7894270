"""The API v1 of the daemon on this machine, as the command line uses it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from pycolo.edge.unix_listener import PATH_BYTES_MAX
from pycolo.errors import EnvironmentFault
from pycolo.host import models as m
from pycolo.host.caller import Caller

STARTING_S_MAX = 60.0
PROCEDURE_S_MAX = 400.0


class DaemonClient:
    """Talks to one daemon. Every call raises PycoloError as the daemon says, EnvironmentFault when none answers."""

    def __init__(self, socket: Path, host_toml: str = "HOST_TOML") -> None:
        """`host_toml` is what its daemon is started with. Raises EnvironmentFault when there can't be such a socket."""
        if len(os.fsencode(socket)) > PATH_BYTES_MAX:
            raise EnvironmentFault(
                f"the path {socket} has more than {PATH_BYTES_MAX} bytes, so no daemon can have its socket there: "
                "name the right one with --host-socket, or choose a shorter `state_dir` in host.toml"
            )
        self._caller = Caller(
            f"the daemon at {socket}",
            aiohttp.UnixConnector(str(socket)),
            "http://daemon",
            unanswered=EnvironmentFault,
            remedy=f"start it with `colo daemon {host_toml}`, or name another with --host-socket",
        )

    async def __aenter__(self) -> DaemonClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._caller.close()

    async def hosts(self) -> m.HostList:
        """This host and its peers."""
        return await self._caller.call("GET", "/v1/hosts", m.HostList)

    async def drain(self, *, undo: bool) -> m.DrainAnswer:
        """Move all copies elsewhere, or end that."""
        body = m.DrainRequest(undo=undo)
        return await self._caller.call("POST", "/v1/host/drain", m.DrainAnswer, body, PROCEDURE_S_MAX)

    async def vms(self) -> list[m.VmStatus]:
        """All VMs of the host."""
        return (await self._caller.call("GET", "/v1/vms", m.VmList)).vms

    async def vm(self, name: str) -> m.VmStatus:
        """One VM."""
        return await self._caller.call("GET", _path(name), m.VmStatus)

    async def protect(self, request: m.ProtectRequest) -> m.VmStatus:
        """Start it if it does not run, and have it protected."""
        return await self._caller.call("POST", "/v1/vms", m.VmStatus, request, STARTING_S_MAX)

    async def stop(self, name: str) -> None:
        """Stop it for good."""
        await self._caller.call("DELETE", _path(name), m.Done, limit_s=STARTING_S_MAX)

    async def checkpoint(self, name: str) -> None:
        """Take a checkpoint now."""
        await self._caller.call("POST", f"{_path(name)}/checkpoint", m.Done, m.CheckpointRequest())

    async def start_capture(self, name: str, request: m.CaptureRequest) -> m.CaptureReport:
        """Record the frames of both copies."""
        return await self._caller.call("POST", f"{_path(name)}/capture", m.CaptureReport, request)

    async def capture(self, name: str) -> m.CaptureReport:
        """The newest capture."""
        return await self._caller.call("GET", f"{_path(name)}/capture", m.CaptureReport)

    async def stop_capture(self, name: str) -> m.CaptureReport:
        """End it."""
        return await self._caller.call("DELETE", f"{_path(name)}/capture", m.CaptureReport)

    async def unprotect(self, name: str) -> None:
        """Let it go on alone."""
        await self._caller.call("POST", f"{_path(name)}/unprotect", m.Done, limit_s=STARTING_S_MAX)

    async def switchover(self, name: str) -> None:
        """Move the primary role to the partner."""
        await self._caller.call("POST", f"{_path(name)}/switchover", m.Done, limit_s=PROCEDURE_S_MAX)

    async def test_failover(self, name: str) -> m.FailoverCost:
        """Let the primary die and see."""
        return await self._caller.call("POST", f"{_path(name)}/test-failover", m.FailoverCost, limit_s=PROCEDURE_S_MAX)

    async def log(self, name: str, offset: int) -> m.LogPart:
        """What the copy's process has said from there on."""
        return await self._caller.call("GET", f"{_path(name)}/log?offset={offset}", m.LogPart)

    async def events(self, name: str, *, follow: bool, last_id: str = "") -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Events and their ids, from after `last_id`."""
        path = f"{_path(name)}/events?follow={str(follow).lower()}"
        async for number, data in self._caller.stream(path, last_id):
            yield number, _event(data)


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise EnvironmentFault(
            "the daemon tells of events in words that are not known here: update pycolo there or here"
        )
    return event


def _path(name: str) -> str:
    return f"/v1/vms/{quote(name, safe='')}"
