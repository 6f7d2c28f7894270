"""The disk server as clients see it that we did not write: QEMU's, libnbd's, nbd-client's, fio's.

The reference implementation's own test program, nbd-tester-client, is in no Debian package.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from disk_server import SIZE, Server, run
from nbd_peer import MemoryExport
from pycolo.disk.loop import NbdLoop
from pycolo.disk.serve import Clients
from pycolo.edge.nbd_export import Export
from pycolo.edge.unix_listener import UnixListener

DEBIAN_PYTHON = "/usr/bin/python3"  # the one for which python3-libnbd is installed


# ---- QEMU's client


def qemu_io(disk_server: Server, *commands: str) -> str:
    said = run("qemu-io", "-f", "raw", disk_server.uri, *(part for command in commands for part in ("-c", command)))
    assert "failed" not in said, said
    return said


def test_qemu_io(disk_server: Server) -> None:
    qemu_io(
        disk_server,
        "write -P 0x11 0 1M",
        "write -P 0x22 1000 5001",
        "read -P 0x22 1000 5001",
        "read -P 0x11 999 1",
        "read -P 0x11 6001 3",
        "write -z 2000 1000",
        "write -z -u 65536 65536",
        "read -P 0 2000 1000",
        "read -P 0 65536 65536",
        "write -f -P 0x33 300k 4k",
        "discard 512k 128k",
        "flush",
        "aio_write -P 0x44 700k 64k",
        "aio_write -P 0x55 764k 64k",
        "aio_flush",
        "aio_read -P 0x44 700k 64k",
        "aio_read -P 0x55 764k 64k",
        "aio_flush",
        f"write -P 0x66 {SIZE // 512 * 512 - 512} 512",
    )
    content = disk_server.image.read_bytes()
    assert len(content) == SIZE
    assert content[1000:2000] == b"\x22" * 1000
    assert content[2000:3000] == bytes(1000)
    assert content[300 << 10 : 304 << 10] == b"\x33" * 4096


def test_qemu_io_sees_the_errors_of_a_read_only_disk(raw_image: Path) -> None:
    before = raw_image.read_bytes()
    server = Server(raw_image, "--read-only")
    try:
        outcome = subprocess.run(
            ("qemu-io", "-f", "raw", server.uri, "-c", "write 0 512"), capture_output=True, text=True, check=False
        )
        assert outcome.returncode != 0
        run("qemu-io", "-r", "-f", "raw", server.uri, "-c", "read 0 4k")
    finally:
        assert server.stop(signal.SIGINT) == 0
    assert raw_image.read_bytes() == before


def test_qemu_img(disk_server: Server, tmp_path: Path) -> None:
    assert "Images are identical" in run(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", disk_server.uri, disk_server.image
    )
    copy = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk_server.uri, copy)
    assert "Images are identical" in run("qemu-img", "compare", "-F", "raw", copy, disk_server.image)
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", disk_server.uri))
    zeros = [(one["start"], one["length"]) for one in extents if one["zero"] and one["start"] < SIZE]
    assert zeros == [(1 << 20, (SIZE - 5000) // 4096 * 4096 - (1 << 20))]


def test_qemu_img_writes_a_whole_disk(disk_server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    with other.open("wb") as file:
        file.truncate(SIZE // 512 * 512)
        file.seek(3 << 20)
        file.write(os.urandom(1 << 20))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, disk_server.uri)
    assert disk_server.image.read_bytes()[: SIZE // 512 * 512] == other.read_bytes()


# ---- libnbd's


def test_nbdinfo(disk_server: Server) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", disk_server.uri))["exports"]
    assert export["export-size"] == SIZE
    assert export["contexts"] == ["base:allocation"]
    sizes = [export[f"block_size_{name}"] for name in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 << 20]
    features = ("can_flush", "can_fua", "can_trim", "can_zero", "can_df")
    assert [export[feature] for feature in features] == [True] * len(features)
    assert not any(export[feature] for feature in ("is_read_only", "can_multi_conn", "can_cache", "can_fast_zero"))
    assert [
        one["export-name"] for one in json.loads(run("nbdinfo", "--json", "--list", disk_server.uri))["exports"]
    ] == [""]


def test_nbdinfo_map(disk_server: Server) -> None:
    extents = json.loads(run("nbdinfo", "--map", "--json", disk_server.uri))
    data_at = (SIZE - 5000) // 4096 * 4096
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in extents] == [
        (0, 1 << 20, 0),
        (1 << 20, data_at - (1 << 20), 3),
        (data_at, SIZE - data_at, 0),
    ]


def test_nbdcopy_both_ways(disk_server: Server, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.raw", tmp_path / "other.raw"
    run("nbdcopy", disk_server.uri, copy)
    assert copy.read_bytes() == disk_server.image.read_bytes()
    other.write_bytes(os.urandom(3 << 20) + bytes(SIZE - (3 << 20)))
    run("nbdcopy", "--flush", other, disk_server.uri)
    assert disk_server.image.read_bytes() == other.read_bytes()


LIBNBD = """
import errno, os, random, sys
import nbd

uri, structured, size = sys.argv[1], sys.argv[2] == "on", int(sys.argv[3])
h = nbd.NBD()
h.set_request_structured_replies(structured)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.set_strict_mode(0)
h.connect_uri(uri)
assert h.get_structured_replies_negotiated() == structured
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) == structured
assert h.get_size() == size

def fails(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number)
    else:
        raise AssertionError("no error")

fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.ENOSPC, h.pwrite, b"xx", size - 1)
fails(errno.ENOSPC, h.zero, 2, size - 1)
fails(errno.EINVAL, h.trim, 2, size - 1)
fails(errno.EINVAL, h.cache, 1, 0)
fails(errno.EINVAL, h.zero, 1, 0, nbd.CMD_FLAG_FAST_ZERO)

model = bytearray(h.pread(1 << 20, 0))
rng = random.Random(1)
for _ in range(300):
    offset, length = rng.randrange(1 << 19), rng.randrange(1, 70000)
    kind = rng.randrange(4)
    if kind == 0:
        data = rng.randbytes(length)
        h.pwrite(data, offset, nbd.CMD_FLAG_FUA if rng.random() < 0.05 else 0)
        model[offset : offset + length] = data
    elif kind == 1:
        h.zero(length, offset, nbd.CMD_FLAG_NO_HOLE if rng.random() < 0.5 else 0)
        model[offset : offset + length] = bytes(length)
    else:
        flags = nbd.CMD_FLAG_DF if structured and kind == 2 else 0
        assert h.pread(length, offset, flags) == model[offset : offset + length]
h.flush()

# pipelined, each into its own place
data = [rng.randbytes(3001) for _ in range(200)]
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(d)), n * 3001) for n, d in enumerate(data)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
buffers = [nbd.Buffer(3001) for _ in data]
cookies = [h.aio_pread(buffer, n * 3001) for n, buffer in enumerate(buffers)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
assert [bytes(buffer.to_bytearray()) for buffer in buffers] == data

# the largest payload, if the disk has it
largest = min(size, 32 << 20)
big = rng.randbytes(largest)
h.pwrite(big, 0)
assert h.pread(largest, 0) == big

seen = []
if structured:
    h.zero(1 << 20, 1 << 20)
    note = lambda context, offset, entries, error: seen.append((context, offset, entries))
    h.block_status(2 << 20, (1 << 20) - 100, note)
    assert seen == [("base:allocation", (1 << 20) - 100, [100, 0, 1 << 20, 3, (1 << 20) - 100, 0])], seen
    del seen[:]
    one = lambda context, offset, entries, error: seen.append(entries)
    h.block_status(2 << 20, (1 << 20) - 100, one, nbd.CMD_FLAG_REQ_ONE)
    assert seen == [[100, 0]], seen
else:
    fails(errno.EINVAL, h.block_status, 4096, 0, print)
h.shutdown()
print("fine")
"""


@pytest.mark.parametrize("structured", ["on", "off"])
def test_libnbd(disk_server: Server, structured: str) -> None:
    assert run(DEBIAN_PYTHON, "-c", LIBNBD, disk_server.uri, structured, str(SIZE)) == "fine\n"


def test_nbdsh(disk_server: Server) -> None:
    before = disk_server.image.read_bytes()
    said = run("nbdsh", "-u", disk_server.uri, "-c", "print(h.pread(5, 3).hex())", PATH="/usr/bin:/bin")
    assert said.strip() == before[3:8].hex()


@pytest.fixture
def two_disks(tmp_path: Path) -> Iterator[Path]:
    """The socket of a loop in a thread that serves two disks by name."""
    path = tmp_path / "two.sock"
    exports: dict[str, Export] = {"first": MemoryExport(1000), "second": MemoryExport(40 << 20)}
    listener = UnixListener(path)
    loop = NbdLoop()
    loop.after_turn = Clients(loop, listener, exports).admit
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            loop.turn(0.05)

    thread = threading.Thread(target=turn)
    thread.start()
    yield path
    ended.set()
    thread.join()
    loop.close()
    listener.close()
    assert not path.exists()


def test_exports_have_names(two_disks: Path) -> None:
    assert "Negotiation: ..\nfirst\nsecond\n" in run("nbd-client", "-l", "-u", two_disks)
    for name, size in (("", 1000), ("first", 1000), ("second", 40 << 20)):
        assert run("nbdinfo", "--size", f"nbd+unix:///{name}?socket={two_disks}").strip() == str(size)
    unknown = subprocess.run(
        ("nbdinfo", f"nbd+unix:///third?socket={two_disks}"), capture_output=True, text=True, check=False
    )
    assert unknown.returncode == 1
    assert "third" in unknown.stderr


def test_the_largest_payload(two_disks: Path) -> None:
    program = """
import os, sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
data = os.urandom(32 << 20)
h.pwrite(data, 4321)
assert h.pread(len(data), 4321) == data
h.shutdown()
"""
    run(DEBIAN_PYTHON, "-c", program, f"nbd+unix:///second?socket={two_disks}")


def test_fio_verifies_what_it_wrote(disk_server: Server, tmp_path: Path) -> None:
    command = f"""fio --name=x --ioengine=nbd --uri={disk_server.uri} --rw=randwrite --bsrange=512-64k --iodepth=16
        --size=8M --verify=crc32c --do_verify=1 --fsync=50 --randseed=3"""
    subprocess.run(command.split(), check=True, capture_output=True, timeout=60, cwd=tmp_path)
