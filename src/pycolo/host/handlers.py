"""What each route of the API does; the name of a method is the route's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web

from pycolo.agent import protocol
from pycolo.api import Client
from pycolo.errors import EnvironmentFault, WrongState
from pycolo.host import models as m
from pycolo.host import procedures
from pycolo.host.copy import LOG_NAME, Copy
from pycolo.host.daemon import HostDaemon
from pycolo.host.event_stream import EventStreams
from pycolo.host.heartbeats import Heartbeats
from pycolo.host.metrics import scrape
from pycolo.host.offers import Offers
from pycolo.host.openapi import document
from pycolo.host.routes import METRICS

LOG_PART_BYTES = 64 << 10
NUMBER_DIGITS_MAX = 15
BodyT = TypeVar("BodyT", bound=m.Body)


@dataclass(frozen=True)
class Call:
    """One request; `caller` is the name of the host that asks, empty for an operator."""

    request: web.Request
    body: m.Body | None
    caller: str

    def asked(self, kind: type[BodyT]) -> BodyT:
        """The body, which the route's model has made."""
        assert isinstance(self.body, kind)
        return self.body


class Handlers:
    """All operations on one daemon."""

    def __init__(self, daemon: HostDaemon) -> None:
        self._daemon = daemon
        self._offers = Offers(daemon)
        self._heartbeats = Heartbeats()
        self._streams = EventStreams(daemon.boot)
        self._document = document()

    async def close(self) -> None:
        """End what goes on beside the requests."""
        self._streams.close()
        await self._offers.close()
        await self._heartbeats.close()

    def _copy(self, call: Call) -> Copy:
        return self._daemon.copy(call.request.match_info["name"])

    # ---- hosts

    async def host(self, _: Call) -> m.HostReportBody:
        return self._daemon.report()

    async def hosts(self, _: Call) -> m.HostList:
        daemon = self._daemon
        this = m.HostEntry(name=daemon.config.name, address=daemon.config.listen, this=True, report=daemon.report())
        others = [
            m.HostEntry(
                name=name,
                address=daemon.peers.addresses[name],
                this=False,
                report=None if isinstance(report, str) else report,
                why=report if isinstance(report, str) else "",
            )
            for name, report in (await daemon.reports()).items()
        ]
        return m.HostList(hosts=[this, *others])

    async def drain(self, call: Call) -> m.DrainAnswer:
        if call.asked(m.DrainRequest).undo:
            self._daemon.draining = False
            return m.DrainAnswer(draining=False, outcomes={})
        return m.DrainAnswer(draining=True, outcomes=await procedures.drain(self._daemon))

    async def offer(self, call: Call) -> m.OfferAnswer:
        request = call.asked(m.OfferRequest)
        if call.caller and call.caller != request.primary:
            raise EnvironmentFault(f"{call.caller} can't ask for {request.primary}: a host asks for itself")
        return await self._offers.take(request)

    async def withdraw(self, call: Call) -> m.Done:
        await self._offers.withdraw(call.request.match_info["offer"], call.caller)
        return m.Done()

    # ---- VMs

    async def vms(self, _: Call) -> m.VmList:
        return m.VmList(vms=[await self._daemon.status(copy) for copy in list(self._daemon.copies.values())])

    async def vm(self, call: Call) -> m.VmStatus:
        return await self._daemon.status(self._copy(call))

    async def protect(self, call: Call) -> m.VmStatus:
        copy = await procedures.protect(self._daemon, call.asked(m.ProtectRequest))
        return await self._daemon.status(copy)

    async def stop(self, call: Call) -> m.Done:
        await procedures.stop(self._daemon, self._copy(call))
        return m.Done()

    async def checkpoint(self, call: Call) -> m.Done:
        await self._copy(call).manager().checkpoint(call.asked(m.CheckpointRequest).reason)
        return m.Done()

    async def start_capture(self, call: Call) -> m.CaptureReport:
        request = call.asked(m.CaptureRequest)
        return _capture(await self._primary(call).start_capture(request.mib, request.seconds))

    async def capture(self, call: Call) -> m.CaptureReport:
        return _capture(await self._primary(call).capture())

    async def stop_capture(self, call: Call) -> m.CaptureReport:
        return _capture(await self._primary(call).stop_capture())

    def _primary(self, call: Call) -> Client:
        """The copy that speaks is the one that sees the frames of both. Raises WrongState."""
        copy = self._copy(call)
        manager = copy.manager()
        if copy.role != "primary":
            where = copy.record.partner or "another host"
            raise WrongState(f"the primary of {copy.name} runs on {where}: run `colo capture {copy.name}` on that host")
        return manager

    async def unprotect(self, call: Call) -> m.Done:
        await procedures.unprotect(self._daemon, self._copy(call))
        return m.Done()

    async def switchover(self, call: Call) -> m.Done:
        await procedures.switchover(self._daemon, self._copy(call))
        return m.Done()

    async def test_failover(self, call: Call) -> m.FailoverCost:
        return await procedures.test_failover(self._daemon, self._copy(call))

    async def peer_lost(self, call: Call) -> m.Done:
        reason = call.asked(m.PeerLostRequest).reason
        await self._copy(call).manager().peer_lost(reason)
        return m.Done()

    async def heartbeat(self, call: Call) -> m.HeartbeatAnswer:
        copy = self._copy(call)
        copy.manager()  # one that does not run has no partner to lose
        return m.HeartbeatAnswer(within_ms=self._heartbeats.beat(copy))

    async def events(self, call: Call) -> web.StreamResponse:
        follow = call.request.query.get("follow", "true")
        if follow not in ("true", "false"):
            raise EnvironmentFault(f"follow is {follow!r}: give true or false")
        return await self._streams.serve(call.request, self._copy(call).events, follow=follow == "true")

    async def log(self, call: Call) -> m.LogPart:
        offset = call.request.query.get("offset", "0")
        if not (offset.isascii() and offset.isdecimal()) or len(offset) > NUMBER_DIGITS_MAX:
            raise EnvironmentFault(f"offset is {offset!r}: give a number of bytes")
        path = self._copy(call).folder / LOG_NAME
        try:
            return await asyncio.to_thread(_read_part, path, int(offset))
        except OSError as problem:
            raise EnvironmentFault(f"{path} can't be read ({problem.strerror}): the copy has said nothing") from None

    # ---- documents

    async def metrics(self, _: Call) -> web.Response:
        return web.Response(body=scrape(self._daemon), headers={"Content-Type": f"{METRICS}; version=0.0.4"})

    async def openapi(self, _: Call) -> web.Response:
        return web.json_response(self._document)


def _capture(capture: protocol.Capture) -> m.CaptureReport:
    return m.CaptureReport(**msgspec.structs.asdict(capture))


def _read_part(path: Path, offset: int) -> m.LogPart:
    with path.open("rb") as log:
        restarted = offset > path.stat().st_size
        offset = 0 if restarted else offset
        log.seek(offset)
        part = log.read(LOG_PART_BYTES)
    return m.LogPart(text=part.decode(errors="replace"), next=offset + len(part), restarted=restarted)
