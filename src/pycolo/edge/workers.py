"""A few threads for system calls that wait, for an epoll loop.

Guarantees: jobs start in the order of `submit`; `done` runs in the thread that calls `collect`, once for each job; a
job's OSError is a result like any other, any other exception is raised by `collect`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
Completion = Callable[[], None]


class Workers:
    """The threads and what they have finished. All methods but the jobs run in the loop's thread."""

    def __init__(self, count: int) -> None:
        """`count` threads: so many jobs wait for the disk at the same time."""
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._jobs: SimpleQueue[Callable[[], Completion] | None] = SimpleQueue()
        self._completions: deque[Completion] = deque()
        self._threads = [threading.Thread(target=self._work, name=f"disk-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """Readable when `collect` has something to do."""
        return self._event_fd

    def submit(self, job: Callable[[], T], done: Callable[[T | OSError], None]) -> None:
        """Run `job` in a thread, then `done` with its result or OSError in `collect`."""
        self._jobs.put(partial(_run, job, done))

    def collect(self) -> None:
        """Call `done` for every job that has finished."""
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return
        while self._completions:
            self._completions.popleft()()

    def close(self) -> None:
        """Wait for the jobs that were submitted; their `done` is not called any more unless `collect` was."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._completions.append(job())
            os.eventfd_write(self._event_fd, 1)


def _run(job: Callable[[], T], done: Callable[[T | OSError], None]) -> Completion:
    """In a worker: carry out the job; the outcome is told in the loop's thread."""
    try:
        return partial(done, job())
    except OSError as error:
        return partial(done, error)
    except BaseException as bug:  # noqa: BLE001 - `collect` raises it in the loop's thread, and the process ends
        return partial(_raise, bug)


def _raise(bug: BaseException) -> None:
    raise bug
