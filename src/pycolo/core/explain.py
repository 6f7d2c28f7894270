"""What it is in which two copies of a flow differ: found only once they do, so that nothing is paid for it before."""

from __future__ import annotations

from pycolo.core.datagrams import DatagramFlow
from pycolo.core.divergence import Difference
from pycolo.core.flow import Flow
from pycolo.core.packet import MASK, ODD, RST, SYN, URG, distance, odd_terms, syn_terms


def explain(flow: Flow | DatagramFlow) -> Difference:
    """Why a flow that has diverged can't release its oldest held frame."""
    if flow.difference is not None or isinstance(flow, DatagramFlow):
        return flow.difference or Difference("missing")
    _, _, frame, seq, _, flags, at, start, end = flow.hold[0]
    first = (seq + bool(flags & SYN) + (flow.delta or 0)) & MASK
    if flags & SYN and flow.svm_syn and syn_terms(frame, flags, at, start) != flow.svm_syn:
        return Difference("syn", None, syn_terms(frame, flags, at, start), flow.svm_syn)
    place, theirs = flow.twin.first_difference(first, frame[start:end])
    if theirs:
        return Difference("payload", flow.offset(first, place), frame[start + place : end], theirs)
    if flags & (URG | ODD) and not flags & SYN:
        return Difference("options", None, odd_terms(frame, flags, at, start), flow.svm_odd.newest)
    return Difference("reset" if flags & RST or flow.svm_rst else "fin", flow.offset(first, 0), frame[start:end])


def held_place(flow: Flow | DatagramFlow) -> tuple[int | None, bytes]:
    """Where the oldest held payload stands in its stream or datagram, and what it is."""
    if isinstance(flow, DatagramFlow):
        _, _, _, comparable, payload_at = flow.hold[0]
        return 0, comparable[payload_at:]
    _, _, frame, seq, _, flags, _, start, end = flow.hold[0]
    place = (seq + bool(flags & SYN)) & MASK
    return None if flow.pvm_first is None else distance(place, flow.pvm_first), frame[start:end]


def svm_surplus(flow: Flow | DatagramFlow) -> tuple[int | None, bytes] | None:
    """What the SVM has said and the PVM has not: where, and the bytes (none: it has opened or ended); None: nothing.

    Of a datagram that is all that is compared, so its payload may be the end of it.
    """
    if isinstance(flow, DatagramFlow):
        return (None, flow.twins[0][1]) if flow.twins else None
    if flow.svm_open and not flow.pvm_open:
        return None, b""
    twin = flow.twin
    if flow.delta is None or twin.base is None:
        return None
    known = flow.released if flow.released is not None else flow.pvm_first
    more = len(twin.main) if known is None else distance(twin.next, (known + flow.delta) & MASK)
    if more > 0:
        place = (twin.next - more) & MASK
        return flow.offset(place, 0), twin.said(place, more)
    return (None, b"") if flow.svm_fin is not None and flow.pvm_fin is None else None
