"""The core's disk ports over the model disks; each await passes the gate like those of the other ports."""

from __future__ import annotations

from collections.abc import Callable

from .disks import PvmDisk, SvmDisk
from .ports import Gate, now
from .scheduler import Host


class PvmDisksPort:
    """PrimaryDisks."""

    def __init__(self, gate: Gate, host: Host, disk: PvmDisk) -> None:
        self._gate, self._host, self._disk = gate, host, disk

    async def _call(self, name: str, effect: Callable[[], None]) -> None:
        await self._gate.operate(self._host, f"pvm_disks.{name}", lambda: now(effect))

    async def room(self, committed: int) -> None:
        """See PrimaryDisks; the model's disks always have some."""
        del committed
        await self._call("room", lambda: None)

    async def expect_pause(self) -> None:
        """See PrimaryDisks; the model's disks answer at once anyway."""
        await self._call("expect_pause", lambda: None)

    async def seal(self, epoch: int) -> None:
        """See PrimaryDisks."""
        await self._call("seal", lambda: self._disk.seal(epoch))

    async def expect_requests(self) -> None:
        """See PrimaryDisks."""
        await self._call("expect_requests", lambda: None)


class SvmDisksPort:
    """SecondaryDisks."""

    def __init__(self, gate: Gate, host: Host, disk: SvmDisk) -> None:
        self._gate, self._host, self._disk = gate, host, disk

    async def _call(self, name: str, effect: Callable[[], None]) -> None:
        await self._gate.operate(self._host, f"svm_disks.{name}", lambda: now(effect))

    async def staged(self, epoch: int) -> None:
        """See SecondaryDisks."""
        await self._gate.operate(self._host, "svm_disks.staged", lambda: self._disk.staged(epoch))

    async def expect_pause(self) -> None:
        """See SecondaryDisks; the model's disks answer at once anyway."""
        await self._call("expect_pause", lambda: None)

    async def commit(self, epoch: int) -> None:
        """See SecondaryDisks."""
        await self._call("commit", lambda: self._disk.commit(epoch))

    async def take_over(self) -> None:
        """The command TAKE_OVER, after the roll-forward."""
        await self._call("take_over", self._disk.take_over)
