"""Many connections: bounded, forgotten when idle, and a flood of SYNs costs no checkpoint. On both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.flow_table import IDLE_MS_MAX
from pycolo.core.hot_dataplane import HotDataplane
from pycolo.core.limits import DataplaneLimits
from tcp_frames import CLIENT, GUEST, A, Connection, R, tcp

Make = Callable[[DataplaneLimits], PrimaryDataplane]
FLOWS_MAX = 200


def python(limits: DataplaneLimits) -> PrimaryDataplane:
    return PrimaryDataplane(limits, 1)


def compiled(limits: DataplaneLimits) -> PrimaryDataplane:
    return HotDataplane(limits, 1, seed=7)


@pytest.fixture(params=[python, compiled])
def plane(request: pytest.FixtureRequest) -> PrimaryDataplane:
    made: PrimaryDataplane = request.param(DataplaneLimits(flows_max=FLOWS_MAX))
    return made


def talk(number: int) -> tuple[Connection, Connection]:
    """(PVM's, SVM's) end of connection `number`."""
    return Connection(isn=1000 + number, client_port=number), Connection(isn=77 * number + 5, client_port=number)


def open_one(plane: PrimaryDataplane, number: int, *, completed: bool = True) -> None:
    """Both copies answer a SYN; the client completes it, or never says anything more."""
    pvm, svm = talk(number)
    assert plane.svm_frames(plane.epoch, 0, [svm.syn_ack()], 0) == []
    assert plane.pvm_frames([pvm.syn_ack()], 0) == [pvm.syn_ack()]
    if completed:
        plane.client_frames([pvm.back(1, 1)], 0)


def goes_on(plane: PrimaryDataplane, number: int) -> bool:
    """Whether a connection is still compared at its own offset."""
    pvm, svm = talk(number)
    plane.pvm_frames([pvm.out(1, 1, A, b"hello")], 0)
    return plane.svm_frames(plane.epoch, 0, [svm.out(1, 1, A, b"hello")], 0) == [pvm.out(1, 1, A, b"hello")]


def test_a_flood_of_syns_takes_no_place_of_living_connections_and_wants_no_checkpoint(plane: PrimaryDataplane) -> None:
    for number in range(FLOWS_MAX // 2):
        open_one(plane, number)
    for number in range(1000, 1000 + 20 * FLOWS_MAX):
        open_one(plane, number, completed=False)
        assert plane.due(0) is None
        assert plane.stats.flows <= FLOWS_MAX
    assert all(goes_on(plane, number) for number in range(FLOWS_MAX // 2))
    assert plane.due(0) is None


def test_whoever_completes_a_connection_in_a_flood_keeps_it(plane: PrimaryDataplane) -> None:
    for number in range(10 * FLOWS_MAX):
        open_one(plane, number, completed=number % 100 == 0)
    assert all(goes_on(plane, number) for number in range(0, 10 * FLOWS_MAX, 100))
    assert plane.due(0) is None


def test_a_scan_of_closed_ports_wants_no_checkpoint(plane: PrimaryDataplane) -> None:
    open_one(plane, 1)
    for port in range(2000, 2000 + 5 * FLOWS_MAX):
        refusal = tcp(GUEST, CLIENT, (port, 40_000), 0, 71, R | A, b"", b"")
        assert plane.svm_frames(plane.epoch, 0, [refusal], 0) == []
        assert plane.pvm_frames([refusal], 0) == [refusal]
        assert plane.due(0) is None
    assert plane.stats.flows <= FLOWS_MAX
    assert goes_on(plane, 1)


def test_stray_segments_are_answered_alike_and_take_no_place(plane: PrimaryDataplane) -> None:
    """A reset that answers an acknowledgement of nothing has the client's own number in both copies."""
    for number in range(5 * FLOWS_MAX):
        reset = tcp(GUEST, CLIENT, (80, number), 12345 + number, 0, R, b"", b"")
        assert plane.svm_frames(plane.epoch, 0, [reset], 0) == []
        assert plane.pvm_frames([reset], 0) == [reset]
    assert plane.stats.flows == 0
    assert plane.due(0) is None


def test_too_many_living_connections_cost_one_checkpoint_not_a_storm(plane: PrimaryDataplane) -> None:
    """A connection that was forgotten with its offset is only compared again after a checkpoint."""
    checkpoints = 0
    for number in range(3 * FLOWS_MAX):
        open_one(plane, number)
    for number in range(3 * FLOWS_MAX):
        pvm, _ = talk(number)
        plane.pvm_frames([pvm.out(1, 1, A, b"x")], 0)
        if plane.due(0) is not None:
            checkpoints += 1
            plane.seal(plane.epoch + 1)
            plane.commit(plane.epoch, 0)
        else:
            plane.svm_frames(plane.epoch, 0, [pvm.out(1, 1, A, b"x")], 0)
    assert checkpoints == 1
    assert plane.stats.flows <= FLOWS_MAX


def test_idle_connections_are_forgotten_after_a_checkpoint(plane: PrimaryDataplane) -> None:
    for number in range(20):
        open_one(plane, number)
    assert all(goes_on(plane, number) for number in range(20))
    now_ms = 0.0
    for epoch in range(2, 12):
        now_ms += IDLE_MS_MAX / 8
        plane.seal(epoch)
        plane.commit(epoch, now_ms)
        pvm, _ = talk(3)
        busy = pvm.out(6 + epoch, 1, A, b"x")
        plane.pvm_frames([busy], now_ms)
        plane.svm_frames(epoch, 0, [busy], now_ms)
    assert plane.stats.flows == 1
