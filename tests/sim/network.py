"""The network of the clients, which loses, doubles and reorders frames, and the arbiter behind another network."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pycolo.core.arbitration import ClaimAnswer, ClaimRecord, decide_claim

from .frames import read
from .history import Emission, History
from .scheduler import Host, Scheduler

DELAY_US = (50, 400)
LATE_US = (400, 12_000)


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to frames on the clients' network, as shares of all."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0


CALM = Weather()


class Wires:
    """Between hosts, each way by itself; what is cut heals by itself or at the end."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._down_until_us: dict[tuple[str, str], int] = {}

    def cut(self, one: str, other: str, for_us: int) -> None:
        """Nothing comes from one host to the other for a time."""
        self._down_until_us[one, other] = self._scheduler.now_us + for_us

    def passes(self, one: str, other: str) -> bool:
        """Whether anything does now."""
        return self._scheduler.now_us >= self._down_until_us.get((one, other), 0)

    def heal(self) -> None:
        """Everything passes from here on."""
        self._down_until_us.clear()


class Arbiter:
    """The store of the claim; each request is one atomic step of `decide_claim`."""

    def __init__(self, vm: str, record: ClaimRecord | None) -> None:
        self._vm = vm
        self.record = record
        self.unreachable_until_us: dict[str, int] = {}  # by host

    def claim(self, host: str, term: int, claim_id: str) -> ClaimAnswer:
        """The atomic step."""
        answer = decide_claim(self.record, self._vm, term, host, claim_id)
        if answer.record is not None:
            self.record = answer.record
        return answer


class ClientNetwork:
    """Between clients and hosts: a switch that delivers a client's frame to every host, as bridge ports that do not
    learn do, or, when it `learns`, to the host that spoke for the guest last; and a host's frame to the client.
    """

    def __init__(
        self, scheduler: Scheduler, world: Host, history: History, weather: Weather, seed: str, *, learns: bool
    ) -> None:
        self._scheduler, self._world, self._history, self._weather = scheduler, world, history, weather
        self._random = random.Random(seed)
        self._learns, self._behind = learns, world
        self.uplinks: dict[Host, Callable[[bytes], None]] = {}
        self.on_frame: Callable[[int, bytes], None] = lambda port, frame: None
        self.calm = False

    def _delays_us(self) -> list[int]:
        """When a frame arrives, once for each of its copies."""
        weather, dice = CALM if self.calm else self._weather, self._random
        if dice.random() < weather.lost:
            return []
        copies = 2 if dice.random() < weather.doubled else 1
        return [dice.randint(*(LATE_US if dice.random() < weather.late else DELAY_US)) for _ in range(copies)]

    def announce(self, host: Host) -> None:
        """The guest is behind this port."""
        self._behind = host

    def emit(self, speaker: str, host: Host, frame: bytes) -> None:
        """A copy of the VM lets a frame go."""
        self.announce(host)
        self._history.emissions.append(Emission(self._scheduler.now_us, speaker, frame))
        port = read(frame, from_guest=True).client_port
        for delay_us in self._delays_us():
            self._scheduler.call_later(delay_us, self._world, lambda: self.on_frame(port, frame))

    def request(self, frame: bytes) -> None:
        """A client sends a frame."""
        for delay_us in self._delays_us():
            for host in [self._behind] if self._learns else self.uplinks:
                self._scheduler.call_later(delay_us, host, partial(self._arrive, host, frame))

    def _arrive(self, host: Host, frame: bytes) -> None:
        uplink = self.uplinks.get(host)
        if uplink is not None:
            uplink(frame)
