"""The daemon's end of its agent: starts the process and carries commands to it, one at a time."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable

from pycolo.agent import protocol
from pycolo.edge.processes import send_signal
from pycolo.errors import EnvironmentFault, PeerLost, PycoloError, VmLost

ANSWER_S_MAX = 2.0
_CAUSES: dict[str, type[PycoloError]] = {
    "environment": EnvironmentFault,
    "peer": PeerLost,
}


class AgentLink:
    """One agent process. It implements the ports PrimaryOutput and SecondaryFeed of core/checkpoint."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.process, self._control = process, control
        self._answers: asyncio.Queue[protocol.Answer] = asyncio.Queue()
        self._unwanted = 0  # answers on their way to commands that were given up
        self._one_at_a_time = asyncio.Lock()
        self.on_wanted: Callable[[str], None] = _ignore
        self.on_channel_lost: Callable[[str], None] = _ignore
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, ours: socket.socket, theirs: socket.socket) -> AgentLink:
        """Start the agent with both ends of the VM's network card (it gets copies)."""
        control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        fds = (far.fileno(), ours.fileno(), theirs.fileno())
        with far:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "pycolo.agent", *map(str, fds)),
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
            )
        return cls(process, control)

    @property
    def pid(self) -> int:
        """Process id of the agent."""
        return self.process.pid

    async def command(self, command: protocol.Command) -> protocol.Answer:
        """Carry out one command.

        Raises EnvironmentFault or PeerLost as the agent says, VmLost when it is gone or silent for ANSWER_S_MAX.
        """
        async with self._one_at_a_time:
            if self.gone.done():
                raise VmLost(self.gone.result())
            answer = asyncio.ensure_future(self._answers.get())
            sent = False
            try:
                await asyncio.get_running_loop().sock_sendall(self._control, protocol.encoder.encode(command))
                sent = True
                await asyncio.wait((answer, self.gone), timeout=ANSWER_S_MAX, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    return _checked(answer.result())
            except OSError as error:
                raise VmLost(f"the agent does not take commands: {error.strerror}") from None
            finally:
                self._unwanted += sent and not answer.done()
                answer.cancel()
            if self.gone.done():
                raise VmLost(self.gone.result())
            raise VmLost(f"the agent did not answer {type(command).__name__} in {ANSWER_S_MAX} s")

    async def stats(self) -> protocol.Stats:
        """The agent's counters."""
        answer = await self.command(protocol.GetStats())
        assert isinstance(answer, protocol.Stats)
        return answer

    async def close(self) -> None:
        """End the agent and reap it."""
        self._reader.cancel()
        self._control.close()
        send_signal(self.process, signal.SIGKILL)
        await self.process.wait()

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

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while packet := await loop.sock_recv(self._control, protocol.MESSAGE_BYTES_MAX):
                self._dispatch(protocol.answer_decoder.decode(packet))
        except OSError:
            pass
        if not self.gone.done():
            self.gone.set_result("the agent process has ended")

    def _dispatch(self, message: protocol.Answer | protocol.Notice) -> None:
        if isinstance(message, protocol.Wanted):
            self.on_wanted(message.reason)
        elif isinstance(message, protocol.ChannelLost):
            self.on_channel_lost(message.why)
        elif self._unwanted:
            self._unwanted -= 1
        else:
            self._answers.put_nowait(message)


def _ignore(text: str) -> None:
    """Nobody listens yet."""
    del text


def _checked(answer: protocol.Answer) -> protocol.Answer:
    if isinstance(answer, protocol.Failed):
        raise _CAUSES[answer.cause](answer.why)
    return answer
