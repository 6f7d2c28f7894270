"""Client frames that the secondary overhears on its own uplink: at a takeover those that the primary never passed on.

Between a host's death and the takeover clients go on sending to the dead one. A network that delivers the VM's frames
to both hosts (bridge ports that do not learn) lets the secondary hear them; a SYN lost then costs its client a second.

Guarantees: a frame counts as missed only when it was overheard more often than passed on, whichever came first; what is
remembered is bounded in number and age.
"""

from __future__ import annotations

from itertools import islice
from typing import Protocol

from pycolo.core.packed import Batch, Packed, batch_of, unpack

FRAMES_MAX = 8192
AGE_MS_MAX = 3000.0  # longer than a takeover takes; a client has sent again by then


class FrameAccounts(Protocol):
    """How often each frame was overheard less how often it was passed on, by content; even accounts are closed."""

    def book(self, packed: Packed, difference: int, now_ms: float, but_from: bytes) -> None:
        """Each of these frames once, except those from the MAC address `but_from`; then forget the old ones."""

    def missed(self, now_ms: float) -> list[bytes]:
        """Frames with something on their account, as often as it says, in order, bounded; then all is forgotten."""


class Accounts:
    """The accounts in Python: what the compiled ones (`_hot.HotAccounts`) have to agree with."""

    def __init__(self, frames_max: int, age_ms_max: float) -> None:
        self._frames_max, self._age_ms_max = frames_max, age_ms_max
        # By hash: since when, how often overheard less passed on, the frame.
        self._accounts: dict[int, tuple[float, int, bytes]] = {}

    def book(self, packed: Packed, difference: int, now_ms: float, but_from: bytes) -> None:
        """See `FrameAccounts`."""
        accounts = self._accounts
        for frame in unpack(packed):
            if but_from and frame[6:12] == but_from:
                continue
            key = hash(frame)
            account = accounts.pop(key, None)
            since_ms, count = (now_ms, difference) if account is None else (account[0], account[1] + difference)
            if count:
                accounts[key] = (since_ms, count, frame if count > 0 else b"")
        self._forget_old(now_ms)

    def missed(self, now_ms: float) -> list[bytes]:
        """See `FrameAccounts`."""
        self._forget_old(now_ms)
        missed = (frame for _, count, frame in self._accounts.values() for _ in range(count))
        first = list(islice(missed, self._frames_max))
        self._accounts.clear()
        return first

    def _forget_old(self, now_ms: float) -> None:
        """All in one go: to find its first entry a dictionary looks at all the places that have become empty."""
        excess, old = len(self._accounts) - self._frames_max, list[int]()
        for key, (since_ms, _, _) in self._accounts.items():
            if len(old) >= excess and now_ms - since_ms <= self._age_ms_max:
                break
            old.append(key)
        for key in old:
            del self._accounts[key]


class Overheard:
    """What was overheard on one uplink."""

    def __init__(self, own_mac: bytes, accounts: FrameAccounts) -> None:
        """`own_mac` (6 bytes) is the VM's: what its other copy sends is not a client's frame."""
        self._own_mac, self._accounts = own_mac, accounts

    def overhear(self, packed: Packed, now_ms: float) -> None:
        """These frames came in on our uplink."""
        self._accounts.book(packed, 1, now_ms, self._own_mac)

    def passed_on(self, packed: Packed, now_ms: float) -> None:
        """These frames came from the primary."""
        self._accounts.book(packed, -1, now_ms, b"")

    def missed(self, now_ms: float) -> Batch:
        """What clients sent and the primary never passed on, in order; all is forgotten."""
        return batch_of(self._accounts.missed(now_ms))
