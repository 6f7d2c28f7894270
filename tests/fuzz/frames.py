"""Targets for what a guest and its clients put into frames: the parsers of core/, one by one."""

from __future__ import annotations

import re
from collections import Counter

from pycolo.capture.protocol_view import fields, side_by_side
from pycolo.core.http_dates import HttpDates
from pycolo.core.layers import TCP, ethertype, locate, locate_quoted
from pycolo.core.messages import is_link_control, message, policy_of, stray_reset
from pycolo.core.packed import FRAME_BYTES_MAX, measure, measure_in_python, pack, unpack
from pycolo.core.packet import (
    checksum_is_right,
    is_signed_with_options,
    odd_terms,
    opposite,
    parse_first_piece,
    parse_tcp,
    rewrite,
    syn_terms,
    timestamps,
    window_field,
    window_scale,
)
from pycolo.core.pieces import FragmentHold, in_pieces
from pycolo.core.quotes import quoted_segment, rewrite_quote

from .reader import Reader

_DATE = re.compile(
    rb"(?=((?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-3]\d (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} "
    rb"[0-2]\d:[0-5]\d:[0-6]\d GMT))"
)
_DATE_BYTES = 29
_ADDS = {"seq_add": 0x89ABCDEF, "ack_add": 0x13579BDF, "value_add": 0xFEDCBA98, "echo_add": 0x2468ACE1}


def layers(frame: bytes) -> None:
    """Layers lie within the frame, and padding behind them does not count."""
    assert ethertype(frame)[1] <= max(len(frame), 0)
    found = locate(frame)
    if found is not None:
        assert 14 <= found.ip < found.upper <= found.end <= len(frame)
        assert len(found.addresses(frame)) == (8 if found.version == 4 else 32)
        assert locate(frame[: found.end]) == locate(frame + bytes(9)) == found
    locate_quoted(frame)


def segment(frame: bytes) -> None:
    """It lies within the frame; rewritten and rewritten back it is what it was, and a right checksum stays so."""
    found = parse_tcp(frame)
    if found is None:
        return
    key, seq, ack, flags, at, start, end = found
    assert at + 20 <= start <= end <= len(frame)
    assert opposite(opposite(key)) == key
    for read in (timestamps, window_scale, is_signed_with_options):
        read(frame, at, start)
    window_field(frame, at)
    syn_terms(frame, flags, at, start)
    odd_terms(frame, flags, at, start)
    stray_reset(found)
    other = rewrite(frame, at, start, end, **_ADDS)
    said = parse_tcp(other)
    assert said is not None
    assert (said[0], said[3:]) == (key, found[3:])
    assert said[1:3] == ((seq + _ADDS["seq_add"]) % 2**32, (ack + _ADDS["ack_add"]) % 2**32)
    if checksum_is_right(frame, at, end):
        assert checksum_is_right(other, at, end)
    back = rewrite(other, at, start, end, **{name: -add for name, add in _ADDS.items()})
    assert back[: at + 16] + back[at + 18 :] == frame[: at + 16] + frame[at + 18 :]


def messages(frame: bytes) -> None:
    """What is no segment has a flow and comparable bytes, or is link control."""
    found = locate(frame)
    if found is not None and found.protocol == TCP:
        if found.fragment is not None:
            parse_first_piece(frame, found)
        return
    said = message(frame, found)
    assert (said is None) == is_link_control(frame, found)
    if said is not None:
        key, compared, begins = said
        assert 0 <= begins <= len(compared)
        protocol, port = policy_of(key)
        assert -1 <= protocol <= 255
        assert port is None or 0 <= port <= 65535


def quotes(frame: bytes) -> None:
    """A quoted segment that is rewritten is quoted with the other numbers, and nothing else has changed."""
    found = locate(frame)
    quote = None if found is None else quoted_segment(frame, found)
    if found is None or quote is None:
        return
    other = rewrite_quote(frame, quote, seq_add=7, value_add=9)
    assert len(other) == len(frame)
    again = quoted_segment(other, found)
    assert again is not None
    assert (again.key, again.seq) == (quote.key, (quote.seq + 7) % 2**32)
    assert quote.value is None or again.value == (quote.value + 9) % 2**32


def pieces(data: bytes) -> None:
    """Every fragment comes out once, in whatever order and however they overlap."""
    hold, given, out = FragmentHold(), Counter[bytes](), list[bytes]()
    for no, frame in enumerate(Reader(data).pieces()):
        found = locate(frame)
        if found is not None and found.fragment is not None:
            given[frame] += 1
            out += in_pieces(hold.add(no, 0.0, frame, found))
            assert given.total() == len(out) + len(hold.hold)
    out += hold.give_up()
    assert Counter(out) == given
    assert not hold.hold


def packed(data: bytes) -> None:
    """Measured alike in C and Python, and what is whole in a batch is what was packed."""
    for frames_max in (0, 1, 1 << 20):
        for at in (0, 3):
            assert measure(data, at, frames_max) == measure_in_python(data, at, frames_max)
    end, count = measure(data, 0, 1 << 20)
    frames = unpack(data)
    assert len(frames) == count
    assert pack(frames) == data[:end]
    assert all(len(frame) <= FRAME_BYTES_MAX for frame in frames)


def http_dates(data: bytes) -> None:
    """A stream is understood alike in one piece and in many, and only whole dates may differ."""
    reader = Reader(data)
    cut, flips = reader.number() + 1, [(reader.number(2), reader.number()) for _ in range(reader.number() % 32)]
    ours = reader.rest()
    theirs = bytearray(ours)
    for place, value in flips:
        if place < len(theirs):
            theirs[place] ^= value
    whole, cuts = HttpDates(), HttpDates()
    allowed = {start + at for start in (found.start() for found in _DATE.finditer(ours)) for at in range(_DATE_BYTES)}
    if whole.tolerates(ours, bytes(theirs)):
        assert all(ours[at] == theirs[at] or at in allowed for at in range(len(ours)))
    whole.advance(ours)
    for at in range(0, len(ours), cut):
        assert cuts.tolerates(ours[at : at + cut], ours[at : at + cut])
        cuts.advance(ours[at : at + cut], at)
    assert (whole.position, whole.lost, whole._values) == (cuts.position, cuts.lost, cuts._values)
    assert whole.tolerates(ours, ours, 0)


def protocol_view(data: bytes) -> None:
    """Any two frames have rows, which a terminal can show."""
    reader = Reader(data)
    ours, theirs = reader.piece(), reader.rest()
    for row in side_by_side(ours, theirs):
        assert f"{row.layer}{row.name}{row.primary}{row.secondary}".isprintable()
    fields(ours)
