"""One run: two or three hosts, copies of the guest, clients, an arbiter and a plan of faults; faults, heal, last acts.

A run is a function of its seed, its plan and the commit: the same three give the same trace, line by line.

1. Faults strike for `steps` steps of the scheduler. A copy that is left alone gets a new partner, if there is a host.
2. Heal: no new faults, the arbiter answers everybody, all wires carry, the clients' network loses nothing. A session
   whose link was cut stays dead, as its streams have lost messages. The clients ask some more; within BOUND_US
   everything must settle.
3. The last acts: while a pair stands, the primary (or for some seeds the secondary) is killed, and it must settle
   again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pycolo.core.arbitration import ClaimRecord
from pycolo.core.failover import Role, State
from pycolo.core.memory_cache import MemoryCache
from pycolo.errors import PeerLost

from .agents import Agent, in_virtual_time
from .clients import Client
from .disks import PvmDisk, SvmDisk
from .faults import GOING_ALONE, LOST_ANSWERS, PORTS, STORIES, Drawn, Plan
from .frames import client_of
from .guest import Disk, Guest
from .history import Ending, History, LastAct, Leaving
from .links import LinkEnd, connect
from .managers import Manager, PrimaryStory, SecondaryStory, Surroundings
from .network import CALM, Arbiter, ClientNetwork, Weather, Wires
from .ports import Gate, Side, now
from .scheduler import Host, Scheduler

PAGES = 10
CLIENTS = 3
UDP_CLIENTS = (2,)
VM = "vm"
FIRST_TERM = 1
BOUND_US = 900_000
REQUESTS_AFTER = 2
STEPS = 6_000
PROTECT_US = 4_000
REBOOT_US = 30_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a run depends on besides its plan."""

    seed: str
    steps: int = STEPS
    requests: int = 400
    kill_primary_last: bool = True
    interrupts: bool = True  # whether the failure detector ends the follower's task where it is
    hosts: int = 2
    pairs_max: int = 1  # a copy that is left alone after that stays alone
    last_acts: int = 1
    weather: Weather = CALM
    learns: bool = False  # whether a client's frame goes to one host only
    compiled: bool = False  # whether the agents compare with the compiled engine


@dataclass(slots=True)
class Run:
    """The outcome of a run."""

    history: History
    trace: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Copy:
    """One copy of the VM; `disk` is its own while it follows, `committed` what it could take over with."""

    side: Side
    manager: Manager
    disk: SvmDisk | None = None
    cache: MemoryCache | None = None
    story: SecondaryStory | None = None

    @property
    def goes_on(self) -> bool:
        return self.side.host.alive and not self.manager.failover.ended

    @property
    def may_speak(self) -> bool:
        """Whether there is, or was, something to speak with."""
        return self.cache is None or self.cache.committed is not None


class World:
    """Everything in one place; the parts know only what they need."""

    def __init__(self, scenario: Scenario, plan: Plan) -> None:
        self._scenario, self._plan, seed = scenario, plan, scenario.seed
        self.run = Run(History())
        history = self.run.history
        self.scheduler = scheduler = Scheduler()
        self._outside = Host("outside")
        self._network = ClientNetwork(
            scheduler, self._outside, history, scenario.weather, f"{seed} network", learns=scenario.learns
        )
        self._arbiter = Arbiter(VM, ClaimRecord(VM, FIRST_TERM, "alpha", "first"))
        self._wires = Wires(scheduler)
        self._gate = Gate(scheduler, plan, history, self._arbiter, self._wires, f"{seed} gate")
        self._gate.trace = self._trace
        self._hosts = {name: Host(name) for name in ("alpha", "beta", "gamma")[: scenario.hosts]}
        self._dead_since_us: dict[str, int] = {}
        self.copies: list[Copy] = []
        self._pair_disk: PvmDisk | None = None
        self._calls = self._failed = 0
        self._crashed = False
        self._run_first()
        self._pair(self.copies[0], self._hosts["beta"])
        scheduler.call_later(PROTECT_US, self._outside, self._protect)
        self._clients = self._make_clients()

    # ---- copies

    def _new_copy(self, host: Host, disk: Disk, role: Role, term: int, link: LinkEnd | None) -> Copy:
        name = f"{host.name}/{len(self.copies)}"
        seed = f"{self._scenario.seed} {name}"
        guest = Guest(self.scheduler, host, disk, PAGES, CLIENTS, f"{seed} guest")
        agent = Agent(self.scheduler, guest, self._network, name, f"{seed} agent", primary=role is Role.PRIMARY)
        side = Side(name, host, guest, agent, link)
        copy = Copy(side, Manager(self._around(side), role, term))
        self.copies.append(copy)
        self._gate.sides = [one.side for one in self.copies if one.goes_on or one is copy]
        return copy

    def _around(self, side: Side) -> Surroundings:
        return Surroundings(self._gate, side, self._trace, self._call)

    def _run_first(self) -> None:
        copy = self._new_copy(self._hosts["alpha"], PvmDisk(None), Role.PRIMARY, FIRST_TERM, None)
        copy.manager.story = PrimaryStory(self._around(copy.side), copy.manager, PAGES, 0)
        copy.side.guest.resume()
        self._network.announce(copy.side.host)
        self.scheduler.spawn(copy.side.host.manager, copy.manager.run())

    def _pair(self, primary: Copy, host: Host) -> None:
        """A secondary begins on `host`, and the primary finds it."""
        self._check_leaving()
        seed, scheduler, side = f"{self._scenario.seed} pair {len(self.copies)}", self.scheduler, primary.side
        links = self._new_link(side.host, host, seed)
        content = primary.disk.retire() if primary.disk else side.guest.disk.content
        primary.disk = None
        side.guest.disk = self._pair_disk = PvmDisk(links[0], content)
        disk = SvmDisk(scheduler, host, links[1], self.run.history, content, f"{seed} disk")
        second = self._new_copy(host, disk, Role.SECONDARY, primary.manager.term, links[1])
        second.disk, second.cache = disk, MemoryCache(PAGES)
        second.side.host_dies, second.side.disk_fails = disk.host_dies, disk.fails_for_a_while
        disk.on_failed = lambda: self._disk_failed(second.side)
        around, interrupts = self._around(second.side), self._scenario.interrupts
        second.story = SecondaryStory(around, second.manager, disk, second.cache, interrupts=interrupts)
        second.manager.story = second.story
        side.link, side.partner, second.side.partner = links[0], second.side, side
        assert isinstance(primary.manager.story, PrimaryStory)
        primary.manager.story.join(links[0], self._pair_disk)
        self.run.history.pairs.append((side.name, second.side.name))
        self._trace(f"{side.name} and {second.side.name} are to be a pair")
        scheduler.spawn(host.manager, second.manager.run())

    def _disk_failed(self, side: Side) -> None:
        self._trace(f"{side.name}: its disk has failed")
        self.run.history.disks_failed += 1
        side.harm()

    def _new_link(self, primary: Host, secondary: Host, seed: str) -> tuple[LinkEnd, LinkEnd]:
        """The primary's end, and the other."""
        wires, names = self._wires, (primary.name, secondary.name)
        one = LinkEnd(self.scheduler, primary, f"{seed} one", lambda: wires.passes(*names), of_primary=True)
        two = LinkEnd(self.scheduler, secondary, f"{seed} two", lambda: wires.passes(*names[::-1]), of_primary=False)
        connect(one, two)
        return one, two

    async def _call(self, side: Side) -> LinkEnd | None:
        """A primary that has lost its partner calls it once more; the answer may get lost."""
        reached: list[LinkEnd] = []
        try:
            await self._gate.operate(side.host, "partner.call", lambda: now(lambda: self._reach(side, reached)))
        except PeerLost:
            for link in reached:
                link.close()
            return None
        return reached[0] if reached else None

    def _reach(self, side: Side, reached: list[LinkEnd]) -> None:
        partner = next((copy for copy in self.copies if copy.side is side.partner), None)
        own = next(copy for copy in self.copies if copy.side is side)
        if partner is None or partner.story is None or not partner.goes_on or self._is_frozen(partner):
            return
        names = (side.host.name, partner.side.host.name)
        if not (self._wires.passes(*names) and self._wires.passes(*names[::-1])):
            return
        self._calls += 1
        links = self._new_link(side.host, partner.side.host, f"{self._scenario.seed} call {self._calls}")
        if not partner.story.take_back(links[1], own.manager.term):
            return
        self._trace(f"{side.name} and {partner.side.name} have found each other again")
        self.run.history.reunions += 1
        reached.append(links[0])

    def _is_frozen(self, copy: Copy) -> bool:
        return copy.side.host.manager.frozen_until_us > self.scheduler.now_us

    def _protect(self) -> None:
        """Dead hosts come back, and a copy that is alone gets a partner."""
        now_us = self.scheduler.now_us
        for name, host in self._hosts.items():
            if not host.alive and now_us - self._dead_since_us.setdefault(name, now_us) > REBOOT_US:
                self._hosts[name] = Host(name)
                del self._dead_since_us[name]
        alone = self._alone()
        if alone is not None and len(self.run.history.pairs) < self._scenario.pairs_max:
            busy = {copy.side.host for copy in self.copies if copy.goes_on}
            free = [host for host in self._hosts.values() if host.alive and host not in busy]
            if free:
                self._pair(alone, random.Random(f"{self._scenario.seed} {now_us}").choice(free))
        self.scheduler.call_later(PROTECT_US, self._outside, self._protect)

    def _alone(self) -> Copy | None:
        """The only copy that goes on, when it speaks and needs nobody's leave to."""
        going = [copy for copy in self.copies if copy.goes_on]
        if len(going) != 1 or going[0].manager.state is not State.SOLO or going[0].side.guest.dead:
            return None
        return going[0] if isinstance(going[0].manager.story, PrimaryStory) else None

    def _check_leaving(self) -> None:
        """The last pair is over: what a returning secondary would bring along, if its side never took over."""
        second = next((copy for copy in reversed(self.copies) if copy.disk is not None), None)
        if second is None or second.disk is None or second.disk.taken_over or self._pair_disk is None:
            return
        if second.side.host.alive:
            second.disk.host_dies()
        if second.disk.last_image is not None:
            disk = self._pair_disk
            self.run.history.leavings.append(Leaving(disk.content, disk.marked, second.disk.last_image))

    def _make_clients(self) -> list[Client]:
        history, network, seed = self.run.history, self._network, self._scenario.seed
        clients = [
            Client(
                number,
                self.scheduler,
                self._outside,
                network.request,
                history,
                f"{seed} client {number}",
                by_udp=number in UDP_CLIENTS,
            )
            for number in range(CLIENTS)
        ]
        network.on_frame = lambda port, frame: clients[client_of(port)].receive(frame)
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
        self._arbiter.unreachable_until_us.clear()
        self._wires.heal()
        self._network.calm = True
        self._gate.late_claims = 0
        self._trace("heal")
        self._settle()
        for _ in range(self._scenario.last_acts):
            pair = self._whole_pair()
            if pair is None:
                break
            last = pair[0] if self._scenario.kill_primary_last else pair[1]
            self._last_act(last.side)
        self._finish()
        return self.run

    def _last_act(self, victim: Side) -> None:
        history = self.run.history
        self._trace(f"last act: {victim.name} dies")
        deadly = history.deadly
        self._gate.kill(victim)
        self._settle()
        survived = any(copy.goes_on for copy in self.copies)
        history.last_acts.append(LastAct(victim.name, survived, history.deadly - deadly))

    def _settle(self) -> None:
        for client in self._clients:
            client.start(REQUESTS_AFTER)
        until_us = self.scheduler.now_us + BOUND_US
        self.run.history.converged.append(self.scheduler.run(until_us, self._settled))

    def _over(self) -> bool:
        failed = len(self.scheduler.failed)
        if failed != self._failed:  # asked after every step
            self._failed, self._crashed = failed, bool(self._crashes())
        return self._crashed or not any(copy.goes_on for copy in self.copies)

    def _whole_pair(self) -> tuple[Copy, Copy] | None:
        """The primary and the secondary, when there is nothing wrong with them."""
        going = [copy for copy in self.copies if copy.goes_on]
        if len(going) != 2 or any(copy.manager.state is not State.PROTECTED for copy in going):
            return None
        if not self._base_is_agreed(going):
            return None
        whole = all(
            copy.side.link and not copy.side.link.lost and not copy.side.link.broken and not copy.side.guest.dead
            for copy in going
        ) and not any(copy.disk is not None and copy.disk.failing for copy in going)
        going.sort(key=lambda copy: copy.manager.failover.role is Role.SECONDARY)
        return (going[0], going[1]) if whole else None

    def _base_is_agreed(self, going: list[Copy]) -> bool:
        """Else one who has been granted a claim that it gave up can't die yet without the VM: ADR 10 says so."""
        record = self._arbiter.record
        terms = {record.term if record else 0, *(copy.manager.term for copy in going)}
        return len(terms) == 1 and not self._gate.late_under_way

    def _settled(self) -> bool:
        """A protected pair or one survivor, with every client answered; or nobody is left, and the checker asks why."""
        if self._over():
            return True
        if not all(client.quiet for client in self._clients):
            return False
        more = len(self.run.history.pairs) < self._scenario.pairs_max
        return self._whole_pair() is not None or (self._alone() is not None and not more)

    def _crashes(self) -> list[str]:
        return [task.crash for task in self.scheduler.failed if task.crash]

    def _finish(self) -> None:
        history = self.run.history
        history.crashes = self._crashes()
        history.holder = self._arbiter.record.holder if self._arbiter.record else None
        history.endings = [self._ending(copy) for copy in self.copies]
        history.unanswered = [number for number, client in enumerate(self._clients) if client.waiting]
        newest = self.copies[-1]
        history.committed_before_end = newest.may_speak
        if newest.story is not None and newest.side.host.alive:
            newest.story.to_primary.look("end")
        pair = self._whole_pair()
        survivor = pair[0] if pair else self._alone()
        if survivor is not None:
            guest = survivor.side.guest
            history.survivor, history.survivor_ram = survivor.side.name, guest.ram.copy()
            history.survivor_disk = history.survivor_disk_written = guest.disk.content
            if survivor.disk is not None:
                history.survivor_disk_written = bytes(survivor.disk.written)
        self._check_leaving()
        for host in (*{copy.side.host for copy in self.copies}, self._outside):
            self.scheduler.kill(host)

    def _ending(self, copy: Copy) -> Ending:
        cause = ""
        if copy.manager.vm_lost and not copy.side.harmed:
            cause = "vm-lost-unharmed"
        elif not copy.side.host.alive:
            cause = "died"
        elif copy.manager.vm_lost:
            cause = "vm-lost"
        elif copy.manager.failover.ended:
            cause = str(copy.manager.state)
        return Ending(copy.side.name, copy.side.host.name, str(copy.manager.state), cause, copy.may_speak)


def drawn(seed: int, steps: int = STEPS) -> tuple[Scenario, Plan]:
    """The scenario and the plan of a seed."""
    dice = random.Random(f"scenario {seed}")
    weather = dice.choice((CALM, Weather(0.01, 0.01, 0.02), Weather(0.05, 0.03, 0.1)))
    scenario = Scenario(
        str(seed),
        steps,
        kill_primary_last=dice.random() < 0.7,
        interrupts=dice.random() < 0.7,
        hosts=dice.choice((2, 3)),
        pairs_max=dice.choice((1, 2, 3, 4)),
        last_acts=dice.choice((1, 2)),
        weather=weather,
        compiled=dice.random() < 0.5,
        learns=dice.random() < 0.5,
    )
    port = PORTS[seed % len(PORTS)]
    alone = dice.choice(GOING_ALONE)
    anything = ("early", "lonely", "lonely", *STORIES, LOST_ANSWERS, *3 * ("apart",), *2 * (alone,), "", "")
    focus = dice.choice((*4 * (port,), *anything))
    everywhere = focus in ("", "lonely", "apart", *STORIES, *GOING_ALONE)
    rate = dice.choice((0.005, 0.02, 0.06)) if everywhere else dice.choice((0.001, 0.004))
    bursts = dice.random() < 0.5 or focus in STORIES
    budget = dice.choice((1, 2, 2, 3, 5)) + (focus in GOING_ALONE) + 3 * (focus in (*STORIES, LOST_ANSWERS))
    return scenario, Drawn(f"plan {seed}", rate, budget, focus, bursts=bursts)


def play(scenario: Scenario, plan: Plan) -> Run:
    """Run a scenario under a plan."""
    world = World(scenario, plan)
    with in_virtual_time(world.scheduler, compiled=scenario.compiled):
        return world.play()
