"""Client frames that the secondary overhears on its own uplink: at a takeover those that the primary never passed on.

Between a host's death and the takeover clients go on sending to the dead one. A network that delivers the VM's frames
to both hosts (bridge ports that do not learn) lets the secondary hear them; a SYN lost then costs its client a second.

Guarantees: a frame counts as missed only when it was overheard more often than passed on, whichever came first; what is
remembered is bounded in number and age.
"""

from __future__ import annotations

from collections.abc import Iterable

from pycolo.core.packed import Batch, Packed, batch_of, unpack

FRAMES_MAX = 8192
AGE_MS_MAX = 3000.0  # longer than a takeover takes; a client has sent again by then


class Overheard:
    """A bounded account of frames overheard and passed on, by content."""

    def __init__(self, own_mac: bytes) -> None:
        """`own_mac` (6 bytes) is the VM's: what its other copy sends is not a client's frame."""
        self._own_mac = own_mac
        # By hash: since when, how often overheard less passed on, the frame.
        self._accounts: dict[int, tuple[float, int, bytes]] = {}

    def overhear(self, packed: Packed, now_ms: float) -> None:
        """These frames came in on our uplink."""
        self._book((frame for frame in unpack(packed) if frame[6:12] != self._own_mac), 1, now_ms)

    def passed_on(self, packed: Packed, now_ms: float) -> None:
        """These frames came from the primary."""
        self._book(unpack(packed), -1, now_ms)

    def missed(self, now_ms: float) -> Batch:
        """What clients sent and the primary never passed on, in order; all is forgotten."""
        self._forget_old(now_ms)
        missed = [frame for _, count, frame in self._accounts.values() for _ in range(count)]
        self._accounts.clear()
        return batch_of(missed)

    def _book(self, frames: Iterable[bytes], difference: int, now_ms: float) -> None:
        accounts = self._accounts
        for frame in frames:
            key = hash(frame)
            account = accounts.pop(key, None)
            since_ms, count = (now_ms, difference) if account is None else (account[0], account[1] + difference)
            if count:
                accounts[key] = (since_ms, count, frame if count > 0 else b"")
        self._forget_old(now_ms)

    def _forget_old(self, now_ms: float) -> None:
        """All in one go: to find its first entry a dictionary looks at all the places that have become empty."""
        excess, old = len(self._accounts) - FRAMES_MAX, list[int]()
        for key, (since_ms, _, _) in self._accounts.items():
            if len(old) >= excess and now_ms - since_ms <= AGE_MS_MAX:
                break
            old.append(key)
        for key in old:
            del self._accounts[key]
