"""A QEMU process: what it inherits, how it is spawned, and how it ended.

Guaranteed: QEMU is killed by the kernel when its owner dies, at whatever instant; everything of ours it uses
is an inherited descriptor. The preload library runs in QEMU only, not in the tools that start it.
"""

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from pycolo.edge.guest_ram import GuestRam
from pycolo.edge.mailbox_file import DeviceStateFile, Mailbox
from pycolo.edge.nic import End
from pycolo.edge.processes import send_signal
from pycolo.edge.qemu_command import InheritedFds, QemuConfig, fd_path, qemu_arguments
from pycolo.errors import EnvironmentFault, VmLost

DEATH_DEADLINE_S = 10.0
LOG_TAIL_BYTES = 4096

_HANDOVER = struct.Struct("=B3xi")  # struct handover in preload.c
_HANDOVER_FAILURES = {
    1: "the kernel gives no userfaultfd",
    2: "the kernel's userfaultfd has no asynchronous write protection, which came with Linux 6.7",
}


@dataclass(frozen=True)
class QemuFiles:
    """The memory that we share with one QEMU."""

    ram: GuestRam
    saved: DeviceStateFile
    mailbox: Mailbox

    @classmethod
    def create(cls, memory_mib: int) -> Self:
        return cls(GuestRam(memory_mib << 20), DeviceStateFile(), Mailbox())

    def close(self) -> None:
        self.mailbox.close()
        self.saved.close()
        self.ram.close()


class QemuProcess:
    """A spawned QEMU with our ends of its channels."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        qmp: socket.socket,
        code: socket.socket | None,
        handover: socket.socket,
        log: "QemuLog",
    ) -> None:
        """Use `spawn`."""
        self.pid = process.pid
        self.qmp = qmp
        self.code = code
        self._process = process
        self._handover = handover
        self._log = log

    @classmethod
    async def spawn(
        cls,
        config: QemuConfig,
        files: QemuFiles,
        nics: Sequence[End],
        disks: Sequence[socket.socket],
        console: Path,
        log: Path,
        *,
        use_uffd: bool,
    ) -> Self:
        """EnvironmentFault when a tool is missing. The VM does not run yet, QEMU may not have got far either."""
        prefix = [_tool("setpriv"), "--pdeathsig", "KILL", _tool("env")]
        binary = _tool(config.binary)
        with ExitStack() as ours, ExitStack() as theirs:
            qmp, qmp_theirs = _socket_pair(socket.SOCK_STREAM, ours, theirs)
            handover, handover_theirs = _socket_pair(socket.SOCK_SEQPACKET, ours, theirs)
            code, code_fd = None, None
            if config.keeps_code:
                code, code_theirs = _socket_pair(socket.SOCK_STREAM, ours, theirs)
                code_fd = code_theirs.fileno()
            nic_fds, disk_fds = (tuple(end.fileno() for end in ends) for ends in (nics, disks))
            memory = files.ram.fd, files.saved.fd, files.mailbox.fd
            fds = InheritedFds(*memory, qmp_theirs.fileno(), nic_fds, disk_fds, code_fd)
            preload, preload_fds = _preload_environment(handover_theirs, theirs) if use_uffd else ([], [])
            log_file = theirs.enter_context(_open_log(log))
            log_start = log_file.tell()  # before QEMU, which shares the offset, writes
            process = await asyncio.create_subprocess_exec(
                *prefix,
                *preload,
                binary,
                *qemu_arguments(config, fds, console),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=[*fds.all(), *preload_fds],
            )
            ours.pop_all()
            return cls(process, qmp, code, handover, QemuLog(log, log_start))

    def receive_uffd(self) -> tuple[int | None, str]:
        """What the preload library handed over: a userfaultfd, the caller's to close, or None and the reason
        in one sentence.

        To be asked once QEMU has answered on QMP: the library ran before that, so there is nothing to wait
        for.
        """
        try:
            message, fds, _, _ = socket.recv_fds(self._handover, _HANDOVER.size, 1, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, ConnectionError):
            message, fds = b"", []
        if len(message) != _HANDOVER.size:
            return None, "the preload library did not run in QEMU"
        status, error = _HANDOVER.unpack(message)
        if status == 0 and fds:
            return fds[0], ""
        return None, f"{_HANDOVER_FAILURES.get(status, 'the preload library failed')} ({os.strerror(error)})"

    async def ended(self) -> str:
        """Waits for the end; why it ended, with the last line of QEMU's log."""
        status = await self._process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return f"{how}; its last words: {self._log.last_words()}"

    @property
    def exit_status(self) -> int | None:
        """None while it lives; negative the signal that killed it."""
        return self._process.returncode

    async def kill(self) -> None:
        """End it, also when it is stopped, and reap it; close our ends. VmLost when the kernel can't end it
        in time.
        """
        send_signal(self._process, signal.SIGKILL)
        self._handover.close()
        try:
            await asyncio.wait_for(self._process.wait(), DEATH_DEADLINE_S)
        except TimeoutError:
            raise VmLost(f"QEMU (process {self.pid}) does not die; look at what it waits for in the kernel") from None
        finally:
            self.qmp.close()
            if self.code is not None:
                self.code.close()


@dataclass(frozen=True)
class QemuLog:
    """The file that QEMU's messages are appended to; what was in it before is not this QEMU's."""

    path: Path
    start: int

    def last_words(self) -> str:
        """QEMU's last line under its own name, else the last line of all, or "nothing"; no warning is why it ended."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(self.start, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            lines = []
        spoken = [line.strip() for line in lines if line.strip() and ": warning: " not in line]
        signed = [line for line in spoken if "qemu" in line.partition(": ")[0]]
        return (signed or spoken or ["nothing"])[-1]


def _open_log(log: Path) -> BinaryIO:
    try:
        return log.open("ab")
    except OSError as problem:
        raise EnvironmentFault(f"can't write QEMU's log {log} ({problem.strerror}); choose another folder") from problem


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise EnvironmentFault(f"there is no {name} on this machine; install the package that has it")
    return path


def _socket_pair(kind: socket.SocketKind, ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    our_end, their_end = socket.socketpair(socket.AF_UNIX, kind)
    our_end.setblocking(False)
    return ours.enter_context(our_end), theirs.enter_context(their_end)


def _preload_environment(handover: socket.socket, theirs: ExitStack) -> tuple[list[str], list[int]]:
    """Arguments for `env`, and descriptors to inherit; empty when the library was never built.

    The library is named by its descriptor, since LD_PRELOAD can't have a path with blanks or colons.
    """
    spec = importlib.util.find_spec("pycolo.edge._preload")
    if spec is None or spec.origin is None:
        return [], []
    library = os.open(spec.origin, os.O_RDONLY | os.O_CLOEXEC)
    theirs.callback(os.close, library)
    variables = [f"LD_PRELOAD={fd_path(library)}", f"COLO_UFFD_FD={handover.fileno()}"]
    return variables, [library, handover.fileno()]
