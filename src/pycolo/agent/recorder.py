"""Writes what goes through a primary's agent into a capture: clients' frames, the PVM's with verdicts, the SVM's.

Guarantees
* It never disturbs packets: a file that is full or fails ends the capture, with the reason, and nothing else.
* It ends by itself, by time or by size, whether or not anybody asks again; whoever kills the process takes what was
  written in the last FLUSH_MS with it, and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pycolo.agent import protocol
from pycolo.agent.arrivals import Arrival, Arrivals
from pycolo.capture.verdict_comment import Verdict, verdict_comment
from pycolo.core.compare_policy import RELEASE, Policy
from pycolo.core.divergence import Divergence
from pycolo.core.layers import locate
from pycolo.core.messages import message, policy_of
from pycolo.core.packet import parse_tcp
from pycolo.edge.capture_source import Direction
from pycolo.edge.capture_writer import CaptureWriter
from pycolo.edge.offload import without_note
from pycolo.errors import EnvironmentFault

FLUSH_MS = 200.0
ARRIVALS_MAX = 1 << 15  # held frames of one card whose arrival is known
INTERFACES = ("clients", "primary", "secondary")

_CLIENTS, _PRIMARY, _SECONDARY = range(len(INTERFACES))


class Recorder:
    """One capture, of all network cards."""

    def __init__(
        self, request: protocol.StartCapture, cards: int, policy: Policy, now_ms: float, wall_clock_ns: int
    ) -> None:
        """`wall_clock_ns` is the time of day at `now_ms`. Raises EnvironmentFault when the file can't be made."""
        self.ended = ""
        self._request, self._policy = request, policy
        self._zero_ns = wall_clock_ns - int(now_ms * 1e6)
        self._ends_ms = now_ms + request.seconds * 1000.0
        self._flush_ms = now_ms + FLUSH_MS
        self._frames: Counter[str] = Counter()
        self._divergences = 0
        self._arrivals = [Arrivals(ARRIVALS_MAX) for _ in range(cards)]
        self._writer = CaptureWriter(Path(request.path), _interfaces(cards), request.bytes_max)

    # ---- what is seen

    def clients(self, card: int, frames: Sequence[bytes], now_ms: float) -> None:
        """Clients have sent these."""
        self._write_all(card, _CLIENTS, frames, now_ms, "in", "")

    def secondary(self, card: int, epoch: int, frames: Sequence[bytes], now_ms: float) -> None:
        """The SVM has put these out in `epoch`."""
        self._write_all(card, _SECONDARY, frames, now_ms, "out", f"epoch {epoch}")

    def put_out(self, card: int, frames: Sequence[bytes], first_no: int, epoch: int, now_ms: float) -> None:
        """The PVM has put these out; they are written when they leave."""
        if not self.ended:
            self._arrivals[card].add(frames, first_no, now_ms, epoch)

    def differ(self, card: int, divergences: Sequence[Divergence]) -> None:
        """Outputs differed."""
        if not self.ended:
            self._divergences += len(divergences)
            self._arrivals[card].differ(divergences)

    def left(
        self, card: int, frames: Iterable[bytes], now_ms: float, *, committed: int = 0, solo: bool = False
    ) -> None:
        """These have gone to clients; `committed`: as the checkpoint that starts this epoch is committed."""
        for frame in frames:
            if self.ended:
                return
            arrival, difference = self._arrivals[card].take(frame)
            by_checkpoint = committed and (arrival is None or arrival.epoch < committed)
            verdict = "solo" if solo else "checkpoint" if by_checkpoint else self._verdict(frame)
            comment = self._comment(card, verdict, arrival, difference, now_ms)
            came_ms = now_ms if arrival is None else arrival.ms
            if self._write(card, _PRIMARY, frame, came_ms, "out", comment):
                self._frames[verdict] += 1

    def _verdict(self, frame: bytes) -> Verdict:
        """Of a frame that needed no checkpoint."""
        if parse_tcp(frame) is not None:
            return "equal"
        said = message(frame, locate(frame))
        if said is None:
            return "link control"
        return "policy" if self._policy.verdict(*policy_of(said[0])) == RELEASE else "equal"

    def _comment(
        self, card: int, verdict: Verdict, arrival: Arrival | None, difference: Divergence | None, now_ms: float
    ) -> str:
        epoch, held_ms = (None, None) if arrival is None else (arrival.epoch, max(0.0, now_ms - arrival.ms))
        before = [f"before this frame: {one.sentence()}" for one in self._arrivals[card].take_unplaced()]
        return "; ".join([verdict_comment(verdict, epoch, held_ms, difference), *before])

    # ---- the file

    def _write_all(
        self, card: int, interface: int, frames: Iterable[bytes], now_ms: float, direction: Direction, comment: str
    ) -> None:
        for frame in frames:
            if self.ended or not self._write(card, interface, frame, now_ms, direction, comment):
                return
            self._frames[INTERFACES[interface]] += 1

    def _write(
        self, card: int, interface: int, frame: bytes, came_ms: float, direction: Direction, comment: str
    ) -> bool:
        ts_ns = self._zero_ns + int(came_ms * 1e6)
        try:
            if self._writer.write(without_note(frame), ts_ns, card * len(INTERFACES) + interface, direction, comment):
                return True
        except EnvironmentFault as problem:
            self.end(str(problem))
        else:
            self.end(f"the file has reached its limit of {self._request.bytes_max >> 20} MiB")
        return False

    def on_time(self, now_ms: float) -> float:
        """Called when time may have made something due; returns the next such time in ms."""
        if now_ms >= self._ends_ms:
            self.end("its time is over")
        elif now_ms >= self._flush_ms:
            self._flush_ms = now_ms + FLUSH_MS
            try:
                self._writer.flush()
            except EnvironmentFault as problem:
                self.end(str(problem))
        return min(self._flush_ms, self._ends_ms)

    def end(self, why: str) -> None:
        """Close the file; what was said first stays the reason."""
        if self.ended:
            return
        self.ended = why
        try:
            self._writer.close()
        except EnvironmentFault as problem:
            self.ended = str(problem)

    def report(self) -> protocol.Capture:
        """What it has come to until now."""
        return protocol.Capture(
            path=self._request.path,
            running=not self.ended,
            ended=self.ended,
            frames=dict(self._frames),
            divergences=self._divergences,
            held=sum(map(len, self._arrivals)),
            not_written=self._writer.frames_not_written,
        )


def _interfaces(cards: int) -> list[str]:
    if cards == 1:
        return list(INTERFACES)
    return [f"{name} {card}" for card in range(cards) for name in INTERFACES]
