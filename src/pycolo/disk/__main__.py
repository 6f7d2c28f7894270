"""The disk process: one loop over the guest's disks (NBD), the disk channel to the peer and the daemon's commands.

It ends when its daemon does; a bug ends it too, and the partner takes over. A process of its own, so that disk work
delays neither heartbeats nor packets, and QEMU can be stopped while the daemon waits for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from select import EPOLLIN, EPOLLOUT

from pycolo.agent.protocol import (
    ChannelLost,
    Connect,
    Done,
    Failed,
    GetStats,
    LeavePair,
    Listen,
    Refused,
    Seal,
    TakeOver,
)
from pycolo.disk import protocol
from pycolo.disk.guest_disk import GuestDisk
from pycolo.disk.images import OpenImages
from pycolo.disk.loop import NbdLoop
from pycolo.disk.primary import PrimarySide
from pycolo.disk.replica import ReplicaLimits
from pycolo.disk.secondary import GREETING, SecondarySide
from pycolo.edge.daemon_link import DaemonLink
from pycolo.edge.dial import dial
from pycolo.edge.doorway import Doorway
from pycolo.edge.nbd_export import Export
from pycolo.edge.tls import client_context, server_context
from pycolo.edge.transport import Transport, wrap_accepted, wrap_dialled
from pycolo.edge.workers import Workers
from pycolo.errors import DiskTrouble, EnvironmentFault, PeerLost, PeerUntrusted

WORKER_THREADS = 8
CONNECT_S_MAX = 1.0
SELF_CHECK_S_MAX = 20.0  # the daemon waits for longer
NICE = -10


class DiskProcess:
    """Everything that is readable, and what follows from it."""

    def __init__(self, daemon: DaemonLink, guests: list[socket.socket]) -> None:
        """`guests`: for each disk our end of the connection to QEMU."""
        self._daemon, self._guests = daemon, guests
        self._workers = Workers(WORKER_THREADS)
        self._loop = NbdLoop()
        self._images: OpenImages | None = None
        self._exports: list[GuestDisk] = []
        self._side: PrimarySide | SecondarySide | None = None
        self._doorway: Doorway | None = None
        self._call_by: Callable[[], Doorway]  # secondary: opens another one
        self._limits: ReplicaLimits
        self._self_check = False
        self._channel_fd = -1

    def run(self) -> None:
        """Serve until the daemon is gone."""
        self._loop.watch(self._daemon.fileno(), self._on_command)
        self._loop.watch(self._workers.fileno(), self._workers.collect)
        while not self._daemon.gone:
            self._turn(None)

    def _turn(self, wait_s_max: float | None) -> None:
        """Wait for the next thing to happen, at most `wait_s_max`, and deal with it."""
        self._follow_folding()
        side, due_s = self._side, None
        if side is not None:
            with self._channel_guard():
                due_s = side.turn(time.monotonic())
            self._loop.settle()
            self._follow_channel()
        door_s = self._doorway.turn(time.monotonic()) if self._doorway is not None else None
        waits = [wait_s for wait_s in (wait_s_max, due_s, door_s) if wait_s is not None]
        self._loop.turn(min(waits) if waits else None)

    def _follow_folding(self) -> None:
        """The end of a takeover: the images serve the guest, and may get another secondary."""
        if isinstance(self._side, SecondarySide) and self._side.folded and self._images is not None:
            self._side = PrimarySide(self._images.sources, self._limits, self._daemon.say)

    def _follow_channel(self) -> None:
        """Ask for what the disk channel wants now."""
        side = self._side
        if side is not None and (stream := side.stream) is not None:
            self._channel_fd = stream.fileno()
            events = (EPOLLIN if side.wants_read else 0) | (EPOLLOUT if stream.waiting else 0)
            self._loop.want(self._channel_fd, self._on_channel, events)

    def _on_channel(self) -> None:
        if self._side is not None:
            with self._channel_guard():
                self._side.on_readable()

    @contextlib.contextmanager
    def _channel_guard(self) -> Iterator[None]:
        """A broken disk channel is news for the daemon, not the end of the guest's disks."""
        try:
            yield
        except PeerLost as lost:
            self._leave_pair()
            self._daemon.say(ChannelLost(str(lost)))
        except OSError as problem:
            self._leave_pair()
            self._daemon.say(ChannelLost(f"our own disks can't be copied: {problem}"))

    def _leave_pair(self) -> None:
        if self._channel_fd >= 0:
            self._loop.unwatch(self._channel_fd)
            self._channel_fd = -1
        if self._doorway is not None:
            self._doorway.close()
        if self._side is not None:
            self._side.leave()

    # ---- the daemon's commands

    def _on_command(self) -> None:
        packet = self._daemon.hear()
        if not packet:
            return
        try:
            answer = self._carry_out(protocol.command_decoder.decode(packet))
        except EnvironmentFault as fault:
            answer = Failed(str(fault), "environment")
        except DiskTrouble as trouble:
            answer = Failed(str(trouble), "disk")
        except PeerUntrusted as stranger:
            answer = Failed(str(stranger), "untrusted")
        except PeerLost as lost:
            answer = Failed(str(lost), "peer")
        except OSError as problem:
            answer = Failed(f"a disk, or a file beside it, fails ({problem})", "vm")
        self._daemon.say(answer)

    def _carry_out(self, command: protocol.Command) -> protocol.Answer:
        if isinstance(command, protocol.Open):
            return self._open(command)
        if isinstance(command, protocol.Close):
            return self._close()
        if isinstance(command, LeavePair):
            self._leave_pair()
            return Done()
        if isinstance(self._side, PrimarySide):
            return self._carry_out_primary(self._side, command)
        if isinstance(self._side, SecondarySide):
            return self._carry_out_secondary(self._side, command)
        return Failed("the disk process has no disks open", "environment")

    def _carry_out_primary(self, side: PrimarySide, command: protocol.Command) -> protocol.Answer:
        match command:
            case Connect():
                side.attach(self._dial(command), command.token)
            case protocol.AskRoom():
                return protocol.Room(side.has_room(command.committed_epoch))
            case protocol.ExpectPause():
                side.expect_pause()
            case Seal():
                side.seal(command.epoch, self._checks(side) if self._self_check else b"")
            case protocol.ExpectRequests():
                side.expect_requests()
            case GetStats():
                return side.stats()
            case _:
                return Failed(f"a primary's disks have no {type(command).__name__}", "environment")
        return Done()

    def _checks(self, side: PrimarySide) -> bytes:
        """Beside the loop: QEMU flushes its disks while it saves the paused VM, and waits for our answer."""
        outcome: list[bytes | OSError] = []
        self._workers.submit(side.checks, outcome.append)
        if not self._turn_until(lambda: bool(outcome), SELF_CHECK_S_MAX):
            raise OSError(errno.ETIMEDOUT, f"the self-check takes longer than {SELF_CHECK_S_MAX:.0f} s")
        if isinstance(outcome[0], OSError):
            raise outcome[0]
        return outcome[0]

    def _carry_out_secondary(self, side: SecondarySide, command: protocol.Command) -> protocol.Answer:
        match command:
            case protocol.ExpectPause():
                side.expect_pause()
            case protocol.Commit():
                problem = side.commit(command.epoch)
                if problem is not None:
                    return Failed(problem, "vm")
            case Listen():
                self._leave_pair()
                self._doorway = self._call_by()
                return protocol.Opened(self._doorway.port, [])
            case TakeOver():
                self._leave_pair()
                side.take_over(self._switch)
            case GetStats():
                return side.stats()
            case _:
                return Failed(f"a secondary's disks have no {type(command).__name__}", "environment")
        return Done()

    def _open(self, command: protocol.Open) -> protocol.Opened:
        images = OpenImages(command, self._workers)
        self._images = images
        port, exports = 0, list[Export](images.sources)
        self._limits = ReplicaLimits(command.queue_bytes_max, command.stall_ms_max, command.copy_bytes_per_s_max)
        self._self_check = command.self_check
        if command.role == "primary":
            self._side = PrimarySide(images.sources, self._limits, self._daemon.say)
        else:
            side = SecondarySide(images.room_blocks(), self._daemon.say)
            targets = images.targets(side)
            side.serve(targets, images.applier(targets))
            self._call_by = partial(self._open_doorway, command, side)
            self._doorway = self._call_by()
            self._side, exports, port = side, list(side.disks), self._doorway.port
        self._exports = [GuestDisk(export) for export in exports]
        for guest, export in zip(self._guests, self._exports, strict=True):
            self._loop.serve(guest, {"": export})
        return protocol.Opened(port, [source.size_bytes for source in images.sources])

    def _open_doorway(self, command: protocol.Open, side: SecondarySide) -> Doorway:
        context = None if command.tls is None else server_context(command.tls)
        wrap = wrap_accepted(context, "the primary's disk process")
        return Doorway(command.listen_host, command.token, self._loop, GREETING, wrap, side.greet, self._on_refused)

    def _on_refused(self, why: str) -> None:
        self._daemon.say(Refused(why))

    def _switch(self, number: int, export: Export) -> None:
        self._exports[number].export = export

    def _dial(self, command: Connect) -> Transport:
        where = f"the peer's disk process at {command.host}:{command.port}"
        context = None if command.tls is None else client_context(command.tls)
        wrap = wrap_dialled(context, where, command.peer_name)
        return dial(command.host, command.port, where, lambda done: self._turn_until(done, CONNECT_S_MAX), wrap)

    def _turn_until(self, condition: Callable[[], bool], wait_s_max: float) -> bool:
        """Go on with the guest's requests until the condition holds; False after `wait_s_max`."""
        deadline_s = time.monotonic() + wait_s_max
        self._loop.want(self._daemon.fileno(), self._on_command, 0)  # commands come one at a time
        try:
            while not condition():
                if time.monotonic() > deadline_s:
                    return False
                self._turn(0.002)
            return True
        finally:
            self._loop.watch(self._daemon.fileno(), self._on_command)

    def _close(self) -> Done:
        """The VM is gone: what is committed, or was written after a takeover, goes to the images."""
        self._leave_pair()
        side = self._side
        if isinstance(side, SecondarySide):
            while side.unfinished and not side.troubled:
                self._turn(0.01)
        self._side = None
        self._loop.unwatch(self._workers.fileno())
        self._workers.close()  # no job may meet a closed file
        if self._images is not None and isinstance(side, SecondarySide) and side.troubled:
            self._images.give_up()  # a batch may be on an image in part: its journal is needed
        elif self._images is not None:
            self._images.close(lambda why: self._daemon.say(protocol.Trouble(why, fatal=True)))
        return Done()


def main() -> None:
    """Arguments: the numbers of inherited sockets: control, then one for each disk."""
    control, *guests = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # a paused PVM waits for its disks
    DiskProcess(DaemonLink(control), guests).run()


if __name__ == "__main__":
    main()
