"""What both roles of an agent share: the network cards of one VM copy and the counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pycolo.agent.protocol import Notice
from pycolo.core.packed import Batch
from pycolo.core.translation_chain import TranslatorChain
from pycolo.edge.nic import Nic
from pycolo.edge.packet_channel import PacketChannel
from pycolo.edge.tap import Tap
from pycolo.errors import PeerLost

BATCH_FRAMES_MAX = 64


@dataclass
class Counters:
    """Frames since the agent started, of all cards."""

    client_frames: int = 0
    vm_frames: int = 0
    released_solo: int = 0


class Card:
    """One network card of the VM copy: its uplink, its socket to QEMU, and the translation between them.

    No connection spans two cards, so the roles add a dataplane for each.
    """

    def __init__(self, number: int, mac: bytes, tap: Tap, nic: Nic, chain: TranslatorChain) -> None:
        """`number` is the card's place in vm.toml, by which the peer knows it; `mac` the guest's address (6 bytes)."""
        self.number, self.mac, self.tap, self.nic, self.chain = number, mac, tap, nic, chain

    def inbound(self, batch: Batch) -> Batch:
        """Client frames in the guest's numbers, one for one."""
        return Batch(self.chain.inbound_packed(batch.packed), batch.count)


class Side:
    """The cards of one VM copy, by their numbers; the roles say what flows between them and the peer.

    `feeding`: the VM copy gets client frames; not so while a checkpoint stops it, nor an SVM before its first one.
    """

    cards: Sequence[Card]
    feeding: bool

    def __init__(self, notify: Callable[[Notice], None]) -> None:
        self.notify = notify
        self.channel: PacketChannel | None = None
        self.counters = Counters()

    def reads_tap(self, number: int) -> bool:
        """Whether client frames may be taken from that card's uplink now."""
        raise NotImplementedError

    def reads_nic(self, number: int) -> bool:
        """Whether the VM's frames may be taken from that card now; those beyond the kernel's buffer are lost."""
        raise NotImplementedError

    def on_tap(self, number: int, now_ms: float) -> None:
        """The card's uplink is readable."""
        raise NotImplementedError

    def on_nic(self, number: int, now_ms: float) -> None:
        """The card itself is readable."""
        raise NotImplementedError

    def on_channel(self, now_ms: float) -> None:
        """The packet channel is readable. Raises PeerLost."""
        raise NotImplementedError

    def on_time(self, now_ms: float) -> float | None:
        """Called when time may have made something due; returns the next such time in ms, if any."""
        raise NotImplementedError

    def leave_pair(self) -> None:
        """Close the packet channel."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def open_channel(self) -> PacketChannel:
        """The packet channel. Raises PeerLost when there is none."""
        if self.channel is None:
            raise PeerLost("there is no packet channel to the peer's agent")
        return self.channel
