"""The guest's TCP segments that ICMP and ICMPv6 errors of the network quote ("fragmentation needed", "unreachable").

A stack believes such an error only when the sequence number quoted is one that it has sent and that nobody has
acknowledged (RFC 5927, 4.1), so each copy of the guest has to see its own.

Guarantees
* No byte string makes a function here raise.
* A rewritten error has an ICMP checksum that is right exactly when it was right before. The quoted segment's own
  checksum is kept in step where it is quoted, although nobody looks at it.
"""

from __future__ import annotations

from typing import NamedTuple

from pycolo.core.layers import ETHERNET_BYTES, ICMP, ICMPV6, TCP, Layers, locate_quoted
from pycolo.core.messages import ICMP_ERRORS
from pycolo.core.packet import add_to_fields, adjusted_checksum, timestamps_at

_ICMP_HEADER_BYTES = 8
_QUOTED_BYTES_MIN = 8  # of the segment: ports and sequence number (RFC 792)


class Quote(NamedTuple):
    """A quoted segment; the key is as in `packet.Segment`, its source being who sent the segment."""

    key: bytes
    seq: int
    flags: int | None  # if so much is quoted,
    value: int | None  # and TSval
    icmp: int  # where the error begins,
    at: int  # the quoted TCP header,
    value_at: int  # its timestamp,
    end: int  # and where the packet ends


def quoted_segment(frame: bytes, layers: Layers) -> Quote | None:
    """The segment that a frame with these layers quotes; None when it is no such error."""
    icmp, end = layers.upper, layers.end
    begins = icmp + _ICMP_HEADER_BYTES
    if layers.fragment is not None or layers.protocol != (ICMP if layers.version == 4 else ICMPV6) or begins >= end:
        return None
    if frame[icmp] not in ICMP_ERRORS[layers.version]:
        return None
    quoted = frame[begins:end]
    inner = locate_quoted(quoted)
    if inner is None or inner.protocol != TCP or (inner.fragment is not None and inner.fragment.offset):
        return None
    at = begins + inner.upper - ETHERNET_BYTES
    if at + _QUOTED_BYTES_MIN > end:
        return None
    key = inner.addresses(bytes(ETHERNET_BYTES) + quoted) + frame[at : at + 4] + layers.tags
    value_at = _timestamp_at(frame, at, end)
    value = int.from_bytes(frame[value_at : value_at + 4]) if value_at else None
    flags = frame[at + 13] if at + 14 <= end else None
    return Quote(key, int.from_bytes(frame[at + 4 : at + 8]), flags, value, icmp, at, value_at, end)


def _timestamp_at(frame: bytes, at: int, end: int) -> int:
    """Where TSval stands in a segment whose end may be missing; 0 when it is not there."""
    if at + 20 > end:
        return 0
    start = at + (frame[at + 12] >> 4) * 4
    return timestamps_at(frame, at, min(start, end)) or 0 if start > at + 20 else 0


def rewrite_quote(frame: bytes, quote: Quote, *, seq_add: int, value_add: int) -> bytes:
    """The error with these added (mod 2^32) to the sequence number and TSval that it quotes."""
    changed = bytearray(frame)
    fields = [(quote.at + 4, seq_add), (quote.value_at, value_add if quote.value_at else 0)]
    total = add_to_fields(changed, quote.icmp, [(place, add) for place, add in fields if place])
    if quote.at + 18 <= quote.end:  # the quoted header stands at an even place: the sum is the same from there
        place = slice(quote.at + 16, quote.at + 18)
        changed[place] = adjusted_checksum(frame[place], total)
        total += int.from_bytes(changed[place]) - int.from_bytes(frame[place])
    place = slice(quote.icmp + 2, quote.icmp + 4)
    changed[place] = adjusted_checksum(frame[place], total)
    return bytes(changed)
