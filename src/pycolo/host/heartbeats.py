"""External heartbeats: once somebody has sent one for a VM, its absence means that the partner is dead."""

from __future__ import annotations

import asyncio

from pycolo.errors import PycoloError
from pycolo.host.copy import Copy


class Heartbeats:
    """Per VM, what waits for the next one."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def beat(self, copy: Copy) -> int:
        """One has come. Returns within how many ms the next has to."""
        within_ms = copy.record.vm.protection.external_heartbeat_ms_max
        before = self._waiting.get(copy.name)
        if before is not None:
            before.cancel()
        self._waiting[copy.name] = asyncio.create_task(self._miss(copy, within_ms))
        return within_ms

    async def close(self) -> None:
        """Wait for none any more."""
        for task in self._waiting.values():
            task.cancel()
        await asyncio.gather(*self._waiting.values(), return_exceptions=True)

    async def _miss(self, copy: Copy, within_ms: int) -> None:
        await asyncio.sleep(within_ms / 1000)
        reason = f"the external heartbeat is silent for {within_ms} ms"
        copy.note("external-heartbeat-lost", reason=reason)
        try:
            await copy.manager().peer_lost(reason)
        except PycoloError as problem:
            copy.note("peer-lost-not-taken", reason=str(problem))
