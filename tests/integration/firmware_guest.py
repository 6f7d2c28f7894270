"""The guest of firmware/: made here, and asked for what it does, from a network namespace of the clients."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pair import socket_in
from pycolo.demo.lab import CLIENT_ADDRESS, GUEST_ADDRESS
from pycolo.edge.namespaces import Namespace

SOURCES = Path(__file__).parent / "firmware"
STARTED, READY = "FIRMWARE-GUEST-STARTED", "FIRMWARE-GUEST-READY"
MEMORY_MIB = 32
PORTS = COUNTED_PORT, CLOCKS_PORT, SECOND_PORT = 7, 8, 9
ANSWER_S_MAX = 0.25  # then it is asked again: a datagram that was in the air when a host died may be lost
ASKED_MAX = 40
COMPILE = (
    *("-m64", "-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pic", "-fno-stack-protector"),
    *("-mno-red-zone", "-mgeneral-regs-only", "-fno-strict-aliasing", "-fno-tree-loop-distribute-patterns"),
    "-fno-asynchronous-unwind-tables",
)


def build_firmware(folder: Path, address: str = GUEST_ADDRESS) -> Path:
    """The guest's image in `folder`, for QEMU's -kernel."""
    number = int.from_bytes(socket.inet_aton(address), "big")
    objects = [folder / "boot.o", folder / "guest.o"]
    program, image = folder / "guest.elf", folder / "guest.bin"
    for command in (
        ["gcc", "-c", "-m64", SOURCES / "boot.S", "-o", objects[0]],
        ["gcc", "-c", *COMPILE, f"-DADDRESS={number}u", SOURCES / "guest.c", "-o", objects[1]],
        ["ld", "-m", "elf_x86_64", "-z", "noexecstack", "-T", SOURCES / "guest.ld", "-o", program, *objects],
        ["objcopy", "-O", "binary", program, image],
    ):
        subprocess.run([str(part) for part in command], check=True, timeout=60, capture_output=True, text=True)
    return image


@dataclass(frozen=True)
class Clocks:
    """What the guest's clocks said, and ours when it was asked: it reads them at once, but the answer may be held."""

    tsc: int
    kvmclock_ns: int
    ours_ns: int


class FirmwareClient:
    """Asks the guest one question after the other; whatever is not answered is asked again."""

    def __init__(self, clients: Namespace) -> None:
        self._ends = {
            port: socket_in(clients, socket.AF_INET, socket.SOCK_DGRAM)
            for port in (COUNTED_PORT, CLOCKS_PORT, SECOND_PORT)
        }
        for port, end in self._ends.items():
            end.bind((CLIENT_ADDRESS, 0))
            end.connect((GUEST_ADDRESS, port))
            end.setblocking(False)
        self._number = 0
        self.answered = 0
        """How many requests the guest says that it has had."""
        self.sum = 0
        self.repeated = 0
        """Requests that we had to send again."""
        self.longest_s = 0.0

    async def count(self, bytes_more: int = 24) -> None:
        """One request on the port that counts. What the guest says never goes back: it has forgotten nothing that it
        answered. AssertionError; TimeoutError when it does not answer.
        """
        begun_s = asyncio.get_running_loop().time()
        request = self._request(bytes_more)
        before = self.repeated
        answer = await self._ask(COUNTED_PORT, request)
        answered, total = struct.unpack(">QQ", answer)
        assert answered > self.answered, (answered, self.answered)
        if answered == self.answered + 1 and self.repeated == before:
            assert total == summed(self.sum, request), "the guest has forgotten a request that it answered"
        self.answered, self.sum = answered, total
        self.longest_s = max(self.longest_s, asyncio.get_running_loop().time() - begun_s)

    async def clocks(self) -> Clocks:
        """What the guest's clocks say: in two copies never the same."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        tsc, kvmclock_ns = struct.unpack(">QQ", await self._ask(CLOCKS_PORT, self._request(8)))
        return Clocks(tsc, kvmclock_ns, int(begun_s * 1e9))

    async def second_rounds(self) -> int:
        """How often the second vCPU has gone round: 0 without one."""
        rounds, _ = struct.unpack(">QQ", await self._ask(SECOND_PORT, self._request(8)))
        return int(rounds)

    def close(self) -> None:
        for end in self._ends.values():
            end.close()

    def _request(self, bytes_more: int) -> bytes:
        self._number += 1
        return struct.pack(">Q", self._number) + bytes((self._number + at) % 256 for at in range(bytes_more))

    async def _ask(self, port: int, request: bytes) -> bytes:
        """What the guest put behind the request."""
        loop, end = asyncio.get_running_loop(), self._ends[port]
        for _ in range(ASKED_MAX):
            end.send(request)
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    while True:
                        answer = await loop.sock_recv(end, 65536)
                        if answer[:-16] == request:
                            return answer[-16:]
                        assert len(answer) > 24, "an answer to nothing that was asked"
            except TimeoutError:
                self.repeated += 1
        raise TimeoutError(f"the guest did not answer {ASKED_MAX} times")


def summed(total: int, request: bytes) -> int:
    """The guest's sum after one more request."""
    for byte in request:
        total = (total * 31 + byte) % 2**64
    return total
