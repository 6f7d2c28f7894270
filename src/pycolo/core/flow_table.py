"""The primary's table of connections: bounded, whatever clients do.

Guarantees
* At most `flows_max` connections are known. A new one that finds the table full takes the place of one that holds
  nothing: an ended one first, then one that no client has completed (a flood of SYNs), then one of the oldest.
* Forgetting is safe: `forgot` says that an unknown connection may have any offset, until the next checkpoint.
* A connection that has been idle for IDLE_MS_MAX is forgotten; after a checkpoint that costs no knowledge.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from pycolo.core.compare_terms import CompareTerms
from pycolo.core.flow import Flow
from pycolo.core.holding import TwinBudget
from pycolo.core.packet import Segment

IDLE_MS_MAX = 600_000.0
_EVICTION_LOOKS_MAX = 64
_EXPIRY_LOOKS_MAX = 1024


class FlowTable:
    """Connections by key, the guest as the source."""

    def __init__(self, flows_max: int, epoch: int, budget: TwinBudget, terms: CompareTerms) -> None:
        self._flows_max, self._budget, self._terms = flows_max, budget, terms
        self._flows: OrderedDict[bytes, Flow] = OrderedDict()
        self._finished: OrderedDict[bytes, None] = OrderedDict()
        self._half_open: OrderedDict[bytes, None] = OrderedDict()
        self.epoch = epoch
        self.forgot = False  # a live connection was forgotten, so an unknown one may have any offset

    def __len__(self) -> int:
        return len(self._flows)

    def get(self, key: bytes, now_ms: float) -> Flow | None:
        """A known connection, as of this epoch."""
        flow = self._flows.get(key)
        if flow is not None and flow.epoch != self.epoch:
            flow.rebase(self.epoch, now_ms)
        return flow

    def known(self, key: bytes) -> Flow | None:
        """A known connection as it is, of whichever epoch."""
        return self._flows.get(key)

    def new(self, key: bytes) -> Flow:
        """A connection that is not in the table."""
        return Flow(key, self.epoch, self._budget, self._terms)

    def admit(self, key: bytes, now_ms: float) -> Flow | None:
        """A new connection in the table; None when all of it holds something."""
        if len(self._flows) >= self._flows_max and not self._evict():
            return None
        flow = self._flows[key] = self.new(key)
        flow.touched_ms = now_ms
        return flow

    def flows(self) -> list[Flow]:
        """All of them, and those that only the SVM has opened yet."""
        return [each for flow in self._flows.values() for each in (flow, flow.successor) if each is not None]

    def is_half_open(self, key: bytes) -> bool:
        """Whether no client has said anything on it yet."""
        return key in self._half_open

    def replace(self, flow: Flow, successor: Flow) -> None:
        """The next connection on the same ports."""
        flow.forget()
        for kind in (self._finished, self._half_open):
            kind.pop(flow.key, None)
        self._flows[flow.key] = successor
        self._flows.move_to_end(flow.key)

    # ---------------------------------------------------------------- beginnings and ends

    def svm_opens(self, frame: bytes, segment: Segment, flow: Flow) -> Flow:
        """The SVM opens or refuses a connection: the PVM's present one, or one that the PVM will come to."""
        _, seq, ack, flags, *_ = segment
        successor = flow.successor
        if flow.answers(flow.svm_isn, seq, ack, flags) or (flow.pvm_next is None and not flow.svm_open):
            mine = flow
        elif successor is not None and successor.answers(successor.svm_isn, seq, ack, flags):
            mine = successor
        else:
            if successor is not None:
                successor.forget()
            mine = flow.successor = self.new(flow.key)
        mine.open_svm(frame, segment)
        return mine

    def note_half_open(self, flow: Flow) -> None:
        """The guest has answered a SYN; nobody has acknowledged that yet."""
        self._half_open[flow.key] = None

    def note_client(self, flow: Flow) -> None:
        """A client has said something on it."""
        if self._half_open:
            self._half_open.pop(flow.key, None)

    def note_end(self, flow: Flow) -> None:
        """It may have ended."""
        if _has_ended(flow):
            self._finished[flow.key] = None

    def note_ends(self, flows: Iterable[Flow]) -> None:
        """They may have ended; in which order they are given makes no difference to which is forgotten first."""
        for key in sorted(flow.key for flow in flows if _has_ended(flow)):
            self._finished[key] = None

    # ---------------------------------------------------------------- forgetting

    def begin_epoch(self, epoch: int) -> None:
        """All connections are alike on both sides."""
        self.epoch, self.forgot = epoch, False

    def tidy(self, now_ms: float) -> None:
        """All offsets are zero now, so to forget connections that have ended or are idle costs no knowledge."""
        for key in self._finished:
            flow = self._flows.get(key)
            if flow is not None and flow.successor is None and flow.finished():
                self._forget(key, flow)
        self._finished.clear()
        for key, flow in list(islice(self._flows.items(), _EXPIRY_LOOKS_MAX)):
            if self._in_use(flow, now_ms):
                self._flows.move_to_end(key)
            else:
                self._forget(key, flow)

    def _in_use(self, flow: Flow, now_ms: float) -> bool:
        return bool(flow.hold) or flow.epoch == self.epoch or now_ms - flow.touched_ms < IDLE_MS_MAX

    def _holds(self, flow: Flow) -> bool:
        return bool(flow.hold)

    def _evict(self) -> bool:
        while self._finished:
            key, _ = self._finished.popitem(last=False)
            flow = self._flows.get(key)
            if flow is not None and not self._holds(flow) and flow.finished():
                self._forget(key, flow)
                return True
        while self._half_open:
            key = next(iter(self._half_open))
            flow, half_open = self._flows.get(key), self.is_half_open(key)
            del self._half_open[key]
            if flow is not None and half_open and not self._holds(flow):
                self._forget(key, flow)
                return True
        for key, flow in islice(self._flows.items(), _EVICTION_LOOKS_MAX):
            if not self._holds(flow):
                self._forget(key, flow)
                return True
        return False

    def _forget(self, key: bytes, flow: Flow) -> None:
        has_offset = flow.epoch == self.epoch and (flow.delta != 0 or flow.successor is not None)
        if has_offset and (flow.successor is not None or not flow.ended_in_order()):
            self.forgot = True
        del self._flows[key]
        self._half_open.pop(key, None)
        flow.forget()


def _has_ended(flow: Flow) -> bool:
    return (flow.pvm_rst or flow.pvm_fin is not None) and flow.finished()
