"""One translation for each takeover that connections have lived through, from the clients' numbers to the guest's.

    client <-> layer of the first takeover <-> ... <-> layer of the last one <-> guest

A survivor that is protected again keeps translating; its new secondary has to be able to go on with that, so it gets
every layer, and each change before the first client frame that the change applies to (see agent/primary).

Before a new secondary is told, what a layer always does to a connection the next one does as well from then on: however
often the VM is taken over, there is one layer, and for 15 minutes one more where a client has fallen silent.

Guarantees: both ends translate a client's frame alike; a layer is given up only when no connection needs it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pycolo.core.packed import Packed, pack, unpack
from pycolo.core.translation import Translator
from pycolo.core.wire import Translations
from pycolo.errors import PeerViolation

LAYERS_MAX = 8
STALE_MS = 900_000.0  # a client that has not been heard for so long has given up, or will not mind
ENTRIES_PER_MESSAGE_MAX = 4096


class TranslatorChain:
    """The layers, the clients' side first; empty on a host where the VM has not been taken over."""

    def __init__(self, flows_max: int, advance_ticks: int) -> None:
        """As of `Translator`; times are in ms, of any clock that does not stop."""
        self._flows_max, self._advance_ticks = flows_max, advance_ticks
        self._layers: list[tuple[float, Translator]] = []  # with the time of the takeover

    def __len__(self) -> int:
        return len(self._layers)

    def inbound(self, frames: Sequence[bytes]) -> list[bytes]:
        """Client frames in the guest's numbers."""
        for _, layer in self._layers:
            frames = layer.inbound(frames)
        return list(frames)

    def outbound(self, frames: Sequence[bytes]) -> list[bytes]:
        """The guest's frames in the clients' numbers."""
        for _, layer in reversed(self._layers):
            frames = layer.outbound(frames)
        return list(frames)

    def inbound_packed(self, packed: Packed) -> Packed:
        """As `inbound`, of a packed batch."""
        return pack(self.inbound(unpack(packed))) if self._layers else packed

    def outbound_packed(self, packed: Packed) -> Packed:
        """As `outbound`, of a packed batch."""
        return pack(self.outbound(unpack(packed))) if self._layers else packed

    def push(self, layer: Translator, now_ms: float) -> None:
        """The copy whose connections `layer` knows has taken over."""
        self._settle(now_ms)
        layer.taken_over = True
        self._layers.append((now_ms, layer))
        if len(self._layers) > LAYERS_MAX:
            (_, oldest), (_, next_one), *_ = self._layers
            oldest.fold_into(next_one, anyhow=True)
            del self._layers[0]

    def _settle(self, now_ms: float) -> None:
        # Until then a connection that has been silent since the takeover may need its timestamps moved on.
        settled_ms = now_ms - self._advance_ticks
        for since_ms, layer in self._layers:
            layer.settled = layer.settled or since_ms <= settled_ms

    # ---------------------------------------------------------------- for a secondary

    def whole(self, now_ms: float) -> list[Translations]:
        """Everything that a new secondary has to know; layers that nobody needs are given up."""
        self._settle(now_ms)
        for _, layer in self._layers:
            layer.forget_ended()
        for (since_ms, outer), (_, inner) in pairwise(self._layers):
            if outer.settled:
                outer.fold_into(inner, anyhow=now_ms - since_ms >= STALE_MS)
        self._layers = [(since, layer) for since, layer in self._layers if not layer.settled or layer.needed]
        messages = [Translations(0, [], [], afresh=True)]
        for number, (since_ms, layer) in enumerate(self._layers):
            layer.take_changes()
            age_ms = min(now_ms - since_ms, STALE_MS)
            messages.append(Translations(number, [], [], age_ms=age_ms))
            messages += _messages(number, layer, list(layer.connections))
        return messages

    def changes(self) -> list[Translations]:
        """What has changed since `whole` or the last call."""
        messages: list[Translations] = []
        for number, (_, layer) in enumerate(self._layers):
            messages += _messages(number, layer, layer.take_changes())
        return messages

    def adopt(self, message: Translations, now_ms: float) -> None:
        """Secondary: this is how the primary translates. Raises PeerViolation."""
        if not message.afresh and (message.layer > len(self._layers) or message.layer >= LAYERS_MAX):
            raise PeerViolation(f"the peer sent layer {message.layer} of a translation that has {len(self._layers)}")
        if message.afresh:
            self._layers.clear()
            return
        if message.layer == len(self._layers):
            self.push(Translator(self._flows_max, self._advance_ticks), now_ms - message.age_ms)
            self._settle(now_ms)
        self._layers[message.layer][1].adopt(message.known, message.forgotten)


def _messages(number: int, layer: Translator, keys: Sequence[bytes]) -> list[Translations]:
    """What is known of these connections now, in messages of bounded size."""
    messages = []
    for start in range(0, len(keys), ENTRIES_PER_MESSAGE_MAX):
        offsets = [(key, layer.offsets(key)) for key in keys[start : start + ENTRIES_PER_MESSAGE_MAX]]
        known = [found for _, found in offsets if found is not None]
        messages.append(Translations(number, known, [key for key, found in offsets if found is None]))
    return messages
