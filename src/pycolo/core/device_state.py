"""QEMU's device state as bytes: the section that `xen-save-devices-state` leaves out, and the guest's clock
in it.

A stream is `QEVM`, a version, then sections without a length field, so it can't be walked without knowing
every device. What is searched for is therefore recognised by its whole frame, header and footer, and must be
there exactly once. Guaranteed: a stream that doesn't look as it must raises ValueError; nothing else in a
stream is ever changed. Sources: QEMU migration/savevm.c (framing), softmmu/cpu-timers.c, later
system/cpu-timers.c (`vmstate_timers`).
"""

import re
import struct
from dataclasses import dataclass

_HEADER = b"QEVM" + struct.pack(">I", 3)
_CONFIGURATION = 0x07
_SECTION_FULL = 0x04
_SECTION_FOOTER = 0x7E
_INT64_MAX = 2**63 - 1

CLOCK_NS_MIN = 1_000_000
"""A younger guest's tick rate can't be told from its clock (1 ms: the two are read up to 1 us apart)."""

# The whole frame: type, section id, name, instance 0, version 2, the fields, footer with the same section id.
# A look-ahead, so that what only looks like a frame can't hide the one it overlaps.
_TIMER_SECTION = re.compile(
    rb"(?=\x04(?P<id>.{4})\x05timer\x00{4}\x00{3}\x02(?P<ticks>.{8}).{8}(?P<clock>.{8})\x7e(?P=id))",
    re.DOTALL,
)
_FOOTER_BYTES = 5


@dataclass(frozen=True)
class GuestClock:
    """How long the guest has run since its VM first started: host ticks (what its TSC counts under TCG), and
    nanoseconds.
    """

    ticks: int
    clock_ns: int


def with_configuration(stream: bytes, machine: str) -> bytes:
    """`stream` as `xen-save-devices-state` wrote it, with the configuration section that loading demands.

    `machine` is the resolved machine type (`pc-q35-7.2`, not the alias `q35`); the loading QEMU compares it
    with its own. ValueError: not such a stream, it has a configuration already, or no such name.
    """
    _require_header(stream)
    if stream[len(_HEADER)] != _SECTION_FULL:
        raise ValueError("the device state does not begin with a device's section")
    if not machine or not machine.isascii() or not machine.isprintable():
        raise ValueError(f"{machine!r} is not a machine type")
    name = machine.encode()
    configuration = bytes([_CONFIGURATION]) + struct.pack(">I", len(name)) + name
    return _HEADER + configuration + stream[len(_HEADER) :]


def read_clock(stream: bytes) -> GuestClock:
    """The guest's clock at the moment the state was saved (VM stopped), with or without the configuration
    section.

    ValueError: no device state, not exactly one clock in it, or a clock that counts backwards.
    """
    section = _timer_section(stream)
    ticks, clock_ns = (int.from_bytes(section[field], "big", signed=True) for field in ("ticks", "clock"))
    if ticks < 0 or clock_ns < 0:
        raise ValueError(f"the guest's clock in the device state is negative ({ticks} ticks, {clock_ns} ns)")
    return GuestClock(ticks, clock_ns)


def advance_clock(stream: bytes, advance_ns: int) -> bytes:
    """`stream` with the guest's clock moved forward by `advance_ns`, ticks and nanoseconds together.

    The tick rate is the stream's own, ticks per nanosecond since the first start: both count only while the
    VM runs, and both travel with the state. ValueError as `read_clock`, for a negative advance, and for a
    clock too young to have a rate (`CLOCK_NS_MIN`).
    """
    clock = read_clock(stream)
    if advance_ns == 0:
        return stream
    if advance_ns < 0:
        raise ValueError(f"a guest's clock can't be moved back ({advance_ns} ns)")
    if clock.clock_ns < CLOCK_NS_MIN or clock.ticks == 0:
        raise ValueError(
            f"the guest has run too short to know its tick rate ({clock.ticks} ticks, {clock.clock_ns} ns)"
        )
    ticks = clock.ticks + clock.ticks * advance_ns // clock.clock_ns
    return _with_clock(stream, GuestClock(ticks, clock.clock_ns + advance_ns))


def _require_header(stream: bytes) -> None:
    if stream[: len(_HEADER)] != _HEADER or len(stream) == len(_HEADER):
        raise ValueError(f"not a QEMU device state: it begins with {stream[:8].hex() or 'nothing'}")


def _timer_section(stream: bytes) -> re.Match[bytes]:
    """The one section of the clock: whole frame right, and something that can end a section right before it."""
    _require_header(stream)
    found = [match for match in _TIMER_SECTION.finditer(stream) if _section_can_begin(stream, match.start())]
    if len(found) != 1:
        raise ValueError(f"the device state has {len(found)} clocks, not one")
    return found[0]


def _section_can_begin(stream: bytes, at: int) -> bool:
    """Whether a header, a configuration or another section's footer ends at offset `at`."""
    if at == len(_HEADER) or at == _end_of_configuration(stream):
        return True
    return at >= len(_HEADER) + _FOOTER_BYTES and stream[at - _FOOTER_BYTES] == _SECTION_FOOTER


def _end_of_configuration(stream: bytes) -> int | None:
    start = len(_HEADER)
    if stream[start] != _CONFIGURATION or len(stream) < start + 5:
        return None
    (length,) = struct.unpack_from(">I", stream, start + 1)
    return start + 5 + int(length)


def _with_clock(stream: bytes, clock: GuestClock) -> bytes:
    if max(clock.ticks, clock.clock_ns) > _INT64_MAX:
        raise ValueError("the guest's clock would run over its 64 bits")
    section = _timer_section(stream)
    changed = bytearray(stream)
    struct.pack_into(">q", changed, section.start("ticks"), clock.ticks)
    struct.pack_into(">q", changed, section.start("clock"), clock.clock_ns)
    return bytes(changed)
