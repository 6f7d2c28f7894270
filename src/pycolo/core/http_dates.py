"""The one difference that is tolerated today: the second that an HTTP/1.x response names in its `Date:` header.

`HttpDates` follows what the PVM says on one connection, from the first byte on, and knows by position in the stream
which bytes are the value of such a header. `tolerates` is asked before a segment leaves, `advance` told what leaves.

Guarantee: `tolerates` says yes only when both sides are equally long and every differing byte lies inside a `Date`
value (an IMF-fixdate of 29 bytes, RFC 9110, 5.6.7, on both sides) that is whole within the segment. It is a value only
where the header of a response stands, never in a body, provided that the server's responses are as RFC 9112 has them.

Why a client can't be harmed
1. Length and place of everything else are equal, so the client parses both streams alike, and so do we.
2. The value is whole within the segment, and a segment arrives whole or not at all (a sender keeps to the window): the
   client reads the PVM's value or, when the segment was lost and the survivor sends it again, the survivor's. Never a
   mixture of the two: when the PVM itself repeats a tolerated value cut in pieces, that is a divergence.
3. Either is a date that this very server put there for this very response (RFC 9110, 6.6.1: "the date and time at which
   the message was originated", an approximation). The client can't know the other one, and the server keeps no
   state by which it could be contradicted: HTTP has no message that refers to an earlier Date.

Why a body is never taken for a header: where it ends is known from the response alone, but for one thing.
* 1xx, 204 and 304 have no body. 101 is the end of HTTP on this connection, and so is a response without a length, whose
  body lasts until the connection ends (a CONNECT that succeeded looks like this, too).
* `Transfer-Encoding: chunked` says by itself where it ends; `Content-Length` says it beforehand.
* The response to HEAD has these headers and no body, and the request is not seen here. What comes next tells: without a
  body it is a status line, so bytes other than `HTTP/1.` (or a chunk's size, which can't begin with H) are a body.
  If they are `HTTP/1.`, it may be either.
* Whatever is ambiguous, malformed, obsolete (folded lines), or contradicts itself (two lengths) is not guessed at:
  from there on nothing is tolerated on this connection. The price is a checkpoint where a date differs.

Bounds: a few numbers, the line that has begun (`LINE_BYTES_MAX`), and where the last `VALUES_MAX` values were.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto

LINE_BYTES_MAX = 8192
VALUES_MAX = 16
_LENGTH_DIGITS_MAX = 15
_VALUE_BYTES = 29

_DAY = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_FIXDATE = _DAY + rb", [0-3]\d " + _MONTH + rb" \d{4} [0-2]\d:[0-5]\d:[0-6]\d GMT"
_DATE = re.compile(_FIXDATE)
_STATUS = rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [^\0\r\n]*+)?+"
_NAME, _VALUE = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++", rb"[^\0\r\n]*+"
_STATUS_LINE = re.compile(_STATUS)
_HEADER_LINE = re.compile(rb"(" + _NAME + rb"):(" + _VALUE + rb")")
_HEAD = re.compile(_STATUS + rb"\r\n((?:" + _NAME + rb":" + _VALUE + rb"\r\n)*)\r\n")
_FIELD = re.compile(rb"^(content-length|transfer-encoding|date):(" + _VALUE + rb")", re.IGNORECASE | re.MULTILINE)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,%d})(?:[ \t]*;[^\0\r\n]*)?" % _LENGTH_DIGITS_MAX)
_NEXT_RESPONSE = b"HTTP/1."


class _At(Enum):
    """What stands next in the stream."""

    STATUS = auto()
    HEADER = auto()
    BODY_OR_RESPONSE = auto()  # after a header with Content-Length: was it the response to HEAD?
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    UNKNOWN = auto()  # for ever


class HttpDates:
    """The PVM's stream of one connection; see the module docstring."""

    __slots__ = ("_parser", "_values")

    def __init__(self) -> None:
        self._parser = _Parser()
        self._values: deque[int] | None = None  # where the last values began; made when there is one

    @property
    def position(self) -> int:
        """How many bytes of the stream it has been told."""
        return self._parser.position

    @property
    def lost(self) -> bool:
        """Nothing from `position` on will ever be tolerated."""
        return self._parser.at is _At.UNKNOWN

    def advance(self, payload: bytes, at: int | None = None) -> None:
        """What leaves, as the PVM has it, at place `at` of the stream (None: the next bytes).

        Of a retransmission only what is new counts. Behind a gap the place in the stream is not known any more.
        """
        known = 0 if at is None else self.position - at
        if known < 0:
            self.lose()
        values = self._parser.feed(payload[known:] if known > 0 else payload)
        if values:
            self._values = self._values or deque(maxlen=VALUES_MAX)
            self._values += values

    def lose(self) -> None:
        """Part of the stream was not seen, so the place in it is not known any more."""
        self._parser.lose()

    def tolerates(self, ours: bytes, theirs: bytes, at: int | None = None) -> bool:
        """Whether the PVM's segment `ours` may leave although the SVM has `theirs` at the same place.

        The place is `at` in the stream, or where it has been followed to; asking changes nothing. A segment from
        before, or one that begins before, is a retransmission: what leaves again has left by the same rule before, and
        the values are where they were found then.
        """
        place = self.position if at is None else at
        if len(ours) != len(theirs) or not 0 <= place <= self.position:
            return False
        blanked = bytearray(theirs)
        for value in [*(self._values or ()), *self._ahead(ours, place)]:
            start, end = value - place, value - place + _VALUE_BYTES
            if start >= 0 and _DATE.fullmatch(ours, start, end) and _DATE.fullmatch(theirs, start, end):
                blanked[start:end] = ours[start:end]
        return blanked == ours

    def _ahead(self, ours: bytes, place: int) -> list[int]:
        """Where values begin in the part of the segment that lies beyond what has been followed."""
        known = self.position - place
        return self._parser.copy().feed(ours[known:]) if known < len(ours) else []


class _Parser:
    """The state machine over responses; `feed` returns where in the stream the Date values began that it has found."""

    __slots__ = ("_chunked", "_length", "_line", "_minor", "_remaining", "_status", "at", "position")

    def __init__(self) -> None:
        self.at = _At.STATUS
        self.position = 0
        self._line = b""  # the beginning of the line (or of what may be a body) that is not whole yet
        self._remaining = 0  # bytes of the body or the chunk
        self._minor = self._status = 0
        self._length: int | None = None
        self._chunked = False

    def copy(self) -> _Parser:
        """Another one at the same place."""
        twin = _Parser()
        for name in _Parser.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    def lose(self) -> None:
        """It is not known any more what stands next."""
        self.at, self._line = _At.UNKNOWN, b""

    def feed(self, data: bytes) -> list[int]:
        """The next bytes of the stream."""
        values: list[int] = []
        at, end = 0, len(data)
        while at < end:
            if self.at is _At.UNKNOWN:
                at = end
            elif self.at is _At.BODY or self.at is _At.CHUNK:
                at += self._skip(end - at)
            elif self.at is _At.BODY_OR_RESPONSE:
                at += self._look(data[at : at + len(_NEXT_RESPONSE)])
            elif head := self._whole_head(data, at):
                at = self._take_head(head, values)
            else:
                at = self._take_line(data, at, values)
        self.position += end
        return values

    # ---------------------------------------------------------------- bodies

    def _skip(self, available: int) -> int:
        taken = min(self._remaining, available)
        self._remaining -= taken
        if not self._remaining:
            self.at = _At.STATUS if self.at is _At.BODY else _At.CHUNK_END
        return taken

    def _look(self, data: bytes) -> int:
        """The first bytes behind a header with a length; returns how many were taken."""
        wanted = min(len(_NEXT_RESPONSE), self._remaining) - len(self._line)
        taken = data[:wanted]
        self._line += taken
        if not _NEXT_RESPONSE.startswith(self._line):
            self._remaining -= len(self._line)
            self._line = b""
            self.at = _At.BODY if self._remaining else _At.STATUS
        elif len(taken) == wanted:
            self.lose()
        return len(taken)

    # ---------------------------------------------------------------- heads and lines

    def _whole_head(self, data: bytes, at: int) -> re.Match[bytes] | None:
        """A response's head that begins here; None when not all of it is there, or a line may be none."""
        if self.at is not _At.STATUS or self._line:
            return None
        head = _HEAD.match(data, at)
        return head if head and head.end() - at <= LINE_BYTES_MAX else None

    def _take_head(self, head: re.Match[bytes], values: list[int]) -> int:
        """Take all its lines at once, which is ten times as fast as one by one; returns where it ends."""
        self._begin(head[1], head[2])
        fields = _FIELD.finditer(head.string, head.start(3), head.end(3))
        if all(self._on_field(one[1].lower(), one[2], self.position + one.start(2), values) for one in fields):
            self._on_header_end()
        else:
            self.lose()
        return head.end()

    def _take_line(self, data: bytes, at: int, values: list[int]) -> int:
        """Take a line, or what is there of it; returns where the next one begins."""
        newline = data.find(b"\n", at)
        end = newline + 1 or len(data)
        place = self.position + at - len(self._line)
        line = self._line + data[at:end]
        if len(line) > LINE_BYTES_MAX or (newline >= 0 and not line.endswith(b"\r\n")):
            self.lose()
        elif newline < 0:
            self._line = line
        else:
            self._line = b""
            self._on_line(line[:-2], place, values)
        return end

    def _on_line(self, line: bytes, place: int, values: list[int]) -> None:
        """A whole line without its end, which begins at `place` of the stream."""
        if self.at is _At.STATUS:
            self._on_status(line)
        elif self.at is _At.HEADER:
            self._on_header(line, place, values)
        elif self.at is _At.CHUNK_SIZE:
            self._on_chunk_size(line)
        elif self.at is _At.CHUNK_END and not line:
            self.at = _At.CHUNK_SIZE
        elif self.at is _At.TRAILER and not line:
            self.at = _At.STATUS
        elif self.at is not _At.TRAILER or _HEADER_LINE.fullmatch(line) is None:
            self.lose()

    def _on_status(self, line: bytes) -> None:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            self.lose()
            return
        self._begin(match[1], match[2])

    def _begin(self, minor: bytes, status: bytes) -> None:
        self.at = _At.HEADER
        self._minor, self._status = int(minor), int(status)
        self._length, self._chunked = None, False

    def _on_header(self, line: bytes, place: int, values: list[int]) -> None:
        match = _HEADER_LINE.fullmatch(line)
        if not line:
            self._on_header_end()
        elif match is None or not self._on_field(match[1].lower(), match[2], place + match.start(2), values):
            self.lose()

    def _on_field(self, name: bytes, text: bytes, place: int, values: list[int]) -> bool:
        """Take a field, whose `text` begins at `place`; False when it tells a length that is none, or a second one."""
        value = text.strip(b" \t")
        if name == b"content-length":
            if self._length is not None or not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
                return False
            self._length = int(value)
        elif name == b"transfer-encoding":
            if self._chunked or value.lower() != b"chunked" or self._minor == 0:
                return False
            self._chunked = True
        elif name == b"date" and _DATE.fullmatch(value):
            values.append(place + text.index(value))
        return True

    def _on_header_end(self) -> None:
        """RFC 9112, 6.3: where does the body end?"""
        if self._status == 101 or (self._chunked and self._length is not None):
            self.lose()
        elif self._status < 200 or self._status in (204, 304):
            self.at = _At.STATUS
        elif self._chunked:
            self.at = _At.CHUNK_SIZE
        elif self._length is None:
            self.lose()
        elif self._length == 0:
            self.at = _At.STATUS
        else:
            self.at, self._remaining = _At.BODY_OR_RESPONSE, self._length

    def _on_chunk_size(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            self.lose()
            return
        self._remaining = int(match[1], 16)
        self.at = _At.CHUNK if self._remaining else _At.TRAILER
