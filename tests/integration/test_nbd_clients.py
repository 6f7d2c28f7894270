"""The disk server as clients see it that we did not write: QEMU's, libnbd's, nbd-client; and clients that misbehave.

The reference implementation's own test program, nbd-tester-client, is in no Debian package.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbd_peer as peer
from nbd_peer import FLAGS, go, option, request

SIZE = (8 << 20) + 777
DEBIAN_PYTHON = "/usr/bin/python3"  # the one for which python3-libnbd is installed
START_S_MAX = 20.0
STOP_S_MAX = 20.0


def run(*command: str | Path, **environment: str) -> str:
    """What a client says on stdout; it must succeed."""
    outcome = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    assert outcome.returncode == 0, f"{command}: {outcome.stdout}{outcome.stderr}"
    return outcome.stdout


def colo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "pycolo", "disk", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Server:
    """`colo disk serve` as a process."""

    def __init__(self, image: Path, *options: str) -> None:
        self.image, self.path = image, image.with_name("nbd.sock")
        self.uri = f"nbd+unix:///?socket={self.path}"
        command = (sys.executable, "-m", "pycolo", "disk", "serve", str(image), "--socket", str(self.path), *options)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        assert self.said.startswith("serving"), self.said

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))  # without a time limit it waits for a place in the queue
        client.settimeout(20)
        return client

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(STOP_S_MAX)
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        self.process.stdout.close()
        return status


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Random at both ends and a hole between."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(SIZE)
        file.seek(SIZE - 5000)
        file.write(os.urandom(5000))
    return path


@pytest.fixture
def server(image: Path) -> Iterator[Server]:
    """Ends well, whatever its clients did."""
    server = Server(image)
    yield server
    assert server.process.poll() is None, server.stop()
    assert server.stop() == 0
    assert server.said.count("\n") == 1, server.said
    assert not server.path.exists()


# ---- QEMU's client


def qemu_io(server: Server, *commands: str) -> str:
    said = run("qemu-io", "-f", "raw", server.uri, *(part for command in commands for part in ("-c", command)))
    assert "failed" not in said, said
    return said


def test_qemu_io(server: Server) -> None:
    qemu_io(
        server,
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
    content = server.image.read_bytes()
    assert len(content) == SIZE
    assert content[1000:2000] == b"\x22" * 1000
    assert content[2000:3000] == bytes(1000)
    assert content[300 << 10 : 304 << 10] == b"\x33" * 4096


def test_qemu_io_sees_the_errors_of_a_read_only_disk(image: Path) -> None:
    before = image.read_bytes()
    server = Server(image, "--read-only")
    try:
        outcome = subprocess.run(
            ("qemu-io", "-f", "raw", server.uri, "-c", "write 0 512"), capture_output=True, text=True, check=False
        )
        assert outcome.returncode != 0
        run("qemu-io", "-r", "-f", "raw", server.uri, "-c", "read 0 4k")
    finally:
        assert server.stop(signal.SIGINT) == 0
    assert image.read_bytes() == before


def test_qemu_img(server: Server, tmp_path: Path) -> None:
    assert "Images are identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, server.image)
    copy = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, copy)
    assert "Images are identical" in run("qemu-img", "compare", "-F", "raw", copy, server.image)
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri))
    zeros = [(one["start"], one["length"]) for one in extents if one["zero"] and one["start"] < SIZE]
    assert zeros == [(1 << 20, (SIZE - 5000) // 4096 * 4096 - (1 << 20))]


def test_qemu_img_writes_a_whole_disk(server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    with other.open("wb") as file:
        file.truncate(SIZE // 512 * 512)
        file.seek(3 << 20)
        file.write(os.urandom(1 << 20))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, server.uri)
    assert server.image.read_bytes()[: SIZE // 512 * 512] == other.read_bytes()


# ---- libnbd's


def test_nbdinfo(server: Server) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", server.uri))["exports"]
    assert export["export-size"] == SIZE
    assert export["contexts"] == ["base:allocation"]
    sizes = [export[f"block_size_{name}"] for name in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 << 20]
    features = ("can_flush", "can_fua", "can_trim", "can_zero", "can_df")
    assert [export[feature] for feature in features] == [True] * len(features)
    assert not any(export[feature] for feature in ("is_read_only", "can_multi_conn", "can_cache", "can_fast_zero"))
    assert [one["export-name"] for one in json.loads(run("nbdinfo", "--json", "--list", server.uri))["exports"]] == [""]


def test_nbdinfo_map(server: Server) -> None:
    extents = json.loads(run("nbdinfo", "--map", "--json", server.uri))
    data_at = (SIZE - 5000) // 4096 * 4096
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in extents] == [
        (0, 1 << 20, 0),
        (1 << 20, data_at - (1 << 20), 3),
        (data_at, SIZE - data_at, 0),
    ]


def test_nbdcopy_both_ways(server: Server, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.raw", tmp_path / "other.raw"
    run("nbdcopy", server.uri, copy)
    assert copy.read_bytes() == server.image.read_bytes()
    other.write_bytes(os.urandom(3 << 20) + bytes(SIZE - (3 << 20)))
    run("nbdcopy", "--flush", other, server.uri)
    assert server.image.read_bytes() == other.read_bytes()


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
def test_libnbd(server: Server, structured: str) -> None:
    assert run(DEBIAN_PYTHON, "-c", LIBNBD, server.uri, structured, str(SIZE)) == "fine\n"


def test_nbdsh(server: Server) -> None:
    before = server.image.read_bytes()
    said = run("nbdsh", "-u", server.uri, "-c", "print(h.pread(5, 3).hex())", PATH="/usr/bin:/bin")
    assert said.strip() == before[3:8].hex()


def test_nbd_client_lists_the_exports(server: Server) -> None:
    said = run("nbd-client", "-l", "-u", server.path)
    assert "Negotiation: ..\n" in said


def test_fio_verifies_what_it_wrote(server: Server, tmp_path: Path) -> None:
    command = f"""fio --name=x --ioengine=nbd --uri={server.uri} --rw=randwrite --bsrange=512-64k --iodepth=16 --size=8M
        --verify=crc32c --do_verify=1 --fsync=50 --randseed=3"""
    subprocess.run(command.split(), check=True, capture_output=True, timeout=60, cwd=tmp_path)


# ---- several clients, and bad ones


def shake_hands(client: socket.socket) -> None:
    client.sendall(FLAGS + option(peer.EXPORT_NAME))
    received = b""
    while len(received) < 18 + 10:
        received += client.recv(100)


def ended(client: socket.socket) -> bool:
    """Whether the server closes the connection, whatever it says before."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(1 << 16):
            pass
    return True


def test_several_clients_at_once_see_one_disk(server: Server) -> None:
    clients = [server.connect() for _ in range(70)]  # more than are served at a time
    for number, client in enumerate(clients[:60]):
        shake_hands(client)
        client.sendall(request(peer.WRITE, number, number * 512, data=bytes([number]) * 512))
    for client in clients[:60]:
        assert client.recv(16)[4:8] == bytes(4)
    for client in clients[:60]:
        client.close()
    for client in clients[60:]:
        shake_hands(client)
        client.sendall(request(peer.READ, 1, 59 * 512, 512))
        assert client.recv(16 + 512, socket.MSG_WAITALL)[16:] == bytes([59]) * 512
        client.close()


GARBAGE = {
    "random bytes": os.urandom(5000),
    "zeros": bytes(5000),
    "unknown client flags": b"\0\0\0\xff",
    "an endless option": FLAGS + b"IHAVEOPT\0\0\0\7\xff\xff\xff\xff" + bytes(100_000),
    "too many options": FLAGS + option(peer.LIST) * 100,
    "an unknown export": FLAGS + option(peer.EXPORT_NAME, b"nothing"),
    "a wrong magic": FLAGS + go() + request(peer.READ, 1, 0, 5, magic=1),
    "a huge write": FLAGS + go() + request(peer.WRITE, 1, 0, (1 << 32) - 1) + bytes(100_000),
    "goodbye": FLAGS + option(peer.ABORT),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_ends_its_own_connection_only(server: Server, garbage: bytes) -> None:
    before = server.image.read_bytes()
    good, bad = server.connect(), server.connect()
    shake_hands(good)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        bad.sendall(garbage)
    assert ended(bad)
    good.sendall(request(peer.READ, 1, 0, 100))
    assert good.recv(116, socket.MSG_WAITALL)[16:] == before[:100]
    assert server.image.read_bytes() == before
    good.close()
    bad.close()


@pytest.mark.parametrize(
    "last_words",
    [
        b"",
        FLAGS[:2],
        FLAGS + option(peer.GO)[:9],
        FLAGS + go() + request(peer.READ, 1, 0, 5)[:20],
        FLAGS + go() + request(peer.WRITE, 1, 0, data=b"x" * 100_000)[:-1],
        FLAGS + go() + request(peer.WRITE, 1, 0, 32 << 20) + b"x" * 3_000_000,
        FLAGS + go() + request(peer.READ, 1, 0, 1 << 20) * 100,
    ],
    ids=["nothing", "half flags", "half option", "half request", "half write", "half large write", "unread replies"],
)
def test_a_client_that_vanishes_changes_nothing(server: Server, last_words: bytes) -> None:
    before = server.image.read_bytes()
    client = server.connect()
    client.sendall(last_words)
    time.sleep(0.1)
    client.close()
    with server.connect() as other:
        shake_hands(other)
        other.sendall(request(peer.READ, 1, 0, 100))
        assert other.recv(116, socket.MSG_WAITALL)[16:] == before[:100]
    assert server.image.read_bytes() == before


def test_a_request_beyond_the_end_is_an_error_and_the_client_goes_on(server: Server) -> None:
    with server.connect() as client:
        shake_hands(client)
        client.sendall(request(peer.WRITE, 1, SIZE - 1, data=b"xy") + request(peer.READ, 2, SIZE - 1, 1))
        replies = client.recv(16 + 17, socket.MSG_WAITALL)
        assert replies[:16] == bytes.fromhex("674466980000001c0000000000000001")
        assert replies[16:32] == bytes.fromhex("67446698000000000000000000000002")
    assert server.image.stat().st_size == SIZE


def test_a_stop_does_not_wait_for_clients(image: Path) -> None:
    server = Server(image)
    with server.connect() as client:
        shake_hands(client)
        client.sendall(request(peer.WRITE, 1, 0, data=b"x" * 100) + request(peer.WRITE, 2, 0, 1 << 20) + b"half")
        assert len(client.recv(16, socket.MSG_WAITALL)) == 16
        assert server.stop() == 0
        assert ended(client)
    assert image.read_bytes()[:101] != b"x" * 101
    assert image.read_bytes()[:100] == b"x" * 100


# ---- the command


def test_a_second_server_is_refused(server: Server, tmp_path: Path) -> None:
    same_image = colo("serve", server.image, "--socket", tmp_path / "other.sock")
    assert (same_image.returncode, same_image.stderr.count("\n")) == (2, 1)
    assert "is in use by another process" in same_image.stderr
    (tmp_path / "other.raw").write_bytes(b"x")
    same_socket = colo("serve", tmp_path / "other.raw", "--socket", server.path)
    assert same_socket.returncode == 2
    assert "another process serves" in same_socket.stderr
    assert run("nbdinfo", "--size", server.uri).strip() == str(SIZE)


def test_a_killed_servers_socket_is_replaced(image: Path) -> None:
    first = Server(image)
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert first.path.exists()
    second = Server(image)
    assert run("nbdinfo", "--size", second.uri).strip() == str(SIZE)
    assert second.stop() == 0


def test_import_makes_a_sparse_raw_image(tmp_path: Path) -> None:
    raw, qcow2, imported = tmp_path / "a.raw", tmp_path / "a.qcow2", tmp_path / "b.raw"
    raw.write_bytes(os.urandom(1 << 20))
    os.truncate(raw, 64 << 20)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    refused = colo("serve", qcow2, "--socket", tmp_path / "s")
    assert refused.returncode == 2
    assert "colo disk import" in refused.stderr
    outcome = colo("import", qcow2, imported)
    assert outcome.returncode == 0, outcome.stderr
    assert imported.read_bytes() == raw.read_bytes()
    assert imported.stat().st_blocks * 512 < 2 << 20
    again = colo("import", qcow2, imported)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.qcow2", "a.raw", "b.raw"]


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 1000)
    missing = colo("import", tmp_path / "missing", tmp_path / "b.raw")
    failed = colo("import", broken, tmp_path / "b.raw")
    monkeypatch.setenv("PATH", "/nowhere")
    without_tool = colo("import", broken, tmp_path / "b.raw")
    for outcome, sentence in (
        (missing, "does not exist"),
        (failed, "can't be converted"),
        (without_tool, "qemu-utils"),
    ):
        assert (outcome.returncode, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
        assert sentence in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.qcow2"]
