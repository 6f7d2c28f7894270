"""The same comparison on what two copies have sent long ago: captures of both (`colo compare`).

Every frame counts as output of the copy whose capture it is in, whichever way it went. What differs is reported once
per flow, at the first place; the rest of that flow is passed over.

Guarantee: memory is bounded by the limits, whatever the captures are; a flow that would pass them is reported as what
it is by then, missing on one side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pycolo.core.compare_terms import DEFAULT_TERMS
from pycolo.core.datagrams import DatagramFlow
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.divergence import Difference, Divergence, hosts_of
from pycolo.core.explain import explain, held_place, svm_surplus
from pycolo.core.flow import Flow
from pycolo.core.layers import PROTOCOL_NAMES, TCP, UDP, locate
from pycolo.core.limits import DataplaneLimits
from pycolo.core.messages import Message, addresses_in, is_link_control, whole_frame
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
_EPOCH = 1


class CapturedDataplane(PrimaryDataplane):
    """A divergence is not followed by a checkpoint here: the flow it is in is given up."""

    def __init__(self, limits: DataplaneLimits) -> None:
        super().__init__(limits, _EPOCH, replace(DEFAULT_TERMS, captured=True))
        self.found: list[tuple[bytes, Divergence]] = []  # with the name of the flow
        self._out_of_room = False

    def keep_limits(self) -> None:
        """What is too much to be remembered is missing on the other side, or at another place than anybody would look.

        Call it between frames.
        """
        while self.full and self._waiting:
            self._missing(self._lateness.oldest() or next(iter(self._waiting)))
        if self._out_of_room:
            self._out_of_room = False
            self._surplus()

    def finish(self) -> int:
        """Nothing more comes: fragments make no packets any more, and what waits has no twin. What that released."""
        released = self.stats.released_equal
        self._release_fragments()
        for flow in list(self._waiting):
            self._missing(flow)
        self._surplus()
        return self.stats.released_equal - released

    def _reach_limit(self) -> None:
        self._out_of_room = True

    def _pvm_message(self, frame: bytes, said: Message, out: list[bytes]) -> None:
        super()._pvm_message(frame, _by_error_alone(said), out)

    def _svm_message(self, no: int, said: Message, out: list[bytes]) -> None:
        super()._svm_message(no, _by_error_alone(said), out)

    def _pump(self, flow: Flow | DatagramFlow, out: list[bytes]) -> None:
        if not flow.diverged:
            super()._pump(flow, out)
        if flow.diverged:
            self._give_up(flow)

    def _note_divergence(self, flow: Flow | DatagramFlow) -> None:
        super()._note_divergence(flow)
        if len(self.found) < DIVERGENCES_MAX:
            self.found += [(flow.name, each) for each in self.take_divergences()]
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
            difference = explain(flow)
            if difference.what not in ("syn", "payload", "options"):
                difference = Difference("missing", *held_place(flow))
            self._differs(flow, difference)

    def _surplus(self) -> None:
        """What the SVM has said and the PVM has not."""
        flows: list[Flow | DatagramFlow] = [*self._table.flows(), *self._datagrams.values()]
        for flow in flows:
            more = None if flow.diverged or flow.hold else svm_surplus(flow)
            if more is not None:
                self._differs(flow, Difference("surplus", more[0], b"", more[1]))

    def _release_fragments(self) -> None:
        """Each stands for itself from here on."""
        self._waiting = {flow: None for flow in self._waiting if not isinstance(flow, FragmentHold)}
        out: list[bytes] = []
        for pieces in self._svm_pieces.give_up():
            for no, frame in pieces.tickets:
                self._svm_message(no, whole_frame(frame), out)
        for frame in self._pieces.give_up():
            self._uncount([frame])
            self._pvm_message(frame, whole_frame(frame), out)


def _by_error_alone(said: Message) -> Message:
    """ICMP errors by type and code, whatever they quote: what differs in a quote is one divergence, not two flows."""
    key, comparable, payload_at = said
    if key[:1] != b"Q":
        return said
    return key[: addresses_in(key).stop + 2], comparable, payload_at


class Comparison:
    """Two captures, given frame by frame; `divergences` has one entry per flow, the first place."""

    def __init__(self, limits: DataplaneLimits = LIMITS) -> None:
        self._plane = CapturedDataplane(limits)
        self._flows: set[int] = set()
        self._said: dict[bytes, list[int]] = {}  # between two hosts: a hash of all frames, on either side
        self.flows_by_protocol: Counter[str] = Counter()
        self.frames_primary = self.frames_secondary = self.released = self.link_control = 0

    @property
    def divergences(self) -> list[Divergence]:
        """What was found until now, but for what is the same frame by frame.

        Such a flow is no divergence, however little sense its frames make to who looks for streams in them.
        """
        return [found for name, found in self._plane.found if not self._same(hosts_of(name))]

    @property
    def flows(self) -> int:
        """How many there are in both together, at most FLOWS_COUNTED_MAX; both directions are one."""
        return len(self._flows)

    def primary(self, frames: Sequence[bytes], now_ms: float) -> None:
        """Frames of the PVM's capture."""
        for frame in frames:
            self.frames_primary += 1
            self._count_flow(frame, 0)
            self.released += len(self._plane.client_frames([frame], now_ms))
            self.released += len(self._plane.pvm_frames([frame], now_ms))
            self._plane.keep_limits()

    def secondary(self, frames: Sequence[bytes], now_ms: float) -> None:
        """Frames of the SVM's capture."""
        for frame in frames:
            self._count_flow(frame, 1)
            self.released += len(self._plane.svm_frames(_EPOCH, self.frames_secondary, [frame], now_ms))
            self.frames_secondary += 1
            self._plane.keep_limits()

    def finish(self) -> None:
        """There are no more frames."""
        self.released += self._plane.finish()

    def _same(self, hosts: bytes) -> bool:
        ours, theirs = self._said.get(hosts, (0, 1))
        return ours == theirs

    def _note_said(self, hosts: bytes, frame: bytes, side: int) -> None:
        said = self._said.get(hosts)
        if said is None:
            if len(self._said) >= FLOWS_COUNTED_MAX:
                return
            said = self._said[hosts] = [0, 0]
        said[side] = hash((said[side], frame))

    def _count_flow(self, frame: bytes, side: int) -> None:
        layers = locate(frame)
        if is_link_control(frame, layers):
            self.link_control += 1
            return
        self._note_said(b"W" + frame[:6], frame, side)
        if layers is not None:
            self._note_said(layers.tags + layers.addresses(frame), frame, side)
        if layers is None:
            name, ends = "other", frozenset((frame[:6], frame[6:12]))
        else:
            name = PROTOCOL_NAMES.get(layers.protocol, "ip")
            addresses = layers.addresses(frame)
            half = len(addresses) // 2
            if layers.fragment is not None and layers.fragment.offset:
                return  # it belongs to what its packet's first fragment belongs to
            ports = frame[layers.upper : layers.upper + 4] if layers.protocol in (TCP, UDP) else b""
            ends = frozenset((addresses[:half] + ports[:2], addresses[half:] + ports[2:]))
        flow = hash((name, ends, b"" if layers is None else layers.tags))
        if flow not in self._flows and len(self._flows) < FLOWS_COUNTED_MAX:
            self._flows.add(flow)
            self.flows_by_protocol[name] += 1
