"""Which frame of a client waits for the SVM's window is the same on the compiled side and in Python."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.packed import pack, unpack
from pycolo.core.receive_windows import ReceiveWindows, Windows
from tcp_frames import A, Connection, F, P, R, S, stamps, udp

hot_windows = pytest.importorskip("pycolo.core.hot_windows")

SCALES = [b"", b"\x03\x03\x00\x01", b"\x03\x03\x02\x01", b"\x03\x03\xff\x01"]
TAGS = [b"", b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x06\x81\x00\x00\x05"]
CONNECTIONS = [Connection(client_port=port, client_isn=isn) for port, isn in ((1, 70_000), (2, 2**32 - 900), (3, 5))]


@st.composite
def frames(draw: st.DrawFn) -> tuple[bool, bytes]:
    """(whether the SVM says it, frame)"""
    connection, out = draw(st.sampled_from(CONNECTIONS)), draw(st.booleans())
    flags = draw(st.sampled_from([A] * 8 + [A | P, A | F, S | A, S, R, R | A]))
    options = draw(st.sampled_from(SCALES)) if flags & S else draw(st.sampled_from([b"", stamps(1, 2)]))
    place, length = draw(st.integers(0, 1500)), draw(st.sampled_from([0, 1, 50, 300]))
    place += draw(st.sampled_from([0, 0, 0, 0, 0, 70_000, 1 << 30]))
    tags = draw(st.sampled_from(TAGS))
    if draw(st.integers(0, 15)) == 0:
        return out, udp(b"something else", inbound=not out)
    if out:
        frame = connection.out(1, place, flags, options=options)
        frame = frame[:48] + draw(st.sampled_from([0, 50, 100, 400])).to_bytes(2) + frame[50:]
    else:
        frame = connection.back(place, 1, flags, bytes(length), options)
    return out, frame[:12] + tags + frame[12:]


steps = st.lists(
    st.one_of(st.lists(frames(), min_size=1, max_size=5), st.sampled_from(["loaded", "take", "take", "give up"])),
    max_size=30,
)


@settings(max_examples=400)
@given(steps, st.sampled_from([1, 2, 5]), st.sampled_from([500, 10_000]), st.integers(0, 2**64 - 1))
def test_both_feed_the_same(script: list[object], flows_max: int, bytes_max: int, seed: int) -> None:
    twin = ReceiveWindows(Windows(flows_max, bytes_max))
    hot = hot_windows.HotReceiveWindows(flows_max, bytes_max, seed=seed)
    for step in [*script, "take"]:
        if step == "loaded":
            twin.loaded()
            hot.loaded()
        elif step == "give up":
            twin.give_up()
            hot.give_up()
        elif isinstance(step, list):
            said = pack([frame for out, frame in step if out])
            clients = pack([frame for out, frame in step if not out])
            twin.svm_packed(said)
            hot.svm_packed(said)
            assert twin.client_packed(clients) == hot.client_packed(clients)
        else:
            assert unpack(twin.take_freed()) == unpack(hot.take_freed())


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_are_taken(packed: bytes) -> None:
    hot = hot_windows.HotReceiveWindows(4, seed=1)
    hot.svm_packed(packed)
    assert unpack(hot.client_packed(packed)) == unpack(packed)
