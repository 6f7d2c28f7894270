"""A real tap on a bridge of its own: what clients send comes in, what is sent goes out unless the kernel refuses."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pycolo.core.packed import batch_of, pack, unpack
from pycolo.edge import tap as tap_module
from pycolo.edge.frames_twin import read_frames, write_frames
from pycolo.edge.namespaces import Namespace
from pycolo.edge.tap import Tap
from tap_worlds import inside

ETH_P_ALL = 3
HEAD = bytes.fromhex("0200000000010200000000aa88b5")  # a type for experiments (IEEE 802)
FRAMES = [HEAD + b"%d" % number + bytes(50 + number) for number in range(100)]


class Uplink:
    """A tap and a socket on the other side of it."""

    def __init__(self) -> None:
        self.namespace = Namespace("uplink")
        self.namespace.ip("link", "add", "br0", "type", "bridge")
        with inside(self.namespace):
            self.tap = Tap("t0", "br0")
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self.wire.bind(("t0", ETH_P_ALL))
        self.wire.settimeout(5)

    def heard(self, count: int) -> list[bytes]:
        """So many of our frames; the kernel has some of its own."""
        frames: list[bytes] = []
        while len(frames) < count:
            frame = self.wire.recv(2000)
            frames += [frame] if frame.startswith(HEAD) else []
        return frames

    def close(self) -> None:
        self.wire.close()
        self.tap.close()
        self.namespace.close()


@pytest.fixture(params=["as picked", "python"])
def uplink(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uplink]:
    if request.param == "python":
        monkeypatch.setattr(tap_module, "read_frames", read_frames)
        monkeypatch.setattr(tap_module, "write_frames", write_frames)
    uplink = Uplink()
    yield uplink
    uplink.close()


def test_both_ways(uplink: Uplink) -> None:
    for frame in FRAMES:
        uplink.wire.send(frame)
    first, second = uplink.tap.receive(64), uplink.tap.receive(64)
    assert (first.count, second.count) == (64, 36)
    assert unpack(first.packed) + unpack(second.packed) == FRAMES
    assert uplink.tap.receive(64).count == 0
    batch = batch_of(FRAMES)
    assert uplink.tap.send(batch.packed) == (len(batch.packed), 0)
    assert uplink.heard(100) == FRAMES


def test_what_no_ethernet_takes_is_refused_and_the_rest_goes(uplink: Uplink) -> None:
    packed = pack([b"", b"short", FRAMES[0], HEAD[:13], FRAMES[1]])
    assert uplink.tap.send(packed) == (len(packed), 3)
    assert uplink.heard(2) == FRAMES[:2]


def test_a_kernel_without_ipv6_is_not_asked_for_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(tap_module, "has_ipv6", lambda: False)
    monkeypatch.setattr(tap_module, "run_ip", lambda *words: asked.append(words))
    Tap("t1", "br0").close()
    assert asked == [
        ("link", "set", "dev", "t1", "txqueuelen", "4000"),
        ("link", "set", "dev", "t1", "master", "br0", "up"),
    ]
