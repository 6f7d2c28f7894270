"""QEMU's device state as bytes: the section that `xen-save-devices-state` leaves out, and the guest's clocks
in it.

A stream is `QEVM`, a version, then sections without a length field, so it can't be walked without knowing
every device. What is searched for is therefore recognised by its whole frame, header and footer, and must be
there exactly once. Guaranteed: a stream that doesn't look as it must raises ValueError; nothing else in a
stream is ever changed. Sources: QEMU migration/savevm.c (framing), softmmu/cpu-timers.c, later
system/cpu-timers.c (`vmstate_timers`), hw/i386/kvm/clock.c (`kvmclock_vmsd`), target/i386/machine.c
(`vmstate_x86_cpu`).
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

# Whole frames: type, section id, name, instance, version, the fields, footer with the same section id.
_TIMER = b"\x05timer"
_TIMER_SECTION = re.compile(
    rb"\x04(?P<id>.{4})\x05timer\x00{4}\x00{3}\x02(?P<ticks>.{8}).{8}(?P<clock>.{8})\x7e(?P=id)", re.DOTALL
)
# On machine types from 2.9 on with a subsection of one byte.
_KVMCLOCK = b"\x08kvmclock"
_KVMCLOCK_SECTION = re.compile(
    rb"\x04(?P<id>.{4})\x08kvmclock\x00{4}\x00{3}\x01(?P<clock>.{8})"
    rb"(?:\x05\x1akvmclock/clock_is_reliable\x00{3}\x01.)?\x7e(?P=id)",
    re.DOTALL,
)
# One for each processor: 1157 bytes of registers, the TSC, 652 bytes, and subsections that depend on the processor.
_CPU = b"\x03cpu"
_CPU_SECTION = re.compile(
    rb"\x04(?P<id>.{4})\x03cpu(?P<instance>.{4})\x00{3}\x0c.{1157}(?P<tsc>.{8}).{652}(?:\x7e(?P=id)|\x05.cpu/)",
    re.DOTALL,
)
_NAME_AT = 5
_FOOTER_BYTES = 5


@dataclass(frozen=True)
class GuestClock:
    """How long the guest has run since its VM first started: host ticks (what its TSC counts under TCG), and
    nanoseconds.
    """

    ticks: int
    clock_ns: int


@dataclass(frozen=True)
class KvmClocks:
    """What a guest under KVM reads: kvmclock in nanoseconds, None when its VM has none, and each processor's TSC.

    Under TCG the TSCs are 0, whatever the guest reads: there it is `GuestClock` that counts.
    """

    kvmclock_ns: int | None
    tscs: tuple[int, ...]


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


def read_kvm_clocks(stream: bytes) -> KvmClocks:
    """The clocks that KVM keeps for the guest, as of when the VM was stopped.

    ValueError: no device state, more than one kvmclock in it, or processors that are not 0, 1, 2, ...
    """
    kvmclock = _kvmclock_section(stream)
    clock_ns = None if kvmclock is None else int.from_bytes(kvmclock["clock"], "big")
    return KvmClocks(clock_ns, tuple(int.from_bytes(cpu["tsc"], "big") for cpu in _cpu_sections(stream)))


def advance_clock(stream: bytes, advance_ns: int) -> bytes:
    """`stream` with all the guest's clocks moved forward by `advance_ns`, ticks and nanoseconds together; under KVM
    also kvmclock and the TSCs.

    The tick rate is the stream's own, ticks per nanosecond since the first start: both count only while the
    VM runs, and both travel with the state. ValueError as `read_clock` and `read_kvm_clocks`, for a negative
    advance, and for a clock too young to have a rate (`CLOCK_NS_MIN`).
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
    ticks = clock.ticks * advance_ns // clock.clock_ns
    if max(clock.ticks + ticks, clock.clock_ns + advance_ns) > _INT64_MAX:
        raise ValueError("the guest's clock would run over its 64 bits")
    changed = bytearray(stream)
    timer, kvmclock = _timer_section(stream), _kvmclock_section(stream)
    _add(changed, timer.span("ticks"), ticks)
    _add(changed, timer.span("clock"), advance_ns)
    if kvmclock is not None:
        _add(changed, kvmclock.span("clock"), advance_ns)
    for cpu in _cpu_sections(stream):
        if any(cpu["tsc"]):
            _add(changed, cpu.span("tsc"), ticks)
    return bytes(changed)


def _require_header(stream: bytes) -> None:
    if stream[: len(_HEADER)] != _HEADER or len(stream) == len(_HEADER):
        raise ValueError(f"not a QEMU device state: it begins with {stream[:8].hex() or 'nothing'}")


def _timer_section(stream: bytes) -> re.Match[bytes]:
    """The one section of the clock: whole frame right, and something that can end a section right before it."""
    found = _sections(_TIMER, _TIMER_SECTION, stream)
    if len(found) != 1:
        raise ValueError(f"the device state has {len(found)} clocks, not one")
    return found[0]


def _kvmclock_section(stream: bytes) -> re.Match[bytes] | None:
    found = _sections(_KVMCLOCK, _KVMCLOCK_SECTION, stream)
    if len(found) > 1:
        raise ValueError(f"the device state has {len(found)} sections of kvmclock, not one")
    return found[0] if found else None


def _cpu_sections(stream: bytes) -> list[re.Match[bytes]]:
    """In the order of the processors."""
    found = sorted(_sections(_CPU, _CPU_SECTION, stream), key=lambda section: section["instance"])
    numbers = [int.from_bytes(section["instance"], "big") for section in found]
    if numbers != list(range(len(found))):
        raise ValueError(f"the device state has the processors {numbers}")
    return found


def _sections(name: bytes, frame: re.Pattern[bytes], stream: bytes) -> list[re.Match[bytes]]:
    """Those that are framed so and begin where a section can begin.

    Each place with the name counts, so that what only looks like a frame can't hide the one it overlaps.
    """
    _require_header(stream)
    found = []
    at = stream.find(name)
    while at >= 0:
        section = frame.match(stream, max(0, at - _NAME_AT))
        if section is not None and _section_can_begin(stream, section.start()):
            found.append(section)
        at = stream.find(name, at + 1)
    return found


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


def _add(stream: bytearray, place: tuple[int, int], amount: int) -> None:
    """Add to the 64-bit number at `place`; it wraps, as a TSC does."""
    start, end = place
    stream[start:end] = ((int.from_bytes(stream[start:end], "big") + amount) % 2**64).to_bytes(8, "big")
