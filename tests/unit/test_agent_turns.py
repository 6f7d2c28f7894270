"""How long an agent waits for a guest that takes nothing; who feeds it is `edge/nic`."""

import contextlib
import math
import socket
from types import SimpleNamespace
from typing import Any

from pycolo.agent import __main__ as program
from pycolo.edge.daemon_link import DaemonLink


class FullNic:
    """Of which QEMU takes so many frames at each look, one after the other."""

    def __init__(self, backlog: int, *taken: int) -> None:
        self.backlog, self._taken = backlog, list(taken)

    def flush(self) -> None:
        self.backlog -= self._taken.pop(0)


def test_a_full_queue_is_looked_at_less_and_less_until_something_is_taken() -> None:
    nic = FullNic(0)
    side: Any = SimpleNamespace(cards=[SimpleNamespace(nic=nic)])
    ours, far = socket.socketpair()
    with contextlib.closing(ours), contextlib.closing(far):
        agent = program.Agent(DaemonLink(ours), [])
        assert [agent._flush(side) for _ in range(20)] == [math.inf] * 20
        nic.backlog, nic._taken = 9, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 8]
        waits = [agent._flush(side) for _ in range(13)]
        assert waits == [1, 2, 4, 8, 16, 32, 64, 64, 64, 1, 1, 2, math.inf]
