"""What one execution of a target may do: end in time, within memory, and without any exception that it lets out.

Guarantees: the first input for each kind of finding is kept in a file, with the traceback beside it; counters and the
input under way stand in a mapped file, where whoever watches this process finds them also when it has died.
"""

from __future__ import annotations

import hashlib
import mmap
import resource
import signal
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

CPU_S_MAX = 1.0
MEMORY_BYTES_MAX = 512 << 20
INPUT_BYTES_MAX = 1 << 17
FINDINGS_MAX = 5  # then the target is ended: they are to be mended first

_STATE = struct.Struct("<QQQ")  # executions, findings, bytes of the input under way
STATE_BYTES = _STATE.size + INPUT_BYTES_MAX


class Hang(BaseException):
    """An execution takes too long; nothing that is tested catches it."""


class State:
    """The mapped file."""

    def __init__(self, path: Path) -> None:
        with open(path, "a+b") as file:
            file.truncate(STATE_BYTES)
            self._map = mmap.mmap(file.fileno(), STATE_BYTES)

    def begin(self, executions: int, findings: int, data: bytes) -> None:
        """An execution begins with `data`."""
        kept = min(len(data), INPUT_BYTES_MAX)
        _STATE.pack_into(self._map, 0, executions, findings, kept)
        self._map[_STATE.size : _STATE.size + kept] = data[:kept]

    def counts(self) -> tuple[int, int]:
        """Executions and findings."""
        executions, findings, _ = _STATE.unpack_from(self._map)
        return executions, findings

    def under_way(self) -> bytes:
        """The input of the execution that began last."""
        size = _STATE.unpack_from(self._map)[2]
        return self._map[_STATE.size : _STATE.size + size]


class Guard:
    """Calls a target; what it finds goes to `folder`. `enough` is called when nothing more has to be found."""

    def __init__(self, one: Callable[[bytes], None], folder: Path, state: State, enough: Callable[[], None]) -> None:
        self._one, self._folder, self._state, self._enough = one, folder, state, enough
        self._executions = 0
        self._known: set[str] = set()
        signal.signal(signal.SIGVTALRM, _hang)

    def __call__(self, data: bytes) -> None:
        self._executions += 1
        self._state.begin(self._executions, len(self._known), data)
        problem: BaseException | None = None
        began_s = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_MAX)
        try:
            self._one(data)
        except (Exception, Hang) as found:  # noqa: BLE001 - to see whatever a target lets out is what this is for
            problem = found
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        took_s = time.process_time() - began_s
        if problem is None and took_s > CPU_S_MAX:
            problem = Hang(f"it took {took_s:.1f} s of CPU time")
        if problem is not None:
            self._note(problem, data)

    def _note(self, problem: BaseException, data: bytes) -> None:
        kind = _kind(problem)
        if kind in self._known:
            return
        self._known.add(kind)
        path = self._folder / f"{type(problem).__name__}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        path.with_name(path.name + ".txt").write_text("".join(traceback.format_exception(problem)))
        self._state.begin(self._executions, len(self._known), data)
        if len(self._known) >= FINDINGS_MAX:
            self._enough()


def limit_memory() -> None:
    """From here on this process may have so much more than it has; what is beyond raises MemoryError."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _hang(_: int, frame: FrameType | None) -> None:
    raise Hang(f"it takes more than {CPU_S_MAX:g} s of CPU time")


def _kind(problem: BaseException) -> str:
    """Findings of one kind come from one place: the innermost that is ours."""
    places = [frame for frame in traceback.extract_tb(problem.__traceback__) if "site-packages" not in frame.filename]
    last = places[-1] if places and not isinstance(problem, Hang) else None
    return f"{type(problem).__name__} {last.filename}:{last.lineno}" if last else type(problem).__name__
