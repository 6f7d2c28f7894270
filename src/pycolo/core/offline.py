"""The same comparison on what two copies have sent long ago: captures of both (`colo compare`).

Every frame counts as output of the copy whose capture it is in, whichever way it went. What differs is reported once
per flow, at the first place; the rest of that flow is passed over.

Guarantee: memory is bounded by the limits, whatever the captures are; a flow that would pass them is reported as what
it is by then, missing on one side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pycolo.core.datagrams import DatagramFlow
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.divergence import Difference, Divergence
from pycolo.core.explain import held_place, svm_surplus
from pycolo.core.flow import Flow
from pycolo.core.layers import ICMP, ICMPV6, TCP, UDP, locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.messages import is_link_control, whole_frame
from pycolo.core.pieces import FragmentHold

LIMITS = DataplaneLimits(
    held_frames_max=1 << 18,
    held_bytes_max=256 << 20,
    stream_bytes_max=32 << 20,
    unreleased_bytes_max=256 << 20,
    datagrams_max=1 << 16,
)
FLOWS_COUNTED_MAX = 1 << 20
DIVERGENCES_MAX = 1 << 16
_PROTOCOLS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}
_EPOCH = 1


class CapturedDataplane(PrimaryDataplane):
    """A divergence is not followed by a checkpoint here: the flow it is in is given up."""

    captured = True

    def __init__(self, limits: DataplaneLimits) -> None:
        super().__init__(limits, _EPOCH)
        self.found: list[Divergence] = []
        self._out_of_room = False

    def keep_limits(self) -> None:
        """What is too much to be remembered is missing on the other side, or at another place than anybody would look.

        Call it between frames.
        """
        self.found += self.take_divergences()
        del self.found[DIVERGENCES_MAX:]
        while self.full and self._waiting:
            self._waiting_since_ms()  # finds the one that has waited longest
            self._missing(self._arrivals[0][2] if self._arrivals else next(iter(self._waiting)))
        if self._out_of_room:
            self._out_of_room = False
            self._surplus()

    def finish(self) -> None:
        """Nothing more comes: fragments make no packets any more, and what waits has no twin."""
        self._release_fragments()
        for flow in list(self._waiting):
            self._missing(flow)
        self._surplus()
        self.keep_limits()

    def _reach_limit(self) -> None:
        self._out_of_room = True

    def _pump(self, flow: Flow | DatagramFlow, out: list[bytes]) -> None:
        if not flow.diverged:
            super()._pump(flow, out)
        if flow.diverged:
            self._give_up(flow)

    def _note_divergence(self, flow: Flow | DatagramFlow) -> None:
        super()._note_divergence(flow)
        self._give_up(flow)

    def _give_up(self, flow: Flow | DatagramFlow) -> None:
        """Pass over the rest of it."""
        self._uncount([held[2] for held in flow.hold])
        flow.hold.clear()
        self._waiting.pop(flow, None)
        flow.diverged = True
        flow.forget()

    def _differs(self, flow: Flow | DatagramFlow, difference: Difference) -> None:
        flow.difference = difference
        self._note_divergence(flow)

    def _missing(self, flow: Flow | DatagramFlow | FragmentHold) -> None:
        if isinstance(flow, FragmentHold):
            self._release_fragments()
        elif flow.hold:
            offset, said = held_place(flow)
            self._differs(flow, Difference("missing", offset, said))

    def _surplus(self) -> None:
        """What the SVM has said and the PVM has not."""
        flows: list[Flow | DatagramFlow] = [*self._table.flows(), *self._datagrams.values()]
        for flow in flows:
            more = None if flow.diverged or flow.hold else svm_surplus(flow)
            if more is not None:
                self._differs(flow, Difference("surplus", more[0], b"", more[1]))

    def _release_fragments(self) -> None:
        """Each stands for itself from here on."""
        left, self._pieces = list(self._pieces.hold), FragmentHold()
        self._waiting = {flow: None for flow in self._waiting if not isinstance(flow, FragmentHold)}
        out: list[bytes] = []
        for pieces in self._svm_pieces.give_up():
            for no, frame in pieces.tickets:
                self._svm_message(no, whole_frame(frame), out)
        for _, _, frame in left:
            self._uncount([frame])
            self._pvm_message(frame, whole_frame(frame), out)


class Comparison:
    """Two captures, given frame by frame; `divergences` has one entry per flow, the first place."""

    def __init__(self, limits: DataplaneLimits = LIMITS) -> None:
        self._plane = CapturedDataplane(limits)
        self._flows: set[int] = set()
        self.flows_by_protocol: Counter[str] = Counter()
        self.frames_primary = self.frames_secondary = self.released = self.link_control = 0

    @property
    def divergences(self) -> list[Divergence]:
        """What was found until now."""
        return self._plane.found

    @property
    def flows(self) -> int:
        """How many there are in both together, at most FLOWS_COUNTED_MAX; both directions are one."""
        return len(self._flows)

    def primary(self, frames: Sequence[bytes], now_ms: float) -> None:
        """Frames of the PVM's capture."""
        for frame in frames:
            self.frames_primary += 1
            self._count_flow(frame)
            self._plane.client_frames([frame], now_ms)
            self.released += len(self._plane.pvm_frames([frame], now_ms))
            self._plane.keep_limits()

    def secondary(self, frames: Sequence[bytes], now_ms: float) -> None:
        """Frames of the SVM's capture."""
        for frame in frames:
            self._count_flow(frame)
            self.released += len(self._plane.svm_frames(_EPOCH, self.frames_secondary, [frame], now_ms))
            self.frames_secondary += 1
            self._plane.keep_limits()

    def finish(self) -> None:
        """There are no more frames."""
        self._plane.finish()

    def _count_flow(self, frame: bytes) -> None:
        if is_link_control(frame):
            self.link_control += 1
            return
        layers = locate(frame)
        if layers is None:
            name, ends = "other", frozenset((frame[:6], frame[6:12]))
        else:
            name = _PROTOCOLS.get(layers.protocol, "ip")
            addresses = layers.addresses(frame)
            half = len(addresses) // 2
            has_ports = layers.protocol in (TCP, UDP) and layers.fragment is None
            ports = frame[layers.upper : layers.upper + 4] if has_ports else b""
            if layers.fragment is not None:
                return  # counted as what it is a piece of, when that has come with all of its headers elsewhere
            ends = frozenset((addresses[:half] + ports[:2], addresses[half:] + ports[2:]))
        flow = hash((name, ends, b"" if layers is None else layers.tags))
        if flow not in self._flows and len(self._flows) < FLOWS_COUNTED_MAX:
            self._flows.add(flow)
            self.flows_by_protocol[name] += 1
