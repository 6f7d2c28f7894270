"""What the upload and the tap benchmarks count is what was answered, and what they compare is what a client sees."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulk_client import GET, GET_ANSWER, SET, SET_ANSWER, VALUE_BYTES, Answers, Bulk, command
from compare_frames import ACK, CLIENT_MAC, GUEST_MAC, Case, make_traffic, make_upload, split_rows
from pycolo.core.packet import checksum_is_right, opposite, parse_tcp
from tap_to_tap import Ends, _acks
from tap_worlds import World


def test_a_command_is_what_redis_wants() -> None:
    assert command(b"SET", b"k", b"value") == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n"


@given(st.integers(0, 5), st.integers(1, 7))
def test_answers_count_however_they_are_cut(count: int, step: int) -> None:
    answers, content = Answers(SET_ANSWER), SET_ANSWER * count
    for at in range(0, len(content), step):
        answers.feed(content[at : at + step])
    assert answers.count == count


@pytest.mark.parametrize("content", [b"-ERR\r\n", SET_ANSWER + b"+OX\r\n", b"+OK\r\r"])
def test_a_wrong_answer_ends_the_client(content: bytes) -> None:
    with pytest.raises(SystemExit, match="wrong answer"):
        Answers(SET_ANSWER).feed(content)


@pytest.mark.parametrize(("request_", "answer"), [(SET, SET_ANSWER), (GET, GET_ANSWER)])
def test_only_what_was_answered_counts(request_: bytes, answer: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        server = threading.Thread(target=_serve, args=(far, len(request_), answer, 3))
        server.start()
        bulk = Bulk(near, request_, answer)
        assert bulk.until(time.monotonic() + 20, count=3) == 3
        far.shutdown(socket.SHUT_RDWR)
        server.join()
        with pytest.raises((SystemExit, OSError)):
            bulk.until(time.monotonic() + 20, count=1)


def _serve(end: socket.socket, request_bytes: int, answer: bytes, count: int) -> None:
    for _ in range(count):
        left = request_bytes
        while left:
            left -= len(end.recv(min(left, VALUE_BYTES)))
        end.sendall(answer)


def test_an_upload_is_on_the_connections_of_the_traffic() -> None:
    case = Case(200, 3)
    opened = {opposite(segment[0]) for frame in split_rows(make_traffic(case, 9).pvm) if (segment := parse_tcp(frame))}
    upload = split_rows(make_upload(case, 9))
    for frame in upload:
        segment = parse_tcp(frame)
        assert segment is not None
        assert segment[0] in opened
        assert segment[6] - segment[5] == 200
        assert checksum_is_right(frame, segment[4], len(frame))


def test_acknowledgements_belong_to_the_part_whose_frames_they_acknowledge() -> None:
    acks = [b"a", b"b", b"c"]
    assert _acks([3, 10, 19], acks, slice(10, 20)) == ([1, 10], [b"b", b"c"])


def test_what_comes_out_has_to_be_what_went_in() -> None:
    traffic = make_traffic(Case(64, 2), 100)
    pvm, acks = split_rows(traffic.pvm), split_rows(traffic.client)
    with _wired() as (client, guest, wires):
        ends = Ends(World(client.fileno(), [guest.fileno()], {}, header=b""))
        ends.down([pvm], (traffic.client_at + 1).tolist(), acks)
        ends.up(split_rows(make_upload(Case(64, 2), 50)))
        assert ends.down_one([pvm[0]]) > 0
        wires.wrong = True
        with pytest.raises(SystemExit, match="not what went in"):
            ends.down([pvm], [], [])


class _Wires:
    """Carries frames between two ends as they are, or with a wrong byte."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self.wrong, self._ends = False, (one, other)
        self._threads = [threading.Thread(target=self._carry, args=pair) for pair in ((one, other), (other, one))]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        while frame := source.recv(70_000):
            target.send(frame[:-1] + b"?" if self.wrong else frame)

    def stop(self) -> None:
        for end in self._ends:
            end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def _wired() -> Iterator[tuple[socket.socket, socket.socket, _Wires]]:
    (client, near), (guest, far) = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    with client, near, guest, far:
        for end in (client, guest):
            end.setblocking(False)
        wires = _Wires(near, far)
        try:
            yield client, guest, wires
        finally:
            wires.stop()


def test_who_sent_a_frame_is_told_by_its_address() -> None:
    traffic = make_traffic(Case(64, 1), 8)
    assert all(frame[6:12] == GUEST_MAC for frame in split_rows(traffic.pvm))
    assert all(frame[6:12] == CLIENT_MAC and frame[47] == ACK for frame in split_rows(traffic.client))
