"""What a client sends beyond the SVM's window waits for the SVM."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.limits import DataplaneLimits
from pycolo.core.packed import pack, unpack
from pycolo.core.packet import distance, parse_tcp
from pycolo.core.receive_windows import PARKED_BYTES_MAX, PARKED_FRAMES_MAX, ReceiveWindows, Windows
from pycolo.core.secondary import SecondaryDataplane
from tcp_frames import A, Connection, F, R, S, udp

SCALE_7 = b"\x03\x03\x07\x01"
CONNECTION = Connection()


def windowed(frame: bytes, window: int) -> bytes:
    """Checksums are nobody's business here."""
    return frame[:48] + window.to_bytes(2) + frame[50:]


def svm(windows: ReceiveWindows, ack: int, window: int, flags: int = A, options: bytes = b"") -> list[bytes]:
    windows.svm_packed(pack([windowed(CONNECTION.out(1, ack, flags, options=options), window)]))
    return unpack(windows.take_freed())


def client(windows: ReceiveWindows, seq: int, length: int, flags: int = A, options: bytes = b"") -> tuple[bytes, bool]:
    frame = CONNECTION.back(seq, 1, flags, bytes(length), options)
    return frame, bool(windows.client_frames([frame]))


def made(flows_max: int = 4) -> ReceiveWindows:
    return ReceiveWindows(Windows(flows_max, PARKED_BYTES_MAX))


def opened(options: bytes = SCALE_7) -> ReceiveWindows:
    """Bytes 1 to 1000 of the client are within the window when the scale counts."""
    windows = made()
    assert svm(windows, 1, 65_535, S | A, options) == []
    windows.loaded()
    assert svm(windows, 1, 1000 >> 7 << (0 if options else 7)) == []
    return windows


EDGE = 1 + (1000 >> 7 << 7)


def test_what_is_beyond_the_window_waits_until_it_opens() -> None:
    windows = opened()
    assert client(windows, 1, 500)[1]
    assert client(windows, 501, EDGE - 501)[1]
    beyond, fed = client(windows, EDGE, 300)
    assert not fed
    more, fed = client(windows, EDGE + 300, 300)
    assert not fed
    assert svm(windows, 501, (EDGE - 501) >> 7) == []
    assert svm(windows, EDGE, 3) == [beyond]
    assert svm(windows, EDGE, 5) == [more]
    assert svm(windows, EDGE, 50) == []


def test_an_acknowledgement_or_a_fin_beyond_the_window_waits_in_its_place() -> None:
    windows = opened()
    data, _ = client(windows, EDGE, 100)
    acknowledgement, fed = client(windows, EDGE + 100, 0)
    assert not fed
    fin, fed = client(windows, EDGE + 100, 0, A | F)
    assert not fed
    assert client(windows, EDGE, 0)[1], "an acknowledgement at the edge is one that the SVM takes"
    assert svm(windows, EDGE, 2) == [data, acknowledgement, fin]


def test_what_waits_is_fed_in_the_order_of_the_stream() -> None:
    windows = opened()
    third, _ = client(windows, EDGE + 200, 100)
    first, _ = client(windows, EDGE, 100)
    second, _ = client(windows, EDGE + 100, 100)
    repeated, _ = client(windows, EDGE + 100, 100)
    assert svm(windows, EDGE, 2) == [first, second, repeated]
    assert svm(windows, EDGE, 3) == [third]


def test_a_forged_segment_keeps_nothing_waiting() -> None:
    windows = opened()
    assert client(windows, EDGE + (1 << 30), 100)[1], "no window is so large"
    _, fed = client(windows, EDGE + 60_000, 100)
    assert not fed
    genuine, fed = client(windows, EDGE, 100)
    assert not fed
    assert svm(windows, EDGE, 1) == [genuine]


def test_windows_are_not_scaled_unless_both_sides_offer_it() -> None:
    assert client(opened(b""), 1, EDGE - 1)[1]
    assert not client(opened(b""), EDGE, 1)[1]
    opened_by_guest = made()
    svm(opened_by_guest, 0, 65_535, S, SCALE_7)
    assert client(opened_by_guest, 0, 0, S | A)[1]
    svm(opened_by_guest, 1, 100)
    assert client(opened_by_guest, 1, 100)[1]
    assert not client(opened_by_guest, 101, 1)[1]


def test_both_may_scale_where_the_guest_opens() -> None:
    windows = made()
    svm(windows, 0, 65_535, S, SCALE_7)
    assert client(windows, 0, 0, S | A, SCALE_7)[1]
    svm(windows, 1, 100)
    assert client(windows, 1, 12_800)[1]
    assert not client(windows, 12_801, 1)[1]


def test_where_the_window_is_not_known_everything_passes() -> None:
    windows = made()
    assert client(windows, 1, 60_000)[1]
    svm(windows, 1, 1)
    assert client(windows, 1, 60_000)[1], "the opening was not seen"
    windows = opened()
    windows.loaded()
    assert client(windows, EDGE, 60_000)[1], "the loaded SVM has not said it yet"


def test_a_checkpoint_forgets_what_waits_and_keeps_the_scale() -> None:
    windows = opened()
    client(windows, EDGE, 100)
    windows.loaded()
    assert svm(windows, 1, 1000 >> 7) == []
    assert not client(windows, EDGE, 100)[1]


def test_a_reset_or_another_opening_frees_what_waits() -> None:
    windows = opened()
    waits, _ = client(windows, EDGE, 100)
    assert client(windows, EDGE, 0, R)[1]
    assert unpack(windows.take_freed()) == [waits]
    assert client(windows, EDGE, 100)[1]
    windows = opened()
    waits, _ = client(windows, EDGE, 100)
    assert svm(windows, 1, 10, S | A, SCALE_7) == [waits]


def test_what_waits_is_bounded_together() -> None:
    windows, waiting = made(), 0
    for port in range(4):
        connection = Connection(client_port=port)
        opening = windowed(connection.syn_ack(SCALE_7), 65_535), windowed(connection.out(1, 1), 0)
        windows.svm_packed(pack(opening))
        frames = [connection.back(1 + 60_000 * n, 1, A, bytes(60_000)) for n in range(100)]
        waiting += len(frames) - len(windows.client_frames(frames))
    assert PARKED_BYTES_MAX - 60_200 < waiting * 60_154 < PARKED_BYTES_MAX + 60_200


def test_what_waits_for_one_connection_is_bounded() -> None:
    windows = opened()
    assert not any(client(windows, EDGE, 1)[1] for _ in range(PARKED_FRAMES_MAX))
    assert client(windows, EDGE, 1)[1]
    assert len(svm(windows, EDGE, 1)) == PARKED_FRAMES_MAX


def test_the_table_is_bounded() -> None:
    table = Windows(2, PARKED_BYTES_MAX)
    windows = ReceiveWindows(table)
    windows.svm_packed(pack([windowed(Connection(client_port=port).syn_ack(SCALE_7), 9) for port in range(5)]))
    assert len(table) == 2


def test_the_secondary_keeps_to_the_windows_and_gives_all_at_a_takeover() -> None:
    plane = SecondaryDataplane(DataplaneLimits())
    plane.svm_frames([windowed(CONNECTION.syn_ack(SCALE_7), 65_535)], 0)
    acknowledgement = CONNECTION.back(1, 1)
    assert plane.client_frames([acknowledgement]) == [acknowledgement]
    plane.svm_frames([windowed(CONNECTION.out(1, 1), 600)], 1)  # 76,800 bytes
    data = [CONNECTION.back(1 + 40_000 * n, 1, A, bytes(40_000)) for n in range(4)]
    question = udp(b"question", inbound=True)
    assert plane.client_frames([*data, question]) == [data[0], question]
    plane.svm_frames([windowed(CONNECTION.out(1, 80_001), 300)], 2)
    assert unpack(plane.take_freed()) == [data[1]]
    plane.take_over()
    assert unpack(plane.take_freed()) == data[2:]


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("client"), st.integers(0, 3000), st.integers(0, 900)),
            st.tuples(st.just("svm"), st.integers(0, 3000), st.integers(0, 16)),
        ),
        max_size=60,
    )
)
def test_each_frame_is_fed_once_in_order_and_never_beyond_a_known_window(script: list[tuple[str, int, int]]) -> None:
    windows = opened()
    edge, fed, sent = EDGE, list[tuple[int, bytes]](), list[bytes]()
    for who, place, size in script:
        if who == "client":
            frame, now = client(windows, 1 + place, size)
            sent.append(frame)
            fed += [(edge, frame)] if now else []
        else:
            edge = max(edge, 1 + place + (size << 7))
            fed += [(edge, frame) for frame in svm(windows, 1 + place, size)]
    windows.give_up()
    waited = unpack(windows.take_freed())
    assert sorted([frame for _, frame in fed] + waited) == sorted(sent)
    for known, frame in fed:
        segment = parse_tcp(frame)
        assert segment is not None
        assert distance(segment[1] + segment[6] - segment[5], CONNECTION.client_isn + known) <= 0
    assert waited == sorted(waited, key=_end)


def _end(frame: bytes) -> int:
    segment = parse_tcp(frame)
    assert segment is not None
    return segment[1] + segment[6] - segment[5]
