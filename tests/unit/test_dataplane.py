"""The story of a packet on the primary: holding, sealing, committing, lateness, limits, and what is not TCP."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.limits import DataplaneLimits
from tcp_frames import A, Connection, F, R, S, arp, udp

PVM, SVM = Connection(isn=1000), Connection(isn=7000)


def plane(epoch: int = 1, **limits: int) -> PrimaryDataplane:
    return PrimaryDataplane(replace(DataplaneLimits(), **limits), epoch)


# ---------------------------------------------------------------- datagrams


def test_datagrams_leave_in_order_when_their_twins_come() -> None:
    dataplane = plane()
    one, two = udp(b"one", ip_id=1), udp(b"two", ip_id=2)
    assert dataplane.pvm_frames([one, two], 0) == []
    assert dataplane.svm_frames(1, 10, [udp(b"one", ip_id=8)], 1) == [one]
    assert dataplane.svm_frames(1, 11, [udp(b"two", ip_id=9)], 1) == [two]
    assert dataplane.take_confirmations() == [10, 11]
    assert dataplane.take_confirmations() == []
    assert dataplane._datagrams == {}
    assert dataplane._budget.used_bytes == 0


def test_datagrams_of_the_svm_wait_for_the_pvm() -> None:
    dataplane = plane()
    dataplane.svm_frames(1, 5, [udp(b"x"), udp(b"x")], 0)
    assert dataplane.pvm_frames([udp(b"x")], 0) == [udp(b"x")]
    assert dataplane.take_confirmations() == [5]


def test_different_datagrams_diverge_and_other_flows_go_on() -> None:
    dataplane = plane()
    dataplane.pvm_frames([udp(b"a"), udp(b"b", port=9)], 0)
    assert dataplane.svm_frames(1, 0, [udp(b"A"), udp(b"b", port=9)], 0) == [udp(b"b", port=9)]
    assert dataplane.due(0) == "divergence"
    assert dataplane.svm_frames(1, 2, [udp(b"a")], 0) == []


def test_link_control_leaves_at_once_and_is_ignored_from_the_svm() -> None:
    dataplane = plane()
    assert dataplane.pvm_frames([arp()], 0) == [arp()]
    assert dataplane.svm_frames(1, 0, [arp()], 0) == []
    dataplane.seal(2)
    assert dataplane.pvm_frames([arp()], 0) == [arp()]


def test_what_cannot_be_parsed_is_compared_whole() -> None:
    ipv6 = bytes(12) + b"\x86\xdd" + bytes(60)
    dataplane = plane()
    assert dataplane.pvm_frames([ipv6, b"", ipv6[:20]], 0) == []
    assert dataplane.svm_frames(1, 0, [ipv6, ipv6[:20]], 0) == [ipv6, ipv6[:20]]
    assert dataplane.svm_frames(1, 2, [b""], 0) == [b""]
    dataplane.pvm_frames([ipv6], 0)
    dataplane.svm_frames(1, 3, [ipv6[:-1] + b"\x01"], 0)
    assert dataplane.due(0) == "divergence"


# ---------------------------------------------------------------- epochs


def test_frames_of_another_epoch_are_dropped() -> None:
    dataplane = plane(5)
    dataplane.pvm_frames([udp(b"x")], 0)
    assert dataplane.svm_frames(4, 0, [udp(b"x")], 0) == []
    assert dataplane.svm_frames(6, 0, [udp(b"x")], 0) == []
    assert dataplane.svm_frames(5, 0, [udp(b"x")], 0) == [udp(b"x")]


def test_commit_releases_what_was_sealed_in_the_order_of_production() -> None:
    dataplane = plane()
    frames = [udp(b"1"), PVM.out(1, 1, A, b"x"), udp(b"2", port=9), PVM.out(2, 1, A, b"y"), udp(b"3")]
    assert dataplane.pvm_frames(frames, 0) == []
    assert dataplane.seal(2) == 5
    assert dataplane.pvm_frames([udp(b"after")], 0) == []
    assert dataplane.commit(1) == []
    assert dataplane.commit(2) == frames
    assert dataplane.commit(2) == []
    assert dataplane.stats.released_by_checkpoint == 5
    assert dataplane.stats.held_frames == 1


def test_nothing_is_compared_while_a_seal_waits() -> None:
    dataplane = plane()
    dataplane.seal(2)
    dataplane.pvm_frames([udp(b"x")], 0)
    assert dataplane.svm_frames(1, 0, [udp(b"x")], 0) == []
    assert dataplane.svm_frames(2, 0, [udp(b"x")], 0) == []  # the SVM has loaded, and we don't know yet
    assert dataplane.commit(2) == [udp(b"x")]


def test_a_failed_checkpoint_releases_nothing_until_a_later_one_is_committed() -> None:
    dataplane = plane()
    dataplane.pvm_frames([udp(b"1")], 0)
    dataplane.seal(2)
    dataplane.pvm_frames([udp(b"2")], 0)
    dataplane.seal(3)
    assert dataplane.svm_frames(1, 0, [udp(b"1")], 0) == []
    assert dataplane.commit(3) == [udp(b"1"), udp(b"2")]


def test_a_commit_known_late_releases_only_its_own() -> None:
    dataplane = plane()
    dataplane.pvm_frames([udp(b"1")], 0)
    dataplane.seal(2)
    dataplane.pvm_frames([udp(b"2")], 0)
    dataplane.seal(3)
    assert dataplane.commit(2) == [udp(b"1")]
    dataplane.pvm_frames([udp(b"3")], 0)
    assert dataplane.svm_frames(3, 0, [udp(b"3")], 0) == []
    assert dataplane.commit(3) == [udp(b"2"), udp(b"3")]


def test_an_epoch_is_never_used_twice() -> None:
    with pytest.raises(AssertionError):
        plane(3).seal(3)


def test_going_solo_releases_everything_in_order() -> None:
    dataplane = plane()
    dataplane.pvm_frames([udp(b"1")], 0)
    dataplane.seal(2)
    dataplane.pvm_frames([udp(b"2"), PVM.out(1, 1), udp(b"3", port=9)], 0)
    assert dataplane.go_solo() == [udp(b"1"), udp(b"2"), PVM.out(1, 1), udp(b"3", port=9)]
    assert dataplane.pvm_frames([udp(b"4")], 0) == [udp(b"4")]
    assert dataplane.svm_frames(2, 0, [udp(b"4")], 0) == []
    assert dataplane.due(1e9) is None
    assert dataplane.stats.held_frames == dataplane.stats.held_bytes == 0
    assert dataplane.seal(3) == 0
    assert dataplane.pvm_frames([udp(b"5")], 0) == []


# ---------------------------------------------------------------- when a checkpoint is due


def lively(dataplane: PrimaryDataplane, now_ms: float) -> None:
    """The SVM answers at once, often enough for the lower bound of the limit."""
    for _ in range(100):
        dataplane.pvm_frames([udp(b"x", port=1)], now_ms)
        dataplane.svm_frames(dataplane.epoch, 0, [udp(b"x", port=1)], now_ms)


def test_late_when_the_svm_is_silent_for_the_limit() -> None:
    dataplane = plane()
    lively(dataplane, 0)
    assert dataplane.next_due_ms(0) is None
    dataplane.pvm_frames([udp(b"x")], 100)
    assert dataplane.next_due_ms(100) == 150
    assert dataplane.due(149) is None
    dataplane.svm_frames(1, 0, [arp()], 149)  # any sign of life
    assert dataplane.next_due_ms(149) == 199
    assert dataplane.due(150) is None
    assert dataplane.due(199) == "late"
    assert dataplane.due(200) is None, "once per need"
    assert dataplane.next_due_ms(200) is None


def test_slow_is_not_late_before_the_end_of_patience() -> None:
    dataplane = plane()
    lively(dataplane, 0)
    dataplane.pvm_frames([udp(b"x")], 100)
    for now_ms in range(100, 350, 10):
        dataplane.svm_frames(1, 0, [arp()], now_ms)
        assert dataplane.due(now_ms) is None
    assert dataplane.due(350) == "late"
    assert dataplane.stats.lag_ms > 30, "a twin that never came counts as lag"


def test_waiting_begins_anew_with_a_commit() -> None:
    dataplane = plane()
    lively(dataplane, 0)
    dataplane.seal(2)
    dataplane.pvm_frames([udp(b"x")], 0)
    assert dataplane.due(5000) is None
    assert dataplane.next_due_ms(5000) is None
    dataplane.commit(2, 5000)
    assert dataplane.due(5001) is None
    assert dataplane.next_due_ms(5001) == 5250, "the SVM loads: a quarter of the upper bound"
    dataplane.svm_frames(2, 0, [arp()], 5030)
    assert dataplane.next_due_ms(5030) == 5080


def test_released_frames_are_not_waited_for() -> None:
    dataplane = plane()
    dataplane.pvm_frames([udp(b"x"), udp(b"y", port=9)], 0)
    dataplane.svm_frames(1, 0, [udp(b"x")], 500)
    dataplane.pvm_frames([udp(b"z")], 800)
    dataplane.svm_frames(1, 1, [udp(b"y", port=9)], 900)
    assert dataplane.next_due_ms(900) == 1800


def test_a_stuck_flow_does_not_pile_up_the_memory_of_the_others() -> None:
    dataplane = plane()
    dataplane.pvm_frames([udp(b"stuck", port=9)], 0)
    for i in range(50):
        lively(dataplane, i)
    assert len(dataplane._lateness._arrivals) < 1200
    assert dataplane.next_due_ms(50) == 99


def test_divergence_is_due_at_once_and_forgotten_at_the_seal() -> None:
    dataplane = plane()
    dataplane.pvm_frames([udp(b"a")], 7)
    dataplane.svm_frames(1, 0, [udp(b"b")], 7)
    assert dataplane.next_due_ms(7) == 7
    assert dataplane.due(7) == "divergence"
    dataplane.seal(2)
    dataplane.commit(2, 7)
    assert dataplane.due(8) is None
    assert dataplane.stats.diverged == 1


# ---------------------------------------------------------------- limits


def test_full_and_limit_due_but_nothing_is_dropped() -> None:
    dataplane = plane(held_frames_max=3)
    frames = [udp(b"%d" % i) for i in range(5)]
    dataplane.pvm_frames(frames[:2], 0)
    assert not dataplane.full
    dataplane.pvm_frames(frames[2:], 0)
    assert dataplane.full
    assert dataplane.due(0) == "limit"
    dataplane.seal(2)
    assert dataplane.full
    assert dataplane.commit(2) == frames
    assert not dataplane.full


def test_full_by_bytes() -> None:
    dataplane = plane(held_bytes_max=1000)
    dataplane.pvm_frames([udp(bytes(500)), udp(bytes(500))], 0)
    assert dataplane.full


def test_limit_of_the_svms_datagrams() -> None:
    dataplane = plane(datagrams_max=2)
    dataplane.svm_frames(1, 0, [udp(b"a"), udp(b"b")], 0)
    assert dataplane.due(0) is None
    dataplane.svm_frames(1, 2, [udp(b"c")], 0)
    assert dataplane.due(0) == "limit"


@pytest.mark.parametrize("limits", [{"stream_bytes_max": 1500}, {"unreleased_bytes_max": 1500}])
def test_limit_of_the_svms_stream(limits: dict[str, int]) -> None:
    dataplane = plane(**limits)
    dataplane.svm_frames(1, 0, [SVM.syn_ack(), SVM.out(1, 1, A, bytes(1000))], 0)
    assert dataplane.due(0) is None
    dataplane.svm_frames(1, 2, [SVM.out(1001, 1, A, bytes(1000))], 0)
    assert dataplane.due(0) == "limit"
    assert dataplane._budget.used_bytes == 1000
    dataplane.pvm_frames([PVM.syn_ack(), PVM.out(1, 1, A, bytes(1000)), PVM.out(1001, 1, A, bytes(1000))], 0)
    assert dataplane.stats.released_equal == 2


def connections(count: int) -> list[tuple[Connection, Connection]]:
    return [(Connection(1000, client_port=i), Connection(9000, client_port=i)) for i in range(count)]


def test_flows_are_bounded_and_an_unknown_offset_is_never_guessed() -> None:
    """Connection 0 is forgotten; with offset 0 the SVM's bytes at another place would look equal."""
    dataplane = plane(flows_max=4)
    pairs = connections(6)
    for pvm, svm in pairs:
        dataplane.pvm_frames([pvm.syn_ack()], 0)
        assert dataplane.svm_frames(1, 0, [svm.syn_ack()], 0) == [pvm.syn_ack()]
    assert len(dataplane._table) == 4
    pvm, _ = pairs[0]
    dataplane.svm_frames(1, 0, [pvm.out(1, 1, A, bytes(100))], 0)
    assert dataplane.pvm_frames([pvm.out(1, 1, A, bytes(50))], 0) == []
    assert dataplane.due(0) == "limit"
    dataplane.seal(2)
    assert dataplane.commit(2) == [pvm.out(1, 1, A, bytes(50))]
    dataplane.pvm_frames([pvm.out(51, 1, A, bytes(50))], 0)
    assert len(dataplane.svm_frames(2, 0, [pvm.out(51, 1, A, bytes(50))], 0)) == 1


def test_ended_connections_make_room_without_harm() -> None:
    dataplane = plane(flows_max=4)
    for pvm, svm in connections(20):
        dataplane.pvm_frames([pvm.syn_ack(), pvm.out(1, 1, A | F), pvm.out(2, 2)], 0)
        dataplane.client_frames([pvm.back(1, 1), pvm.back(1, 2, A | F)], 0)
        out = dataplane.svm_frames(1, 0, [svm.syn_ack(), svm.out(1, 1, A | F), svm.out(2, 2)], 0)
        assert len(out) == 3
        dataplane.client_frames([pvm.back(2, 2)], 0)
    assert len(dataplane._table) <= 4
    assert dataplane.due(0) is None


def test_ended_connections_are_forgotten_at_a_checkpoint() -> None:
    dataplane = plane()
    for pvm, svm in connections(10):
        dataplane.pvm_frames([pvm.syn_ack(), pvm.out(1, 1, R | A)], 0)
        dataplane.svm_frames(1, 0, [svm.syn_ack(), svm.out(1, 1, R | A)], 0)
    assert len(dataplane._table) == 10
    dataplane.seal(2)
    dataplane.commit(2)
    assert len(dataplane._table) == 0


def test_when_every_flow_holds_something_a_further_one_is_compared_whole() -> None:
    dataplane = plane(flows_max=2)
    frames = [pvm.syn_ack() for pvm, _ in connections(4)]
    assert dataplane.pvm_frames(frames, 0) == []
    assert len(dataplane._table) == 2
    dataplane.svm_frames(1, 0, [connections(4)[3][1].syn_ack()], 0)
    assert dataplane.due(0) == "limit"
    dataplane.seal(2)
    assert dataplane.commit(2) == frames


def test_the_budget_is_given_back() -> None:
    dataplane = plane()
    pairs = connections(5)
    for pvm, svm in pairs:
        dataplane.svm_frames(1, 0, [svm.syn_ack(), svm.out(1, 1, A, bytes(100)), udp(b"x" * 100)], 0)
        dataplane.pvm_frames([pvm.syn_ack()], 0)
    assert dataplane._budget.used_bytes >= 1000
    dataplane.seal(2)
    dataplane.commit(2)
    dataplane.pvm_frames([pvm.out(1, 1) for pvm, _ in pairs], 0)
    assert dataplane._budget.used_bytes == 0
    new = Connection(5, client_port=0, client_isn=1)
    dataplane.svm_frames(2, 0, [new.syn_ack(), new.out(1, 1, A, bytes(100))], 0)
    other = Connection(5, client_port=0, client_isn=2)
    dataplane.pvm_frames([other.out(0, 1, S | A)], 0)
    assert dataplane._budget.used_bytes == 0
