"""What QEMU has translated of the guest's code (TCG), dropped page by page while the VM is stopped.

A secondary that loses all of it with each load runs at a fraction of its speed until the guest's code is translated
anew, and the primary's output waits for it. So only what stands in pages that a load replaces is dropped, where QEMU
leaves the rest alone: from 10.2 on neither `stop` nor the load of a device state does (accel/tcg/tcg-accel-ops.c,
target/i386/machine.c; before, both drop everything). QEMU notices writes that it does itself; ours go past it. So it is
told to fill such a page with zeros, by its test protocol (system/qtest.c), before the page gets its contents from us.
"""

import asyncio
import socket

from pycolo.edge.guest_ram import PAGE_BYTES, PageIndices, runs_of
from pycolo.edge.qemu_command import Version
from pycolo.errors import VmLost

KEPT_BY_VERSION_MIN = (10, 2, 0)
LOW_MEMORY_MIB_MAX = 2048
"""Up to here guest RAM is at one place of the address space, from 0 on, whatever the machine type."""
HOLE = range(0xA0000 // PAGE_BYTES, 0x100000 // PAGE_BYTES)
"""Pages that are RAM only at times (firmware, graphics): what is translated of them can't be dropped singly."""
_ANSWER = b"OK\n"


def keeps_code(version: Version, accel: str, machine: str, memory_mib: int) -> bool:
    """Whether a load can leave translated code in place."""
    is_pc = machine.startswith(("pc-q35-", "pc-i440fx-"))
    return accel == "tcg" and version >= KEPT_BY_VERSION_MIN and is_pc and memory_mib <= LOW_MEMORY_MIB_MAX


class TranslatedCode:
    """Our end of the test protocol's channel. VmLost is for good: nobody knows what was still dropped then."""

    def __init__(self, channel: socket.socket, name: str, deadline_s: float) -> None:
        channel.setblocking(False)
        self._channel, self._name, self._deadline_s = channel, name, deadline_s
        self._broken = False

    async def drop(self, indices: PageIndices) -> None:
        """Nothing translated from these pages (sorted, none in the HOLE) is left; they are all zeros. VM stopped."""
        if self._broken:
            raise VmLost(f"QEMU {self._name} has left unanswered what code to drop")
        self._broken = True
        runs = (runs_of(indices) * PAGE_BYTES).tolist()
        lines = [f"memset {first:#x} {behind - first:#x} 0\n" for first, behind in runs]
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._ask("".join(lines).encode(), len(lines))
        except TimeoutError:
            raise VmLost(f"QEMU {self._name} did not drop translated code within {self._deadline_s:g} s") from None
        except OSError as problem:
            raise VmLost(f"QEMU {self._name} can't be told to drop translated code: {problem.strerror}") from problem
        self._broken = False

    async def _ask(self, lines: bytes, count: int) -> None:
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(self._channel, lines))
        try:
            answers = b""
            while len(answers) < count * len(_ANSWER):
                heard = await loop.sock_recv(self._channel, 1 << 16)
                answers += heard
                if not heard or answers != (_ANSWER * count)[: len(answers)]:
                    raise VmLost(f"QEMU {self._name} did not drop translated code: {answers[-100:]!r}")
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
