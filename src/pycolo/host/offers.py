"""Secondary copies that this host holds for others.

Guarantees: an offer that is asked for again gets the same answer; one that no primary claims is withdrawn by this host
itself; a copy that may be the VM's only one is never ended by anybody's offer.
"""

from __future__ import annotations

import asyncio
import contextlib

from pycolo.config_values import HostPort
from pycolo.errors import EnvironmentFault, PycoloError, WrongState
from pycolo.host.copy import Copy
from pycolo.host.daemon import HostDaemon
from pycolo.host.models import OfferAnswer, OfferRequest
from pycolo.host.record import Record

LISTEN_S_MAX = 20.0
CLAIM_S_MAX = 30.0
ENDED_S_MAX = 10.0


class Offers:
    """What this host does for other hosts' VMs."""

    def __init__(self, host: HostDaemon) -> None:
        self._host = host
        self._watches: set[asyncio.Task[None]] = set()

    async def take(self, request: OfferRequest) -> OfferAnswer:
        """Start a secondary and say where it waits. Raises WrongState when it can't be held, EnvironmentFault."""
        async with self._host.starting:
            copy = self._host.copies.get(request.vm.name)
            if copy is None or not copy.running or copy.offer != request.offer:
                await self._make_way(copy, request)
                copy = await self._start(request)
        if not await copy.until(lambda: self._where(copy) or not copy.running, LISTEN_S_MAX):
            await copy.stop()
            raise EnvironmentFault(
                f"the secondary did not come up in {LISTEN_S_MAX:.0f} s: see `colo logs {copy.name}`"
            )
        if not copy.running:
            raise EnvironmentFault(f"the secondary on {self._host.config.name} did not come up: {copy.reason}")
        return OfferAnswer(offer=request.offer, address=self._where(copy))

    async def withdraw(self, offer: str, caller: str) -> None:
        """End the secondary of an offer; nothing to do when there is none. Raises WrongState when it is needed."""
        for copy in self._host.running():
            if copy.offer != offer:
                continue
            if caller and caller != copy.record.partner:
                raise WrongState(f"{copy.name} is held for {copy.record.partner}, not for {caller}: ask there")
            await self._let_go(copy, 0)
            copy.note("offer-withdrawn", by=caller or "this host")

    async def close(self) -> None:
        """Watch nothing any more."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    async def _make_way(self, copy: Copy | None, request: OfferRequest) -> None:
        """An earlier offer of the same primary is over when it makes a new one, and so is a copy that can't win."""
        if copy is None or not copy.running:
            return
        if copy.record.partner != request.primary:
            raise WrongState(f"{self._host.config.name} holds {copy.name} for {copy.record.partner}: ask there")
        await self._let_go(copy, request.term)
        copy.note("offer-superseded", by=request.primary)

    async def _let_go(self, copy: Copy, term: int) -> None:
        """The copy itself decides at that instant, since it may be the VM's only one by now. Raises WrongState."""
        try:
            await copy.manager().withdraw(term)
        except PycoloError as problem:
            raise WrongState(f"{copy.name} on {self._host.config.name}: {problem}") from None
        if not await copy.until(lambda: not copy.running, ENDED_S_MAX):
            raise WrongState(f"{copy.name} on {self._host.config.name} does not come to its end: see its log")

    async def _start(self, request: OfferRequest) -> Copy:
        record = Record(
            vm=request.vm,
            role="secondary",
            home=request.home,
            partner=request.primary,
            protect=request.vm.protection.protect,
        )
        self._host.check_room(record)
        copy = await self._host.start(record)
        copy.offer = request.offer
        copy.note("offer-taken", primary=request.primary)
        watch = asyncio.create_task(self._end_unclaimed(copy, request.offer))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return copy

    def _where(self, copy: Copy) -> HostPort:
        return str(copy.latest.get("listening", {}).get("address", ""))

    async def _end_unclaimed(self, copy: Copy, offer: str) -> None:
        def over() -> bool:
            return not copy.running or copy.offer != offer

        def claimed() -> bool:
            return bool({"paired", "loaded", "solo"} & copy.latest.keys()) or copy.last_state == "protected"

        if not await copy.until(lambda: over() or claimed(), LISTEN_S_MAX + CLAIM_S_MAX):
            copy.note("offer-unclaimed", reason=f"no primary came in {LISTEN_S_MAX + CLAIM_S_MAX:.0f} s")
            await copy.stop()
        while not await copy.until(lambda: over() or _begins_anew(copy), LISTEN_S_MAX):
            pass
        if not over():  # it would wait for ever, and meanwhile this host be no place for another copy of the VM
            copy.note("offer-outlived", reason="there is room for its disks again, and its primary has given it up")
            with contextlib.suppress(WrongState):
                await self._let_go(copy, 0)


def _begins_anew(copy: Copy) -> bool:
    """Whether it had no room for its disks, and waits for a primary now, which will ask anew if it wants it."""
    ended, listens = copy.latest.get("waits-for-room"), copy.latest.get("listening")
    return bool(ended and listens and listens["t_ms"] > ended["t_ms"])
