"""Why outputs differ, in words and bytes that lead a person to what in the guest is not deterministic."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pycolo.core.layers import PROTOCOL_NAMES
from pycolo.core.messages import addresses_in
from pycolo.core.packet import TCP_FLOW, address_bytes

SHOWN_BYTES_MAX = 32


@dataclass(frozen=True, slots=True)
class Difference:
    """One place at which the copies differ. `pvm` and `svm` begin at the first differing byte, SHOWN_BYTES_MAX long."""

    what: str  # "payload", "header", "syn", "fin", "reset", "options", "contradiction", "missing", "surplus"
    offset: int | None = None  # bytes from the stream's or the datagram's beginning; None: it is not about bytes
    pvm: bytes = b""
    svm: bytes = b""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A difference, and the flow it is in. Frames are numbered from 1 in the order in which each side put them out."""

    protocol: str  # "tcp", "udp", "icmp", "icmpv6", "ip 47" and so on, "other": no IP
    source: str
    target: str
    vlans: tuple[int, ...]
    what: str
    offset: int | None
    pvm: bytes
    svm: bytes
    pvm_frame: int | None = None
    svm_frame: int | None = None

    def sentence(self) -> str:
        """In one line."""
        tags = f" (VLAN {'.'.join(map(str, self.vlans))})" if self.vlans else ""
        where = "" if self.offset is None else f" at byte {self.offset}"
        sides = f": primary {_shown(self.pvm)}, secondary {_shown(self.svm)}" if self.pvm or self.svm else ""
        return f"{self.protocol} {self.source} to {self.target}{tags}: {self.what}{where}{sides}"


def divergence(key: bytes, difference: Difference, pvm_no: int | None, svm_no: int | None = None) -> Divergence:
    """The difference that was found in the flow `key` (of `packet` or `messages`); numbers count from 0."""
    protocol, source, target, vlans = flow_of(key)
    return Divergence(
        protocol,
        source,
        target,
        vlans,
        difference.what,
        difference.offset,
        difference.pvm[:SHOWN_BYTES_MAX],
        difference.svm[:SHOWN_BYTES_MAX],
        None if pvm_no is None else pvm_no + 1,
        None if svm_no is None else svm_no + 1,
    )


def flow_of(key: bytes) -> tuple[str, str, str, tuple[int, ...]]:
    """(protocol, source, target, VLAN ids) of a flow, as a person writes them."""
    if key[:1] == b"W":
        return "other", f"type {key[1:3].hex()}", _mac(key[3:9]), ()
    if key[:1] == b"R":
        key = key[1:]
    if key[:1] == TCP_FLOW:
        at = 1 + 2 * address_bytes(key[1:])
        return "tcp", *_ends(key[1:at], key[at : at + 4]), _vlans(key[at + 4 :])
    protocol, where = key[2], addresses_in(key)
    ports = key[where.stop :] if key[:1] == b"U" else b""
    name = PROTOCOL_NAMES.get(protocol, f"ip {protocol}")
    return name, *_ends(key[where], ports), _vlans(key[4 : where.start])


def hosts_of(key: bytes) -> bytes:
    """VLAN ids, source and destination address of a flow; of one without IP where it goes to."""
    if key[:1] == b"W":
        return b"W" + key[3:]
    if key[:1] == b"R":
        key = key[1:]
    if key[:1] == TCP_FLOW:
        at = 1 + 2 * address_bytes(key[1:])
        return key[at + 4 :] + key[1:at]
    return key[4 : addresses_in(key).stop]


def _ends(addresses: bytes, ports: bytes) -> tuple[str, str]:
    half = len(addresses) // 2
    ends = [str(ipaddress.ip_address(each)) for each in (addresses[:half], addresses[half:])]
    if not ports:
        return ends[0], ends[1]
    numbers = int.from_bytes(ports[:2]), int.from_bytes(ports[2:4])
    source, target = (
        f"[{end}]:{port}" if half == 16 else f"{end}:{port}" for end, port in zip(ends, numbers, strict=True)
    )
    return source, target


def _mac(address: bytes) -> str:
    return address.hex(":")


def _vlans(tags: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(tags[at : at + 2]) for at in range(0, len(tags), 2))


def _shown(said: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in said)
    return f"{said.hex(' ')} |{text}|" if said else "nothing"


def first_difference(ours: bytes, theirs: bytes) -> int:
    """Where two byte strings begin to differ."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return place
    return min(len(ours), len(theirs))
