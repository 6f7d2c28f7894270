"""The only tolerance: the value of an HTTP Date header, and nothing that merely resembles it."""

from __future__ import annotations

import pytest

from pycolo.core.tolerance import tolerates

ONE, TWO = b"Mon, 01 Jun 2026 10:59:59 GMT", b"Mon, 01 Jun 2026 11:00:00 GMT"


def response(date: bytes, *, status: bytes = b"HTTP/1.1 200 OK", body: bytes = b"hi") -> bytes:
    return status + b"\r\nServer: x\r\nDate: " + date + b"\r\nContent-Length: 2\r\n\r\n" + body


def test_dates_in_a_response_header_may_differ() -> None:
    assert tolerates(b"", response(ONE), response(TWO))
    assert tolerates(
        b"", response(ONE, status=b"HTTP/1.0 404 Not Found"), response(TWO, status=b"HTTP/1.0 404 Not Found")
    )


def test_pipelined_responses() -> None:
    assert tolerates(b"", response(ONE) + response(ONE), response(TWO) + response(TWO))
    assert not tolerates(b"", response(ONE) + response(ONE, body=b"a"), response(TWO) + response(TWO, body=b"b"))


def test_the_status_line_may_be_in_an_earlier_segment() -> None:
    assert tolerates(response(ONE)[:20], response(ONE)[20:], response(TWO)[20:])
    assert not tolerates(b"", response(ONE)[20:], response(TWO)[20:])


@pytest.mark.parametrize("cut", range(1, 29))
def test_a_value_cut_by_a_segment_is_not_tolerated(cut: int) -> None:
    """Else a client could get the PVM's first half and the survivor's second: a date that nobody has meant."""
    ours, theirs = response(ONE), response(TWO)
    at = ours.index(ONE) + cut
    head_differs, tail_differs = ours[:at] != theirs[:at], ours[at:] != theirs[at:]
    assert head_differs or tail_differs
    assert tolerates(b"", ours[:at], theirs[:at]) is not head_differs
    assert tolerates(ours[:at], ours[at:], theirs[at:]) is not tail_differs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (response(ONE), response(TWO, body=b"ho")),
        (response(ONE), response(TWO)[:-1]),
        (response(ONE), response(b"x" * 29)),
        (response(b"x" * 29), response(ONE)),
        (response(ONE, status=b"GET / HTTP/1.1 "), response(TWO, status=b"GET / HTTP/1.1 ")),
        (b"HTTP/1.1 200 OK\r\n\r\n\r\nDate: " + ONE + b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n\r\nDate: " + TWO + b"\r\n"),
        (b"HTTP/1.1 200 OK\n\n\r\nDate: " + ONE + b"\r\n", b"HTTP/1.1 200 OK\n\n\r\nDate: " + TWO + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\nDate: " + ONE + b"\r\n", b"HTTP/1.1 200 OK\r\n\r\nDate: " + TWO + b"\r\n"),
        (response(ONE).replace(b"Date:", b"Late:"), response(TWO).replace(b"Date:", b"Late:")),
        (b"+OK " + ONE, b"+OK " + TWO),
    ],
    ids=[
        "body",
        "length",
        "theirs",
        "ours",
        "request",
        "in-body",
        "bare-lf",
        "right-behind-header",
        "other-header",
        "no-http",
    ],
)
def test_nothing_else_may_differ(ours: bytes, theirs: bytes) -> None:
    assert not tolerates(b"", ours, theirs)
