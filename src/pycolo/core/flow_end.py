"""How a connection ends: which FINs, resets and acknowledgements leave though the SVM has not said just the same.

Everything else on a connection is in `flow`. The arguments are in docs/comparison.md, "How a connection ends".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycolo.core.divergence import Difference
from pycolo.core.packet import ACK, HALF, MASK, distance
from pycolo.core.twin_stream import DIVERGED, RELEASE, WAIT, Verdict

if TYPE_CHECKING:
    from pycolo.core.flow import Flow


def is_the_clients(flow: Flow, seq: int) -> bool:
    """Whether a reset with this number comes from the client itself, which has forgotten the connection.

    It has the number that the PVM has asked the client to go on with: last of what has left (as a host without such a
    connection answers, RFC 9293, 3.5.2), or last of all. What clients have said does not count: anybody may have said
    it. Who forges a reset has to know one of two numbers among 2 ** 32, as for any connection (RFC 5961, 3).
    """
    return seq in (flow.left_ack, flow.pvm_ack)


def comes_back(flow: Flow) -> None:
    """The client speaks after its reset: a router on the way had forgotten the connection, or it was forged."""
    flow.client_gone = False
    if flow.left_unsaid:
        flow.left_unsaid, flow.diverged = False, True
        flow.difference = Difference("reset")


def acknowledged(flow: Flow, ack: int) -> bool:
    """Rule 2. Once the SVM has reset the connection only the client's data count, not its FIN: nobody will read on.

    When both copies have reset it, not even they count: neither will read what the client may not say again. As
    long as the SVM has merely ended its own stream, a FIN counts: somebody may still wait for the client's end.
    """
    if flow.captured:
        return True
    if flow.svm_ack is None:
        return False
    if (flow.svm_ack - ack) & MASK < HALF:
        return True
    return flow.svm_rst and (flow.pvm_rst or _has_all_data(flow))


def _has_all_data(flow: Flow) -> bool:
    return flow.svm_ack is not None and flow.client_next is not None and distance(flow.svm_ack, flow.client_next) >= 0


def judge_fin(flow: Flow, place: int) -> Verdict:
    """The SVM's FIN has to stand at the same place, or all have closed and both copies have reset, the PVM after it.

    That is timing: who closes with a byte of the client's unread resets (RFC 9293, 3.6.1; RFC 1122, 4.2.2.13), who
    was faster says FIN, and resets when the byte comes. Otherwise no event stands for a FIN, as clients may rely on
    an end; but when the client has closed too, a reset of its or the PVM's is likely, and a checkpoint can wait.
    """
    if flow.delta is None:
        return WAIT
    place = (place + flow.delta) & MASK
    if flow.svm_fin is not None:
        return RELEASE if place == flow.svm_fin else flow.otherwise
    if flow.twin.base is None:
        return flow.otherwise if flow.svm_rst else WAIT
    if distance(flow.twin.next, place) > 0:
        return DIVERGED
    if not flow.svm_rst:
        return WAIT
    if flow.client_fin is None or flow.twin.next != place:
        return flow.otherwise
    return RELEASE if flow.pvm_rst else WAIT


def judge_reset(flow: Flow, ack: int, flags: int) -> Verdict:
    """A RST leaves when the SVM has reset as well, or has ended its stream and acknowledged all data of the client.

    In the second case the survivor has nothing to say any more and nothing to hear: which of the two ways a
    connection ends by then is timing (one side still ACKs the last FIN where the other resets).
    """
    if flow.svm_fin is not None and _has_all_data(flow):
        return RELEASE
    return RELEASE if flow.svm_rst and (not flags & ACK or acknowledged(flow, ack)) else WAIT
