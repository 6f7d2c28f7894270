"""Our side of the comparison benchmark: engines with one seam, and the process that serves one over sockets.

Guarantee: an engine is used as the agent uses it: batches of frames in, with the time, and frames that may leave out.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from compare_frames import Traffic, split_rows
from pycolo.core.dataplane import PrimaryDataplane
from pycolo.core.engines import COMPILED
from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import Packed, measure, pack, unpack

BATCH_FRAMES = 64  # as in the agent
READ_BYTES = 1 << 18
FLOWS_MAX = 1 << 14  # QEMU's table has as much; ours is smaller by default
STREAM_BYTES_MAX = 64 << 20  # no client's window bounds what is on its way here, but large socket buffers
WAIT_MS_MAX = 60_000
EPOCH = 1


class Engine:
    """A data plane of ours, used as the agent uses it: packed batches in, with the time, and what may leave out."""

    dataplane: type[PrimaryDataplane]

    def __init__(self, flows_max: int = FLOWS_MAX) -> None:
        limits = DataplaneLimits(flows_max=flows_max, stream_bytes_max=STREAM_BYTES_MAX)
        self.plane = self.dataplane(limits, EPOCH)
        self._svm_no = 0

    def pvm(self, packed: Packed) -> Packed:
        """Frames that the primary's VM has put out; returns what may leave now."""
        return self.plane.pvm_packed(packed, _now_ms())

    def svm(self, packed: Packed) -> Packed:
        """Frames that the secondary's VM has; returns what may leave now."""
        first_no = self._svm_no
        self._svm_no += len(packed)  # no less than the frames in it
        return self.plane.svm_packed(EPOCH, first_no, packed, _now_ms())

    def client(self, packed: Packed) -> Packed:
        """Frames of clients, on their way to both VMs; returns what may leave now."""
        return self.plane.client_packed(packed, _now_ms())


class PythonEngine(Engine):
    """`core/dataplane.py`, the reference."""

    dataplane = PrimaryDataplane


ENGINES: dict[str, type[Engine]] = {"python": PythonEngine}

if COMPILED:
    from pycolo.core.hot_dataplane import HotDataplane

    class CompiledEngine(Engine):
        """`core/hot_dataplane.py`."""

        dataplane = HotDataplane

    ENGINES["compiled"] = CompiledEngine


def _now_ms() -> float:
    return time.monotonic_ns() / 1e6


# ---------------------------------------------------------------- in memory


Turn = tuple[bytes, bytes, bytes]
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
        turns.append((pack(pvm[start:end]), pack(svm[start:end]), pack(client[first:last])))
    return turns


def frames_per_s_in_memory(engine: Engine, turns: Sequence[Turn]) -> float:
    """The engine alone. Ends the program when it has not released everything, in its order."""
    released: list[Packed] = []
    began_s = time.perf_counter()
    for pvm, svm, client in turns:
        released.append(engine.pvm(pvm))
        released.append(engine.svm(svm))
        if client:
            engine.client(client)
    took_s = time.perf_counter() - began_s
    content = b"".join(released)
    if content != b"".join(pvm for pvm, _, _ in turns):
        raise SystemExit(f"{type(engine).__name__} did not release the {len(turns)} equal batches as they were")
    return len(unpack(content)) / took_s


# ---------------------------------------------------------------- over sockets


def serve(
    engine: Engine, primary: socket.socket, secondary: socket.socket, client: socket.socket, out: socket.socket
) -> None:
    """Compare two streams until both have ended; `client` brings what clients acknowledge."""
    takers = {primary: engine.pvm, secondary: engine.svm, client: engine.client}
    lanes = {lane.fileno(): (lane, take, bytearray(READ_BYTES)) for lane, take in takers.items()}
    filled = dict.fromkeys(lanes, 0)
    poll = select.poll()
    for number in lanes:
        poll.register(number, select.POLLIN)
    while lanes and (ready := poll.poll(WAIT_MS_MAX)):
        for number, _ in ready:
            lane, take, room = lanes[number]
            content = memoryview(room)
            arrived = lane.recv_into(content[filled[number] :])
            if not arrived:
                poll.unregister(number)
                del lanes[number]
                continue
            length = filled[number] + arrived
            end, _ = measure(content[:length], 0, length)
            released = take(content[:end])
            room[: length - end] = content[end:length]
            filled[number] = length - end
            if released:
                out.sendall(released)


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
