"""The agent beside the SVM: client frames come from the peer, the SVM's output goes to the peer and to nobody else.

Guarantees: nothing reaches a client from here (rule 5): at a takeover a `PrimarySide` takes the place. The SVM sees
every client frame from the boundary of its checkpoint on, or a further checkpoint is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from pycolo.agent import protocol
from pycolo.agent.side import BATCH_FRAMES_MAX, Side
from pycolo.core import wire
from pycolo.core.limits import DataplaneLimits
from pycolo.core.overheard import Overheard
from pycolo.core.replay import ReplayLog
from pycolo.core.secondary import SecondaryDataplane
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.doorway import Doorway
from pycolo.edge.message_stream import MessageStream
from pycolo.edge.nic import Nic
from pycolo.edge.packet_channel import PacketChannel
from pycolo.edge.tap import Tap

REPLAY_BYTES_MAX = 64 << 20


class SecondarySide(Side):
    """Silent towards clients; `chain` translates as the primary does, see `agent/primary`."""

    def __init__(
        self,
        tap: Tap,
        nic: Nic,
        notify: Callable[[protocol.Notice], None],
        limits: DataplaneLimits,
        overheard: Overheard,
        chain: TranslatorChain,
        open_doorway: Callable[[Callable[[MessageStream], None]], Doorway],
    ) -> None:
        """`open_doorway(greeted)` listens for the packet channel."""
        super().__init__(tap, nic, notify)
        self._open_doorway = open_doorway
        self._doorway = open_doorway(self._greeted)
        self._dataplane = SecondaryDataplane(limits)
        self._overheard, self.chain = overheard, chain
        self._replay = ReplayLog(REPLAY_BYTES_MAX)
        self._epoch = 0
        self._output_no = 0
        self._feeding = False
        self._asked = False

    @property
    def packet_port(self) -> int:
        """Where the primary's agent connects to."""
        return self._doorway.port

    def listen(self) -> int:
        """The channel is lost: open another way in, and return its port."""
        self.leave_pair()
        self._doorway = self._open_doorway(self._greeted)
        return self.packet_port

    def _greeted(self, stream: MessageStream) -> None:
        self.channel = PacketChannel(stream, receiver_is_primary=False)

    def reads_tap(self) -> bool:
        return True

    def reads_nic(self) -> bool:
        return self._feeding

    def on_tap(self, now_ms: float) -> None:
        self._overheard.overhear(self.tap.receive(BATCH_FRAMES_MAX), now_ms)

    def on_nic(self, now_ms: float) -> None:
        del now_ms
        frames = self.nic.receive(BATCH_FRAMES_MAX)
        self.counters.vm_frames += len(frames)
        self._dataplane.svm_frames(frames, self._output_no)
        if self.channel is not None:
            self.channel.send_frames(self._epoch, self._output_no, frames)
        self._output_no += len(frames)

    def on_channel(self, now_ms: float) -> None:
        for message in self.open_channel().receive():
            if isinstance(message, tuple):
                self._client_frames(message[1], message[2], now_ms)
            elif isinstance(message, wire.Boundary):
                self._replay.mark(message.input_no)
            elif isinstance(message, wire.Translations):
                self.chain.adopt(message, now_ms)
            else:
                self._dataplane.confirm(message.numbers)

    def on_time(self, now_ms: float) -> float | None:
        left_s = self._doorway.turn(now_ms / 1000)
        return None if left_s is None else now_ms + left_s * 1000

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

    def take_over(self, now_ms: float) -> tuple[list[bytes], list[bytes]]:
        """We hold the claim: what clients may still miss, in their numbers, and what they said to the dead host.

        From now on `chain` translates for our guest as well; this side is over.
        """
        while frames := self.tap.receive(BATCH_FRAMES_MAX):
            self._overheard.overhear(frames, now_ms)
        self.leave_pair()
        released = self.chain.outbound(self._dataplane.take_over())
        self.chain.push(self._dataplane.translator, now_ms)
        return released, self._overheard.missed(now_ms)

    def leave_pair(self) -> None:
        super().leave_pair()
        self._doorway.close()

    def stats(self) -> protocol.Stats:
        """Counters; a secondary releases nothing."""
        now = self.counters
        return protocol.Stats(client_frames=now.client_frames, vm_frames=now.vm_frames)

    def _client_frames(self, first_no: int, arrived: list[bytes], now_ms: float) -> None:
        self._overheard.passed_on(arrived, now_ms)
        self.counters.client_frames += len(arrived)
        frames = self.chain.inbound(arrived)  # now, as the primary did: its translation may change before a replay
        self._replay.add(first_no, frames)
        if self._feeding:
            self._feed(frames)

    def _feed(self, frames: list[bytes]) -> None:
        if self.nic.send(self._dataplane.client_frames(frames)) and not self._asked:
            self._asked = True
            self.notify(protocol.Wanted("replay"))
