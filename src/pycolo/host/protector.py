"""Keeps one primary protected: finds a host for the second copy, joins the two, and begins again when it is lost.

Guarantees
* An offer that does not lead to a session is withdrawn; what can't be withdrawn ends there by itself, unclaimed.
* Rounds over all hosts follow each other at growing distances with jitter, up to BACKOFF_S_MAX, as long as it takes.
* Each step is an event with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from pycolo.core.placement import Placement, Silent, Wish, place
from pycolo.errors import PeerLost, PycoloError
from pycolo.host.copy import Copy
from pycolo.host.models import HostReportBody, OfferRequest
from pycolo.host.peers import Peers, for_placement

SESSION_S_MAX = 15.0
BACKOFF_S_MIN = 0.5
BACKOFF_S_MAX = 30.0
PARTNER_CHECK_S = 5.0
_dice = secrets.SystemRandom()


async def withdraw(copy: Copy, peers: Peers) -> None:
    """Tell the host that was asked last that its copy is not needed. Raises PycoloError."""
    if copy.asked is not None:
        await peers.withdraw(*copy.asked)
        copy.asked = None


class Protector:
    """Of one VM whose primary is here."""

    def __init__(self, copy: Copy, peers: Peers, host: str) -> None:
        self._copy, self._peers, self._host = copy, peers, host
        self._failed: dict[str, str] = {}
        self._refusals: dict[str, str] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        backoff_s = BACKOFF_S_MIN
        while True:
            await self._copy.until(self._alone, PARTNER_CHECK_S)
            if not self._alone():
                continue
            if await self._find():
                backoff_s = BACKOFF_S_MIN
                self._failed.clear()
                await self._stay()
            else:
                await asyncio.sleep(backoff_s * _dice.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    def _alone(self) -> bool:
        copy = self._copy
        speaks = bool({"running", "solo"} & copy.latest.keys())
        folding = copy.status.get("disks", {}).get("folding", False)
        return speaks and copy.running and copy.role == "primary" and copy.state == "solo" and not folding

    async def _find(self) -> bool:
        """One round over all hosts that will do."""
        placement = await self._place(self._failed)
        for name, why in placement.refusals.items():
            if self._refusals.get(name) != why:
                self._copy.note("host-refused", host=name, reason=why)
        self._refusals = dict(placement.refusals)
        self._say_why_not()
        for name in placement.order:
            if not self._alone():
                return False
            if await self._try(name):
                self._copy.unprotected_why = ""
                return True
            self._say_why_not()
        return False

    def _say_why_not(self) -> None:
        reasons = [*self._refusals.values(), *(f"{host} did not work out: {why}" for host, why in self._failed.items())]
        if reasons or not self._peers.names:
            self._copy.unprotected_why = "no second copy: " + ("; ".join(reasons) or "no other host is configured")

    async def _place(self, failed: dict[str, str]) -> Placement:
        record = self._copy.record
        vm, chosen = record.vm, record.vm.protection.secondaries
        reports = await self._peers.reports()
        wish = Wish(
            vm.name,
            vm.cpus,
            vm.memory_mib,
            self._host,
            tuple(dict.fromkeys((*chosen, record.home))) if chosen else (),
            record.partner,
            failed,
        )
        hosts = [
            Silent(name, report) if isinstance(report, str) else for_placement(report)
            for name, report in reports.items()
        ]
        return place(wish, hosts)

    async def _try(self, host: str) -> bool:
        """Ask one host; whether a session with it comes about."""
        copy = self._copy
        number = secrets.token_hex(16)
        copy.asked = host, number
        copy.note("offered", host=host)
        try:
            await self._join(host, number)
        except PycoloError as problem:
            copy.note("offer-failed", host=host, reason=str(problem))
            self._failed[host] = str(problem)
            await self._give_up()
            return False
        copy.record.partner = host
        copy.save()
        copy.note("partner-found", host=host)
        return True

    async def _join(self, host: str, number: str) -> None:
        copy = self._copy
        term = int(copy.status.get("term", 0))
        request = OfferRequest(offer=number, vm=copy.record.vm, primary=self._host, home=copy.record.home, term=term)
        where = await self._peers.offer(host, request)
        await copy.manager().call_peer(where)
        if not await copy.until(lambda: copy.state != "solo", SESSION_S_MAX):
            refused = copy.status.get("refused")
            raise PeerLost(str(refused or f"no session with {host} came about in {SESSION_S_MAX:.0f} s"))

    async def _give_up(self) -> None:
        """Best effort, as the other side ends an unclaimed offer by itself.

        Only while the VM runs alone here, which means that the claim is ours: otherwise that copy may be the only one.
        """
        if not self._alone():
            self._copy.asked = None
            return
        with contextlib.suppress(PycoloError):
            await self._copy.manager().call_peer("")
        try:
            await withdraw(self._copy, self._peers)
        except PycoloError as problem:
            self._copy.note("withdraw-failed", reason=str(problem))
        self._copy.asked = None

    async def _stay(self) -> None:
        """As long as there is a partner; one that is drained is replaced when somebody else will do."""
        while not await self._copy.until(lambda: self._alone() or not self._copy.running, PARTNER_CHECK_S):
            if self._copy.state == "protected" and await self._can_be_replaced():
                self._copy.note("partner-replaced", host=self._copy.record.partner, reason="it is being drained")
                with contextlib.suppress(PycoloError):  # then it stays the partner
                    await withdraw(self._copy, self._peers)
        self._copy.note("partner-gone", host=self._copy.record.partner)
        await self._give_up()

    async def _can_be_replaced(self) -> bool:
        partner = self._copy.record.partner
        with contextlib.suppress(PycoloError):
            report: HostReportBody = await self._peers.report(partner)
            return report.draining and bool((await self._place({})).order)
        return False
