"""A model server answers; both copies' streams differ in dates and elsewhere: only true Date values are tolerated."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from pycolo.core.http_dates import LINE_BYTES_MAX, VALUES_MAX, HttpDates

DATES = (
    b"Mon, 01 Jun 2026 10:59:59 GMT",
    b"Mon, 01 Jun 2026 11:00:00 GMT",
    b"Thu, 31 Dec 2026 23:59:59 GMT",
    b"Fri, 01 Jan 2027 00:00:00 GMT",
)
FAKES = (
    b"HTTP/1.1 200 OK\r\nDate: %s\r\n\r\n",
    b"\r\nDate: %s\r\n",
    b"\r\n\r\nHTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: 0\r\n\r\n",
    b"0\r\n\r\nHTTP/1.1 200 OK\r\nDate: %s\r\n\r\n",
    b"%s",
)


@dataclass(frozen=True)
class Piece:
    """Bytes both say; `is_value`: the value of a Date header; `sure`: what follows can be known here."""

    ours: bytes
    theirs: bytes
    is_value: bool = False
    sure: bool = True


def both(data: bytes) -> Piece:
    return Piece(data, data)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    ours = draw(st.sampled_from(DATES))
    return ours, draw(st.one_of(st.just(ours), st.sampled_from(DATES)))


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body of both, equally long; some imitate headers, some differ."""
    ours = theirs = b""
    for kind in draw(st.lists(st.integers(0, 5), max_size=3)):
        if kind < 3:
            fake, (one, two) = draw(st.sampled_from(FAKES)), draw(pairs())
            ours, theirs = ours + fake % one, theirs + fake % two
        elif kind < 5:
            same = draw(st.sampled_from([b"abc", b"H", b"HTTP/1", b"\r\n", b"x" * 50]))
            ours, theirs = ours + same, theirs + same
        else:
            ours, theirs = ours + b"1", theirs + draw(st.sampled_from([b"1", b"2"]))
    return ours, theirs


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%X\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@st.composite
def responses(draw: st.DrawFn) -> list[Piece]:
    """One response, to GET or to HEAD."""
    status = draw(
        st.sampled_from([b"200 OK", b"404 Not Found", b"304 Not Modified", b"204 No Content", b"100 Continue"])
    )
    has_body = not status.startswith((b"1", b"204", b"304"))
    to_head = has_body and draw(st.integers(0, 5)) == 0
    ours, theirs = draw(bodies()) if has_body else (b"", b"")
    size = draw(st.sampled_from([1, 5, 1000]))
    is_chunked = has_body and draw(st.booleans())
    sure = not to_head and (is_chunked or not ours or b"HTTP/1."[: len(ours)] != ours[:7])
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(ours)
    fields = [[both(length + b"\r\n")]] if has_body else []
    for dates in draw(st.lists(pairs(), max_size=2)):
        fields += [[both(b"Date: "), Piece(*dates, is_value=True), both(b"\r\n")]]
    fields.append([both(b"X-Date: "), Piece(*draw(pairs())), both(b"\r\n")])
    head = [both(b"HTTP/1.1 " + status + b"\r\n")]
    for field in draw(st.permutations(fields)):
        head += field
    if is_chunked:
        ours, theirs = chunks(ours, size), chunks(theirs, size)
    body = [] if to_head else [Piece(ours, theirs)]
    return [*head, Piece(b"\r\n", b"\r\n", sure=sure), *body]


streams = st.lists(responses(), min_size=1, max_size=4).map(lambda answers: [piece for one in answers for piece in one])


@dataclass
class Oracle:
    """Knows which bytes of the stream are true values, and where the parser must be able to know it."""

    ours: bytes
    theirs: bytes
    values: list[tuple[int, int]]
    sure_to: int

    @classmethod
    def of(cls, pieces: list[Piece]) -> Oracle:
        at, values, sure_to = 0, [], None
        for piece in pieces:
            if piece.is_value:
                values.append((at, at + len(piece.ours)))
            at += len(piece.ours)
            if not piece.sure and sure_to is None:
                sure_to = at
        ours, theirs = b"".join(p.ours for p in pieces), b"".join(p.theirs for p in pieces)
        return cls(ours, theirs, values, at if sure_to is None else sure_to)

    def allows(self, start: int, end: int, line_end: int) -> bool:
        """Whether the segment differs in whole values only, the ends of whose lines lie `line_end` behind them."""
        inside = {
            at for first, last in self.values if first >= start and last + line_end <= end for at in range(first, last)
        }
        return all(at in inside or self.ours[at] == self.theirs[at] for at in range(start, end))


def cuts_of(total: int, sizes: list[int]) -> list[tuple[int, int]]:
    segments, at = [], 0
    for number in range(total):
        end = min(total, at + sizes[number % len(sizes)])
        segments.append((at, end))
        at = end
        if at == total:
            break
    return segments


sizes = st.lists(st.sampled_from([1, 3, 20, 40, 60, 100, 300, 1460]), min_size=1, max_size=6)


@settings(max_examples=400)
@given(streams, sizes)
def test_tolerated_is_what_differs_in_true_values_only(pieces: list[Piece], sizes: list[int]) -> None:
    oracle = Oracle.of(pieces)
    dates = HttpDates()
    for start, end in cuts_of(len(oracle.ours), sizes):
        ours, theirs = oracle.ours[start:end], oracle.theirs[start:end]
        tolerated = dates.tolerates(ours, theirs)
        assert not tolerated or oracle.allows(start, end, line_end=0)
        if end <= oracle.sure_to:
            assert tolerated or not oracle.allows(start, end, line_end=2)
        dates.advance(ours)
    assert dates.position == len(oracle.ours)


@settings(max_examples=300)
@given(streams, sizes, st.data())
def test_a_retransmission_never_mixes_two_dates(pieces: list[Piece], sizes: list[int], data: st.DataObject) -> None:
    oracle = Oracle.of(pieces)
    dates = HttpDates()
    for start, end in cuts_of(len(oracle.ours), sizes):
        dates.advance(oracle.ours[start:end])
        first = data.draw(st.integers(0, end))
        last = data.draw(st.integers(first, min(len(oracle.ours), end + 100)))
        tolerated = dates.tolerates(oracle.ours[first:last], oracle.theirs[first:last], first)
        assert not tolerated or oracle.allows(first, last, line_end=0)
        few = sum(value < end for value, _ in oracle.values) <= VALUES_MAX
        if last <= min(oracle.sure_to, end) and few:
            assert tolerated or not oracle.allows(first, last, line_end=end)


@settings(max_examples=200)
@given(streams, sizes)
def test_however_it_is_cut_the_end_is_the_same(pieces: list[Piece], sizes: list[int]) -> None:
    stream = Oracle.of(pieces).ours
    whole, cut = HttpDates(), HttpDates()
    whole.advance(stream)
    for start, end in cuts_of(len(stream), sizes):
        cut.advance(stream[start:end])
    assert (whole.position, whole.lost) == (cut.position, cut.lost)
    probe = b"HTTP/1.1 200 OK\r\nDate: %s\r\n"
    ours, theirs = probe % DATES[0], probe % DATES[1]
    assert whole.tolerates(ours, theirs) == cut.tolerates(ours, theirs)


junk = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [b"HTTP/1.1 200 OK\r\n", b"\r\n", b"Content-Length: 9999999\r\n", b"x" * 5000, b"\n", b"5\r\n"]
        ),
        st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"Date: " + DATES[0] + b"\r\n", b"FFFFFFFFFFFFFFF\r\n"]),
    ),
    max_size=12,
)


heads = st.lists(
    st.sampled_from(
        [
            *(
                b"Date:%s%s%s" % (before, DATES[0], behind)
                for before in (b"", b" ", b"\t ")
                for behind in (b"", b" \t")
            ),
            *(b"DATE: soon", b"X-Date: " + DATES[1], b"date :" + DATES[1], b"Vary: date:" + DATES[1], b"", b"no field"),
            *(b"Content-Length: 5", b"content-LENGTH:0\t", b"Content-Length: five", b"Content-Length:"),
            *(
                b"Transfer-Encoding: chunked",
                b"Transfer-Encoding: gzip",
                b"X: \xff\t y",
                b" folded",
                b"N\0: x",
                b"A: b\rc",
            ),
            *(b"X: " + b"y" * 4090, b"HTTP/1.1 204", b"HTTP/1.0 200 OK", b"HTTP/1.1 101 Now what", b"abcde"),
        ]
    ),
    max_size=10,
)


@settings(max_examples=500)
@given(heads, st.sampled_from([b"\r\n", b"\n"]), sizes)
def test_a_head_taken_whole_is_taken_as_line_by_line(lines: list[bytes], end: bytes, sizes: list[int]) -> None:
    stream = b"".join(line + b"\r\n" for line in (b"HTTP/1.1 200 OK", *lines)) + end
    whole, cut = HttpDates(), HttpDates()
    whole.advance(stream)
    for first, last in cuts_of(len(stream), [1, *sizes]):
        cut.advance(stream[first:last])
    assert whole._values == cut._values
    for name in type(whole._parser).__slots__:
        assert getattr(whole._parser, name) == getattr(cut._parser, name), name


@settings(max_examples=300)
@given(junk, st.integers(-5, 500))
def test_no_stream_makes_it_raise_or_grow(stream: list[bytes], at: int) -> None:
    dates = HttpDates()
    for piece in stream:
        assert dates.tolerates(piece, piece), "equal bytes are no difference"
        dates.tolerates(piece, piece[::-1], at)
        dates.advance(piece)
        assert len(dates._parser._line) <= LINE_BYTES_MAX
        assert len(dates._values or ()) <= VALUES_MAX
    assert dates.position == sum(map(len, stream))
