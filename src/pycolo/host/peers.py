"""The other hosts' daemons, as this host calls them."""

from __future__ import annotations

import asyncio

import aiohttp

from pycolo.config import HostConfig
from pycolo.core.placement import HostReport
from pycolo.edge.peer_greeting import address
from pycolo.errors import PycoloError, WrongState
from pycolo.host.caller import Caller
from pycolo.host.models import Done, HostReportBody, OfferAnswer, OfferRequest
from pycolo.host.security import Security

REPORT_S_MAX = 2.0
OFFER_S_MAX = 30.0
WITHDRAW_S_MAX = 3.0  # the VM waits for its next partner meanwhile


class Peers:
    """All peers of a host, in the configured order."""

    def __init__(self, host: HostConfig, security: Security) -> None:
        scheme = "https" if security.server is not None else "http"
        # A peer without TLS knows us by our address, so calls leave from the one that it knows.
        source = None if security.server is not None else (address(host.listen)[0], 0)
        self.addresses = {peer.name: peer.address for peer in host.peers}
        self._callers = {
            peer.name: Caller(
                f"host {peer.name} at {peer.address}",
                aiohttp.TCPConnector(local_addr=source, limit=16),
                f"{scheme}://{peer.address}",
                security.client,
                certified_as=peer.name if security.server is not None else None,  # an address proves nothing
            )
            for peer in host.peers
        }

    @property
    def names(self) -> list[str]:
        """In the configured order."""
        return list(self._callers)

    async def close(self) -> None:
        """End all connections."""
        for caller in self._callers.values():
            await caller.close()

    async def report(self, name: str) -> HostReportBody:
        """What a host says of itself. Raises PycoloError."""
        report = await self._caller(name).call("GET", "/v1/host", HostReportBody, limit_s=REPORT_S_MAX)
        if report.name != name:
            raise WrongState(f"{self.addresses[name]} is {report.name}, not {name}: correct `peers` in host.toml")
        return report

    async def reports(self) -> dict[str, HostReportBody | str]:
        """Of every peer its report, or the sentence that says why there is none."""
        answers = await asyncio.gather(*map(self.report, self.names), return_exceptions=True)
        found: dict[str, HostReportBody | str] = {}
        for name, answer in zip(self.names, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, PycoloError):
                raise answer
            found[name] = answer if isinstance(answer, HostReportBody) else str(answer)
        return found

    async def offer(self, name: str, request: OfferRequest) -> str:
        """Ask a host to hold a secondary; returns where it waits for us. Raises PycoloError."""
        answer = await self._caller(name).call("POST", "/v1/offers", OfferAnswer, request, OFFER_S_MAX)
        return answer.address

    async def withdraw(self, name: str, offer: str) -> None:
        """The secondary of that offer is not needed any more. Raises PycoloError."""
        await self._caller(name).call("DELETE", f"/v1/offers/{offer}", Done, limit_s=WITHDRAW_S_MAX)

    def _caller(self, name: str) -> Caller:
        caller = self._callers.get(name)
        if caller is None:
            raise WrongState(f"{name} is no peer of this host: add it to `peers` in host.toml")
        return caller


def for_placement(report: HostReportBody) -> HostReport:
    """What the decision needs of a report. A copy that has ended there takes no room and hinders none.

    Nor does one that waits for the arbiter: it makes way for a primary that has the claim.
    """
    running = frozenset(vm.name for vm in report.vms if vm.running and vm.state != "waiting-for-arbiter")
    return HostReport(
        report.name,
        report.cpus,
        report.memory_mib,
        report.cpus_used,
        report.memory_mib_used,
        report.draining,
        running,
    )
