"""The agent beside the PVM: client frames go to it and, numbered, to the peer; the PVM's output waits for its twin.

Where the PVM has been taken over, `chain` stands between the clients and all of this: what is held and compared is in
the guest's numbers. The peer gets client frames as they came, and beforehand what it needs to translate them alike.

Guarantees: in protected mode the only way to a client is what `PrimaryDataplane` releases (rule 1). After the pair is
left everything stays held until `go_solo` (rule 5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from pycolo.agent import protocol
from pycolo.agent.side import BATCH_FRAMES_MAX, Side
from pycolo.core import wire
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.limits import DataplaneLimits
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.nic import Nic
from pycolo.edge.packet_channel import PacketChannel
from pycolo.edge.tap import Tap

FROZEN_S = 0.2  # no batch takes so long to be sent
QUEUED_IN_QEMU_S = 0.002  # time that QEMU gets to use the room in a socket that was full


class PrimarySide(Side):
    """Solo at first; protected from the first seal on; solo again after `go_solo`."""

    def __init__(
        self,
        tap: Tap,
        nic: Nic,
        notify: Callable[[protocol.Notice], None],
        limits: DataplaneLimits,
        chain: TranslatorChain,
    ) -> None:
        super().__init__(tap, nic, notify)
        self._limits, self._chain = limits, chain
        self._dataplane: PrimaryDataplane | None = None  # None: solo, output flows freely
        self._input_no = 0
        self._feeding = True
        self._cutting = False
        self._past = protocol.Stats()
        self._unspoken: list[bytes] = []

    def attach(self, channel: PacketChannel, now_ms: float) -> None:
        """From the next boundary on client frames go to the peer too."""
        self.channel = channel
        if self._dataplane is not None:  # a reunion: its commit shows that the peer is our secondary still
            self._dataplane.hold_until_commit()
        for message in self._chain.whole(now_ms):
            channel.send(message)

    def take_over(self, released: list[bytes], missed: list[bytes]) -> int:
        """Our guest was the SVM until now: clients get `released`, in their numbers; the guest what it `missed`."""
        super().speak(released)
        self.counters.released_solo += len(released)
        self.counters.client_frames += len(missed)
        self.nic.send(self._chain.inbound(missed))
        return len(released)

    def reads_tap(self) -> bool:
        return self._feeding and not self.nic.backlog

    def reads_nic(self) -> bool:
        if self._cutting:
            return False
        return self._dataplane is None or (self.channel is not None and not self._dataplane.full)

    def on_tap(self, now_ms: float) -> None:
        arrived = self.tap.receive(BATCH_FRAMES_MAX)
        self.counters.client_frames += len(arrived)
        frames = self._chain.inbound(arrived)
        if self._dataplane is not None:
            self._dataplane.client_frames(frames, now_ms)
        self.nic.send(frames)
        if self.channel is not None:
            self.channel.send_frames(0, self._input_no, arrived)
            self._input_no += len(arrived)
            self._tell_changes()

    def on_nic(self, now_ms: float) -> None:
        if self._dataplane is not None:
            self.on_channel(now_ms)  # a peer that has left may speak by now: nothing is released before we know
        self._put_out(self.nic.receive(BATCH_FRAMES_MAX), now_ms)

    def on_channel(self, now_ms: float) -> None:
        for message in self.open_channel().receive_all():
            if isinstance(message, tuple) and self._dataplane is not None:
                epoch, first_no, frames = message
                self.speak(self._dataplane.svm_frames(epoch, first_no, frames, now_ms))
        self._confirm()

    def on_time(self, now_ms: float) -> float | None:
        if self._dataplane is None:
            return None
        reason = self._dataplane.due(now_ms)
        if reason is not None:
            self.notify(protocol.Wanted(reason))
        return self._dataplane.next_due_ms(now_ms)

    def speak(self, frames: Sequence[bytes]) -> None:
        """Release frames; after the pair is left even what was free to go waits for `go_solo`: the peer may speak."""
        if self._dataplane is not None and self.channel is None:
            self._unspoken += frames
        elif self._dataplane is None:
            super().speak(self._chain.outbound(frames))
            self._tell_changes()
        else:
            self.tap.send(self._fresh(frames))
            self._tell_changes()

    def _tell_changes(self) -> None:
        """Before the next client frame, which may need them."""
        if self.channel is not None:
            for message in self._chain.changes():
                self.channel.send(message)

    def _fresh(self, frames: Sequence[bytes]) -> Iterator[bytes]:
        """The frames, translated one by one; a process that was frozen in between keeps the rest: the peer may speak by
        now.
        """
        began_s = time.monotonic()
        for number, frame in enumerate(frames):
            if time.monotonic() - began_s > FROZEN_S:
                self._unspoken += frames[number:]
                return
            yield from self._chain.outbound((frame,))

    # ---- the checkpoint's steps, in their order

    def pause_feed(self) -> int:
        """Take no more client frames; returns the number of the next one, which the peer is told as well."""
        self._feeding = False
        self.open_channel().send(wire.Boundary(self._input_no))
        return self._input_no

    def resume_feed(self) -> None:
        """Take client frames and the PVM's output again."""
        self._feeding, self._cutting = True, False

    def drain(self) -> list[bytes]:
        """The PVM is paused: what it has put out until now.

        Nothing is read from here until the feed resumes: room in a full socket makes even a stopped QEMU send what it
        had queued and write guest RAM, which must not happen once the dirty pages are taken.
        """
        self._cutting = True
        drained = self.nic.receive_all()
        if self._dataplane is not None and self._dataplane.full:
            while more := self.nic.receive_late(QUEUED_IN_QEMU_S):
                drained += more
        return drained

    def seal(self, epoch: int, drained: list[bytes], now_ms: float) -> None:
        """What was drained, and all before it, belongs to the old epoch; what comes now to `epoch`."""
        self._put_out(drained, now_ms)
        if self._dataplane is None:
            self._dataplane = PrimaryDataplane(self._limits, epoch - 1)
        self._dataplane.seal(epoch)

    def commit(self, epoch: int, now_ms: float) -> int:
        """Release what the checkpoint that starts `epoch` freed."""
        if self._dataplane is None:
            return 0
        self.on_channel(now_ms)  # as in on_nic
        frames = self._unspoken + self._dataplane.commit(epoch, now_ms)  # a peer that commits is still our secondary
        self._unspoken = []
        self.speak(frames)
        return len(frames)

    def go_solo(self) -> int:
        """We hold the claim: everything held leaves, and output flows freely."""
        self.leave_pair()
        if self._dataplane is None:
            return 0
        frames = self._unspoken + self._dataplane.go_solo()
        self._past = self.stats()
        self._dataplane, self._unspoken = None, []
        self.speak(frames)
        self.counters.released_solo += len(frames)
        return len(frames)

    def stats(self) -> protocol.Stats:
        """Counters, over all protected times."""
        past, now, dataplane = self._past, self.counters, self._dataplane
        return protocol.Stats(
            released_equal=past.released_equal + (dataplane.stats.released_equal if dataplane else 0),
            released_by_checkpoint=past.released_by_checkpoint
            + (dataplane.stats.released_by_checkpoint if dataplane else 0),
            released_solo=now.released_solo,
            diverged=past.diverged + (dataplane.stats.diverged if dataplane else 0),
            held_frames=dataplane.stats.held_frames if dataplane else 0,
            held_bytes=dataplane.stats.held_bytes if dataplane else 0,
            lag_ms=dataplane.stats.lag_ms if dataplane else 0.0,
            client_frames=now.client_frames,
            vm_frames=now.vm_frames,
        )

    def _put_out(self, frames: list[bytes], now_ms: float) -> None:
        self.counters.vm_frames += len(frames)
        if self._dataplane is None:
            self.counters.released_solo += len(frames)
            self.speak(frames)
        else:
            self.speak(self._dataplane.pvm_frames(frames, now_ms))
            self._confirm()

    def _confirm(self) -> None:
        if self._dataplane is None or self.channel is None:
            return
        numbers = self._dataplane.take_confirmations()
        if numbers:
            self.channel.send(wire.Confirm(numbers))
