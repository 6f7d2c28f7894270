"""One run: two hosts, two guests, clients, an arbiter and a plan of faults; first faults, then heal, then a last act.

A run is a function of its seed, its plan and the commit: the same three give the same trace, line by line.

1. Faults strike for `steps` steps of the scheduler.
2. Heal: no new faults, the arbiter answers everybody; a link once cut stays dead, as its streams have lost messages.
   The clients ask some more; within BOUND_US everything must settle.
3. The last act: when the pair still stands, the primary (or for some seeds the secondary) is killed, and it must settle
   again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pycolo.core.arbitration import ClaimRecord
from pycolo.core.failover import State
from pycolo.core.memory_cache import MemoryCache

from .agents import PrimaryAgent, SecondaryAgent
from .clients import Client
from .disks import PvmDisk, SvmDisk
from .faults import Drawn, Plan
from .guest import RESPONSE, Disk, Guest
from .history import Ending, History
from .managers import Manager, PrimaryManager, SecondaryManager, Surroundings
from .network import Arbiter, ClientNetwork, LinkEnd, connect
from .ports import FeedPort, Gate, Side
from .scheduler import Host, Scheduler

PAGES = 10
CLIENTS = 3
VM = "vm"
BOUND_US = 700_000
REQUESTS_AFTER = 2
STEPS = 2_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a run depends on besides its plan."""

    seed: str
    steps: int = STEPS
    requests: int = 1_000
    kill_primary_last: bool = True
    interrupts: bool = True  # whether the failure detector ends the follower's task where it is


@dataclass(slots=True)
class Run:
    """The outcome of a run."""

    history: History
    trace: list[str] = field(default_factory=list)


class World:
    """Everything in one place; the parts know only what they need."""

    def __init__(self, scenario: Scenario, plan: Plan) -> None:
        self._scenario, self._plan, seed = scenario, plan, scenario.seed
        self.run = Run(History())
        history = self.run.history
        self.scheduler = scheduler = Scheduler()
        self._outside = Host("outside")
        self._network = ClientNetwork(scheduler, self._outside, history, f"{seed} network")
        self._arbiter = Arbiter(VM, ClaimRecord(VM, 0, "nobody") if len(seed) % 2 else None)
        self._gate = Gate(scheduler, plan, history, self._arbiter, f"{seed} gate")
        self._gate.trace = self._trace
        self._make_sides()
        self._gate.sides = [self._primary, self._secondary]
        connect(self._primary.link, self._secondary.link)
        self._cache = MemoryCache(PAGES)
        self.managers = self._start_managers()
        for side, manager in zip(self._gate.sides, self.managers, strict=True):
            scheduler.spawn(side.host, manager.run())
        self._clients = self._make_clients()

    def _make_sides(self) -> None:
        one, two = Host("alpha"), Host("beta")
        seed, scheduler = self._scenario.seed, self.scheduler
        links = [LinkEnd(scheduler, host, f"{seed} link {host.name}") for host in (one, two)]
        self._pvm_disk = PvmDisk(links[0])
        self._svm_disk = SvmDisk(scheduler, two, links[1], self.run.history, f"{seed} disk")
        self._primary = Side(one, self._guest(one, self._pvm_disk), links[0])
        self._secondary = Side(two, self._guest(two, self._svm_disk), links[1], self._svm_disk.host_dies)

    def _guest(self, host: Host, disk: Disk) -> Guest:
        return Guest(self.scheduler, host, disk, PAGES, CLIENTS, f"{self._scenario.seed} guest {host.name}")

    def _start_managers(self) -> tuple[PrimaryManager, SecondaryManager]:
        one, two = (Surroundings(self._gate, side, self._network, self._trace) for side in self._gate.sides)
        network, scheduler = self._network, self.scheduler
        primary_agent = PrimaryAgent(scheduler, one.side.guest, network, one.side.link)
        secondary_agent = SecondaryAgent(scheduler, two.side.guest, network, two.side.link)
        network.owner = one.side.host
        one.side.guest.resume()
        primary = PrimaryManager(one, primary_agent, self._pvm_disk, PAGES)
        feed = FeedPort(self._gate, secondary_agent)
        interrupts = self._scenario.interrupts
        return primary, SecondaryManager(two, feed, self._svm_disk, self._cache, interrupts=interrupts)

    def _make_clients(self) -> list[Client]:
        history, network, seed = self.run.history, self._network, self._scenario.seed
        clients = [
            Client(number, self.scheduler, self._outside, network, history, f"{seed} client {number}")
            for number in range(CLIENTS)
        ]
        network.on_response = lambda response: clients[RESPONSE.unpack(response)[0]].receive(response)
        return clients

    def _trace(self, line: str) -> None:
        self.run.trace.append(f"{self.scheduler.now_us:>8} {line}")

    # ---- the acts

    def play(self) -> Run:
        """Run all of it."""
        for client in self._clients:
            client.start(self._scenario.requests)
        scheduler, steps = self.scheduler, self._scenario.steps
        scheduler.run(10_000_000, lambda: scheduler.steps >= steps or self._over())
        self._plan.heal()
        self._arbiter.unreachable.clear()
        self._trace("heal")
        self._settle()
        if self._pair():
            last = self._primary if self._scenario.kill_primary_last else self._secondary
            self._trace(f"last act: {last.host.name} dies")
            self.run.history.faults.append(f"last act: {last.host.name} dies")
            self._gate.kill(last)
            self._settle()
        self._finish()
        return self.run

    def _settle(self) -> None:
        for client in self._clients:
            client.start(REQUESTS_AFTER)
        until_us = self.scheduler.now_us + BOUND_US
        self.run.history.converged.append(self.scheduler.run(until_us, self._settled))

    def _over(self) -> bool:
        crashed = bool(self.scheduler.failed and self._crashes())
        return crashed or not (self._goes_on(0) or self._goes_on(1))

    def _goes_on(self, number: int) -> bool:
        return self._gate.sides[number].host.alive and not self.managers[number].failover.ended

    def _pair(self) -> bool:
        protected = all(manager.state is State.PROTECTED for manager in self.managers)
        whole = not any(side.link.lost or side.link.broken or side.guest.dead for side in self._gate.sides)
        return protected and whole and all(map(self._goes_on, range(2)))

    def _settled(self) -> bool:
        """A protected pair or one survivor, with every client answered; or nobody is left."""
        if self._over():
            return True
        if not all(client.quiet for client in self._clients):
            return False
        return self._pair() or self._survivor() is not None

    def _survivor(self) -> int | None:
        going = [number for number in range(2) if self._goes_on(number)]
        return going[0] if len(going) == 1 and self.managers[going[0]].state is State.SOLO else None

    def _crashes(self) -> list[str]:
        return [task.crash for task in self.scheduler.failed if task.crash]

    def _finish(self) -> None:
        history = self.run.history
        history.crashes = self._crashes()
        history.holder = self._arbiter.record.holder if self._arbiter.record else None
        history.endings = [
            self._ending(side, manager) for side, manager in zip(self._gate.sides, self.managers, strict=True)
        ]
        history.unanswered = [number for number, client in enumerate(self._clients) if client.waiting]
        history.committed_before_end = self._cache.committed is not None
        if self._secondary.host.alive:
            self.managers[1].to_primary.look("end")
            self._svm_disk.host_dies()
        history.primary_disk, history.primary_marked = self._pvm_disk.content, self._pvm_disk.marked
        history.secondary_image = self._svm_disk.last_image
        survivor = self._survivor()
        if survivor is not None:
            side = self._gate.sides[survivor]
            history.survivor, history.survivor_ram = side.host.name, side.guest.ram.copy()
            history.survivor_disk = history.survivor_disk_written = side.guest.disk.content
            if side is self._secondary:
                history.survivor_disk_written = bytes(self._svm_disk.written)
        for host in (*(side.host for side in self._gate.sides), self._outside):
            self.scheduler.kill(host)

    def _ending(self, side: Side, manager: Manager) -> Ending:
        cause = ""
        if not side.host.alive:
            cause = "died"
        elif manager.vm_lost_by_fault:
            cause = "vm-lost"
        elif manager.failover.ended:
            cause = str(manager.state)
        return Ending(side.host.name, str(manager.state), cause)


def drawn(seed: int, steps: int = STEPS) -> tuple[Scenario, Plan]:
    """The scenario and the plan of a seed."""
    dice = random.Random(f"scenario {seed}")
    scenario = Scenario(str(seed), steps, 1_000, dice.random() < 0.7, dice.random() < 0.7)
    return scenario, Drawn(f"plan {seed}", dice.choice((0.005, 0.02, 0.06)), dice.choice((1, 2, 2, 3, 5)))


def play(scenario: Scenario, plan: Plan) -> Run:
    """Run a scenario under a plan."""
    return World(scenario, plan).play()
