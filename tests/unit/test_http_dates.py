"""The value of an HTTP Date header, found by its place in the stream of responses, and nothing that resembles it."""

from __future__ import annotations

import pytest

from pycolo.core.http_dates import LINE_BYTES_MAX, VALUES_MAX, HttpDates

ONE, TWO = b"Mon, 01 Jun 2026 10:59:59 GMT", b"Mon, 01 Jun 2026 11:00:00 GMT"


def response(
    date: bytes, body: bytes = b"hi", *, status: bytes = b"HTTP/1.1 200 OK", length: bytes | None = None
) -> bytes:
    length = b"Content-Length: %d" % len(body) if length is None else length
    return status + b"\r\nServer: x\r\nDate: " + date + b"\r\n" + length + b"\r\n\r\n" + body


def chunked(date: bytes, *chunks: bytes) -> bytes:
    body = b"".join(b"%x;name=value\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return response(date, body + b"0\r\nDate: " + ONE + b"\r\n\r\n", length=b"transfer-encoding: Chunked")


def behind(before: bytes) -> HttpDates:
    """What has followed a stream so far."""
    dates = HttpDates()
    dates.advance(before)
    return dates


def follows(before: bytes) -> bool:
    """Whether after `before` the Date of a response is still tolerated."""
    return behind(before).tolerates(response(ONE), response(TWO))


# ---------------------------------------------------------------- where values are


@pytest.mark.parametrize(
    "before",
    [
        b"",
        response(ONE),
        response(ONE, b""),
        response(ONE, b"HTP"),
        response(ONE, b"HTTP\n1.1"),
        response(ONE, b"x" * 100_000),
        chunked(ONE, b"HTTP/1.1 200 OK\r\n\r\n", b"b"),
        chunked(ONE),
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + response(ONE, b"xyz"),
        response(ONE, b"", status=b"HTTP/1.1 304 Not Modified", length=b"Content-Length: 100"),
        response(ONE, b"", status=b"HTTP/1.1 204 No Content", length=b"X: y"),
        response(ONE, status=b"HTTP/1.0 404 Not Found"),
        response(ONE, status=b"HTTP/1.1 200"),
    ],
)
def test_after_a_response_the_next_one_begins(before: bytes) -> None:
    assert follows(before)


@pytest.mark.parametrize(
    "before",
    [
        b"\r\n",
        b"+OK\r\n",
        b"HTTP/2 200 OK\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        response(ONE)[:-1],
        response(ONE, b"HTTP/1.1 200 OK\r\n\r\n"),
        response(ONE, b"HTT"),
        response(ONE, b"", length=b"Content-Length: 100"),
        response(ONE, b"", length=b"X: until the connection ends"),
        response(ONE, b"", length=b"Content-Length: 0\r\nContent-Length: 0"),
        response(ONE, b"", length=b"Content-Length: 0, 0"),
        response(ONE, b"", length=b"Content-Length: -0"),
        response(ONE, b"", length=b"Content-Length: \xd9\xa0"),
        response(ONE, b"0\r\n\r\n", length=b"Transfer-Encoding: chunked\r\nContent-Length: 0"),
        response(ONE, b"0\r\n\r\n", length=b"Transfer-Encoding: gzip, chunked"),
        response(ONE, b"0\r\n\r\n", length=b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK"),
        response(ONE, b"", length=b"Content-Length: 0\r\n folded: line"),
        response(ONE, b"", length=b"Content-Length : 0"),
        response(ONE, b"", length=b"no header"),
        response(ONE, b"", status=b"HTTP/1.1 101 Switching Protocols", length=b"Content-Length: 0"),
        response(ONE).replace(b"\r\n", b"\n"),
        chunked(ONE, b"one").replace(b"one\r\n", b"ones\r\n"),
        chunked(ONE, b"one").replace(b"0\r\n", b"0\r\nno trailer\r\n"),
        response(ONE, b"g\r\n", length=b"Transfer-Encoding: chunked"),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * LINE_BYTES_MAX,
    ],
)
def test_what_is_not_sure_is_never_tolerated_again(before: bytes) -> None:
    assert not follows(before)
    dates = behind(before + b"\r\n\r\n")
    assert not dates.tolerates(response(ONE), response(TWO))


def test_the_response_to_head_is_told_from_a_body() -> None:
    """It has a length and no body: what follows is a response, or a body that imitates one."""
    head = response(ONE, b"", length=b"Content-Length: 500")
    fake = b"HTTP/1.1 200 OK\r\nDate: " + ONE + b"\r\n\r\n"
    assert behind(b"").tolerates(head, response(TWO, b"", length=b"Content-Length: 500"))
    assert not behind(head).tolerates(fake, fake.replace(ONE, TWO))
    assert follows(head + b"x" * 500)


def test_lines_may_be_cut_anywhere() -> None:
    stream = response(ONE) + chunked(ONE, b"abc")
    for size in (1, 2, 3, 7):
        dates = HttpDates()
        for at in range(0, len(stream), size):
            dates.advance(stream[at : at + size])
        assert dates.position == len(stream)
        assert dates.tolerates(response(ONE), response(TWO))


def test_names_and_white_space_as_in_the_standard() -> None:
    for line in (b"DATE:%s", b"date:\t %s \t"):
        ours, theirs = (b"HTTP/1.1 200 OK\r\n" + line % date + b"\r\n" for date in (ONE, TWO))
        assert HttpDates().tolerates(ours, theirs)


# ---------------------------------------------------------------- what may differ


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (response(ONE), response(TWO, b"ho")),
        (response(ONE), response(TWO)[:-1]),
        (response(ONE), response(b"x" * 29)),
        (response(b"x" * 29), response(ONE)),
        (response(ONE).replace(b"Date:", b"Late:"), response(TWO).replace(b"Date:", b"Late:")),
        (response(ONE).replace(b"Date: ", b"Date: x"), response(TWO).replace(b"Date: ", b"Date: x")),
        (response(ONE).replace(b"Server: x", b"Server: y"), response(TWO)),
        (response(b"", ONE), response(b"", TWO)),
        (chunked(ONE, ONE), chunked(ONE, TWO)),
        (chunked(ONE, b""), chunked(ONE, b"")[::-1]),
        (response(ONE), response(ONE.replace(b"10:59", b"99:99"))),
    ],
)
def test_nothing_else_may_differ(ours: bytes, theirs: bytes) -> None:
    assert not HttpDates().tolerates(ours, theirs)


def test_the_date_in_a_trailer_is_no_header() -> None:
    ours = chunked(ONE, b"abc")
    at = ours.rindex(ONE)
    assert not HttpDates().tolerates(ours, ours[:at] + TWO + ours[at + 29 :])


def test_pipelined_responses() -> None:
    assert HttpDates().tolerates(response(ONE) + response(ONE, b"a"), response(TWO) + response(TWO, b"a"))
    assert not HttpDates().tolerates(response(ONE) + response(ONE, b"a"), response(TWO) + response(TWO, b"b"))


def test_asking_changes_nothing() -> None:
    dates = behind(response(ONE)[:20])
    for _ in range(3):
        assert dates.tolerates(response(ONE)[20:], response(TWO)[20:])
        assert not dates.tolerates(response(ONE), response(TWO))
    assert dates.position == 20


# ---------------------------------------------------------------- segments that cut, repeat, overlap


@pytest.mark.parametrize("cut", range(1, 29))
def test_a_value_cut_by_a_segment_is_not_tolerated(cut: int) -> None:
    """Else a client could get the PVM's first half and the survivor's second: a date that nobody has meant."""
    ours, theirs = response(ONE), response(TWO)
    at = ours.index(ONE) + cut
    head_differs, tail_differs = ours[:at] != theirs[:at], ours[at:] != theirs[at:]
    assert HttpDates().tolerates(ours[:at], theirs[:at]) is not head_differs
    assert behind(ours[:at]).tolerates(ours[at:], theirs[at:]) is not tail_differs


def test_what_is_repeated_may_differ_again_if_the_value_is_whole() -> None:
    ours, theirs = response(ONE), response(TWO)
    dates = behind(ours)
    value = ours.index(ONE)
    assert dates.tolerates(ours, theirs, 0)
    assert dates.tolerates(ours[value : value + 29], theirs[value : value + 29], value)
    assert not dates.tolerates(ours[: value + 20], theirs[: value + 20], 0)
    assert not dates.tolerates(ours[value + 20 :], theirs[value + 20 :], value + 20)
    assert not dates.tolerates(ours, response(TWO, b"ho"), 0)


def test_a_segment_may_repeat_the_end_and_go_on() -> None:
    ours, theirs = (response(date) + response(date, b"ho") for date in (ONE, TWO))
    for known in range(0, len(ours), 9):
        dates = behind(ours[:known])
        assert dates.tolerates(ours, theirs, 0)
        assert not dates.tolerates(ours[known + 1 :], theirs[known + 1 :], known + 1), "what lies between is not known"


def test_what_leaves_again_is_not_counted_twice() -> None:
    stream = response(ONE) + response(ONE, b"ho")
    dates = HttpDates()
    for at in range(0, len(stream), 10):
        dates.advance(stream[max(0, at - 25) : at + 10], max(0, at - 25))
        dates.advance(stream[:5], 0)
        assert dates.position == min(at + 10, len(stream))
    assert dates.tolerates(response(ONE), response(TWO))
    dates.advance(response(ONE), len(stream) + 1)
    assert dates.lost


def test_what_was_repeated_too_late_is_forgotten() -> None:
    dates = HttpDates()
    for _ in range(VALUES_MAX + 1):
        dates.advance(response(ONE))
    size = len(response(ONE))
    assert not dates.tolerates(response(ONE), response(TWO), 0)
    assert dates.tolerates(response(ONE), response(TWO), size)


def test_a_part_of_the_stream_that_was_not_seen_ends_it() -> None:
    dates = behind(response(ONE))
    dates.lose()
    assert dates.lost
    assert not dates.tolerates(response(ONE), response(TWO))
    assert dates.tolerates(response(ONE), response(TWO), 0), "what is known stays known"
