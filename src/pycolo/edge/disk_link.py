"""The daemon's end of its disk process, with the ports that the core wants; and the ports of a VM without disks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence

from pycolo.agent.protocol import ChannelLost, Connect, GetStats, LeavePair, Listen, Refused, Seal, TakeOver, Wanted
from pycolo.disk import protocol
from pycolo.edge.child_link import ChildLink, spawn
from pycolo.errors import PeerLost, VmLost

SELF_CHECK_S_MAX = 30.0  # all disks are read at a seal and at a commit then
OPEN_S_MAX = 600.0  # a journal of several GiB may have to be replayed
CLOSE_S_MAX = 120.0  # what is in memory goes to the images
STAGED_S_MAX = 8.0
PATIENCE_S = 0.5


class DiskLink(ChildLink[protocol.Answer | protocol.Notice]):
    """One disk process. It implements the ports PrimaryDisks and SecondaryDisks of core/checkpoint."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        super().__init__("the disk process", process, control, protocol.answer_decoder)
        self._seal_s_max: float | None = None
        self._marked_epoch = 0
        self._news = asyncio.Event()
        self._broken = ""
        self.following: protocol.Following | None = None
        self.on_trouble: Callable[[protocol.Trouble], None] = lambda _: None

    @classmethod
    async def start(cls, guests: Sequence[socket.socket]) -> DiskLink:
        """Start the process with our end of each disk's connection to QEMU (it gets copies)."""
        process, control = await spawn("pycolo.disk", [guest.fileno() for guest in guests])
        return cls(process, control)

    def notice(self, message: protocol.Answer | protocol.Notice) -> bool:
        match message:
            case Wanted():
                self.on_wanted(message.reason)
            case Refused():
                self.on_refused(message.why)
            case ChannelLost():
                self._broken = message.why
                self.on_channel_lost(message.why)
            case protocol.RoomFree():
                pass  # who waits for it asks again
            case protocol.Following():
                self.following = message
            case protocol.Marked():
                self._marked_epoch = message.epoch
            case protocol.Trouble():
                self.on_trouble(message)
            case _:
                return False
        self._news.set()
        self._news = asyncio.Event()
        return True

    async def open(self, command: protocol.Open) -> protocol.Opened:
        """Open and serve the images. Raises EnvironmentFault, VmLost."""
        self._seal_s_max = SELF_CHECK_S_MAX if command.self_check else None
        answer = await self.command(command, OPEN_S_MAX)
        assert isinstance(answer, protocol.Opened)
        return answer

    async def stats(self) -> protocol.DiskStats:
        """The process's counters."""
        answer = await self.command(GetStats())
        assert isinstance(answer, protocol.DiskStats)
        return answer

    async def finish(self) -> None:
        """The VM is gone: bring everything to the images and leave them in good order. Raises VmLost."""
        await self.command(protocol.Close(), CLOSE_S_MAX)

    async def leave_pair(self) -> None:
        """Close the disk channel; the guest goes on with the images here."""
        await self.command(LeavePair())

    async def listen(self) -> int:
        """Secondary: the disk channel is lost, let the primary's disk process call once more; returns the port."""
        self._broken = ""
        answer = await self.command(Listen())
        assert isinstance(answer, protocol.Opened)
        return answer.port

    async def connect(self, command: Connect) -> None:
        """Primary: begin to bring the secondary's images up to ours. Raises PeerLost."""
        self.following, self._broken = None, ""
        await self.command(command)

    async def wait_following(self, wait_s: float) -> bool:
        """Whether the secondary's images follow ours; waits at most `wait_s` for news. Raises PeerLost."""
        if self.following is None:
            await self._wait_for(self._news, wait_s)
        return self.following is not None

    def give_up(self, why: str) -> None:
        """The session to the peer is over: who waits for its disks waits in vain."""
        self._broken = self._broken or why
        self._news.set()

    async def take_over(self) -> None:
        """The SVM's disks are the disks now."""
        await self.command(TakeOver())

    # ---- PrimaryDisks

    async def room(self, committed: int) -> None:
        while True:
            news = self._news  # before asking: the answer and what changes it may come together
            answer = await self.command(protocol.AskRoom(committed))
            assert isinstance(answer, protocol.Room)
            if answer.free:
                return
            await self._wait_for(news, PATIENCE_S)

    async def expect_pause(self) -> None:
        await self.command(protocol.ExpectPause())

    async def seal(self, epoch: int) -> None:
        await self.command(Seal(epoch), self._seal_s_max)

    async def expect_requests(self) -> None:
        await self.command(protocol.ExpectRequests())

    # ---- SecondaryDisks

    async def staged(self, epoch: int) -> None:
        deadline_s = time.monotonic() + STAGED_S_MAX
        while self._marked_epoch < epoch:
            await self._wait_for(self._news, PATIENCE_S)
            if self._marked_epoch >= epoch:
                return
            await self.stats()  # a process of ours that hangs is no fault of the peer's
            if time.monotonic() > deadline_s:
                raise PeerLost(f"the disk writes before epoch {epoch} have not come in {STAGED_S_MAX:.0f} s")

    async def commit(self, epoch: int) -> None:
        await self.command(protocol.Commit(epoch), self._seal_s_max)

    async def _wait_for(self, news: asyncio.Event, wait_s: float) -> None:
        waiting = asyncio.ensure_future(news.wait())
        await asyncio.wait((waiting, self.gone), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.gone.done():
            raise VmLost(self.gone.result())
        if self._broken:
            raise PeerLost(self._broken)


class NoDisks:
    """The disks of a VM that has none. Implements PrimaryDisks and SecondaryDisks."""

    async def room(self, committed: int) -> None:
        del committed

    async def expect_pause(self) -> None:
        return None

    async def seal(self, epoch: int) -> None:
        del epoch

    async def expect_requests(self) -> None:
        return None

    async def staged(self, epoch: int) -> None:
        del epoch

    async def commit(self, epoch: int) -> None:
        del epoch
