"""The daemon's end of its agent, with the ports that the core wants of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pycolo.agent import protocol
from pycolo.core.divergence import Divergence
from pycolo.edge.child_link import ChildLink, spawn
from pycolo.edge.nic import End


def _ignore(_: object) -> None:
    pass


STATS_S_MAX = 1.0  # it has nothing to do for that, and clients wait while it is frozen


class AgentLink(ChildLink[protocol.Answer | protocol.Notice]):
    """One agent process. It implements the ports PrimaryOutput and SecondaryFeed of core/checkpoint."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.on_divergences: Callable[[Sequence[Divergence]], None] = _ignore
        self.on_paced: Callable[[protocol.Paced], None] = _ignore

    @classmethod
    async def start(cls, nics: Sequence[tuple[End, End]]) -> AgentLink:
        """Start the agent with both ends (it gets copies) of each of the VM's network cards, see `guest_tap`."""
        process, control = await spawn("pycolo.agent", [end.fileno() for ends in nics for end in ends])
        return cls("the agent process", process, control, protocol.answer_decoder)

    def notice(self, message: protocol.Answer | protocol.Notice) -> bool:
        if isinstance(message, protocol.Wanted):
            self.on_divergences(message.divergences)
            self.on_wanted(message.reason)
        elif isinstance(message, protocol.Paced):
            self.on_paced(message)
        elif isinstance(message, protocol.Refused):
            self.on_refused(message.why)
        elif isinstance(message, protocol.ChannelLost):
            self.on_channel_lost(message.why)
        else:
            return False
        return True

    async def stats(self) -> protocol.Stats:
        """The agent's counters."""
        answer = await self.command(protocol.GetStats(), STATS_S_MAX)
        assert isinstance(answer, protocol.Stats)
        return answer

    async def listen(self) -> int:
        """Secondary: let the primary's agent call once more; returns the port."""
        answer = await self.command(protocol.Listen())
        assert isinstance(answer, protocol.Started)
        return answer.packet_port

    # ---- captures, on a primary

    async def start_capture(self, path: Path, bytes_max: int, seconds: int) -> protocol.Capture:
        """Record all frames into a new file. Raises WrongState while another capture runs, EnvironmentFault."""
        return await self._capture(protocol.StartCapture(str(path), bytes_max, seconds))

    async def capture(self) -> protocol.Capture:
        """What the capture has come to. Raises WrongState when there was none."""
        return await self._capture(protocol.GetCapture())

    async def stop_capture(self) -> protocol.Capture:
        """End the capture. Raises WrongState when there was none."""
        return await self._capture(protocol.StopCapture())

    async def _capture(
        self, command: protocol.StartCapture | protocol.GetCapture | protocol.StopCapture
    ) -> protocol.Capture:
        answer = await self.command(command)
        assert isinstance(answer, protocol.Capture)
        return answer

    # ---- PrimaryOutput

    async def pause_feed(self) -> int:
        answer = await self.command(protocol.PauseFeed())
        assert isinstance(answer, protocol.Fed)
        return answer.boundary

    async def resume_feed(self) -> None:
        await self.command(protocol.ResumeFeed())

    async def seal(self, epoch: int) -> None:
        await self.command(protocol.Seal(epoch))

    async def commit(self, epoch: int) -> None:
        await self.command(protocol.Commit(epoch))

    # ---- SecondaryFeed

    async def stop_feed(self) -> None:
        await self.command(protocol.StopFeed())

    async def drop_output(self) -> None:
        await self.command(protocol.DropOutput())

    async def start_feed(self, epoch: int, boundary: int) -> None:
        await self.command(protocol.StartFeed(epoch, boundary))
