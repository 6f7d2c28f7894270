"""What [compare] says about a flow is what becomes of it."""

from __future__ import annotations

from pycolo.core.compare_policy import CHECKPOINT, COMPARE, RELEASE, Policy, Rule
from pycolo.core.compare_terms import CompareTerms
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.limits import DataplaneLimits
from pycolo.core.tolerance_rules import Tolerances
from tcp_frames import A, Connection, udp

PVM, SVM = Connection(isn=1000, guest_port=443), Connection(isn=7000, guest_port=443)


def plane(*rules: Rule, default: int = COMPARE) -> PrimaryDataplane:
    terms = CompareTerms(Policy(rules, CHECKPOINT if default == CHECKPOINT else COMPARE), Tolerances())
    return PrimaryDataplane(DataplaneLimits(), 1, terms)


def test_released_datagrams_leave_at_once_and_wait_for_nobody() -> None:
    dataplane = plane(Rule(17, RELEASE, (53, 53)))
    assert dataplane.pvm_frames([udp(b"a"), udp(b"b")], 0) == [udp(b"a"), udp(b"b")]
    assert dataplane.svm_frames(1, 0, [udp(b"other")], 0) == []
    assert dataplane.next_due_ms(0) is None
    assert dataplane._datagrams == {}
    assert dataplane.stats.released_by_policy == 2
    assert dataplane.stats.released_equal == 0


def test_of_a_port_that_is_not_compared_everything_waits_for_a_checkpoint() -> None:
    dataplane = plane(Rule(6, CHECKPOINT, (443, 443)))
    frames = [PVM.syn_ack(), PVM.out(1, 1, A, b"hello")]
    assert dataplane.svm_frames(1, 0, [SVM.syn_ack(), SVM.out(1, 1, A, b"hello")], 0) == []
    assert dataplane.pvm_frames(frames, 0) == []
    assert dataplane.svm_frames(1, 2, [SVM.syn_ack(), SVM.out(1, 1, A, b"hello")], 0) == []
    assert dataplane.due(0) == "policy", "at once, whatever the SVM says"
    assert dataplane.stats.diverged == 0
    dataplane.seal(2)
    assert dataplane.commit(2) == frames
    assert dataplane.due(5000) is None
    assert dataplane.pvm_frames([PVM.out(6, 1, A, b"more")], 0) == []
    assert dataplane.due(0) == "policy"


def test_other_ports_are_compared_as_ever() -> None:
    dataplane = plane(Rule(6, CHECKPOINT, (443, 443)), Rule(17, CHECKPOINT, (53, 53)))
    other, twin = Connection(isn=1, guest_port=80), Connection(isn=2, guest_port=80)
    dataplane.pvm_frames([other.syn_ack()], 0)
    assert dataplane.svm_frames(1, 0, [twin.syn_ack()], 0) == [other.syn_ack()]
    dataplane.pvm_frames([udp(b"x")], 0)
    assert dataplane.svm_frames(1, 1, [udp(b"x")], 0) == []
    assert dataplane.due(0) == "policy"


def test_by_default_to_a_checkpoint_nothing_is_compared() -> None:
    dataplane = plane(Rule(17, COMPARE), default=CHECKPOINT)
    frames = [PVM.syn_ack(), bytes(12) + b"\x12\x34" + bytes(50)]
    dataplane.pvm_frames([*frames, udp(b"x")], 0)
    assert dataplane.svm_frames(1, 0, [SVM.syn_ack(), frames[1], udp(b"x")], 0) == [udp(b"x")]
    dataplane.seal(2)
    assert dataplane.commit(2) == frames
