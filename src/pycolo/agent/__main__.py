"""The agent's program: one event loop over uplinks, network cards, packet channel and the daemon's commands.

It ends when its daemon does; a bug ends it too, and the partner takes over.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import FileIO
from typing import TypeVarTuple

from pycolo.agent import protocol
from pycolo.agent.primary import PrimarySide
from pycolo.agent.secondary import SecondarySide
from pycolo.agent.side import Card, Side
from pycolo.core.adaptive import AdaptiveLimits
from pycolo.core.compare_policy import Policy
from pycolo.core.compare_terms import CompareTerms
from pycolo.core.lease import LEASE_MS_MAX
from pycolo.core.limits import DataplaneLimits
from pycolo.core.pace import CheckpointPace
from pycolo.core.secondary import advance_ticks
from pycolo.core.tolerance_rules import Tolerances
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.daemon_link import DaemonLink
from pycolo.edge.dial import dial
from pycolo.edge.doorway import Doorway
from pycolo.edge.heap import trim_heap
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.nic import Nic
from pycolo.edge.packet_channel import GREETING, PacketChannel
from pycolo.edge.scheduling import be_patient, be_prompt
from pycolo.edge.tap import Tap
from pycolo.edge.tls import client_context, server_context
from pycolo.edge.transport import wrap_accepted, wrap_dialled
from pycolo.errors import EnvironmentFault, PeerLost, PeerUntrusted, WrongState

CONNECT_MS_MAX = 1000.0
LEASE_WAIT_MS_MAX = 2 * LEASE_MS_MAX  # it is over before
FEED_DRAIN_MS_MAX = 100.0  # the VM runs on meanwhile, but takes no new frames
NICE = -10
FULL_MS, FULL_MS_MAX = 1.0, 64.0  # from one look at a full queue to the next

Given = TypeVarTuple("Given")


def now_ms() -> float:
    """Monotonic time, in ms."""
    return time.monotonic_ns() / 1e6


def _flush_and_hear(side: Side, channel: PacketChannel) -> None:
    channel.flush()
    side.on_channel(now_ms())


class Agent:
    """Everything that is readable, and what follows from it."""

    def __init__(self, daemon: DaemonLink, nics: Sequence[Nic]) -> None:
        self._daemon, self._nics = daemon, nics
        self._on_taps = [partial(self._on_tap, number) for number in range(len(nics))]
        self._on_nics = [partial(self._on_nic, number) for number in range(len(nics))]
        self._side: Side | None = None
        self._limits = DataplaneLimits()
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._wanted: dict[int, int] = {}  # the events that epoll has been asked for
        self._watched_channel: PacketChannel | None = None
        self._full_ms = FULL_MS

    def run(self) -> None:
        """Serve until the daemon is gone."""
        self.watch(self._daemon.fileno(), self._on_command)
        while not self._daemon.gone:
            self._turn(1000.0)

    def _turn(self, wait_ms: float) -> None:
        """Wait for the next thing to happen, at most `wait_ms`, and deal with it."""
        side = self._side
        if side is not None:
            due_ms = side.on_time(now_ms())
            if due_ms is not None:
                wait_ms = max(0.0, min(wait_ms, due_ms - now_ms()))
            wait_ms = min(wait_ms, self._flush(side))
            self._set_watches(side)
        for fd, _ in self._epoll.poll(wait_ms / 1000.0):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()

    def _flush(self, side: Side) -> float:
        """Feed what a full queue had no room for. Returns how long to wait at most, in ms, as nobody says when there is
        some: longer and longer for a guest that takes nothing.
        """
        waiting = [card.nic for card in side.cards if card.nic.backlog]
        before = sum(nic.backlog for nic in waiting)
        for nic in waiting:
            nic.flush()
        left = sum(nic.backlog for nic in waiting)
        if not left or left < before:
            self._full_ms = FULL_MS
            return FULL_MS if left else math.inf
        wait_ms, self._full_ms = self._full_ms, min(2 * self._full_ms, FULL_MS_MAX)
        return wait_ms

    def _set_watches(self, side: Side) -> None:
        """Ask only for what the side wants now: not reading is how back-pressure works."""
        for number, card in enumerate(side.cards):
            self._want(card.tap.fd, self._on_taps[number], select.EPOLLIN if side.reads_tap(number) else 0)
            self._want(card.nic.fileno(), self._on_nics[number], select.EPOLLIN if side.reads_nic(number) else 0)
        if side.channel is not self._watched_channel:
            before, self._watched_channel = self._watched_channel, side.channel
            if before is not None and before.fileno() >= 0:  # left, but not closed yet
                self.unwatch(before.fileno())
            if side.channel is not None:  # a closed one's number may have come back
                self._wanted.pop(side.channel.fileno(), None)
        if side.channel is not None:
            waiting = select.EPOLLOUT if side.channel.waiting else 0
            self._want(side.channel.fileno(), self._on_channel, select.EPOLLIN | waiting)

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd`, which is new, is readable."""
        self._wanted.pop(fd, None)
        self._want(fd, handler, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`, which is still open."""
        del self._handlers[fd]
        self._wanted.pop(fd, None)
        self._epoll.unregister(fd)

    def _want(self, fd: int, handler: Callable[[], None], events: int) -> None:
        if self._wanted.get(fd) == events:
            return
        self._handlers[fd], self._wanted[fd] = handler, events
        try:
            self._epoll.modify(fd, events)
        except FileNotFoundError:
            self._epoll.register(fd, events)

    # ---- readable things

    def _on_tap(self, number: int) -> None:
        assert self._side is not None
        if not self._side.reads_tap(number):  # it was readable before a command of the same turn paused the feed
            return
        self._guarded(self._side, self._side.on_tap, number, now_ms())

    def _on_nic(self, number: int) -> None:
        assert self._side is not None
        if self._side.reads_nic(number):
            self._guarded(self._side, self._side.on_nic, number, now_ms())
        else:
            self._nics[number].clear_error()

    def _on_channel(self) -> None:
        side = self._side
        if side is not None and side.channel is not None:
            self._guarded(side, _flush_and_hear, side, side.channel)

    def _guarded(self, side: Side, act: Callable[[*Given], None], *given: *Given) -> None:
        """A broken packet channel is news for the daemon, not the end of the agent: what is held stays held."""
        try:
            act(*given)
        except PeerLost as lost:
            side.leave_pair()
            self._daemon.say(protocol.ChannelLost(str(lost)))

    # ---- the daemon's commands

    def _on_command(self) -> None:
        packet = self._daemon.hear()
        if not packet:
            return
        answer: protocol.Answer | None
        try:
            answer = self._carry_out(protocol.command_decoder.decode(packet))
        except EnvironmentFault as fault:
            answer = protocol.Failed(str(fault), "environment")
        except PeerUntrusted as stranger:
            answer = protocol.Failed(str(stranger), "untrusted")
        except PeerLost as lost:
            answer = protocol.Failed(str(lost), "peer")
        except WrongState as refusal:
            answer = protocol.Failed(str(refusal), "state")
        if answer is not None:
            self._daemon.say(answer)
        self._keep_pace()

    def _keep_pace(self) -> None:
        """While a checkpoint stops the feed a VM copy waits for us; the first one of an SVM has not come yet."""
        if self._side is not None and self._side.feeding:
            be_patient()
        else:
            be_prompt()

    def _carry_out(self, command: protocol.Command) -> protocol.Answer | None:
        """Carry out one command; None when it has been answered already."""
        if isinstance(command, protocol.Start):
            return self._start(command)
        if isinstance(self._side, PrimarySide):
            return self._carry_out_primary(self._side, command)
        if isinstance(self._side, SecondarySide):
            return self._carry_out_secondary(self._side, command)
        return protocol.Failed("the agent has not been started", "environment")

    def _carry_out_primary(self, side: PrimarySide, command: protocol.Command) -> protocol.Answer | None:
        match command:
            case protocol.Connect():
                side.attach(self._connect(command), now_ms())
            case protocol.PauseFeed():
                return self._pause_feed(side)
            case protocol.ResumeFeed():
                side.resume_feed(now_ms())
            case protocol.Seal():
                self._seal(side, command.epoch)
                return None
            case protocol.Commit():
                return protocol.Done(side.commit(command.epoch, now_ms()))
            case protocol.GoSolo():
                return protocol.Done(side.go_solo())
            case protocol.LeavePair():
                side.leave_pair()
            case protocol.GetStats():
                return side.stats()
            case protocol.StartCapture():
                return side.start_capture(command, now_ms())
            case protocol.GetCapture():
                return side.capture()
            case protocol.StopCapture():
                return side.stop_capture("it was stopped")
            case _:
                return protocol.Failed(f"a primary's agent has no {type(command).__name__}", "environment")
        return protocol.Done()

    def _seal(self, side: PrimarySide, epoch: int) -> None:
        drained = side.drain()
        # The PVM stays paused until this answer, so compare after it.
        self._daemon.say(protocol.Done(sum(batch.count for batch in drained)))
        self._guarded(side, side.seal, epoch, drained, now_ms())  # nobody waits for a second answer

    def _carry_out_secondary(self, side: SecondarySide, command: protocol.Command) -> protocol.Answer:
        match command:
            case protocol.StopFeed():
                side.stop_feed()
            case protocol.DropOutput():
                return protocol.Done(side.drop_output())
            case protocol.StartFeed():
                return protocol.Done(side.start_feed(command.epoch, command.boundary))
            case protocol.TakeOver():
                return protocol.Done(self._take_over(side))
            case protocol.Listen():
                return protocol.Started(side.listen())
            case protocol.LeavePair():
                side.leave_pair()
            case protocol.GetStats():
                return side.stats()
            case _:
                return protocol.Failed(f"a secondary's agent has no {type(command).__name__}", "environment")
        return protocol.Done()

    def _start(self, command: protocol.Start) -> protocol.Started:
        whole = DataplaneLimits(hold_ms_min=command.hold_ms_min, hold_ms_max=command.hold_ms_max)
        limits = self._limits = whole.shared_by(len(command.ports))
        self._terms, self._lease_ms = command.terms, command.lease_ms
        cards = self._cards(command.ports)
        if command.role == "primary":
            self._side = self._primary(cards)
            return protocol.Started(0)
        context = None if command.tls is None else server_context(command.tls)

        def open_doorway(greeted: Callable[[MessageStream], None]) -> Doorway:
            def let_in(stream: MessageStream) -> None:
                greeted(stream)
                self._on_channel()  # frames may have come right behind the greeting

            wrap = wrap_accepted(context, "the primary's agent")
            return Doorway(command.listen_host, command.token, self, GREETING, wrap, let_in, self._on_refused)

        side = SecondarySide(cards, self._daemon.say, limits, open_doorway)
        self._side = side
        return protocol.Started(side.packet_port)

    def _cards(self, ports: Sequence[protocol.Port]) -> list[Card]:
        """The network cards with their uplinks."""
        limits, taps = self._limits, _open_taps(ports)
        return [
            Card(
                number,
                bytes.fromhex(port.mac.replace(":", "")),
                tap,
                nic,
                TranslatorChain(limits.flows_max, advance_ticks(limits)),
            )
            for number, (port, tap, nic) in enumerate(zip(ports, taps, self._nics, strict=True))
        ]

    def _primary(self, cards: Sequence[Card]) -> PrimarySide:
        plain = self._terms
        policy, tolerances = Policy.decode(plain.default, plain.rules), Tolerances.decode(plain.tolerances)
        pace = CheckpointPace(AdaptiveLimits(enabled=plain.adaptive), now_ms())
        terms = CompareTerms(policy, tolerances)
        return PrimarySide(cards, self._daemon.say, self._limits, terms, pace, self._lease_ms)

    def _on_refused(self, why: str) -> None:
        self._daemon.say(protocol.Refused(why))

    def _take_over(self, secondary: SecondarySide) -> int:
        """The secondary's side ends, a primary's begins, with the same sockets."""
        be_prompt()  # clients wait
        free = self._turn_until(secondary.may_speak, LEASE_WAIT_MS_MAX)
        assert free, "a lease ends by itself before that"
        released, missed = secondary.take_over(now_ms())
        side = self._primary(secondary.cards)
        side.counters = secondary.counters
        self._side = side
        return side.take_over(released, missed)

    def _pause_feed(self, side: PrimarySide) -> protocol.Answer:
        boundary, paused_ms = side.pause_feed(now_ms()), now_ms()
        self._keep_pace()
        self._turn_until(lambda: not side.waits_for_qemu(now_ms() - paused_ms), FEED_DRAIN_MS_MAX)
        side.end_wait()
        return protocol.Fed(boundary)

    def _connect(self, command: protocol.Connect) -> PacketChannel:
        """Connect while the packets of the VM, which runs solo, go on."""
        trim_heap()  # what the last pair held is free
        where = f"the peer's agent at {command.host}:{command.port}"
        context = None if command.tls is None else client_context(command.tls)
        wrap = wrap_dialled(context, where, command.peer_name)
        transport = dial(command.host, command.port, where, lambda done: self._turn_until(done, CONNECT_MS_MAX), wrap)
        try:
            return PacketChannel.to_secondary(transport, len(self._nics), command.token)
        except PeerLost:
            transport.close()
            raise

    def _turn_until(self, condition: Callable[[], bool], wait_ms_max: float) -> bool:
        """Go on with packets until the condition holds; False after `wait_ms_max`."""
        deadline_ms = now_ms() + wait_ms_max
        self._want(self._daemon.fileno(), self._on_command, 0)  # commands come one at a time
        try:
            while not condition():
                if now_ms() > deadline_ms:
                    return False
                self._turn(0.2)
            return True
        finally:
            self._want(self._daemon.fileno(), self._on_command, select.EPOLLIN)


def _open_taps(ports: Sequence[protocol.Port]) -> list[Tap]:
    """All or none. Raises EnvironmentFault."""
    taps: list[Tap] = []
    with contextlib.ExitStack() as opened:
        for port in ports:
            taps.append(Tap(port.tap, port.bridge))
            opened.callback(taps[-1].close)
        opened.pop_all()
    return taps


def main() -> None:
    """Arguments: the numbers of inherited descriptors: control, and of each network card our end and QEMU's end."""
    control, *ends = map(int, sys.argv[1:])
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # two guests compete for the same cores
    pairs = zip(ends[::2], ends[1::2], strict=True)
    nics = [Nic(socket.socket(fileno=ours), FileIO(theirs, "r+")) for ours, theirs in pairs]
    Agent(DaemonLink(socket.socket(fileno=control)), nics).run()


if __name__ == "__main__":
    main()
