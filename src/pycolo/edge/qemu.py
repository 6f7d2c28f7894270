"""One QEMU of ours: started, driven, watched, and ended.

Guaranteed: every command ends within its deadline or raises VmLost; a dead QEMU resolves `lost` at once, a
hung one at the first command that misses its deadline; after `kill`, or when this process dies in any way,
neither the QEMU nor any file of it remains. Commands come from one task: there is no queue here. `start` belongs
into the thread that lives longest, because QEMU gets its death signal when the thread that started it ends.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from pycolo.core.device_state import with_configuration
from pycolo.core.mailbox import MAILBOX_TAG
from pycolo.edge.dirty_pages import DirtyPages, open_dirty_pages
from pycolo.edge.guest_ram import GuestRam, PageIndices, Pages
from pycolo.edge.nic import End
from pycolo.edge.page_compare import differing
from pycolo.edge.qemu_code import HOLE, TranslatedCode
from pycolo.edge.qemu_command import MAILBOX_NODE, QemuConfig, fd_path
from pycolo.edge.qemu_process import QemuFiles, QemuProcess
from pycolo.edge.qmp_channel import Event
from pycolo.edge.qmp_session import QmpSession
from pycolo.edge.scheduling import be_patient, be_prompt
from pycolo.errors import EnvironmentFault, VmLost

QMP_DEADLINE_S = 5.0
START_DEADLINE_S = 20.0
TAG_THAT_IS_NOT_THERE = "none-such"
ANNOUNCEMENT = {
    "initial": 50,
    "max": 550,
    "rounds": 5,
    "step": 100,
}  # milliseconds, as QEMU after a migration


class Qemu:
    """A started QEMU. `lost` is resolved with the reason when it has died, hangs, or was killed by us."""

    def __init__(self, config: QemuConfig, files: QemuFiles, process: QemuProcess, qmp_deadline_s: float) -> None:
        """Use `start`."""
        self.config = config
        self.pid = process.pid
        self.ram: GuestRam = files.ram
        self.dirty: DirtyPages
        self.why_not_uffd = ""
        """Why `dirty` is of the slow kind, in one sentence; empty when it isn't."""
        self._files = files
        self._process = process
        self._qmp = QmpSession(config.name, qmp_deadline_s)
        self.lost = self._qmp.lost
        self.guest_end = _GuestEnd()
        self._qmp.notice(self.guest_end.hear)
        code = process.code
        self._code = None if code is None else TranslatedCode(code, config.name, qmp_deadline_s)
        self._code_kept = False  # since the last stop for a load
        self._code_in_doubt = False
        self._vcpus: list[int] = []  # their threads, as far as they have been asked for
        self._watchers = [asyncio.create_task(self._watch_process())]

    @classmethod
    async def start(
        cls,
        config: QemuConfig,
        nics: Sequence[End],
        *,
        disks: Sequence[socket.socket] = (),
        paused: bool,
        console: Path,
        log: Path,
        qmp_deadline_s: float = QMP_DEADLINE_S,
        use_uffd: bool = True,
    ) -> Self:
        """A QEMU that answers, with its RAM tracked from before the guest's first instruction.

        `nics` are QEMU's ends of the network cards (`guest_tap`), `disks` those of a stream socketpair
        to an NBD server for each disk; all stay the caller's to close. `console` gets the guest's serial output,
        `log` QEMU's own messages.
        EnvironmentFault: a tool is missing or QEMU refused to start; VmLost: it died or hangs.
        """
        files = QemuFiles.create(config.memory_mib)
        try:
            process = await QemuProcess.spawn(config, files, nics, disks, console, log, use_uffd=use_uffd)
        except BaseException:
            files.close()
            raise
        qemu = cls(config, files, process, qmp_deadline_s)
        try:
            await qemu._come_up(use_uffd)
            if not paused:
                await qemu.cont()
        except BaseException:
            await qemu.kill()
            raise
        return qemu

    async def stop(self) -> None:
        """Pause the VM and drain its devices; all that the guest has sent has left QEMU then."""
        self._pace(be_prompt)
        await self._qmp.execute("stop")

    async def cont(self) -> None:
        """Let the VM run unless its guest has ended. Pages reported by `dirty` must have been copied before."""
        try:
            if not self.guest_end.how:
                await self._qmp.execute("cont")
                self._pace(be_patient)
        except VmLost:
            if not self.guest_end.how:  # else it ended just now, and QEMU refuses
                raise

    async def save_device_state(self) -> bytes:
        """The device state of the stopped VM, complete with its configuration section, as `load_device_state`
        wants it.
        """
        filename = fd_path(self._files.saved.fd)
        await self._qmp.execute("xen-save-devices-state", {"filename": filename, "live": False})
        try:
            return with_configuration(self._files.saved.content(), self.config.machine)
        except ValueError as problem:
            raise VmLost(f"QEMU {self.config.name} saved a device state that can't be used: {problem}") from problem

    async def stop_for_load(self) -> None:
        """Stop the VM so that its RAM may be replaced by `replace_pages`: QEMU holds no request of the guest any more.

        First a failing `snapshot-load`, whose state `restore-vm` drops translated code (a plain `stop` keeps
        it from QEMU 10.2 on, TCG); where QEMU keeps code and all of it is right, a `stop`. Then a reset: a frame
        that QEMU holds for the guest is gone with the next one, and if that were the load's own, it could write into
        RAM already replaced. Ends in `prelaunch`.
        """
        self._code_kept = self._code is not None and not self._code_in_doubt
        self._pace(be_prompt)
        if self._code_kept:
            await self._qmp.reset("stop")
        else:
            await self._drop_all_code()
            await self._qmp.reset()
        self.guest_end.how = ""

    async def _drop_all_code(self) -> None:
        error = await self._load_snapshot(TAG_THAT_IS_NOT_THERE)
        if error is None or TAG_THAT_IS_NOT_THERE not in error:
            raise VmLost(
                f"QEMU {self.config.name} was to stop for a load and did something else: {error or 'it loaded'}"
            )
        if self._code_in_doubt:  # the change of state drops code, and is none when the VM did not run
            self._code_in_doubt = await self.status() != "restore-vm"

    async def replace_pages(self, indices: PageIndices, image: Pages) -> None:
        """Make sorted pages of the stopped VM what they are in `image`, an image of all RAM.

        What QEMU had translated of those that change it has no more. Where two copies do the same most pages are alike
        already, and to read both takes a sixth of the time.
        """
        indices = differing(self.ram.pages, image, indices)
        contents = image[indices]
        if self._code is not None and self._code_kept and len(indices):
            in_hole = (indices >= HOLE.start) & (indices < HOLE.stop)
            self._code_in_doubt |= bool(in_hole.any())
            await self._drop_code(self._code, indices[~in_hole])
        self.ram.write(indices, contents)
        self.dirty.wrote(indices, contents)

    async def _drop_code(self, code: TranslatedCode, indices: PageIndices) -> None:
        try:
            await code.drop(indices)
            self.dirty.forget(indices)
        except OSError as problem:
            raise VmLost(f"QEMU {self.config.name}'s RAM can't be tracked: {problem.strerror}") from problem
        except VmLost as lost:
            self._qmp.lose(str(lost))
            raise

    @property
    def code_in_doubt(self) -> bool:
        """Whether QEMU may run what the guest's code was before the last load: load once more."""
        return self._code_in_doubt

    async def load_device_state(self, state: bytes) -> None:
        """Reset the devices and load `state`. RAM must be in place before. VmLost when QEMU rejects it:
        devices are undefined then.
        """
        try:
            self._files.mailbox.put(state)
        except ValueError as problem:
            raise VmLost(f"QEMU {self.config.name} can't load the device state: {problem}") from problem
        error = await self._load_snapshot(MAILBOX_TAG)
        if error is not None:
            raise VmLost(f"QEMU {self.config.name} rejected the device state: {error}")

    async def announce(self) -> None:
        """Make the networks learn where the VM's MAC addresses are now: a burst of RARP frames, out of each of
        the guest's NICs.
        """
        await self._qmp.execute("announce-self", ANNOUNCEMENT)

    async def status(self) -> str:
        """QEMU's run state: `running`, `paused`, `restore-vm`, `prelaunch`, ..."""
        answer = await self._qmp.execute("query-status")
        if not isinstance(answer, dict) or not isinstance(status := answer.get("status"), str):
            raise VmLost(f"QEMU {self.config.name} gave no run state")
        return status

    async def yield_vcpus(self) -> None:
        """Give the vCPU threads of the running VM the ordinary priority where we have a higher one.

        QEMU's own loop keeps ours: it carries out our commands. All of them are patient while the VM runs, and prompt
        from before a pause to its end, as it lasts until each has stopped and runs again (docs/adr/0019).
        """
        vcpus = await self._qmp.execute("query-cpus-fast")
        if not isinstance(vcpus, list) or not all(isinstance(vcpu, dict) and "thread-id" in vcpu for vcpu in vcpus):
            raise VmLost(f"QEMU {self.config.name} names no vCPU threads")
        named = [str(vcpu["thread-id"]) for vcpu in vcpus]
        with suppress(FileNotFoundError):  # it has ended
            tasks = os.listdir(f"/proc/{self.pid}/task")
            self._vcpus = [int(thread) for thread in set(tasks).intersection(named)]  # no other process's
        for thread in self._vcpus:
            with suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PROCESS, thread, 0)
        self._pace(be_patient)

    def _pace(self, so: Callable[[int], None]) -> None:
        if self._process.exit_status is None:  # else the numbers may be others'
            for thread in (self.pid, *self._vcpus):
                so(thread)

    async def kill(self) -> None:
        """End QEMU at once and give everything back; may be called at any time, also twice."""
        self._qmp.lose(f"QEMU {self.config.name} was killed by its owner")
        for watcher in self._watchers:
            watcher.cancel()
        try:
            await self._process.kill()
        finally:
            await asyncio.gather(*self._watchers, return_exceptions=True)
            await self._qmp.close()
            if hasattr(self, "dirty"):
                self.dirty.close()
            self._files.close()

    async def _come_up(self, use_uffd: bool) -> None:
        try:
            await self._qmp.connect(self._process.qmp, START_DEADLINE_S)
        except VmLost as problem:
            if (self._process.exit_status or 0) > 0:
                raise EnvironmentFault(f"{problem}; correct the VM's configuration") from problem
            raise
        self._watchers.append(asyncio.create_task(self._qmp.watch()))
        uffd, why_not = self._process.receive_uffd() if use_uffd else (None, "it is switched off")
        opened = open_dirty_pages(self.ram, self.pid, uffd, why_not)
        self.dirty, self.why_not_uffd = opened.tracker, opened.why_not_uffd

    async def _load_snapshot(self, tag: str) -> str | None:
        devices = {"tag": tag, "vmstate": MAILBOX_NODE, "devices": [MAILBOX_NODE]}
        return await self._qmp.run_job("snapshot-load", devices, tag)

    async def _watch_process(self) -> None:
        self._qmp.lose(f"QEMU {self.config.name} {await self._process.ended()}")


class _GuestEnd:
    """Hears that the guest has switched itself off or panicked; QEMU keeps such a VM, paused."""

    def __init__(self) -> None:
        self.how = ""  # in words, or empty while the guest lives
        self.on_end: Callable[[], None] = lambda: None

    def hear(self, event: Event) -> None:
        if event.name == "GUEST_PANICKED":
            self._ended("the guest has panicked")
        elif event.name == "SHUTDOWN" and event.data.get("guest"):
            self._ended("the guest has powered off")

    def _ended(self, how: str) -> None:
        if not self.how:
            self.how = how
            self.on_end()
