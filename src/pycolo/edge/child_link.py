"""The daemon's end of a process of its own: starts it, carries commands to it one at a time, hears its news.

Guarantees: every answer belongs to its command, also when one was given up; a process that is gone is VmLost at once,
and one that does not answer when its time is over; it gets SIGKILL from the kernel when the daemon dies.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from pycolo.agent.protocol import MESSAGE_BYTES_MAX, Failed, encoder
from pycolo.edge.patience import wait_for_first
from pycolo.edge.processes import send_signal
from pycolo.errors import DiskTrouble, EnvironmentFault, PeerLost, PeerUntrusted, PycoloError, VmLost, WrongState

ANSWER_S_MAX = 2.0
COME_UP_S_MAX = 15.0  # a Python with all it imports, on a host that is busy with just that many guests
_CAUSES: dict[str, type[PycoloError]] = {
    "environment": EnvironmentFault,
    "peer": PeerLost,
    "untrusted": PeerUntrusted,
    "vm": VmLost,
    "disk": DiskTrouble,
    "state": WrongState,
}

MessageT = TypeVar("MessageT", covariant=True)
AnyMessage = TypeVar("AnyMessage")


class Decoder(Protocol[MessageT]):
    """What can decode everything that the process says."""

    def decode(self, packet: bytes, /) -> MessageT: ...


async def spawn(module: str, fds: Sequence[int]) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Start `python -m module` with its end of a control socket and `fds` as arguments; also returns our end."""
    control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    with far:
        inherited = (far.fileno(), *fds)
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", module, *map(str, inherited)),
            pass_fds=inherited,
            stdin=asyncio.subprocess.DEVNULL,
        )
    return process, control


class ChildLink(ABC, Generic[AnyMessage]):
    """One process; `name` is how failures call it. `notice` takes what it says unasked."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        control: socket.socket,
        decoder: Decoder[AnyMessage],
    ) -> None:
        self._name, self.process, self._control, self._decoder = name, process, control, decoder
        self._answers: asyncio.Queue[AnyMessage] = asyncio.Queue()
        self._unwanted = 0  # answers on their way to commands that were given up
        self._heard = False  # it has come up
        self._one_at_a_time = asyncio.Lock()
        self.on_wanted: Callable[[str], None] = _ignore
        self.on_channel_lost: Callable[[str], None] = _ignore
        self.on_refused: Callable[[str], None] = _ignore
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @abstractmethod
    def notice(self, message: AnyMessage) -> bool:
        """Deal with a message that may be no answer; False when it is one."""

    async def command(self, command: msgspec.Struct, answer_s_max: float | None = None) -> AnyMessage:
        """Carry out one command.

        Raises EnvironmentFault, PeerLost, VmLost, DiskTrouble or WrongState as the process says, VmLost when it is gone
        or silent for `answer_s_max` (default ANSWER_S_MAX; COME_UP_S_MAX until its first word, as it may be starting).
        """
        async with self._one_at_a_time:
            if self.gone.done():
                raise VmLost(self.gone.result())
            limit_s = ANSWER_S_MAX if answer_s_max is None else answer_s_max
            if not self._heard:
                limit_s = max(limit_s, COME_UP_S_MAX)
            answer = asyncio.ensure_future(self._answers.get())
            sent = False
            try:
                await asyncio.get_running_loop().sock_sendall(self._control, encoder.encode(command))
                sent = True
                await wait_for_first((answer, self.gone), limit_s)
                if answer.done():
                    return _checked(answer.result())
            except OSError as error:
                raise VmLost(f"{self._name} does not take commands: {error.strerror}") from None
            finally:
                self._unwanted += sent and not answer.done()
                answer.cancel()
            if not self.gone.done():  # whoever waits behind us need not find out anew
                self.gone.set_result(f"{self._name} did not answer {type(command).__name__} in {limit_s} s")
            raise VmLost(self.gone.result())

    async def close(self) -> None:
        """End the process and reap it."""
        self._reader.cancel()
        self._control.close()
        send_signal(self.process, signal.SIGKILL)
        await self.process.wait()

    async def _read(self) -> None:
        loop, why = asyncio.get_running_loop(), "has ended"
        try:
            while packet := await loop.sock_recv(self._control, MESSAGE_BYTES_MAX):
                self._dispatch(self._decoder.decode(packet))
        except OSError:
            pass
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            why = f"says what nobody understands ({problem})"
        if not self.gone.done():
            self.gone.set_result(f"{self._name} {why}")

    def _dispatch(self, message: AnyMessage) -> None:
        self._heard = True
        if self.notice(message):
            return
        if self._unwanted:
            self._unwanted -= 1
        else:
            self._answers.put_nowait(message)


def _ignore(text: str) -> None:
    """Nobody listens yet."""
    del text


def _checked(answer: AnyMessage) -> AnyMessage:
    if isinstance(answer, Failed):
        raise _CAUSES.get(answer.cause, EnvironmentFault)(answer.why)
    return answer
