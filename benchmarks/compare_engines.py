"""Our side of the comparison benchmark: engines with one seam, and the process that serves one over sockets.

Guarantee: an engine is used as the agent uses it: batches of frames in, with the time, and frames that may leave out.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from compare_frames import Splitter, Traffic, framed, split_rows
from pycolo.core.dataplane import DataplaneLimits, PrimaryDataplane

BATCH_FRAMES = 64  # as in the agent
READ_BYTES = 1 << 16
FLOWS_MAX = 1 << 14  # QEMU's table has as much; ours is smaller by default
WAIT_MS_MAX = 60_000
EPOCH = 1


class Engine(Protocol):
    """Whatever compares: batches in, what may leave now out."""

    def pvm(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Frames that the primary's VM has put out."""

    def svm(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Frames that the secondary's VM has."""

    def client(self, frames: Sequence[bytes]) -> None:
        """Frames of clients, on their way to both VMs."""


class PythonEngine:
    """`pycolo.core.dataplane` as it is."""

    def __init__(self) -> None:
        self._dataplane = PrimaryDataplane(DataplaneLimits(flows_max=FLOWS_MAX), EPOCH)
        self._svm_no = 0

    def pvm(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """See `Engine`."""
        return self._dataplane.pvm_frames(frames, _now_ms())

    def svm(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """See `Engine`."""
        first_no = self._svm_no
        self._svm_no += len(frames)
        return self._dataplane.svm_frames(EPOCH, first_no, frames, _now_ms())

    def client(self, frames: Sequence[bytes]) -> None:
        """See `Engine`."""
        self._dataplane.client_frames(frames, _now_ms())


ENGINES: dict[str, Callable[[], Engine]] = {"python": PythonEngine}


def _now_ms() -> float:
    return time.monotonic_ns() / 1e6


# ---------------------------------------------------------------- in memory


Turn = tuple[list[bytes], list[bytes], list[bytes]]
"""A batch of the PVM, the same of the SVM, and what clients then acknowledge."""


def make_turns(traffic: Traffic) -> list[Turn]:
    """The traffic in batches, the openings first."""
    pvm, svm = (
        split_rows(opening) + split_rows(data)
        for opening, data in zip(traffic.opening, (traffic.pvm, traffic.svm), strict=True)
    )
    client, client_at = split_rows(traffic.client), traffic.client_at + traffic.case.flows
    turns = []
    for start in range(0, len(pvm), BATCH_FRAMES):
        end = start + BATCH_FRAMES
        first, last = client_at.searchsorted((start, end))
        turns.append((pvm[start:end], svm[start:end], client[first:last]))
    return turns


def frames_per_s_in_memory(engine: Engine, turns: Sequence[Turn]) -> float:
    """The engine alone. Ends the program when it has not released everything, in its order."""
    released: list[bytes] = []
    began_s = time.perf_counter()
    for pvm, svm, client in turns:
        released += engine.pvm(pvm)
        released += engine.svm(svm)
        if client:
            engine.client(client)
    took_s = time.perf_counter() - began_s
    if released != [frame for pvm, _, _ in turns for frame in pvm]:
        raise SystemExit(f"{type(engine).__name__} did not release the {len(turns)} equal batches as they were")
    return len(released) / took_s


# ---------------------------------------------------------------- over sockets


def serve(
    engine: Engine, primary: socket.socket, secondary: socket.socket, client: socket.socket, out: socket.socket
) -> None:
    """Compare two streams until both have ended; `client` brings what clients acknowledge."""
    takers = {primary: engine.pvm, secondary: engine.svm, client: engine.client}
    splitters = {lane.fileno(): (lane, Splitter(), take) for lane, take in takers.items()}
    poll = select.poll()
    for number in splitters:
        poll.register(number, select.POLLIN)
    while splitters and (ready := poll.poll(WAIT_MS_MAX)):
        for number, _ in ready:
            lane, splitter, take = splitters[number]
            content = lane.recv(READ_BYTES)
            if not content:
                poll.unregister(number)
                del splitters[number]
            released = take(list(splitter.feed(content)))
            if released:
                out.sendall(framed(released))


def relay(primary: socket.socket, secondary: socket.socket, client: socket.socket, out: socket.socket) -> None:
    """The same reads and writes without any work: the primary's stream goes out as it comes."""
    lanes = {lane.fileno(): lane for lane in (primary, secondary, client)}
    poll = select.poll()
    for number in lanes:
        poll.register(number, select.POLLIN)
    while lanes and (ready := poll.poll(WAIT_MS_MAX)):
        for number, _ in ready:
            content = lanes[number].recv(READ_BYTES)
            if not content:
                poll.unregister(number)
                del lanes[number]
            elif number == primary.fileno():
                out.sendall(content)
