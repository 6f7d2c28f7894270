"""What both roles of an agent share: the sockets of one VM copy and the counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pycolo.agent.protocol import Notice
from pycolo.edge.nic import Nic
from pycolo.edge.packet_channel import PacketChannel
from pycolo.edge.tap import Tap
from pycolo.errors import PeerLost

BATCH_FRAMES_MAX = 64


@dataclass
class Counters:
    """Frames since the agent started."""

    client_frames: int = 0
    vm_frames: int = 0
    released_solo: int = 0


class Side:
    """Sockets of one VM copy; the roles say what flows between them."""

    def __init__(self, tap: Tap, nic: Nic, notify: Callable[[Notice], None]) -> None:
        self.tap, self.nic, self.notify = tap, nic, notify
        self.channel: PacketChannel | None = None
        self.counters = Counters()

    def reads_tap(self) -> bool:
        """Whether client frames may be taken from the uplink now."""
        raise NotImplementedError

    def reads_nic(self) -> bool:
        """Whether the VM's frames may be taken now; not taking them is back-pressure on the guest."""
        raise NotImplementedError

    def on_tap(self, now_ms: float) -> None:
        """The uplink is readable."""
        raise NotImplementedError

    def on_nic(self, now_ms: float) -> None:
        """The VM's network card is readable."""
        raise NotImplementedError

    def on_channel(self, now_ms: float) -> None:
        """The packet channel is readable. Raises PeerLost."""
        raise NotImplementedError

    def on_time(self, now_ms: float) -> float | None:
        """Called when time may have made something due; returns the next such time in ms, if any."""
        raise NotImplementedError

    def speak(self, frames: Sequence[bytes]) -> None:
        """Release frames to the clients."""
        if frames:
            self.tap.send(frames)

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
