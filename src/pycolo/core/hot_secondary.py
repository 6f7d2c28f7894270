"""The secondary's data plane with plain segments of settled connections compiled (`_hot`).

Everything else is the Python twin's, `SecondaryDataplane`, frame by frame. Both work on the same state, which is in C:
the numbers of a connection, and all frames that are retained. So `translator` is whole at any time.

Guarantee: whatever the frames and their order, what comes out and what is retained is that of the twin.
"""

from __future__ import annotations

from collections.abc import Sequence

from pycolo.core._hot import ConnectionState, HotConnections
from pycolo.core.connection import Connection
from pycolo.core.hot_windows import HotReceiveWindows
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import FRAME_BYTES_MAX, Packed, frame_at, pack, unpack
from pycolo.core.receive_windows import ReceiveWindows
from pycolo.core.retained import Retention
from pycolo.core.secondary import SecondaryDataplane, advance_ticks
from pycolo.core.translation import Translator


class HotConnection(ConnectionState, Connection):
    """Its state is in C."""

    __slots__ = ()


class HotTranslator(Translator):
    """Its connections are found by the compiled side as well."""

    def __init__(self, flows_max: int, advance_ticks: int, hot: HotConnections) -> None:
        super().__init__(flows_max, advance_ticks)
        self._hot = hot

    def _new_connection(self, key: bytes) -> Connection:
        return HotConnection(self._hot, key)

    def _drop(self, key: bytes) -> None:
        _leave(self.connections[key])
        super()._drop(key)

    def clear(self) -> None:
        """As the twin."""
        for connection in self.connections.values():
            _leave(connection)
        super().clear()


def _leave(connection: Connection) -> None:
    """Somebody may still have the object: nothing is to be found by it any more."""
    assert isinstance(connection, HotConnection)
    connection.leave()


class HotSecondary(SecondaryDataplane):
    """As `SecondaryDataplane`. `seed` is random: it keeps clients from choosing ports that collide in the table."""

    def __init__(self, limits: DataplaneLimits, *, seed: int = 0) -> None:
        self._seed, self._hot = seed, HotConnections(seed, limits.held_frames_max, limits.held_bytes_max)
        super().__init__(limits)

    def _new_translator(self) -> Translator:
        return HotTranslator(self._limits.flows_max, advance_ticks(self._limits), self._hot)

    def _new_retained(self) -> Retention:
        return self._hot

    def _new_windows(self) -> ReceiveWindows:
        return HotReceiveWindows(self._limits.flows_max, seed=self._seed)

    # ---------------------------------------------------------------- frames

    def client_frames(self, frames: Sequence[bytes]) -> list[bytes]:
        """As the twin."""
        if _fit(frames):
            return unpack(self.client_packed(pack(frames)))
        return super().client_frames(frames)

    def svm_frames(self, frames: Sequence[bytes], first_no: int) -> None:
        """As the twin."""
        if _fit(frames):
            self.svm_packed(pack(frames), first_no)
        else:
            super().svm_frames(frames, first_no)

    def client_packed(self, packed: Packed) -> Packed:
        """As `client_frames`, of a packed batch."""
        at, slow = self._hot.inbound(packed, 0)
        while slow:
            frame, at = frame_at(packed, at)
            self._hot.say(self._client_frame(frame))
            at, slow = self._hot.inbound(packed, at)
        return self._windows.client_packed(self._hot.take_out())

    def svm_packed(self, packed: Packed, first_no: int) -> None:
        """As `svm_frames`, of a packed batch."""
        self._windows.svm_packed(packed)
        at, no, slow = self._hot.outbound(packed, 0, first_no)
        while slow:
            frame, at = frame_at(packed, at)
            self._svm_frame(no, frame)
            at, no, slow = self._hot.outbound(packed, at, no + 1)


def _fit(frames: Sequence[bytes]) -> bool:
    """Whether they can be packed: no network card gives longer ones."""
    return all(len(frame) <= FRAME_BYTES_MAX for frame in frames)
