"""The core's disk ports over the model disks; each await passes the gate like those of the other ports."""

from __future__ import annotations

from .ports import Gate, Side, now


class PvmDisksPort:
    """PrimaryDisks."""

    def __init__(self, gate: Gate, side: Side) -> None:
        self._gate, self._side = gate, side

    async def _call(self, name: str) -> None:
        await self._gate.operate(self._side.host, f"pvm_disks.{name}", lambda: now(lambda: None))

    async def expect_pause(self) -> None:
        """See PrimaryDisks; the model's disks answer at once anyway."""
        await self._call("expect_pause")

    async def seal(self, epoch: int) -> None:
        """See PrimaryDisks."""
        await self._call("seal")

    async def expect_requests(self) -> None:
        """See PrimaryDisks."""
        await self._call("expect_requests")


class SvmDisksPort:
    """SecondaryDisks."""

    def __init__(self, gate: Gate, side: Side) -> None:
        self._gate, self._side = gate, side

    async def _call(self, name: str) -> None:
        await self._gate.operate(self._side.host, f"svm_disks.{name}", lambda: now(lambda: None))

    async def staged(self, epoch: int) -> None:
        """See SecondaryDisks."""
        await self._call("staged")

    async def expect_pause(self) -> None:
        """See SecondaryDisks; the model's disks answer at once anyway."""
        await self._call("expect_pause")

    async def commit(self, epoch: int) -> None:
        """See SecondaryDisks."""
        await self._call("commit")
