"""Frames without a stream (UDP, ICMP, whatever is not parsed) on the primary: one by one, in the order of their flow.

Guarantees
* The PVM's oldest held frame leaves only when the SVM's oldest waiting one has the same comparable bytes; both are
  then used up. Different means diverged; missing means wait.
* At most `datagrams_max` of the SVM wait in a flow, and all together within the budget.
"""

from __future__ import annotations

from collections import deque

from pycolo.core.divergence import Difference, first_difference
from pycolo.core.holding import TwinBudget

HeldDatagram = tuple[int, float, bytes, bytes, int]
"""A held frame: number, arrival in ms, frame, comparable bytes, where in these its payload begins."""


class DatagramFlow:
    """One flow of datagrams; exists only while something waits in it."""

    __slots__ = ("_budget", "_confirmed", "_datagrams_max", "difference", "diverged", "hold", "key", "twins")

    def __init__(self, key: bytes, datagrams_max: int, budget: TwinBudget, confirmed: deque[int]) -> None:
        self.key = key
        self.hold: deque[HeldDatagram] = deque()
        self.twins: deque[tuple[int, bytes]] = deque()  # the SVM's: number, comparable bytes
        self.diverged = False
        self.difference: Difference | None = None  # why, until somebody takes it
        self._datagrams_max = datagrams_max
        self._budget = budget
        self._confirmed = confirmed

    @property
    def name(self) -> bytes:
        """As `divergence.flow_of` reads it."""
        return self.key

    @property
    def svm_no(self) -> int | None:
        """The number of the SVM's frame that is compared next."""
        return self.twins[0][0] if self.twins else None

    def observe_svm(self, no: int, comparable: bytes) -> bool:
        """The SVM has produced frame number `no`; False when there is no room for it."""
        if self.diverged:
            return True
        if len(self.twins) >= self._datagrams_max or not self._budget.has_room(len(comparable)):
            return False
        self._budget.used_bytes += len(comparable)
        self.twins.append((no, comparable))
        return True

    def release(self, out: list[bytes]) -> bool:
        """Move what may leave from `hold` to `out`; True when the flow has diverged."""
        while self.hold and self.twins:
            if self.hold[0][3] != self.twins[0][1]:
                self.diverged, self.difference = True, self._explain()
                break
            out.append(self.hold.popleft()[2])
            no, comparable = self.twins.popleft()
            self._budget.used_bytes -= len(comparable)
            self._confirmed.append(no)
        return self.diverged

    def _explain(self) -> Difference:
        _, _, _, ours, payload_at = self.hold[0]
        theirs = self.twins[0][1]
        place = first_difference(ours, theirs)
        offset = place - payload_at
        return Difference("payload" if offset >= 0 else "header", max(0, offset), ours[place:], theirs[place:])

    def forget(self) -> None:
        """The flow is dropped: give back what it took of the budget."""
        self._budget.used_bytes -= sum(len(comparable) for _, comparable in self.twins)
        self.twins.clear()
        self.hold.clear()
