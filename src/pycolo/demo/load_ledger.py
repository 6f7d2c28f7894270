"""What the clients saw, counted so that nothing can be forgotten.

Guarantees: every request begun has exactly one outcome (one that never ends is failed by `expire`); the
longest gap and the slowest sample survive all thinning; memory is bounded however long the load runs; every
method may be called from any thread.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from types import TracebackType

ERRORS_MAX = 20
SAMPLES_PER_TICK_MAX = 200
SAMPLES_PENDING_MAX = 4000
SET_UP = "connect"
"""The kind of request by which a client only gets ready: told for itself, no part of the longest gap."""

Sample = tuple[float, float, str]
"""When it was asked (CLOCK_MONOTONIC ms), how long the answer took (ms), which kind."""


class WrongBytesError(Exception):
    """An answer came, and it is not what the server must have said."""


class UnansweredError(OSError):
    """No proper answer: it stopped in the middle, came too late, or is an error of the server's."""


class Outcome(Enum):
    """How a request ended; the value is the name of its counter."""

    ANSWERED = "answered"
    FAILED = "failed"
    RESET = "reset"
    WRONG_BYTES = "wrong_bytes"


class Histogram:
    """Latencies in logarithmic buckets: quantiles right within 2 %, the largest exact, constant memory."""

    _RATIO = math.log(1.02)
    _FLOOR_MS = 0.001

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0
        self.max_ms = 0.0

    def add(self, ms: float) -> None:
        self._buckets[int(math.log(max(ms, self._FLOOR_MS) / self._FLOOR_MS) / self._RATIO)] += 1
        self._count += 1
        self.max_ms = max(self.max_ms, ms)

    def quantile_ms(self, q: float) -> float:
        """The latency that a share `q` of all requests did not exceed; 0 when there was none."""
        left = q * self._count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return min(self.max_ms, self._FLOOR_MS * math.exp((bucket + 0.5) * self._RATIO))
        return self.max_ms


class KindFigures:
    """The figures of one kind of request."""

    def __init__(self) -> None:
        self.requests = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.retries = 0
        self.longest_gap_ms = 0.0
        self.latency = Histogram()

    def counts(self) -> dict[str, object]:
        return {
            "requests": self.requests,
            **{outcome.value: self.outcomes[outcome] for outcome in _TROUBLES},
            "retries": self.retries,
        }

    def figures(self) -> dict[str, object]:
        return {
            **self.counts(),
            "p50_ms": round(self.latency.quantile_ms(0.50), 3),
            "p99_ms": round(self.latency.quantile_ms(0.99), 3),
            "max_ms": round(self.latency.max_ms, 3),
            "longest_gap_ms": round(self.longest_gap_ms, 3),
        }


_TROUBLES = (Outcome.FAILED, Outcome.RESET, Outcome.WRONG_BYTES)


class Request:
    """One request, as a context manager that swallows the failures a client can see and counts them.

    WrongBytesError, ConnectionError (reset, refused, closed early) and any other OSError (timeouts) become
    outcomes; everything else is a bug of ours and passes.
    """

    def __init__(self, ledger: "Ledger", kind: str, who: str, begun_ms: float) -> None:
        self._ledger = ledger
        self.kind = kind
        self.who = who
        self.begun_ms = begun_ms
        self.heard_ms = begun_ms
        self.gap_ms = 0.0
        self.outcome: Outcome | None = None

    def heard(self) -> None:
        """Some bytes of a large answer came: the wait starts anew. Small answers are measured as a whole."""
        self._ledger.heard(self)

    def __enter__(self) -> "Request":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._ledger.ended(self, Outcome.ANSWERED, "")
            return True
        outcome = _outcome_of(error)
        if outcome is None:
            return False
        self._ledger.ended(self, outcome, str(error) or type(error).__name__)
        return True


def _outcome_of(error: BaseException) -> Outcome | None:
    if isinstance(error, WrongBytesError):
        return Outcome.WRONG_BYTES
    if isinstance(error, ConnectionError):
        return Outcome.RESET
    return Outcome.FAILED if isinstance(error, OSError) else None


def monotonic_ms() -> float:
    """CLOCK_MONOTONIC in ms, the clock of every `t_ms`; the same in all processes of one machine."""
    return time.monotonic() * 1000


class Ledger:
    """The book of one load run; `clock_ms` is injected so that tests need not wait."""

    def __init__(self, clock_ms: Callable[[], float] = monotonic_ms) -> None:
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._kinds: dict[str, KindFigures] = {}
        self._outstanding: set[Request] = set()
        self._samples: list[Sample] = []
        self._errors: list[str] = []
        self._lost_acknowledged = 0
        self._opened = 0
        self._lost_connections = 0

    def request(self, kind: str, who: str) -> Request:
        """A request that begins now. It counts at once, so one that hangs for ever is still seen."""
        with self._lock:
            request = Request(self, kind, who, self._clock_ms())
            self._figures(kind).requests += 1
            self._outstanding.add(request)
            return request

    def heard(self, request: Request) -> None:
        with self._lock:
            now_ms = self._clock_ms()
            request.gap_ms = max(request.gap_ms, now_ms - request.heard_ms)
            request.heard_ms = now_ms

    def ended(self, request: Request, outcome: Outcome, why: str) -> None:
        with self._lock:
            self._end(request, outcome, why)

    def _end(self, request: Request, outcome: Outcome, why: str) -> None:
        if request not in self._outstanding:  # expired before: it has its outcome already
            return
        self._outstanding.remove(request)
        now_ms = self._clock_ms()
        latency_ms = now_ms - request.begun_ms
        request.outcome = outcome
        figures = self._figures(request.kind)
        figures.longest_gap_ms = max(figures.longest_gap_ms, request.gap_ms, now_ms - request.heard_ms)
        if outcome is not Outcome.ANSWERED:
            figures.outcomes[outcome] += 1
            self._note(f"{request.who} ({request.kind}) {outcome.value} after {latency_ms:.0f} ms: {why}")
            return
        figures.latency.add(latency_ms)
        self._samples.append((round(request.begun_ms, 2), round(latency_ms, 3), request.kind))
        if len(self._samples) > SAMPLES_PENDING_MAX:
            self._samples = thin(self._samples, SAMPLES_PENDING_MAX // 2)

    def expire(self, why: str, begun_before_ms: float = math.inf) -> None:
        """Fail every request still outstanding that began before that time."""
        with self._lock:
            for request in [r for r in self._outstanding if r.begun_ms < begun_before_ms]:
                self._end(request, Outcome.FAILED, why)

    def retried(self, kind: str) -> None:
        with self._lock:
            self._figures(kind).retries += 1

    def connection_opened(self) -> None:
        with self._lock:
            self._opened += 1

    def connection_lost(self, who: str, why: str) -> None:
        """A connection that was meant to stay open did not."""
        with self._lock:
            self._lost_connections += 1
            self._note(f"{who} lost its connection: {why}")

    def writes_lost(self, count: int, why: str) -> None:
        """Writes that a server had acknowledged are gone."""
        with self._lock:
            self._lost_acknowledged += count
            self._note(why)

    def trouble(self, kind: str, why: str) -> None:
        """A failure outside any request, counted as one failed request so that it can't be overlooked."""
        with self._lock:
            figures = self._figures(kind)
            figures.requests += 1
            figures.outcomes[Outcome.FAILED] += 1
            self._note(why)

    def tick(self) -> dict[str, object]:
        """The counters so far and the samples since the last tick, thinned."""
        with self._lock:
            samples, self._samples = self._samples, []
            now_ms = self._clock_ms()
            waiting_ms = max((now_ms - r.heard_ms for r in self._outstanding), default=0.0)
            return {
                "type": "tick",
                "t_ms": round(now_ms, 2),
                **self._totals(),
                "waiting_ms": round(waiting_ms, 2),
                "by_kind": {kind: figures.counts() for kind, figures in self._kinds.items()},
                "samples": thin(samples, SAMPLES_PER_TICK_MAX),
            }

    def result(self) -> dict[str, object]:
        """The last line: everything, with the latencies and what went wrong in sentences."""
        with self._lock:
            gaps = [figures.longest_gap_ms for kind, figures in self._kinds.items() if kind != SET_UP]
            return {
                "type": "result",
                "t_ms": round(self._clock_ms(), 2),
                **self._totals(),
                "connections_kept": self._lost_connections == 0,
                "connections_lost": self._lost_connections,
                "connections_opened": self._opened,
                "longest_gap_ms": round(max(gaps, default=0.0), 3),
                "by_kind": {kind: figures.figures() for kind, figures in self._kinds.items()},
                "errors": list(self._errors),
            }

    def _figures(self, kind: str) -> KindFigures:
        return self._kinds.setdefault(kind, KindFigures())

    def _totals(self) -> dict[str, int]:
        kinds = self._kinds.values()
        return {
            "requests": sum(figures.requests for figures in kinds),
            **{o.value: sum(figures.outcomes[o] for figures in kinds) for o in _TROUBLES},
            "lost_acknowledged": self._lost_acknowledged,
        }

    def _note(self, sentence: str) -> None:
        if len(self._errors) < ERRORS_MAX:
            self._errors.append(f"{sentence} (at {self._clock_ms():.0f} ms)")


def thin(samples: list[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples by time: the slowest of each kind and of all, an even choice of the rest."""
    if len(samples) <= limit:
        return sorted(samples)
    slowest = sorted(samples, key=lambda sample: -sample[1])
    of_kind = {sample[2]: sample for sample in reversed(slowest)}
    kept = set(slowest[: limit // 4]) | set(of_kind.values())
    rest = [sample for sample in samples if sample not in kept]
    room = max(limit - len(kept), 0)
    even = [rest[i * len(rest) // room] for i in range(room)] if rest else []
    return sorted(kept.union(even))
