"""Differences that a client can't be harmed by; each is a rule with its proof. There is one: the HTTP `Date:` header.

Guarantee: `tolerates` says yes only when every differing byte lies inside such a value, and the value leaves whole.
"""

from __future__ import annotations

import re

HTTP_PORT = 80
CONTEXT_BYTES = 1024
"""How much of the stream before a segment is looked at to find the status line it belongs to."""

_IMF_FIXDATE = (
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} "
    rb"\d\d:\d\d:\d\d GMT"
)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] \d{3}[ \r]")
_DATE_LINE = re.compile(rb"\r\n[Dd]ate: (" + _IMF_FIXDATE + rb")(?=\r\n)")


def tolerates(context: bytes, ours: bytes, theirs: bytes) -> bool:
    """Whether the PVM's bytes `ours` may leave although the SVM has `theirs` at the same place of the same stream.

    `context` is what came before in the stream (compared already). Both are one whole PVM segment, equally long.

    Proof. Let every differing byte lie inside the 29 bytes of an IMF-fixdate, behind `Date: `, in both streams at the
    same place, below an HTTP/1 status line with no empty line between: in the header of a response.
    1. Length and place of everything else are equal, so the client parses both streams alike.
    2. The value is whole within the segment, and a segment arrives whole or not at all (a sender keeps to the window):
       the client reads the PVM's value or, when the segment was lost and the survivor sends it again, the survivor's.
       Never a mixture of the two: when the PVM itself repeats the value cut in pieces, that is a divergence.
    3. Either is a date that this very server put there for this very response (RFC 9110, 6.6.1: "the date and time at
       which the message was originated", an approximation). The client can't know the other one, and the
       server keeps no state by which it could be contradicted: HTTP has no message that refers to an earlier Date.
    A body that imitates a response header is taken for one; by 1 and 2 the client still gets one of two whole dates.
    """
    if len(ours) != len(theirs):
        return False
    blanked = bytearray(theirs)
    stream = context + ours
    for match in _DATE_LINE.finditer(stream):
        start, end = match.start(1) - len(context), match.end(1) - len(context)
        if start < 0 or not _in_response_header(stream, match.start()):
            continue
        if re.fullmatch(_IMF_FIXDATE, theirs[start:end]):
            blanked[start:end] = ours[start:end]
    return blanked == ours


def _in_response_header(stream: bytes, at: int) -> bool:
    """A status line stands before `at`, and no empty line between."""
    status = stream.rfind(b"HTTP/1.", 0, at)
    if status < 0 or not _STATUS_LINE.match(stream, status):
        return False
    return stream.find(b"\n\r\n", status, at + 2) < 0 and stream.find(b"\n\n", status, at) < 0
