"""Who takes a core from whom: policies of real threads."""

import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from pycolo.agent import __main__ as program
from pycolo.agent import protocol
from pycolo.agent.primary import PrimarySide
from pycolo.edge.daemon_link import DaemonLink
from pycolo.edge.scheduling import be_patient, be_prompt

T = TypeVar("T")


def in_a_thread(body: Callable[[], T]) -> T:
    said: list[T] = []
    thread = threading.Thread(target=lambda: said.append(body()))
    thread.start()
    thread.join(5)
    return said[0]


def test_the_own_thread_alone_becomes_patient_and_prompt_again() -> None:
    def body() -> tuple[int, int, int, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        be_patient()
        patient = os.sched_getscheduler(0)
        others = os.sched_getscheduler(os.getpid())
        be_prompt()
        return patient, others, os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert in_a_thread(body) == (os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_OTHER, 3)


def test_another_thread_by_its_number() -> None:
    go_on, there = threading.Event(), threading.Event()

    def body() -> None:
        there.set()
        go_on.wait(5)

    other = threading.Thread(target=body)
    other.start()
    try:
        assert there.wait(5)
        assert other.native_id is not None
        be_patient(other.native_id)
        assert os.sched_getscheduler(other.native_id) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    finally:
        go_on.set()
        other.join(5)
    be_prompt(other.native_id)  # it is gone: nothing happens


@pytest.mark.parametrize("change", [be_patient, be_prompt])
def test_what_an_operator_has_chosen_stays(change: Callable[[], None]) -> None:
    def body() -> int:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        change()
        return os.sched_getscheduler(0)

    assert in_a_thread(body) == os.SCHED_IDLE


class PausingSide(PrimarySide):
    """Of no network card."""

    def __init__(self, said: list[str]) -> None:
        self.cards, self.channel, self.feeding, self._said = [], None, True, said

    def on_time(self, now_ms: float) -> float | None:
        return None

    def pause_feed(self, now_ms: float) -> int:
        self.feeding = False
        return 7

    def waits_for_qemu(self, waited_ms: float) -> bool:
        self._said.append("waits")
        return self._said.count("waits") < 3

    def resume_feed(self, now_ms: float) -> None:
        self.feeding = True


def test_an_agent_is_prompt_while_a_checkpoint_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(program, "be_patient", lambda: said.append("patient"))
    monkeypatch.setattr(program, "be_prompt", lambda: said.append("prompt"))
    ours, daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, daemon:
        agent = program.Agent(DaemonLink(ours), [])
        agent._side = PausingSide(said)
        daemon.send(protocol.encoder.encode(protocol.PauseFeed()))
        agent._on_command()
        assert said == ["prompt", "waits", "waits", "waits", "prompt"]
        daemon.send(protocol.encoder.encode(protocol.ResumeFeed()))
        agent._on_command()
        assert said[-1] == "patient"
        answers = [protocol.answer_decoder.decode(daemon.recv(4096)) for _ in range(2)]
    assert answers == [protocol.Fed(7), protocol.Done()]
