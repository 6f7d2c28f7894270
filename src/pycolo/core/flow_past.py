"""What the PVM has said on a connection until a checkpoint: from there on it is the SVM's past as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycolo.core.packet import MASK, RST, SYN, distance
from pycolo.core.twin_stream import joined

if TYPE_CHECKING:
    from pycolo.core.flow import Flow


def pvm_stream(flow: Flow) -> tuple[int | None, bytearray]:
    """The PVM's stream as far as it is known, in its own numbers, up to its newest byte."""
    if flow.pvm_next is None:
        return None, bytearray()
    pieces = _released_piece(flow)
    for _, _, frame, seq, _, flags, _, start, end in flow.hold:
        if start != end and not flags & RST:
            pieces.append(((seq + bool(flags & SYN)) & MASK, frame[start:end]))
    top = flow.pvm_next
    if flow.pvm_fin is not None and distance(top, flow.pvm_fin) > 0:
        top = flow.pvm_fin
    return joined(pieces, top, flow.budget.flow_bytes_max)


def _released_piece(flow: Flow) -> list[tuple[int, bytes]]:
    """What the PVM has released of the SVM's stream, in the PVM's words where a difference was tolerated."""
    twin = flow.twin
    if twin.base is None or flow.delta is None or flow.released is None:
        return []
    base = (twin.base - flow.delta) & MASK
    length = distance(flow.released, base)
    if length <= 0:
        return []
    stream = twin.main[:length]
    for at, said in flow.tolerated.items():
        start = distance(at, twin.base)
        if start >= 0 and start + len(said) <= length:
            stream[start : start + len(said)] = said
    return [(base, bytes(stream))]
