"""The secondary's compiled side and its Python twin side by side: each call goes to both, and they must agree."""

from __future__ import annotations

from collections.abc import Sequence

from pycolo.core import engines
from pycolo.core.connection import Connection
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import Packed, unpack
from pycolo.core.packet import opposite
from pycolo.core.secondary import SecondaryDataplane
from pycolo.core.translation import Translator, parse

State = tuple[list[tuple[object, ...]], list[bytes]]


class SecondaryTwins:
    """In the place of a `SecondaryDataplane`; without a compiler the twin is compared with itself."""

    def __init__(self, limits: DataplaneLimits, seed: int = 0) -> None:
        self.twin = SecondaryDataplane(limits)
        self.hot = engines.secondary_dataplane(limits, seed=seed)

    @property
    def translator(self) -> Translator:
        return self.hot.translator

    def client_frames(self, frames: Sequence[bytes]) -> list[bytes]:
        out = self.twin.client_frames(frames)
        assert self.hot.client_frames(frames) == out
        return out

    def client_packed(self, packed: bytes) -> Packed:
        out = self.twin.client_packed(packed)
        assert self.hot.client_packed(memoryview(packed)) == out
        return out

    def svm_frames(self, frames: Sequence[bytes], first_no: int) -> None:
        self.twin.svm_frames(frames, first_no)
        self.hot.svm_frames(frames, first_no)

    def svm_packed(self, packed: bytes, first_no: int) -> None:
        self.twin.svm_packed(packed, first_no)
        self.hot.svm_packed(memoryview(packed), first_no)

    def know(self, frame: bytes, seq_add: int, value_add: int) -> None:
        """If this is a client's segment: its connection has these offsets, if there is room for one more."""
        segment = parse(frame)
        if segment is None:
            return
        for translator in (self.twin.translator, self.hot.translator):
            connection = translator.admit(opposite(segment[0]))
            if connection is not None:
                connection.seq_add, connection.value_add = seq_add, value_add

    def confirm(self, nos: Sequence[int]) -> None:
        self.twin.confirm(nos)
        self.hot.confirm(nos)

    def loaded(self) -> None:
        self.twin.loaded()
        self.hot.loaded()

    def take_over(self) -> list[bytes]:
        self.agree()
        frames = self.twin.take_over()
        assert self.hot.take_over() == frames
        self.agree()
        return frames

    def agree(self) -> None:
        """What they know of connections and feed late is the same, and as much is retained."""
        assert unpack(self.twin.take_freed()) == unpack(self.hot.take_freed())
        assert state_of(self.twin.translator) == state_of(self.hot.translator)
        ours, theirs = self.twin._retained, self.hot._retained
        assert (ours.kept_frames, ours.kept_bytes) == (theirs.kept_frames, theirs.kept_bytes)


def state_of(translator: Translator) -> State:
    """All of it, in the order in which connections are evicted."""
    known = [(key, *_state_of_one(key, each)) for key, each in translator.connections.items()]
    return known, list(translator._ended)


def _state_of_one(key: bytes, connection: Connection) -> tuple[object, ...]:
    ends = connection.guest_fin, connection.client_fin, connection.reset, connection.existed, connection.ended
    return connection.offsets(key), ends, connection.last_ack_no, connection.sent_nos(), connection.translates
