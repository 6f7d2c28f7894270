"""The agent beside the SVM: client frames come from the peer, the SVM's output goes to the peer and to nobody else.

Guarantees: nothing reaches a client before `take_over` (rule 5). The SVM sees every client frame from the boundary of
its checkpoint on, or a further checkpoint is asked for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from pycolo.agent import protocol
from pycolo.agent.side import BATCH_FRAMES_MAX, Side
from pycolo.core import wire
from pycolo.core.dataplane import DataplaneLimits
from pycolo.core.overheard import Overheard
from pycolo.core.replay import ReplayLog
from pycolo.core.secondary import SecondaryDataplane
from pycolo.edge.nic import Nic
from pycolo.edge.packet_channel import PacketChannel
from pycolo.edge.tap import Tap

REPLAY_BYTES_MAX = 64 << 20


class SecondarySide(Side):
    """Silent towards clients until `take_over`; from then on solo, with the connections' translation going on."""

    def __init__(
        self,
        tap: Tap,
        nic: Nic,
        notify: Callable[[protocol.Notice], None],
        limits: DataplaneLimits,
        overheard: Overheard,
        listen_host: str,
        token: str,
    ) -> None:
        """Listen for the packet channel on a free port. Raises OSError when the address is not ours."""
        super().__init__(tap, nic, notify)
        self.listener = socket.create_server((listen_host, 0), backlog=4)
        self.listener.setblocking(False)
        self._token = token
        self._dataplane = SecondaryDataplane(limits)
        self._overheard = overheard
        self._replay = ReplayLog(REPLAY_BYTES_MAX)
        self._epoch = 0
        self._output_no = 0
        self._feeding = False
        self._asked = False
        self._speaking = False
        self._trusted = False

    @property
    def packet_port(self) -> int:
        """Where the primary's agent connects to."""
        return int(self.listener.getsockname()[1])

    def accept(self) -> None:
        """A packet channel comes in; it has to show the token before anything else counts."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        if self.channel is not None:
            if self._trusted:
                connection.close()
                return
            self.channel.close()
        self.channel, self._trusted = PacketChannel(connection), False

    def reads_tap(self) -> bool:
        return True

    def reads_nic(self) -> bool:
        return self._feeding or self._speaking

    def on_tap(self, now_ms: float) -> None:
        frames = self.tap.receive(BATCH_FRAMES_MAX)
        if not self._speaking:
            self._overheard.overhear(frames, now_ms)
        else:
            self.counters.client_frames += len(frames)
            self.nic.send(self._dataplane.inbound(frames))

    def on_nic(self, now_ms: float) -> None:
        del now_ms
        frames = self.nic.receive(BATCH_FRAMES_MAX)
        self.counters.vm_frames += len(frames)
        if self._speaking:
            self.counters.released_solo += len(frames)
            self.speak(self._dataplane.outbound(frames))
            return
        self._dataplane.svm_frames(frames, self._output_no)
        if self.channel is not None:
            self.channel.send_frames(self._epoch, self._output_no, frames)
        self._output_no += len(frames)

    def on_channel(self, now_ms: float) -> None:
        for message in self.open_channel().receive():
            if not self._trusted:
                self._check_token(message)
            elif isinstance(message, tuple):
                self._client_frames(message[1], message[2], now_ms)
            elif isinstance(message, wire.Boundary):
                self._replay.mark(message.input_no)
            elif isinstance(message, wire.Confirm):
                self._dataplane.confirm(message.numbers)

    def on_time(self, now_ms: float) -> float | None:
        del now_ms
        return None

    # ---- the roll-forward's steps, in their order

    def stop_feed(self) -> None:
        """Feed no more, and take back what QEMU has not read; frames go on being logged for the replay.

        A stopped QEMU would still read one frame and hand it to the loaded SVM, which has seen it already.
        """
        self._feeding = False
        self.nic.take_back()

    def drop_output(self) -> int:
        """The SVM is stopped: forget what it put out and take back what it has not read."""
        return len(self.nic.receive_all()) + self.nic.take_back()

    def start_feed(self, epoch: int, boundary: int) -> int:
        """The SVM runs from the start of `epoch`; once for each epoch, however often it is said."""
        if self._feeding and epoch == self._epoch:
            return 0
        self._epoch = epoch
        self._asked = False
        self._dataplane.loaded()
        replay = self._replay.replay(boundary)
        self._feeding = True
        self._feed(replay.frames)
        if not replay.complete:
            self.notify(protocol.Wanted("replay"))
        return len(replay.frames)

    def take_over(self, now_ms: float) -> int:
        """We hold the claim: send what clients may still miss, hear what they said to the dead host, then speak."""
        while frames := self.tap.receive(BATCH_FRAMES_MAX):
            self._overheard.overhear(frames, now_ms)
        self.leave_pair()
        self.listener.close()
        frames = self._dataplane.take_over()
        self._speaking = True
        self.speak(frames)
        missed = self._overheard.missed(now_ms)
        self.counters.client_frames += len(missed)
        self.nic.send(self._dataplane.inbound(missed))
        self.counters.released_solo += len(frames)
        return len(frames)

    def leave_pair(self) -> None:
        super().leave_pair()
        self._trusted = False

    def stats(self) -> protocol.Stats:
        """Counters; a secondary releases nothing."""
        now = self.counters
        return protocol.Stats(released_solo=now.released_solo, client_frames=now.client_frames, vm_frames=now.vm_frames)

    def _client_frames(self, first_no: int, frames: list[bytes], now_ms: float) -> None:
        self._overheard.passed_on(frames, now_ms)
        self.counters.client_frames += len(frames)
        self._replay.add(first_no, frames)
        if self._feeding:
            self._feed(frames)

    def _feed(self, frames: list[bytes]) -> None:
        if self.nic.send(self._dataplane.client_frames(frames)) and not self._asked:
            self._asked = True
            self.notify(protocol.Wanted("replay"))

    def _check_token(self, message: object) -> None:
        if isinstance(message, wire.ChannelHello) and message.token == self._token:
            self._trusted = True
        else:
            self.leave_pair()
