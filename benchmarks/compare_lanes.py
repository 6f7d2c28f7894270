"""Who is measured over sockets, and how: QEMU's colo-compare, an engine of ours, a relay that does no work.

Guarantees
* All get the same bytes from the same feeder, and the same collector takes what they put out.
* What comes out is checked byte by byte: each frame of the PVM once, or the program ends and says what is missing.
* Every wait has an end, and no process outlives its measurement.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from compare_engines import Engine, relay, serve
from compare_frames import LENGTH_BYTES, PVM, TCP_AT, Case, Matrix, Splitter, Traffic, make_traffic

QEMU = "qemu-system-x86_64"
BUFFER_BYTES = 4 << 20  # of each socket, so that QEMU's output is never full: then it sleeps, and reorders frames
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # as SO_SNDBUF and SO_RCVBUF, beyond the system's limit; for root alone
CHUNK_BYTES = 1 << 16  # the primary is never further ahead: QEMU drops what is over 1,024 frames of a connection
WARM_FRAMES = 2000
PAIR_PAUSE_S = 200e-6
WAIT_S_MAX = 20
SILENCE_S = 0.5
STOP_S_MAX = 10.0
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Lanes:
    """Our ends of the sockets of one contestant."""

    name: str
    pid: int
    primary: socket.socket
    secondary: socket.socket
    out: socket.socket
    client: socket.socket | None = None  # QEMU does not look at what clients send
    notices: socket.socket | None = None


Contestant = Callable[[], AbstractContextManager[Lanes]]


class Rate(NamedTuple):
    """What one run gave."""

    frames_per_s: float
    cpu_us_per_frame: float
    reordered: int


# ---------------------------------------------------------------- the contestants


@contextlib.contextmanager
def qemu(out: str = "unix", *, buffer_bytes: int = BUFFER_BYTES, notices: bool = False) -> Iterator[Lanes]:
    """A QEMU without a guest; its output goes through a socket of this family; 0: buffers as they usually are."""
    names = ["primary", "secondary", "out", *(["notices"] if notices else [])]
    with contextlib.ExitStack() as stack:
        pairs = {name: _pair(stack, out if name == "out" else "unix", buffer_bytes) for name in names}
        options = f"primary_in=primary,secondary_in=secondary,outdev=out{',notify_dev=notices' if notices else ''}"
        command = ["setpriv", "--pdeathsig", "KILL", QEMU, "-M", "none", "-nodefaults", "-no-user-config", "-S"]
        command += ["-display", "none", "-object", "iothread,id=thread"]
        for name, (_, theirs) in pairs.items():
            command += ["-chardev", f"socket,id={name},fd={theirs.fileno()}"]
        command += ["-object", f"colo-compare,id=compare,{options},iothread=thread"]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno() for _, theirs in pairs.values()])
        try:
            for _, theirs in pairs.values():
                theirs.close()
            ends = {name: ours for name, (ours, _) in pairs.items()}
            yield Lanes(f"QEMU ({out})", process.pid, **ends)
        finally:
            process.kill()
            process.wait(STOP_S_MAX)


@contextlib.contextmanager
def ours(make: Callable[[], Engine] | None) -> Iterator[Lanes]:
    """A process of ours around an engine; around nothing at all it is a relay."""
    names = ("primary", "secondary", "client", "out")
    with contextlib.ExitStack() as stack:
        pairs = {name: _pair(stack, "unix", BUFFER_BYTES) for name in names}
        process = FORK.Process(target=_serve, args=(make, pairs), daemon=True)
        process.start()
        try:
            for _, theirs in pairs.values():
                theirs.close()
            ends = {name: ours for name, (ours, _) in pairs.items()}
            yield Lanes("a relay" if make is None else make.__name__, process.pid or 0, **ends)
        finally:
            process.kill()
            process.join(STOP_S_MAX)


def _serve(make: Callable[[], Engine] | None, pairs: dict[str, tuple[socket.socket, socket.socket]]) -> None:
    for our_end, _ in pairs.values():
        our_end.close()
    ends = {name: theirs for name, (_, theirs) in pairs.items()}
    if make is None:
        relay(**ends)
    else:
        serve(make(), **ends)


def _pair(stack: contextlib.ExitStack, family: str, buffer_bytes: int) -> tuple[socket.socket, socket.socket]:
    if family == "unix":
        ends = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as door:
            dialled = socket.create_connection(door.getsockname())
            ends = dialled, door.accept()[0]
    for end in ends:
        stack.callback(end.close)
        if buffer_bytes:
            _enlarge(end, buffer_bytes)
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # the kernel's: Python's own would cost a poll each time
        ends[0].setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", WAIT_S_MAX, 0))
    return ends


def _enlarge(end: socket.socket, buffer_bytes: int) -> None:
    for forced, option in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            end.setsockopt(socket.SOL_SOCKET, forced, buffer_bytes)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)


# ---------------------------------------------------------------- how fast


def open_flows(lanes: Lanes, traffic: Traffic) -> None:
    """Begin every connection, and warm up; not measured."""
    pvm, svm = traffic.opening
    everything = _Stream(pvm, svm, pvm[:0], np.empty(0, np.int64))
    _checked(lanes, everything, _through(lanes, everything)[0])
    warm = _stream(traffic, 0, WARM_FRAMES)
    _checked(lanes, warm, _through(lanes, warm)[0])


def measure_rate(lanes: Lanes, traffic: Traffic, start: int, end: int) -> Rate:
    """Frames `start` to `end` of both copies, as fast as they go."""
    stream = _stream(traffic, start, end)
    before_ns = cpu_ns(lanes.pid)
    got, took_s = _through(lanes, stream)
    spent_ns = cpu_ns(lanes.pid) - before_ns
    reordered = _checked(lanes, stream, got)
    return Rate((end - start) / took_s, spent_ns / 1e3 / (end - start), reordered)


class _Stream(NamedTuple):
    """A part of the traffic."""

    pvm: Matrix
    svm: Matrix
    client: Matrix
    client_at: np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def _stream(traffic: Traffic, start: int, end: int) -> _Stream:
    first, last = traffic.client_at.searchsorted((start, end))
    acks = traffic.client[first:last], traffic.client_at[first:last] - start
    return _Stream(traffic.pvm[start:end], traffic.svm[start:end], *acks)


def _through(lanes: Lanes, stream: _Stream) -> tuple[Matrix, float]:
    """All of it through the contestant: what came out, and how long it took."""
    got = np.ones_like(stream.pvm)  # written once, so that its pages are there
    feeder = FORK.Process(target=_feed, args=(lanes, stream), daemon=True)
    began_s = time.perf_counter()
    feeder.start()
    _collect(lanes, stream, got)
    took_s = time.perf_counter() - began_s
    feeder.join(STOP_S_MAX)
    return got, took_s


def _feed(lanes: Lanes, stream: _Stream) -> None:
    """A chunk of the primary, the same of the secondary."""
    rows = max(1, CHUNK_BYTES // stream.pvm.shape[1])
    for start in range(0, len(stream.pvm), rows):
        lanes.primary.sendall(stream.pvm[start : start + rows].data)
        lanes.secondary.sendall(stream.svm[start : start + rows].data)


def _collect(lanes: Lanes, stream: _Stream, got: Matrix) -> None:
    """Take what comes out, and acknowledge it as clients do."""
    row_bytes, buffer = got.shape[1], got.reshape(-1).data
    count = acked = 0
    while count < len(buffer):
        count += _receive(lanes, buffer[count:])
        if lanes.client is not None and acked < len(stream.client) and stream.client_at[acked] < count // row_bytes:
            end = int(stream.client_at.searchsorted(count // row_bytes))
            lanes.client.sendall(stream.client[acked:end].data)
            acked = end


def _receive(lanes: Lanes, buffer: memoryview) -> int:
    with contextlib.suppress(BlockingIOError):
        if count := lanes.out.recv_into(buffer):
            return count
    raise SystemExit(f"{lanes.name} still owes {len(buffer)} bytes, and put out nothing for {WAIT_S_MAX} s")


def _checked(lanes: Lanes, stream: _Stream, got: Matrix) -> int:
    """How many frames left before one that is older, once it is sure that each left, whole."""
    order = _numbers(got) - _numbers(stream.pvm[:1])
    if not (np.sort(order) == np.arange(len(got))).all() or not (got == stream.pvm[order]).all():
        raise SystemExit(f"what {lanes.name} put out is not what the PVM did")
    return int((np.diff(order) < 0).sum())


def _numbers(frames: Matrix) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    at = LENGTH_BYTES + TCP_AT + 24
    stamps = frames[:, at : at + 4].copy().view(">u4").reshape(-1).astype(np.int64)
    return stamps - PVM.stamp


def cpu_ns(pid: int) -> int:
    """Processor time of a process so far."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # what clock_getcpuclockid(3) gives: all threads, to the ns


# ---------------------------------------------------------------- how long a frame waits


def measure_latency_us(lanes: Lanes, traffic: Traffic, start: int, end: int) -> list[float]:
    """From the SVM's frame in to the PVM's frame out, one pair at a time; the PVM's has come some time before."""
    got, nothing = np.ones_like(traffic.pvm[start:end]), _stream(traffic, 0, 0)
    waits_us = []
    for number in range(start, end):
        lanes.primary.sendall(traffic.pvm[number].data)
        time.sleep(PAIR_PAUSE_S)
        began_ns = time.perf_counter_ns()
        lanes.secondary.sendall(traffic.svm[number].data)
        _collect(lanes, nothing, got[number - start : number - start + 1])
        waits_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    _checked(lanes, _stream(traffic, start, end), got)
    return waits_us


# ---------------------------------------------------------------- does it compare at all?


def check_that_it_compares(contestant: Contestant) -> None:
    """A single wrong byte in one of the SVM's frames holds back that frame and all behind it, or the program ends."""
    traffic = make_traffic(Case(512, 1), 20)
    traffic.svm[10, -1] ^= 1
    with contestant() as lanes:
        for part in (traffic.opening, (traffic.pvm, traffic.svm)):
            lanes.primary.sendall(part[0].data)
            lanes.secondary.sendall(part[1].data)
        _collect(lanes, _stream(traffic, 0, 0), np.empty_like(traffic.opening[0]))
        _collect(lanes, _stream(traffic, 0, 0), np.empty_like(traffic.pvm[:10]))
        time.sleep(SILENCE_S)
        try:
            surplus = lanes.out.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            surplus = b""
        if surplus:
            raise SystemExit(f"{lanes.name} releases what differs: it does not compare")
        if lanes.notices is not None and b"DO_CHECKPOINT" not in Splitter().feed(lanes.notices.recv(1 << 16)):
            raise SystemExit(f"{lanes.name} asks for no checkpoint when frames differ")
