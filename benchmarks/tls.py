"""What TLS costs: the same bytes over loopback with it and without, alternated in one run, so that ratios count.

`make bench-tls`; sender and receiver are two processes, as on two hosts. Prints a table of medians and ranges and
writes them as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pycolo.core import disk_wire, peer, wire
from pycolo.core.memory_cache import Stage
from pycolo.core.packed import batch_of
from pycolo.core.pages import PAGE_BYTES, PageBatch
from pycolo.edge.message_stream import Header, MessageStream
from pycolo.edge.peer_greeting import Listener, connect, listening
from pycolo.edge.peer_link import SessionWithPrimary
from pycolo.edge.tls import TlsFiles, client_context, server_context
from pycolo.edge.transport import wrap_accepted, wrap_dialled
from pycolo.errors import PeerLost
from pycolo.pki.authority import init_authority, issue

Measure = Callable[[TlsFiles | None, TlsFiles | None, int], float]
"""MB/s of the given number of bytes, between the certificates of a primary and of a secondary."""
KINDS = ("plain", "tls")
QUEUE_BYTES = 4 << 20
WRITE_BYTES = 1 << 16
FRAMES = 64
HEARTBEAT_MS, HEARTBEATS_MAX = 1000, 100
FORK = multiprocessing.get_context("fork")


def main() -> int:
    """The exit status."""
    options = _options()
    rows: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in CASES}
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as folder:
        primary, secondary = _certificates(Path(folder))
        for turn in range(options.rounds):
            for kind in KINDS if turn % 2 == 0 else KINDS[::-1]:  # neither always comes second
                for name, measure in CASES.items():
                    files = (primary, secondary) if kind == "tls" else (None, None)
                    rows[name][kind].append(measure(*files, options.mib << 20))
    _show(rows)
    options.out.write_text(json.dumps({"mib": options.mib, "mb_per_s": rows}, indent=2))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=512, help="sent in each measurement")
    parser.add_argument("--out", type=Path, default=Path("bench-tls.json"))
    return parser.parse_args()


def _certificates(folder: Path) -> tuple[TlsFiles, TlsFiles]:
    ca = init_authority(folder)
    first, second = (issue(folder, name, folder) for name in ("h1", "h2"))
    return TlsFiles(str(ca), *map(str, first)), TlsFiles(str(ca), *map(str, second))


# ---------------------------------------------------------------- a message stream


def _disk(primary: TlsFiles | None, secondary: TlsFiles | None, byte_count: int) -> float:
    """The disk channel: writes of 64 KiB."""
    head, content = disk_wire.data_header(WRITE_BYTES) + disk_wire.data_body(0, 0), bytes(WRITE_BYTES)
    return _stream(primary, secondary, [head, content], byte_count, disk_wire.decode_header)


def _packets(primary: TlsFiles | None, secondary: TlsFiles | None, byte_count: int) -> float:
    """The packet channel: batches of 64 frames."""
    message = wire.encode_frames(0, 1, 1, batch_of([bytes(1514)] * FRAMES))
    return _stream(primary, secondary, message, byte_count, wire.decode_header)


def _stream(
    primary: TlsFiles | None,
    secondary: TlsFiles | None,
    message: Sequence[bytes | memoryview],
    byte_count: int,
    header: Header,
) -> float:
    count = byte_count // sum(map(len, message))
    wrap = wrap_dialled(None if primary is None else client_context(primary), "the receiver", "h2")
    with socket.create_server(("127.0.0.1", 0)) as door:
        receiver = FORK.Process(target=_receive, args=(door, secondary, count, header))
        receiver.start()
        transport = wrap(socket.create_connection(door.getsockname()))
    while not transport.shake():
        select.select([transport], [], [], 1.0)
    stream = MessageStream(transport, "the stream", header)
    began_s = time.perf_counter()
    for _ in range(count):
        stream.queue(*message)
        while stream.waiting_bytes > QUEUE_BYTES:
            _flush(stream)
    while stream.waiting:
        _flush(stream)
    while not list(stream.messages()):
        select.select([stream], [], [], 1.0)
        stream.read()
    took_s = time.perf_counter() - began_s
    stream.close()
    receiver.join()
    return count * sum(map(len, message)) / took_s / 1e6


def _flush(stream: MessageStream) -> None:
    stream.flush()
    if stream.waiting:
        select.select([], [stream], [], 1.0)


def _receive(door: socket.socket, secondary: TlsFiles | None, count: int, header: Header) -> None:
    """The other process: takes the messages, and answers the last with an empty one."""
    connection, _ = door.accept()
    transport = wrap_accepted(None if secondary is None else server_context(secondary), "the sender")(connection)
    stream = MessageStream(transport, "the stream", header)
    while count:
        select.select([stream], [], [], 1.0)
        stream.read()
        count -= sum(1 for _ in stream.messages())
    stream.queue(wire.HEADER.pack(0, 1))
    while stream.waiting:
        _flush(stream)
    stream.close()


# ---------------------------------------------------------------- pages between daemons


def _pages(primary: TlsFiles | None, secondary: TlsFiles | None, byte_count: int) -> float:
    """The bulk channel: batches of 1024 pages, then a stage; measured until it is committed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    count = byte_count // (wire.BATCH_PAGES_MAX * PAGE_BYTES)
    other = FORK.Process(target=lambda: asyncio.run(_follow(where, secondary, count)))
    other.start()
    took_s = asyncio.run(_checkpoint(where, primary, count))
    other.join()
    return count * wire.BATCH_PAGES_MAX * PAGE_BYTES / took_s / 1e6


def _hello(host: str) -> wire.Hello:
    versions = wire.PROTOCOL_VERSION, wire.PROTOCOL_VERSION_MIN
    return wire.Hello(*versions, "control", "vm", host, 1, "pc", 256, 1, (wire.NicShape("52:54:00:00:00:02"),), "tcg")


async def _checkpoint(where: str, tls: TlsFiles | None, count: int) -> float:
    while True:
        try:
            session, _ = await connect(where, _hello("h1"), HEARTBEAT_MS, HEARTBEATS_MAX, tls)
            break
        except PeerLost:  # it does not listen yet
            await asyncio.sleep(0.02)
    session.open()
    contents = np.zeros((wire.BATCH_PAGES_MAX, PAGE_BYTES), np.uint8) + 1
    batch = PageBatch.of(np.arange(wire.BATCH_PAGES_MAX, dtype=np.uint32), contents)
    began_s = time.perf_counter()
    for _ in range(count):
        await session.send_pages(1, batch)
    await session.send_stage(Stage(1, 0, b"", count, bytes(16)))
    await session.committed(1)
    took_s = time.perf_counter() - began_s
    await session.leave("measured")
    return took_s


async def _follow(where: str, tls: TlsFiles | None, count: int) -> None:
    listener = Listener(_hello("h2"), (1, ""), (0, ""), lambda why: print(why, file=sys.stderr))
    async with listening(where, listener, tls):
        control, bulk = await listener.accepted()
    table = peer.PeerTable(receiver_is_primary=False)
    session = SessionWithPrimary(control, bulk, table, HEARTBEAT_MS, HEARTBEATS_MAX)
    session.open()
    for _ in range(count + 1):
        await session.receive()
    await session.send_committed(1)
    await session.lost


CASES: dict[str, Measure] = {"disk channel": _disk, "packet channel": _packets, "pages between daemons": _pages}


def _show(rows: dict[str, dict[str, list[float]]]) -> None:
    table = Table(title="MB/s: median (lowest - highest)")
    for heading in ("", *KINDS, "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, by_kind in rows.items():
        cells = [f"{statistics.median(v):.0f} ({min(v):.0f} - {max(v):.0f})" for v in by_kind.values()]
        plain, tls = (statistics.median(by_kind[kind]) for kind in KINDS)
        table.add_row(name, *cells, f"{tls / plain:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())
