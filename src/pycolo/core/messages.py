"""Frames without a stream: which flow they belong to, and what of them is compared.

    link control (ARP, ND, MLD, IGMP, LLDP, STP ...)    no flow: it carries no application state (design, section 6)
    UDP                                                 a flow per addresses and ports
    ICMP, ICMPv6: echo                                  per addresses, type and echo id
    ICMP, ICMPv6: errors                                per addresses, type and the packet that they quote
    any other IP protocol                               per addresses and protocol
    everything else                                     per Ethernet type and destination; the whole frame counts

Guarantees
* No byte string makes a function here raise.
* What is left out of the comparison no client can tell apart, or follows from the rest: MAC addresses of an IP packet,
  IP id, TTL, flow label, checksums, padding; in a quoted TCP segment what the agent on the secondary has translated.
"""

from __future__ import annotations

import struct

from pycolo.core.layers import ETHERNET_BYTES, ICMP, ICMPV6, IGMP, TCP, UDP, Layers, ethertype, locate_quoted
from pycolo.core.packet import TCP_FLOW, Segment, source_port

_ARP, _RARP, _LLDP, _MAC_CONTROL, _SLOW, _EAPOL = 0x0806, 0x8035, 0x88CC, 0x8808, 0x8809, 0x888E
_CONTROL_TYPES = (_ARP, _RARP, _LLDP, _MAC_CONTROL, _SLOW)
_BRIDGE_GROUP = b"\x01\x80\xc2\x00\x00"  # IEEE 802.1D: 00 to 0f are never forwarded
_PVST = b"\x01\x00\x0c\xcc\xcc\xcd"
_ND_MLD = frozenset((130, 131, 132, 133, 134, 135, 136, 137, 143))  # RFC 4861, 2710, 3810
_ECHO = {4: (0, 8), 6: (128, 129)}
ICMP_ERRORS = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}


def is_link_control(frame: bytes, layers: Layers | None) -> bool:
    """Whether the frame, `layers` as located, serves the link or the neighbourhood alone."""
    if layers is None:
        kind = ethertype(frame)[0]
        if frame[:5] == _BRIDGE_GROUP and len(frame) > 5 and frame[5] < 0x10:
            return kind != _EAPOL  # that one has a state that both copies need
        return kind in _CONTROL_TYPES or (frame[:6] == _PVST and 0 <= kind <= 1500)
    if layers.fragment is not None:
        return False
    if layers.protocol == IGMP:
        return layers.version == 4
    return (
        layers.version == 6
        and layers.protocol == ICMPV6
        and layers.upper < layers.end
        and frame[layers.upper] in _ND_MLD
    )


Message = tuple[bytes, bytes, int]
"""Flow key, comparable bytes, and where in these the payload begins."""


def message(frame: bytes, layers: Layers | None) -> Message | None:
    """A frame that is not TCP and no fragment, `layers` as located; None: link control, which is never compared."""
    if is_link_control(frame, layers):
        return None
    if layers is None or layers.fragment is not None:
        return whole_frame(frame)
    return _of_ip(frame, layers)


def whole_frame(frame: bytes) -> Message:
    """A frame about which nothing is assumed."""
    return b"W" + frame[12:14] + frame[:6], frame, 0


def addresses_in(key: bytes) -> slice:
    """Where source and destination address stand in the key of a flow of IP packets, behind its VLAN ids."""
    start = 4 + 2 * key[3]
    return slice(start, start + (8 if key[1] == 4 else 32))


def policy_of(key: bytes) -> tuple[int, int | None]:
    """(IP protocol, the guest's port or None) by which the policy is asked; -1: no IP."""
    if key[:1] == b"W":
        return -1, None
    if key[:1] == b"R":
        return TCP, source_port(key[2:])
    at = addresses_in(key).stop
    return key[2], int.from_bytes(key[at : at + 2]) if key[:1] == b"U" else None


def stray_reset(segment: Segment) -> Message:
    """A RST that answers a segment of no connection: both copies say the same, in the client's own numbers."""
    key, seq, ack, flags, *_ = segment
    return b"R" + TCP_FLOW + key, struct.pack(">IIH", seq, ack, flags), 10


def _of_ip(frame: bytes, layers: Layers) -> Message:
    head = bytes([layers.version, layers.protocol, len(layers.tags) // 2])
    key = head + layers.tags + layers.addresses(frame)
    upper, end = layers.upper, layers.end
    visible = _visible_head(frame, layers)
    if layers.protocol == UDP and end - upper >= 8:
        head = visible + frame[upper + 4 : upper + 6]
        return b"U" + key + frame[upper : upper + 4], head + frame[upper + 8 : end], len(head)
    if layers.protocol == (ICMP if layers.version == 4 else ICMPV6) and end - upper >= 8:
        kind = frame[upper]
        head = visible + frame[upper : upper + 2] + frame[upper + 4 : upper + 8]
        if kind in _ECHO[layers.version]:
            identity = frame[upper : upper + 1] + frame[upper + 4 : upper + 6]
            return b"E" + key + identity, head + frame[upper + 8 : end], len(head)
        if kind in ICMP_ERRORS[layers.version]:
            identity, compared = _quote(frame[upper + 8 : end])
            return b"Q" + key + frame[upper : upper + 2] + identity, head + compared, len(head)
        return b"I" + key + frame[upper : upper + 1], head + frame[upper + 8 : end], len(head)
    return b"P" + key, visible + frame[upper:end], len(visible)


def _visible_head(frame: bytes, layers: Layers) -> bytes:
    """What a client sees of the headers besides addresses: traffic class, and what options and extensions say."""
    ip = layers.ip
    if layers.version == 4:
        return frame[ip + 1 : ip + 2] + (frame[ip + 20 : layers.upper] if layers.odd else b"")
    traffic_class = (int.from_bytes(frame[ip : ip + 2]) >> 4 & 0xFF).to_bytes()
    return traffic_class + (frame[ip + 40 : layers.upper] if layers.odd else b"")


def _quote(quoted: bytes) -> tuple[bytes, bytes]:
    """(What identifies the flow of the packet that an ICMP error quotes, what of the quote is compared).

    The packet is a client's. Of TCP the acknowledgement and the options may be in the SVM's numbers; a sequence number
    is the client's own.
    """
    layers = locate_quoted(quoted)
    if layers is None:
        return b"", quoted
    upper = layers.upper - ETHERNET_BYTES
    flow = layers.addresses(bytes(ETHERNET_BYTES) + quoted) + bytes([layers.protocol]) + quoted[upper : upper + 4]
    if layers.protocol != TCP:
        return flow, quoted
    return flow, _without_translated(quoted, upper)


def _without_translated(quoted: bytes, upper: int) -> bytes:
    """A packet with TCP at `upper` without acknowledgement, checksum and options, as far as it goes."""
    if len(quoted) <= upper + 8:
        return quoted
    start = upper + (quoted[upper + 12] >> 4) * 4 if len(quoted) > upper + 12 else len(quoted)
    return (
        quoted[: upper + 8]
        + quoted[upper + 12 : upper + 16]
        + quoted[upper + 18 : upper + 20]
        + quoted[max(start, upper + 20) :]
    )
