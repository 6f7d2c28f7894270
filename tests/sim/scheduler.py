"""Virtual time: coroutines and callbacks on hosts, run in an order that depends on nothing but the seed.

Guarantees: a dead host's coroutines are dropped at the await where they are (their `finally` blocks reach no port any
more), the work of a frozen host, or of a stopped process on it, waits until it goes on, and time moves only between
steps.
"""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class HostDied(BaseException):
    """Thrown into the coroutines of a host that dies; no port catches it and none works after it."""


class Host:
    """A machine: it lives, freezes, dies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen_until_us = 0
        self.clock_ahead_us = 0  # of its wall clock; somebody may set it
        self._slept_us = 0  # before the sleep that is noted here
        self._sleep = (0, 0)
        self.tasks: list[Task[Any]] = []
        self.manager, self.agent = Process(self), Process(self)

    def wall_us(self, now_us: int) -> int:
        """What its wall clock says."""
        return 10_000_000 + now_us + self.clock_ahead_us

    def fall_asleep(self, now_us: int, for_us: int) -> None:
        """Nothing runs on it for so long, and the clock that its timers go by stands still."""
        since_us, until_us = self._sleep
        if now_us >= until_us:
            self._slept_us += until_us - since_us
            since_us = now_us
        self._sleep = (since_us, max(until_us, now_us + for_us))
        self.frozen_until_us = max(self.frozen_until_us, now_us + for_us)

    def now_ms(self, now_us: int) -> float:
        """What its timers go by (CLOCK_MONOTONIC): it never goes back, and stands still while the host sleeps."""
        since_us, until_us = self._sleep
        return (now_us - self._slept_us - max(0, min(now_us, until_us) - since_us)) / 1000


class Process:
    """A process on a host: it lives, freezes and dies with it, and may be stopped for a while when nothing else is."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.stopped_until_us = 0
        self.tasks = host.tasks

    @property
    def alive(self) -> bool:
        """See Host."""
        return self._host.alive

    @property
    def frozen_until_us(self) -> int:
        """When it goes on."""
        return max(self.stopped_until_us, self._host.frozen_until_us)

    def now_ms(self, now_us: int) -> float:
        """See Host."""
        return self._host.now_ms(now_us)


Place = Host | Process
"""Where something happens."""


class Future(Generic[T]):
    """One value, or one error, that comes later."""

    def __init__(self) -> None:
        self.done = False
        self._values: list[T] = []
        self._error: Exception | None = None
        self.wake_calls: list[Callable[[], None]] = []

    def resolve(self, value: T) -> None:
        """The value is there; a second one changes nothing."""
        if not self.done:
            self._values.append(value)
            self._finish()

    def fail(self, error: Exception) -> None:
        """There will be no value."""
        if not self.done:
            self._error = error
            self._finish()

    def _finish(self) -> None:
        self.done = True
        for call in self.wake_calls:
            call()

    def result(self) -> T:
        """The value of a future that is done; raises its error."""
        if self._error is not None:
            raise self._error
        return self._values[0]

    @property
    def failure(self) -> Exception | None:
        """The error of a future that failed."""
        return self._error

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Generic[T]):
    """A coroutine that runs on a host."""

    def __init__(self, scheduler: Scheduler, host: Place, coroutine: Coroutine[Any, Any, T]) -> None:
        self._scheduler, self._host, self._coroutine = scheduler, host, coroutine
        self._waiting: Future[Any] | None = None
        self.finished: Future[T] = Future()
        self.dropped = False
        self.handled: tuple[type[Exception], ...] = ()  # failures that somebody takes from `finished`

    @property
    def crash(self) -> str:
        """The failure that ended it, when nobody expected it."""
        failure = self.finished.failure
        if failure is None or self.dropped or isinstance(failure, self.handled):
            return ""
        return f"{type(failure).__name__}: {failure}"

    def step(self, error: BaseException | None = None) -> None:
        """Run up to the next await that has to wait."""
        if self.finished.done:
            return
        self._waiting = None
        try:
            future = self._coroutine.throw(error) if error else self._coroutine.send(None)
        except StopIteration as stop:
            self.finished.resolve(stop.value)
        except HostDied as died:
            self.dropped = True
            self.finished.fail(RuntimeError(f"host {died} died"))
        except Exception as failure:  # noqa: BLE001 - whoever awaits the task gets it, or the harness calls it a crash
            self._scheduler.failed.append(self)
            self.finished.fail(failure)
        else:
            self._waiting = future
            future.wake_calls.append(lambda: self._wake(future))

    def interrupt(self, error: Exception) -> None:
        """Throw `error` into the coroutine at the await where it is."""
        if self._waiting is not None:
            self._waiting = None
            self._scheduler.call_later(0, self._host, lambda: self.step(error))

    def _wake(self, future: Future[Any]) -> None:
        if self._waiting is future:
            self._scheduler.call_later(0, self._host, lambda: self.step() if self._waiting is future else None)

    def drop(self) -> None:
        """The host died: end at the present await."""
        if inspect.getcoroutinestate(self._coroutine) != inspect.CORO_RUNNING:
            self.step(HostDied())


class Scheduler:
    """The queue of what happens when, in whole microseconds of virtual time."""

    def __init__(self) -> None:
        self.now_us = 0
        self.steps = 0
        self.failed: list[Task[Any]] = []
        self.current: Place = Host("nobody")  # on which something happens now
        self._order = 0
        self._queue: list[tuple[int, int, Place, Callable[[], None]]] = []

    def call_later(self, delay_us: int, host: Place, call: Callable[[], None]) -> None:
        """Call on `host` after `delay_us`, unless it is dead by then."""
        self._order += 1
        heapq.heappush(self._queue, (self.now_us + delay_us, self._order, host, call))

    def spawn(self, host: Place, coroutine: Coroutine[Any, Any, T]) -> Task[T]:
        """Start a coroutine on a host."""
        task = Task(self, host, coroutine)
        host.tasks.append(task)
        self.call_later(0, host, task.step)
        return task

    async def sleep(self, delay_us: int, host: Place) -> None:
        """Wait in virtual time."""
        future: Future[None] = Future()
        self.call_later(delay_us, host, lambda: future.resolve(None))
        await future

    def kill(self, host: Host) -> None:
        """The host dies now."""
        host.alive = False
        for task in host.tasks:
            task.drop()

    def run(self, until_us: int, stop: Callable[[], bool]) -> bool:
        """Run until `stop()` (asked after every step) or virtual time `until_us`; whether `stop()` was it."""
        while self._queue and self._queue[0][0] <= until_us:
            time_us, order, host, call = heapq.heappop(self._queue)
            if not host.alive:
                continue
            if host.frozen_until_us > time_us:
                heapq.heappush(self._queue, (host.frozen_until_us, order, host, call))
                continue
            self.now_us = time_us
            self.steps += 1
            self.current = host
            call()
            if stop():
                return True
        self.now_us = until_us
        return False
